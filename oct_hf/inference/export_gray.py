"""Writes the fast files in float32, and compares each with torch: one whose answers aren't torch's is not written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from oct_hf.data import phantom
from oct_hf.errors import ModelError
from oct_hf.images import Preprocessing
from oct_hf.inference.export import ONNX_TOLERANCE, first_line, write_onnx
from oct_hf.inference.fast_files import fast_probabilities, files_of, runtime_of
from oct_hf.inference.intel import load_openvino
from oct_hf.inference.on_torch import probabilities_of


def write_gray_onnx(model, preprocessing: Preprocessing, path: Path, source: Path | None = None) -> None:
    """Writes a model as ONNX that takes gray pixels, weights inside, and compares its answers with torch's.

    Args:
        model: an `OCTForImageClassification` on the CPU, in float32.
        preprocessing: of its input.
        path: the file. Its input `gray` is uint8 `(batch, height, width)`, already of the model's size; its output
            `probabilities` float32 `(batch, labels)`.
        source: what `write_onnx` wrote of this model, which saves most of the time.

    Raises:
        ModelError: torch can't export this network, or ONNX Runtime's probabilities are more than 1e-5 from torch's;
            there is no file then.
    """
    import onnx

    from oct_hf.inference.gray_graph import from_gray

    if source is None:
        with TemporaryDirectory() as scratch:
            write_onnx(model, Path(scratch) / "model.onnx")
            write_gray_onnx(model, preprocessing, path, Path(scratch) / "model.onnx")
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _none_that_fails(path):
        onnx.save_model(from_gray(onnx.load(source), preprocessing, model.config.several), path)
        _compare(model, preprocessing, path)


def write_gray_openvino(model, preprocessing: Preprocessing, source: Path, path: Path) -> None:
    """Writes what `write_gray_onnx` wrote for OpenVINO, in float32, and compares its answers with torch's.

    Args:
        model, preprocessing: as there.
        source: the ONNX file.
        path: the .xml file; its weights lie beside it as .bin.

    Raises:
        OCTError: OpenVINO isn't installed.
        ModelError: it can't read this network, or its probabilities are more than 1e-5 from torch's; there is no file
            then.
    """
    openvino = load_openvino()
    with _none_that_fails(path):
        try:
            network = openvino.convert_model(source)
        except Exception as error:  # its errors have no common base of their own
            raise ModelError(f"{model.config.architecture} can't be read by OpenVINO ({first_line(error)})") from None
        save_openvino(network, path)
        _compare(model, preprocessing, path)


def save_openvino(network, path: Path) -> None:
    """Writes OpenVINO's model as `path` (.xml) with its weights as they are; nothing tells how it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for key in ("conversion_parameters", "nncf"):
        if network.has_rt_info([key]):
            network.set_rt_info({}, [key])
    load_openvino().save_model(network, path, compress_to_fp16=False)


@contextmanager
def _none_that_fails(path: Path) -> Iterator[None]:
    try:
        yield
    except ModelError:
        for name in files_of(str(path)):
            Path(name).unlink(missing_ok=True)
        raise


def _compare(model, preprocessing: Preprocessing, path: Path) -> None:
    grays = probe(preprocessing)
    off = float(np.abs(fast_probabilities(path, grays) - torch_probabilities(model, preprocessing, grays)).max())
    if not off <= ONNX_TOLERANCE:
        raise ModelError(f"{model.config.architecture}: {runtime_of(path)}'s probabilities are {off:.1e} from torch's")


@torch.inference_mode()
def torch_probabilities(model, preprocessing: Preprocessing, grays: np.ndarray) -> np.ndarray:
    """float32 `(n, labels)` of gray pixels, uint8 `(n, height, width)`, as `Predictor` computes them."""
    pixels = torch.from_numpy(np.stack([preprocessing.normalise(gray) for gray in grays]))
    return probabilities_of(model.eval()(pixel_values=pixels).logits, model.config.several).numpy()


def probe(preprocessing: Preprocessing) -> np.ndarray:
    """uint8 `(n, height, width)`, what a file is compared on: a phantom of each label, and last noise of all grays."""
    drawn = [phantom.draw(label, seed=2**31, height=248, width=256).image for label in phantom.LABELS]
    noise = np.random.default_rng(0).integers(0, 256, (preprocessing.height, preprocessing.width), dtype=np.uint8)
    return np.stack([*map(preprocessing.resize, drawn), noise])
