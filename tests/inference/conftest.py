"""The predictor that the tests of serving compare with."""

import shutil
from importlib.util import find_spec
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
    """The model folder of the finished run with its fast files."""
    pytest.importorskip("onnxruntime")
    from oct_hf import Predictor
    from oct_hf.inference.export_gray import write_gray_openvino
    from oct_hf.inference.fast_files import GRAY_ONNX, GRAY_OPENVINO

    folder = tmp_path_factory.mktemp("fast") / "model"
    shutil.copytree(finished_run / "model", folder)
    if find_spec("openvino") and not (folder / GRAY_OPENVINO).exists():
        exact = Predictor(folder, device="cpu")
        write_gray_openvino(exact.model, exact.preprocessing, folder / GRAY_ONNX, folder / GRAY_OPENVINO)
    return folder
