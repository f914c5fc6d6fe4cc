"""The same network for ONNX Runtime and transformers.js: one self-contained file in the published repository.

The graph takes what the torch model takes (`pixel_values`) and gives `logits`, because transformers.js applies its own
normalisation and softmax, and signs want a sigmoid instead. What the exporter notes about this machine, such as stack
traces with its paths, is removed.
"""

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from oct_hf.errors import ModelError
from oct_hf.inference.on_torch import probabilities_of

ONNX_TOLERANCE = 1e-5  # between its probabilities and torch's, of the same pixels


def can_export() -> bool:
    """Whether the extra `onnx` is installed."""
    return all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def write_onnx(model, path: Path) -> None:
    """Writes a model as ONNX, weights inside.

    Args:
        model: an `OCTForImageClassification` on the CPU, in float32.
        path: the file. Its input `pixel_values` is float32 `(batch, 3, height, width)`, normalised; its output
            `logits` float32 `(batch, labels)`.

    Raises:
        ModelError: torch can't export this network, or ONNX Runtime answers otherwise than torch.
    """
    import onnx

    height, width = model.config.pretrained_cfg["input_size"][1:]
    example = torch.zeros(2, 3, height, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _quiet():
            program = torch.onnx.export(
                _Logits(model).eval(),
                (example,),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # a network of timm's thousand may hold an operation that the exporter lacks
        raise ModelError(f"{model.config.architecture} can't be exported as ONNX ({first_line(error)})") from None
    assert program is not None  # as dynamo=True has it
    proto = program.model_proto
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    onnx.save_model(proto, path)
    _compare(model, path, height, width)


def onnx_probabilities(path: Path, pixels: np.ndarray, several: bool = False) -> np.ndarray:
    """float32 `(n, labels)` of normalised pixels, float32 `(n, 3, height, width)`, from ONNX Runtime on the CPU.

    Args:
        path: the ONNX file.
        pixels: for the network.
        several: a picture may have several labels, each with a sigmoid of its own.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"pixel_values": pixels})[0]
    return probabilities_of(torch.from_numpy(logits), several).numpy()


def first_line(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _compare(model, path: Path, height: int, width: int) -> None:
    pixels = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = probabilities_of(model(pixel_values=pixels).logits, model.config.several).numpy()
    off = float(np.abs(onnx_probabilities(path, pixels.numpy(), model.config.several) - expected).max())
    if not off <= ONNX_TOLERANCE:
        raise ModelError(f"{model.config.architecture}: ONNX Runtime's probabilities are {off:.1e} from torch's")


class _Logits(torch.nn.Module):
    """The model with a tensor as its answer."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


@contextlib.contextmanager
def _quiet():
    """The exporter prints its progress and advice that no user of this package can act on."""
    level = logging.getLogger("onnxscript").level
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("onnxscript").setLevel(level)
