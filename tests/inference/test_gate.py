import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from oct_hf import Predictor, read_image
from oct_hf.data import quality
from oct_hf.errors import ModelError
from oct_hf.evaluation.abstention import fit_conformal, fit_likeness
from oct_hf.evaluation.predictions import Predictions
from oct_hf.inference.gate import NOT_OCT, Gate

LABELS = ("AMD", "CNV", "DME")
HALF = {"level": 0.9, "score": "lac", "threshold": 0.7}  # a label is in from a probability of 0.3


def gate(**given) -> Gate:
    return Gate(LABELS, **{"conformal": HALF, "likeness": 0.1, "version": quality.version(), **given})


def test_the_three_answers_and_their_words():
    assert str(gate().decide([0.9, 0.06, 0.04], 0.99)) == "AMD"
    unsure = gate().decide([0.1, 0.4, 0.5], 0.99)
    assert str(unsure) == "unsure: DME or CNV" and unsure.labels == ("DME", "CNV") and unsure.unsure
    assert str(gate().decide([0.32, 0.33, 0.35], 0.99)) == "unsure: DME, CNV or AMD"
    refused = gate().decide([0.9, 0.06, 0.04], 0.09)
    assert str(refused) == NOT_OCT == "not an OCT B-scan" and refused.refused and refused.labels == ()
    assert str(gate().decide([0.9, 0.06, 0.04], 0.1)) == "AMD"


def test_no_answer_is_empty_and_what_is_not_asked_is_not_refused():
    strict = gate(conformal=HALF | {"threshold": 0.05})
    assert str(strict.decide([0.1, 0.4, 0.5], 0.99)) == "DME"
    assert str(gate(conformal=None).decide([0.1, 0.4, 0.5], 0.99)) == "DME"
    assert str(gate().decide([0.9, 0.06, 0.04])) == "AMD"
    assert str(gate(likeness=None).decide([0.9, 0.06, 0.04], 0.0)) == "AMD"
    assert gate(likeness=None).look(np.zeros((64, 64), np.uint8)) is None


def test_it_comes_back_from_json_and_is_checked():
    for conformal in (HALF, HALF | {"threshold": None}, HALF | {"threshold": {"AMD": 0.5, "CNV": None, "DME": 0.2}}):
        given = gate(conformal=conformal)
        again = Gate.from_dict(json.loads(json.dumps(given.to_dict(), allow_nan=False)), LABELS)
        assert again == given and again.decide([0.2, 0.3, 0.5], 0.5) == given.decide([0.2, 0.3, 0.5], 0.5)
    plain = gate().to_dict()
    with pytest.raises(ModelError, match="is of AMD, CNV, DME, the model of DME, NORMAL"):
        Gate.from_dict(plain, ("DME", "NORMAL"))
    for wrong in (
        {},
        [],
        plain | {"likeness": "much"},
        plain | {"likeness": 3.0},
        plain | {"conformal": HALF | {"score": "best"}},
        plain | {"conformal": HALF | {"threshold": "low"}},
        plain | {"conformal": HALF | {"threshold": {"CNV": 0.5, "AMD": 0.5, "DME": 0.2}}},
        plain | {"labels": []},
    ):
        with pytest.raises(ModelError, match="can't be read"):
            Gate.from_dict(wrong, LABELS)


def test_a_threshold_for_other_numbers_gives_way_to_the_packages_own():
    found = Gate.from_dict(gate(version="older", likeness=1e-9).to_dict(), LABELS)
    assert found.likeness == quality.threshold() and found.version == quality.version()


def test_the_threshold_goes_down_for_a_site_and_never_up():
    patients = np.repeat([f"P{i}" for i in range(20)], 5)
    sure = np.linspace(0.9, 1, 100)
    assert fit_likeness(sure, patients) == quality.threshold()
    low = sure.copy()
    low[:5] = 0.01  # all B-scans of one patient: 5 % may not be refused
    assert fit_likeness(low, patients) == 0.01
    low[:5] = [0.01, 0.02, 0.9, 0.9, 0.9]  # a B-scan is 1 % here
    assert fit_likeness(low, patients) == 0.02
    many = np.r_[np.full(99, 0.01), 0.99]  # of one patient, among 99 others with one B-scan each
    assert fit_likeness(np.r_[many, np.ones(99)], ["A"] * 100 + [f"B{i}" for i in range(99)]) == quality.threshold()


def fitted(labels) -> Gate:
    rng = np.random.default_rng(0)
    true, k = rng.integers(0, len(labels), 60), len(labels)
    values = rng.dirichlet(np.ones(k), 60).astype(np.float32)
    text = [[f"{i}" for i in range(60)], [f"P{i}" for i in range(60)], [labels[i] for i in true], ["validation"] * 60]
    rows = Predictions(tuple(labels), *(np.array(column, dtype=object) for column in text), values)
    return Gate(tuple(labels), fit_conformal(rows), quality.threshold(), quality.version())


def test_a_predictor_refuses_a_photograph_and_says_what_is_left_of_bscans(finished_run, real_files):
    from sklearn.datasets import load_sample_image

    model = finished_run / "model"
    plain = list(Predictor(model).predict(real_files))
    assert all(answer.decision is None for answer in plain)
    rule = fitted(Predictor(model).labels)
    predictor = Predictor(model, gate=rule, batch_size=4)
    answers = list(predictor.predict([*real_files, load_sample_image("china.jpg"), real_files[0]]))
    assert str(answers[-2].decision) == NOT_OCT and answers[-2].predicted is None and answers[-2].error is None
    for answer, before, file in zip(answers, plain, real_files, strict=False):
        assert answer.probabilities == before.probabilities and answer.predicted == before.predicted
        assert answer.decision == rule.decide(list(before.probabilities.values()), rule.look(read_image(file)))
        assert answer.decision.labels[0] == answer.predicted
    assert any(answer.decision.unsure for answer in answers)


def test_an_unreadable_file_has_no_decision(finished_run):
    predictor = Predictor(finished_run / "model", gate=fitted(Predictor(finished_run / "model").labels))
    assert next(predictor.predict([b"no image"])).decision is None


def test_onnx_runtime_decides_alike(finished_run, real_files, tmp_path):
    pytest.importorskip("onnxruntime")
    photograph = io.BytesIO()
    y, x = np.mgrid[:300, :300]
    Image.fromarray((y % 50 * x % 255).astype(np.uint8)).save(photograph, "PNG")
    given = [*real_files, photograph.getvalue()]
    rule = fitted(Predictor(finished_run / "model").labels)
    torch = [
        str(answer.decision) for answer in Predictor(finished_run / "model", gate=rule, backend="torch").predict(given)
    ]
    onnx = [
        str(answer.decision) for answer in Predictor(finished_run / "model", gate=rule, backend="onnx").predict(given)
    ]
    assert onnx == torch and torch[-1] == NOT_OCT and torch[0] != NOT_OCT


def test_applying_it_needs_no_scikit_learn():
    code = "import sys, oct_hf.inference.gate; print('sklearn' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
