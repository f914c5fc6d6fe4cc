"""A network on OpenVINO, on the CPU: a call at a time on each of several streams.

In float32, unless bfloat16 is asked for: OpenVINO itself would take bfloat16 wherever the CPU has it, and its answers
then differ in the third digit.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from oct_hf.errors import ModelError, OCTError
from oct_hf.inference.cores import share_cores
from oct_hf.inference.description import Description
from oct_hf.inference.fast_files import check_ends
from oct_hf.inference.intel import FixedBatches, core
from oct_hf.inference.network import FileNetwork

SOME = 8  # images of a call, where there are too few for a whole batch


def has_bfloat16() -> bool:
    """Whether OpenVINO can compute in bfloat16 on this CPU."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINONetwork(FileNetwork):
    """
    Args:
        description: of the model.
        backend: "openvino", "openvino-bf16" or "openvino-int8".
        weights: the file that takes gray B-scans.
        batch: images a call, where another number is faster than `FileNetwork`'s.

    Raises:
        ModelError: the file can't be loaded.
        OCTError: bfloat16 on a CPU that has none.
    """

    def __init__(self, description: Description, backend: str, weights: Path, batch: int | None = None):
        super().__init__(description)
        self.backend, self.weights, self.batch = backend, weights, batch or self.batch
        self.passes, threads = share_cores(accelerator=False)
        if backend == "openvino-bf16" and not has_bfloat16():
            raise OCTError("--backend openvino-bf16: this CPU has no bfloat16 (AVX512_BF16 or AMX); take openvino")
        self._options = {
            "INFERENCE_PRECISION_HINT": "bf16" if backend == "openvino-bf16" else "f32",
            "NUM_STREAMS": self.passes,
            "ENABLE_CPU_PINNING": False,  # or the streams of two networks, as a cascade has, share a core
            "INFERENCE_NUM_THREADS": self.passes * threads,
        }
        self._own = threading.local()
        with _readable(weights):
            self._batches = FixedBatches(weights, {self.batch, min(self.batch, SOME), 1}, self._options)

    def probabilities(self, gray: np.ndarray) -> np.ndarray:
        parts = ((compiled, gray[rows]) for compiled, rows in self._batches.parts(len(gray)))
        return np.concatenate([self._run(f"gray {len(part)}", compiled, part) for compiled, part in parts])

    def logits(self, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self._run("pixels", self.of_pixels, np.asarray(pixels))

    def _run(self, kind: str, compiled, batch: np.ndarray) -> np.ndarray:
        request = getattr(self._own, kind, None)  # one serves one thread at a time
        if request is None:
            request = compiled.create_infer_request()
            setattr(self._own, kind, request)
        return request.infer([batch])[0].copy()

    def load(self, file: Path):
        with _readable(file):
            return core().compile_model(str(file), "CPU", self._options)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    check_ends(file)
    try:
        yield
    except RuntimeError as error:
        raise ModelError(f"{file}: can't be loaded ({str(error).strip().splitlines()[0]})") from None
