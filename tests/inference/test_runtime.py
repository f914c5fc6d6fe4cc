"""A repository on ONNX Runtime: torch's answers, and what is said where it can't be had."""

import shutil

import numpy as np
import pytest

from oct_hf.errors import ModelError, OCTError
from oct_hf.inference.on_openvino import has_bfloat16
from oct_hf.inference.runtime import serving_predictor


def test_onnx_runtime_answers_as_torch_to_1e_5(finished_run, predictor, real_files, tmp_path):
    pytest.importorskip("onnxruntime")
    fast = serving_predictor(finished_run / "model", "auto")
    assert fast.network.backend == "onnx" and fast.labels == predictor.labels
    for one, other in zip(fast.predict(real_files), predictor.predict(real_files), strict=True):
        assert max(abs(one.probabilities[k] - p) for k, p in other.probabilities.items()) <= 1e-5
    with pytest.raises(OCTError, match=r'no runtime onxx \(did you mean "onnx"'):
        serving_predictor(finished_run / "model", "onxx")
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((finished_run / "model" / file).read_bytes())
    with pytest.raises(ModelError, match=r"no onnx/model\.onnx in it"):
        serving_predictor(tmp_path, "onnx")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").write_bytes(b"broken")
    with pytest.raises(ModelError, match="can't be loaded"):
        serving_predictor(tmp_path, "onnx")


def test_openvino_serves_logits_and_bfloat16_where_it_is_asked_for(fast_model, predictor, real_files, tmp_path):
    pytest.importorskip("openvino")
    exact = serving_predictor(fast_model, "openvino")
    pixels = [predictor.read(file) for file in real_files]
    assert np.abs(exact.logits(pixels) - predictor.logits(pixels)).max() <= 1e-4
    if has_bfloat16():
        half = serving_predictor(fast_model, "openvino-bf16")
        off = np.abs(half.probabilities(pixels) - predictor.probabilities(pixels)).max()
        assert 1e-6 < off <= 0.02
    alone = shutil.copytree(fast_model, tmp_path / "alone")
    (alone / "onnx/model.onnx").unlink()
    with pytest.raises(ModelError, match=r"no onnx/model\.onnx in it"):
        serving_predictor(alone, "openvino")
