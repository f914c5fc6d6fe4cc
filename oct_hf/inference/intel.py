"""OpenVINO and NNCF without their telemetry: as they come, importing either sends an event to Google Analytics.

Both go on without it where its package can't be imported, so it is hidden while they are. Imports no torch.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

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
