"""One model on its backends: the same answers, nothing heavy imported, and what is said where one can't be had."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from oct_hf import Predictor, read_image
from oct_hf.errors import ModelError, OCTError
from oct_hf.images import to_gray
from oct_hf.inference import choice
from oct_hf.inference.backends import BACKENDS, open_network
from oct_hf.inference.description import load_description
from oct_hf.inference.on_openvino import has_bfloat16

HEAVY = ("torch", "timm", "transformers", "datasets", "pandas", "scipy", "sklearn", "albumentations", "cv2", "evaluate")
CHECK = f"bad = [m for m in {HEAVY!r} if m in sys.modules]; assert not bad, bad"


def values(answers) -> np.ndarray:
    return np.array([list(answer.probabilities.values()) for answer in answers])


def test_a_fresh_process_predicts_without_torch_or_transformers(fast_model, real_files, tmp_path):
    model, file = str(fast_model), str(real_files[0])
    api = f"import sys, oct_hf; one = next(oct_hf.Predictor({model!r}).predict([{file!r}])); print(one.probabilities)"
    said = subprocess.run([sys.executable, "-c", f"{api}; {CHECK}"], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    for more in ([], ["--out", str(tmp_path / "a.csv")]):
        line = ["oct-hf", "predict", file, "--model", model, *more]
        cli = f"import sys; sys.argv = {line!r}\nfrom oct_hf.cli import main\nmain()\n{CHECK}"
        done = subprocess.run([sys.executable, "-c", cli], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    expected = next(Predictor(fast_model, backend="torch").predict([file])).probabilities
    assert eval(said.stdout) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_gray_files_give_torchs_answers(fast_model, real_files, backend):
    pytest.importorskip(BACKENDS[backend].package)
    exact, fast = (Predictor(fast_model, backend=name, batch_size=4) for name in ("torch", backend))
    assert fast.network.backend == backend and fast.network.weights.stem == "gray"
    assert np.abs(values(fast.predict(real_files)) - values(exact.predict(real_files))).max() <= 1e-5
    with pytest.raises(ModelError, match=f"runs on {backend}; give backend='torch'"):
        fast.model  # noqa: B018


def test_bfloat16_is_another_arithmetic_or_refused_where_the_cpu_has_none(fast_model, real_files):
    pytest.importorskip("openvino")
    if has_bfloat16():
        exact, half = (Predictor(fast_model, backend=name) for name in ("openvino", "openvino-bf16"))
        off = np.abs(values(half.predict(real_files)) - values(exact.predict(real_files))).max()
        assert 1e-6 < off <= 0.02
    else:
        with pytest.raises(OCTError, match="this CPU has no bfloat16"):
            Predictor(fast_model, backend="openvino-bf16")


def test_signals_are_heard_after_networks_on_openvino_went(fast_model, tmp_path):
    pytest.importorskip("nncf")
    script = f"""
import os, signal
import numpy as np
from pathlib import Path
from oct_hf import Predictor
from oct_hf.inference.quantise import quantise
signal.signal(signal.SIGINT, lambda *_: print("heard"))
first, second = (Predictor({str(fast_model)!r}, backend="openvino") for _ in range(2))
del first, second
os.kill(os.getpid(), signal.SIGINT)
grays = np.zeros((2, 64, 64), np.uint8)
quantise(Path({str(fast_model / "onnx/gray.onnx")!r}), Path({str(tmp_path / "int8.xml")!r}), grays)
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines().count("heard") == 2, done.stderr


def test_the_models_pixels_are_the_image_processors_to_the_last_bit(fast_model, real_files, tmp_path):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(fast_model, backend="pil")
    predictor = Predictor(fast_model)
    colour = np.stack([read_image(real_files[0])] * 3, -1)
    colour[20:60, 30:90] = (255, 220, 0)  # what an overlay draws
    Image.fromarray(colour).save(tmp_path / "overlay.png")
    for file in (*real_files, tmp_path / "overlay.png"):
        expected = processor(Image.open(file).convert("RGB"), return_tensors="np")["pixel_values"][0]
        image = predictor._read(file).ready
        assert np.array_equal(predictor.preprocessing.normalise(image), expected)
        assert (image.ndim == 2) == (file.suffix == ".jpeg")  # gray stays one channel


