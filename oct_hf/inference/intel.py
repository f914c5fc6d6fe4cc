"""OpenVINO and NNCF without their telemetry: as they come, importing either sends an event to Google Analytics.

Both go on without it where its package can't be imported, so it is hidden while they are. Imports no torch.
"""

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from oct_hf.errors import OCTError

TELEMETRY = "openvino_telemetry"
_CORES, _LOCK = [], threading.Lock()


def load_openvino() -> ModuleType:
    """The module `openvino`; raises OCTError where it isn't installed."""
    _installed("openvino", "OpenVINO")
    with _unheard():
        import openvino
    return openvino


def core():
    """OpenVINO's core: one for the process, kept to its end.

    With each new one its CPU plugin gives the calling thread another stack for signal handlers, and when it goes gives
    back the one from before. Where two go in the order in which they came, that one is gone too, and the next signal
    (Ctrl-C, the end of a child process) is a segmentation fault (seen in 2026.4).
    """
    with _LOCK:
        if not _CORES:
            _CORES.append(load_openvino().Core())
        return _CORES[0]


def load_nncf() -> ModuleType:
    """The module `nncf`, which quantises; raises OCTError where it isn't installed."""
    _installed("nncf", "NNCF")
    load_openvino()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it would tell of CUDA where there is none
    with _unheard():
        import nncf
    return nncf


class FixedBatches:
    """A fast file, compiled for batches of some sizes alone, each when it is first wanted.

    That is some percent faster than for any size. And where batches may have any size, OpenVINO's int8 kernels for AMX
    take a segmentation fault on small pictures (openvinotoolkit/openvino#37577, seen in 2026.4 with 32 pixels).

    Args:
        path: the .xml file.
        sizes: of batches, 1 among them.
        options: OpenVINO's.

    Raises:
        RuntimeError: OpenVINO can't read it.
    """

    def __init__(self, path: Path, sizes: Iterable[int], options: dict):
        self._lock, self._compiled = threading.Lock(), {}
        self._network, self._options = core().read_model(str(path)), options
        self._sizes = sorted(sizes, reverse=True)

    def parts(self, count: int) -> Iterator[tuple[Any, slice]]:
        """So many pictures, large batches first: what runs each batch, and its rows."""
        start = 0
        for size in self._sizes:
            while count - start >= size:
                yield self._of(size), slice(start, start + size)
                start += size

    def _of(self, size: int):
        with self._lock:
            if size not in self._compiled:
                _, *shape = self._network.input(0).partial_shape
                self._network.reshape([size, *(length.get_length() for length in shape)])
                self._compiled[size] = core().compile_model(self._network, "CPU", self._options)
            return self._compiled[size]


def _installed(name: str, called: str) -> None:
    if find_spec(name) is None:
        raise OCTError(f'{called} is missing: pip install "oct-hf[openvino]"')


@contextmanager
def _unheard() -> Iterator[None]:
    if TELEMETRY in sys.modules:  # whoever imported it before decided for themselves
        yield
        return
    # What Python takes for a module that can't be imported; the type of `sys.modules` doesn't have it.
    sys.modules[TELEMETRY] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
