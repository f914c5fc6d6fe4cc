"""The files that predict fast: gray pixels in, probabilities out, for a runtime that needs no torch.

Beside `onnx/model.onnx`, which takes what transformers.js gives it, these take the gray B-scan as bytes: a third of the
first layer, no normalisation outside, and nothing left to do after them. A file whose answers aren't torch's is not
written.
"""

from pathlib import Path

import numpy as np
import torch

from oct_hf.data import phantom
from oct_hf.errors import ModelError
from oct_hf.images import Preprocessing
from oct_hf.inference.export import ONNX_TOLERANCE, export_onnx
from oct_hf.inference.gray import GrayNetwork
from oct_hf.inference.on_torch import probabilities_of

INPUT, OUTPUT = "gray", "probabilities"


def write_gray_onnx(model, preprocessing: Preprocessing, path: Path) -> None:
    """Writes a model as ONNX that takes gray pixels, weights inside, and compares its answers with torch's.

    Args:
        model: an `OCTForImageClassification` on the CPU, in float32.
        preprocessing: of its input.
        path: the file. Its input `gray` is uint8 `(batch, height, width)`, already of the model's size; its output
            `probabilities` float32 `(batch, labels)`.

    Raises:
        ModelError: torch can't export this network, or ONNX Runtime's probabilities are more than 1e-5 from torch's;
            there is no file then.
    """
    example = torch.zeros(2, preprocessing.height, preprocessing.width, dtype=torch.uint8)
    try:
        export_onnx(GrayNetwork.of(model, preprocessing), example, INPUT, OUTPUT, path, model.config.architecture)
        _compare(model, preprocessing, path, "ONNX Runtime")
    except ModelError:
        path.unlink(missing_ok=True)
        raise


def gray_probabilities(path: Path, grays: np.ndarray) -> np.ndarray:
    """float32 `(n, labels)` of gray pixels, uint8 `(n, height, width)`, from a fast file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: grays})[0]


def _compare(model, preprocessing: Preprocessing, path: Path, runtime: str) -> None:
    grays = probe(preprocessing)
    off = float(np.abs(gray_probabilities(path, grays) - torch_probabilities(model, preprocessing, grays)).max())
    if not off <= ONNX_TOLERANCE:
        raise ModelError(f"{model.config.architecture}: {runtime}'s probabilities are {off:.1e} from torch's")


@torch.inference_mode()
def torch_probabilities(model, preprocessing: Preprocessing, grays: np.ndarray) -> np.ndarray:
    """float32 `(n, labels)` of gray pixels, uint8 `(n, height, width)`, as `Predictor` computes them."""
    pixels = torch.from_numpy(np.stack([preprocessing.normalise(gray) for gray in grays]))
    return probabilities_of(model.eval()(pixel_values=pixels).logits, model.config.several).numpy()


def probe(preprocessing: Preprocessing) -> np.ndarray:
    """uint8 `(n, height, width)`, what a file is compared on: a phantom of each label, and noise of all gray values."""
    drawn = [phantom.draw(label, seed=2**31, height=248, width=256).image for label in phantom.LABELS]
    noise = np.random.default_rng(0).integers(0, 256, (preprocessing.height, preprocessing.width), dtype=np.uint8)
    return np.stack([*map(preprocessing.resize, drawn), noise])
