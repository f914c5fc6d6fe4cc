"""Numbers that don't drift: 30 phantoms, answered on every backend by a network that follows from its weights' names
(golden.py), against answers that are committed. Where a change is meant to move them: `python tests/golden.py`.

The web page isn't asked here: tests/hub/test_page.py holds its pixels and answers to those of the package.
"""

import json
from importlib.util import find_spec

import golden
import numpy as np
import pytest

from oct_hf.inference.backends import BACKENDS
from oct_hf.inference.on_openvino import has_bfloat16

PROMISE = pytest.mark.promise("The same model gives the same B-scans the same probabilities from version to version.")
GOLDEN = json.loads(golden.FILE.read_text(encoding="utf-8"))
# Of a probability, how far at most and on average. int8 of random weights is coarse; of a trained network
# `oct-hf export` measures what it costs, and refuses it.
TOLERANCES = {
    "torch": (1e-5, 1e-6),
    "onnx": (2e-5, 2e-6),
    "openvino": (2e-5, 2e-6),
    "openvino-bf16": (0.06, 0.01),
    "onnx-int8": (0.6, 0.08),
    "openvino-int8": (0.6, 0.08),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    intel = find_spec("openvino") and find_spec("nncf")
    return golden.write_model(tmp_path_factory.mktemp("golden"), GOLDEN["bias"], bool(intel))


def test_the_phantoms_are_drawn_as_they_were():
    """Told apart, so that whoever changes phantoms isn't sent to look for a fault in a backend."""
    assert golden.brightness() == pytest.approx(GOLDEN["brightness"], abs=0.01)


def test_the_weights_follow_from_their_names_alone():
    expected = [0.6531347392289459, 0.4569710721231377, 0.6825720931251464, 0.03378110187246919]
    assert golden.uniform("classifier.weight", (2, 3)).ravel()[:4].tolist() == expected  # to the last bit


@PROMISE
@pytest.mark.parametrize("backend", TOLERANCES)
def test_every_backend_answers_as_it_did(model, backend, cases):
    needed = "nncf" if backend.endswith("int8") else BACKENDS[backend].package
    if find_spec(needed) is None:
        pytest.skip(f"{needed} isn't installed")
    if backend == "openvino-bf16" and not has_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    expected, found = np.array(GOLDEN["probabilities"]), golden.answers(model, backend)
    cases.tried += len(found)
    away = np.abs(found - expected)
    assert found.shape == (30, 4) and expected.max(1).mean() > 0.5  # answers that say something
    most, mean = TOLERANCES[backend]
    assert away.max() <= most and away.mean() <= mean, (away.max(), away.mean())
