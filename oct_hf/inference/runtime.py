"""What a server computes with: torch, or ONNX Runtime where the repository brings its own export of the network.

On a CPU ONNX Runtime needs about half of torch's time; its probabilities are within 1e-5 of torch's. How the cores are
shared is here too: several batches on few threads each, since threads of one batch wait for each other at every layer.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers.utils import cached_file

from oct_hf.errors import ModelError, OCTError, did_you_mean
from oct_hf.inference.export import ONNX_FILE
from oct_hf.inference.gate import Gate
from oct_hf.inference.predictor import Predictor, best_device, load_description

RUNTIMES = ("auto", "onnx", "torch")


class ONNXPredictor(Predictor):
    """A `Predictor` on ONNX Runtime, on the CPU.

    Args:
        model: folder or Hub id of a repository that holds `onnx/model.onnx`.
        batch_size: images a forward pass.
        threads: of one forward pass; several may run at the same time.
        gate: as of `Predictor`; it needs probabilities and the picture alone.

    Raises:
        ModelError: there is no such file, or it can't be loaded.
    """

    def __init__(self, model: str | Path, batch_size: int = 8, threads: int = 1, gate: Gate | None = None):
        import onnxruntime

        name = Path(model).as_posix()
        config, self.preprocessing = load_description(name)
        self._describe(config, batch_size, gate)
        file = _onnx_file(name)
        if file is None:
            raise ModelError(f"{name}: no {ONNX_FILE} in it")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait are to sleep: the cores also read images and speak HTTP.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base of their own
            raise ModelError(f"{name}: {ONNX_FILE} can't be loaded ({str(error).splitlines()[0]})") from None

    def logits(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `(n, labels)` of n preprocessed images, each float32 `(3, height, width)`."""
        return self._session.run(["logits"], {"pixel_values": np.asarray(pixels)})[0]


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
    if runtime == "onnx" or (runtime == "auto" and installed and best_device() == "cpu" and _onnx_file(model)):
        return ONNXPredictor(model, batch_size, threads)
    torch.set_num_threads(threads)
    return Predictor(model, batch_size=batch_size)


def share_cores() -> tuple[int, int]:
    """Forward passes to run at the same time, and threads for each."""
    cores = os.cpu_count() or 1
    passes = min(cores, 4) if best_device() == "cpu" else 1
    return passes, cores // passes


def _onnx_file(name: str | Path) -> str | None:
    missing_is_none = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    return cached_file(Path(name).as_posix(), ONNX_FILE, **missing_is_none)
