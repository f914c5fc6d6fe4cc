"""A repository on ONNX Runtime: torch's answers, and what is said where it can't be had."""

import pytest

from oct_hf.errors import ModelError, OCTError
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
