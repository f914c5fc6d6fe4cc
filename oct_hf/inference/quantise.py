"""int8 by post-training quantisation: what a fast file computes in bytes instead of floats.

NNCF for both runtimes, preset `mixed`: weights symmetric and per channel, activations asymmetric, which SiLU and the
gates of squeeze-and-excitation need, and biases corrected for what rounding moves (Nagel et al., "Data-free
quantization through weight equalization and bias correction", ICCV 2019). What it costs is measured elsewhere.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oct_hf.errors import ModelError
from oct_hf.inference.export import first_line
from oct_hf.inference.export_gray import save_openvino
from oct_hf.inference.fast_files import INPUT, runtime_of
from oct_hf.inference.intel import load_nncf, load_openvino

CALIBRATION_IMAGES = 300  # what NNCF takes by itself


def quantise(source: Path, path: Path, grays: np.ndarray) -> None:
    """Writes a fast file in int8.

    Args:
        source: `onnx/gray.onnx`.
        path: an .xml file for OpenVINO, or an .onnx file.
        grays: uint8 `(n, height, width)`, B-scans of the training side: they say how large activations get.

    Raises:
        OCTError: NNCF isn't installed.
        ModelError: it can't quantise this network.
    """
    nncf = load_nncf()
    images = [grays[number : number + 1] for number in range(len(grays))]
    # Half the range of weights: with all of it, sums of 8-bit products overflow on processors without VNNI.
    safe = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    how = {"preset": nncf.QuantizationPreset.MIXED, "subset_size": len(images), "advanced_parameters": safe}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _quiet():
            if runtime_of(path) == "OpenVINO":
                network = load_openvino().convert_model(source)
                save_openvino(nncf.quantize(network, nncf.Dataset(images), **how), path)
            else:
                import onnx

                given = nncf.Dataset(images, lambda image: {INPUT: image})
                network = nncf.quantize(onnx.load(source), given, **how)
                del network.metadata_props[:]
                onnx.save_model(network, path)
    except Exception as error:  # NNCF's and the runtimes' errors have no common base
        raise ModelError(f"{runtime_of(path)}: this network can't be made int8 ({first_line(error)})") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its progress goes where progress belongs, and its advice nowhere."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
