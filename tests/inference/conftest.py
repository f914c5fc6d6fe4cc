"""The predictor that the tests of serving compare with."""

import shutil
from pathlib import Path

import pytest

pytest.register_assert_rewrite("asking")


@pytest.fixture(scope="module")
def predictor(finished_run):
    """Of the finished run, on torch."""
    from oct_hf import Predictor

    return Predictor(finished_run / "model", batch_size=8, backend="torch")


@pytest.fixture(scope="session")
def fast_model(finished_run, tmp_path_factory) -> Path:
    """The model folder of the finished run with its fast ONNX file."""
    pytest.importorskip("onnxruntime")
    from oct_hf import Predictor
    from oct_hf.inference.fast_files import write_gray_onnx
    from oct_hf.inference.published import GRAY_ONNX

    folder = tmp_path_factory.mktemp("fast") / "model"
    shutil.copytree(finished_run / "model", folder)
    if not (folder / GRAY_ONNX).exists():
        exact = Predictor(folder, device="cpu")
        write_gray_onnx(exact.model, exact.preprocessing, folder / GRAY_ONNX)
    return folder