def test_true_colour_goes_through_three_channels_on_every_backend(fast_model, real_files, tmp_path):
    colour = np.stack([read_image(real_files[0])] * 3, -1)
    colour[20:200, 30:290] = (255, 220, 0)
    given = [real_files[0], colour, real_files[1], colour.copy()]
    expected = values(Predictor(fast_model, backend="torch").predict(given))
    luma = values(Predictor(fast_model, backend="torch").predict([to_gray(colour)]))
    assert np.abs(expected[1] - luma[0]).max() > 5e-5  # or it would be the same made gray
    for name in ("onnx", "openvino"):
        if BACKENDS[name].installed:
            assert np.abs(values(Predictor(fast_model, backend=name).predict(given)) - expected).max() <= 1e-5
    shutil.copytree(fast_model, tmp_path / "model")
    (tmp_path / "model/onnx/model.onnx").unlink()
    alone = Predictor(tmp_path / "model", backend="onnx")
    assert np.abs(values(alone.predict(given)) - expected).max() <= 1e-5  # torch stands in


def test_a_repository_without_the_fast_files_runs_its_other_onnx_file(fast_model, real_files, tmp_path):
    older = tmp_path / "model"
    shutil.copytree(fast_model, older, ignore=shutil.ignore_patterns("gray.*"))
    exact, other = Predictor(older, backend="torch"), Predictor(older)
    assert other.network.backend == "onnx" and other.network.weights.name == "model.onnx"
    assert np.abs(values(other.predict(real_files)) - values(exact.predict(real_files))).max() <= 1e-5


def test_what_cannot_be_had_says_what_to_do(fast_model, monkeypatch):
    with pytest.raises(OCTError, match=r'no backend onxn \(did you mean "onnx"'):
        Predictor(fast_model, backend="onxn")
    with pytest.raises(OCTError, match=r"no onnx/gray_int8\.onnx in it.*oct-hf export MODEL --to onnx-int8 writes it"):
        Predictor(fast_model, backend="onnx-int8")
    with pytest.raises(OCTError, match="backend onnx runs files of a repository on the CPU"):
        Predictor(fast_model, backend="onnx", device="cpu")
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it isn't installed
    monkeypatch.setattr("oct_hf.inference.backends.find_spec", lambda name: None if name == "openvino" else True)
    with pytest.raises(OCTError, match=r'openvino isn\'t installed: pip install "oct-hf\[openvino\]"'):
        Predictor(fast_model, backend="openvino")
    (fast_model / "onnx/gray_int8.onnx").write_bytes(b"broken")
    try:
        with pytest.raises(ModelError, match=r"gray_int8\.onnx: can't be loaded"):
            Predictor(fast_model, backend="onnx-int8")
    finally:
        (fast_model / "onnx/gray_int8.onnx").unlink()


def test_the_fastest_backend_of_fp32s_answers_is_remembered(fast_model, monkeypatch, tmp_path):
    """Two openers stand for two backends: ONNX Runtime, and torch, which is slower on every machine without a GPU."""
    monkeypatch.setenv("OCT_HF_CACHE", str(tmp_path))
    described, opened = load_description(fast_model), []

    def opener(name):
        return lambda: opened.append(name) or open_network(described, name)

    openers = {name: opener(name) for name in ("onnx", "torch")}
    first = choice.fastest(openers, fast_model / "onnx/gray.onnx", described.preprocessing)
    assert opened == ["onnx", "torch"]
    (remembered,) = json.loads((tmp_path / "backends.json").read_text()).values()
    assert remembered == first.backend
    again = choice.fastest(openers, fast_model / "onnx/gray.onnx", described.preprocessing)
    assert again.backend == first.backend and opened == ["onnx", "torch", first.backend]
    # Another model's file is measured anew, and what answers otherwise than the first is never taken.
    other = open_network(described, "torch")
    other.probabilities = lambda gray: np.full((len(gray), len(described.labels)), 1 / len(described.labels))
    openers["torch"] = lambda: other
    found = choice.fastest(openers, fast_model / "config.json", described.preprocessing)
    assert found.backend == "onnx"
    (tmp_path / "backends.json").write_text("no JSON")
    choice.fastest(openers, fast_model / "config.json", described.preprocessing)
    assert set(json.loads((tmp_path / "backends.json").read_text()).values()) == {"onnx"}


def test_only_backends_of_fp32s_answers_are_taken_unasked():
    assert {name for name, backend in BACKENDS.items() if backend.exact} == {"onnx", "openvino", "torch"}
