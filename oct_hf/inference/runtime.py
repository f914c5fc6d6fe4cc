"""What a server computes with: torch, or a runtime that loads the file which the repository brings.

A server answers logits, which the inference API may ask for, so it runs `onnx/model.onnx` and not the file that gives
probabilities.
"""

from importlib.util import find_spec
from pathlib import Path

from oct_hf.errors import ModelError, OCTError, did_you_mean
from oct_hf.inference.backends import open_network
from oct_hf.inference.cores import has_accelerator
from oct_hf.inference.description import file_of, load_description
from oct_hf.inference.fast_files import ONNX_FILE
from oct_hf.inference.predictor import Predictor

RUNTIMES = ("auto", "onnx", "openvino", "openvino-bf16", "torch")


def serving_predictor(model: str | Path, runtime: str = "auto", batch_size: int = 8, threads: int = 1) -> Predictor:
    """The predictor for a server; `auto` takes ONNX Runtime on a CPU if it and the repository's file are there.

    `threads` of one forward pass are set for the whole process where torch is taken.

    Raises:
        OCTError: an unknown runtime, or one that isn't installed.
        ModelError: the model can't be loaded.
    """
    if runtime not in RUNTIMES:
        raise OCTError(f"no runtime {runtime}{did_you_mean(runtime, RUNTIMES)}; there are {', '.join(RUNTIMES)}")
    installed = find_spec("onnxruntime") is not None
    if runtime == "onnx" and not installed:
        raise OCTError('ONNX Runtime is missing: pip install "oct-hf[onnx]"')
    if runtime.startswith("openvino"):
        network = open_network(load_description(model), runtime)
        if not network.takes_pixels:
            raise ModelError(f"{model}: no {ONNX_FILE} in it")
        return Predictor(network, batch_size=batch_size)
    file = file_of(model, ONNX_FILE)
    if runtime == "onnx" and file is None:
        raise ModelError(f"{model}: no {ONNX_FILE} in it")
    wanted = runtime == "onnx" or (runtime == "auto" and installed and not has_accelerator())
    if wanted and file is not None:
        from oct_hf.inference.on_onnx import OnnxNetwork

        return Predictor(OnnxNetwork(load_description(model), "onnx", file, threads), batch_size=batch_size)
    import torch

    torch.set_num_threads(threads)
    return Predictor(model, batch_size=batch_size, backend="torch")
