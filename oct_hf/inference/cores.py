"""How the cores of this machine are shared between calls of a network, and whether it has an accelerator at all.

Several batches run on few threads each, since threads of one batch wait for each other at every layer.
"""

import os
import platform
import sys
from pathlib import Path

# Of NVIDIA, of AMD, of Windows' own Linux, and NVIDIA's driver on Windows.
_SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "C:/Windows/System32/nvcuda.dll")


def share_cores(accelerator: bool | None = None) -> tuple[int, int]:
    """Calls of a network to run at the same time, and threads for each.

    Args:
        accelerator: one computes, and takes one call at a time; looked for where not given.
    """
    accelerator = has_accelerator() if accelerator is None else accelerator
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    calls = 1 if accelerator else min(cores, 4)
    return calls, cores // calls


def has_accelerator() -> bool:
    """Whether torch has a GPU to compute on here; torch is imported only where there may be one."""
    maybe = platform.machine() == "arm64" if sys.platform == "darwin" else any(Path(sign).exists() for sign in _SIGNS)
    if not maybe:
        return False
    from oct_hf.inference.on_torch import best_device

    return best_device() != "cpu"
