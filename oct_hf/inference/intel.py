"""OpenVINO and NNCF without their telemetry: as they come, importing either sends an event to Google Analytics.

Both go on without it where its package can't be imported, so it is hidden while they are. Imports no torch.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from oct_hf.errors import OCTError

TELEMETRY = "openvino_telemetry"


def load_openvino() -> ModuleType:
    """The module `openvino`; raises OCTError where it isn't installed."""
    _installed("openvino", "OpenVINO")
    with _unheard():
        import openvino
    return openvino


def load_nncf() -> ModuleType:
    """The module `nncf`, which quantises; raises OCTError where it isn't installed."""
    _installed("nncf", "NNCF")
    load_openvino()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it would tell of CUDA where there is none
    with _unheard():
        import nncf
    return nncf


def compile_for_batches(path: Path, sizes: Iterable[int], options: dict) -> dict[int, Any]:
    """A fast file compiled for batches of these sizes alone, by size.

    So it must be with int8: where batches may have any size, OpenVINO's kernels for AMX take a segmentation fault on
    small pictures (openvinotoolkit/openvino#37577, seen in 2026.4 with 32 pixels).
    """
    core, found = load_openvino().Core(), {}
    for size in sizes:
        network = core.read_model(str(path))
        _, *shape = network.input(0).partial_shape
        network.reshape([size, *(length.get_length() for length in shape)])
        found[size] = core.compile_model(network, "CPU", options)
    return found


def in_batches(count: int, sizes: Iterable[int]) -> Iterator[tuple[int, slice]]:
    """So many pictures as batches of these sizes, which include 1: size and rows of each, large ones first."""
    start = 0
    for size in sorted(sizes, reverse=True):
        while count - start >= size:
            yield size, slice(start, start + size)
            start += size


def _installed(name: str, called: str) -> None:
    if find_spec(name) is None:
        raise OCTError(f'{called} is missing: pip install "oct-hf[openvino]"')


@contextmanager
def _unheard() -> Iterator[None]:
    if TELEMETRY in sys.modules:  # whoever imported it before decided for themselves
        yield
        return
    sys.modules[TELEMETRY] = None  # what Python takes for a module that can't be imported
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
