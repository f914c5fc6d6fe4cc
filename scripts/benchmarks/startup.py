"""How long importing the package, asking for help, and one answer in a new process take."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.material import ENVIRONMENT, PAIRS, bscans, median

PIPELINE = """
import sys
from transformers import pipeline
print(pipeline("image-classification", model=sys.argv[1], top_k=None)(sys.argv[2]))
"""


def benchmark_startup(folder: Path | None, model: Path, scratch: Path) -> dict:
    """Seconds of a whole process, and whether torch was loaded; one picture against transformers' pipeline.

    Args:
        folder: with JPEG B-scans; a phantom where not given.
        model: a model folder with its fast files.
        scratch: for files.
    """
    script = Path(sys.executable).with_name("oct-hf")
    code = "import sys, time; t = time.perf_counter(); import oct_hf; t = time.perf_counter() - t"
    code += "; print(t, 'torch' in sys.modules)"
    runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(9))
    imports = [run.stdout.split() for run in runs]
    helps = [_process([script, "--help"])[0] for _ in range(9)]
    return {
        "import_s": median(float(seconds) for seconds, _ in imports),
        "import_loads_torch": imports[0][1] == "True",
        "help_s": median(helps),
        "one picture": _one_picture(bscans(folder)[0], model, scratch),
    }


def _one_picture(picture: bytes, model: Path, scratch: Path) -> dict:
    file = scratch / "one.jpg"
    file.write_bytes(picture)
    ours = [sys.executable, "-m", "oct_hf.cli", "predict", file, "--model", model]
    theirs = [sys.executable, "-c", PIPELINE, model, file]
    for command in (ours, theirs):  # what lies on the disk is in the system's cache for both
        _process(command)
    pairs = [(_process(ours), _process(theirs)) for _ in range(PAIRS)]
    seconds = [round(one[0] / other[0], 3) for one, other in pairs]
    memory = [round(one[1] / other[1], 3) for one, other in pairs]
    return {
        "oct-hf predict": {
            "seconds": median(one[0] for one, _ in pairs),
            "peak_mb": median(one[1] for one, _ in pairs),
        },
        "pipeline": {"seconds": median(other[0] for _, other in pairs), "peak_mb": median(o[1] for _, o in pairs)},
        "seconds ratio": {"median": median(seconds), "ratios": seconds},
        "memory ratio": {"median": median(memory), "ratios": memory},
    }


def _process(command: list) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process, which must succeed."""
    began = time.perf_counter()
    child = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(said.decode())
    unit = 2**20 if sys.platform == "darwin" else 1024
    return time.perf_counter() - began, usage.ru_maxrss / unit
