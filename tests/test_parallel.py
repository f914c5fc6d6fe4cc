import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oct_hf.parallel import kept_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read as Linux tells it")
BLOCK = 200_000_000  # bytes


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def freed() -> int:
    """What the system has back of a block that was written to and freed."""
    block = np.ones(BLOCK, np.uint8)
    before = resident()
    del block
    return before - resident()


@linux
def test_freed_memory_is_kept_inside_the_block_alone():
    assert freed() > 0.9 * BLOCK
    with kept_memory():
        assert freed() < 0.1 * BLOCK
        before = resident()
    assert before - resident() > 0.9 * BLOCK
    assert freed() > 0.9 * BLOCK


ASKED_OF_THE_SYSTEM = """
import ctypes
from oct_hf.parallel import kept_memory

class Told(ctypes.Structure):
    _fields_ = [(str(number), ctypes.c_size_t) for number in range(10)]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Told
with kept_memory():
    pass
before = getattr(mallinfo2(), "3")
block = bytearray(8_000_000)
print(getattr(mallinfo2(), "3") - before)
"""


@linux
def test_afterwards_a_tensor_of_usual_size_does_not_come_from_the_system_each_time():
    done = subprocess.run([sys.executable, "-c", ASKED_OF_THE_SYSTEM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"  # blocks that the C library mapped


@linux
def test_memory_goes_back_after_an_error_too():
    with pytest.raises(KeyError), kept_memory():
        freed()
        raise KeyError
    assert freed() > 0.9 * BLOCK
