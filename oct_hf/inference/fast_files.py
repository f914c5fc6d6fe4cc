"""The files that predict fast: gray pixels in, probabilities out, for a runtime that needs no torch.

Beside `onnx/model.onnx`, which takes what transformers.js gives it, these take the gray B-scan as bytes: a third of the
first layer, no normalisation outside, and nothing left to do after them. Imports no torch; who writes them does.
"""

import mmap
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from oct_hf.errors import ModelError, OCTError
from oct_hf.inference.intel import FixedBatches
from oct_hf.untrusted import xml_of

ONNX_FILE = "onnx/model.onnx"  # where transformers.js looks; it takes pixels of three channels and gives logits
INPUT, OUTPUT = "gray", "probabilities"  # uint8 (batch, height, width); float32 (batch, labels)
GRAY_ONNX, GRAY_OPENVINO = "onnx/gray.onnx", "openvino/gray.xml"
INT8_ONNX, INT8_OPENVINO = "onnx/gray_int8.onnx", "openvino/gray_int8.xml"
FAST_FILES = (GRAY_ONNX, GRAY_OPENVINO, INT8_ONNX, INT8_OPENVINO)
INT8 = (INT8_ONNX, INT8_OPENVINO)
# Of a cascade: its rule, its small network, and the held-out answers of both networks together.
CASCADE, SMALL_INT8, CASCADE_ANSWERS = "cascade/cascade.json", "cascade/small_int8.xml", "cascade/answers.parquet"

# Operators that repeat a part of a graph as often as a file says. No image classifier needs one, and a runtime that is
# caught in one can't be stopped.
REPEATING = {"Loop", "Scan", "TensorIterator"}
ENDLESS = "repeats a part of itself, maybe without end"
# An ONNX node's type as protobuf writes it: its field's number, its length, also where that takes more bytes than it
# needs, and the text.
_REPEATS = re.compile(b"\\x22(?:\\x04|\\x84\\x80*\\x00)(?:Loop|Scan)")


def files_of(name: str) -> tuple[str, ...]:
    """A fast file and what belongs to it: OpenVINO keeps the weights apart."""
    return (name, name.removesuffix(".xml") + ".bin") if name.endswith(".xml") else (name,)


def runtime_of(path: str | Path) -> str:
    """What runs a fast file, in words."""
    return "OpenVINO" if Path(path).suffix == ".xml" else "ONNX Runtime"


def runtime_is_here(path: str | Path) -> bool:
    """Whether what runs a fast file is installed."""
    return find_spec("openvino" if runtime_of(path) == "OpenVINO" else "onnxruntime") is not None


def check_ends(path: Path) -> None:
    """
    Raises:
        ModelError: the network may repeat a part of itself without end.
    """
    try:
        if runtime_of(path) == "OpenVINO":
            found = any(layer.get("type") in REPEATING for layer in xml_of(path.read_bytes()).iter("layer"))
        else:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = any(content.find(name) >= 0 for name in (b"Loop", b"Scan")) and _REPEATS.search(content)
    except (OSError, ValueError):
        return  # its runtime says what is wrong with it
    if found:
        raise ModelError(f"{path}: can't be loaded (it {ENDLESS})")


def load_fast(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A fast file, ready on the CPU in float32 (an int8 file in int8).

    Returns:
        a function from gray pixels, uint8 `(n, height, width)`, to probabilities, float32 `(n, labels)`.

    Raises:
        OCTError: its runtime isn't installed.
        ModelError: it may run without end.
    """
    check_ends(path)
    if runtime_of(path) == "OpenVINO":
        options = {"INFERENCE_PRECISION_HINT": "f32"}  # left to itself it takes bfloat16 where the processor can
        batches = FixedBatches(path, (16, 1), options)
        return lambda grays: np.concatenate([run(grays[rows])[OUTPUT] for run, rows in batches.parts(len(grays))])
    if not runtime_is_here(path):
        raise OCTError('ONNX Runtime is missing: pip install "oct-hf[onnx]"')
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda grays: session.run([OUTPUT], {INPUT: grays})[0]


def fast_probabilities(path: Path, grays: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """float32 `(n, labels)` of gray pixels, uint8 `(n, height, width)`, from a fast file on the CPU."""
    run = load_fast(path)
    return np.concatenate([run(grays[start : start + batch_size]) for start in range(0, len(grays), batch_size)])
