"""A network on ONNX Runtime, on the CPU: about twice torch's speed there, and its probabilities within 1e-5."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from oct_hf.errors import ModelError
from oct_hf.inference.cores import share_cores
from oct_hf.inference.description import Description
from oct_hf.inference.fast_files import INPUT, OUTPUT, check_ends
from oct_hf.inference.network import FileNetwork


class OnnxNetwork(FileNetwork):
    """
    Args:
        description: of the model.
        backend: "onnx" or "onnx-int8".
        weights: the file that takes gray B-scans, or ONNX_FILE itself.
        threads: of one call; several calls may run at the same time. As many as `share_cores` says where not given.

    Raises:
        ModelError: the file can't be loaded.
    """

    def __init__(self, description: Description, backend: str, weights: Path, threads: int | None = None):
        super().__init__(description)
        self.passes, shared = share_cores(accelerator=False)
        self.backend, self.weights, self._threads = backend, weights, threads or shared
        session = self.load(weights)
        self._of_gray = session if session.get_inputs()[0].name == INPUT else None
        if self._of_gray is None:
            self._of_pixels = session

    def probabilities(self, gray: np.ndarray) -> np.ndarray:
        if self._of_gray is None:
            return super().probabilities(gray)
        return self._of_gray.run([OUTPUT], {INPUT: gray})[0]

    def logits(self, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.of_pixels.run(["logits"], {"pixel_values": np.asarray(pixels)})[0]

    def load(self, file: Path) -> Any:  # whose answers onnxruntime types as whatever any network may give
        check_ends(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Threads that wait are to sleep: the cores also read images and speak HTTP.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base of their own
            raise ModelError(f"{file}: can't be loaded ({str(error).splitlines()[0]})") from None
