"""How long importing the package and asking for help take."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.material import median


def benchmark_startup() -> dict:
    """Seconds of a whole process, and whether torch was loaded."""
    script = Path(sys.executable).with_name("oct-hf")
    code = "import sys, time; t = time.perf_counter(); import oct_hf; t = time.perf_counter() - t"
    code += "; print(t, 'torch' in sys.modules)"
    runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(9))
    imports = [run.stdout.split() for run in runs]
    helps = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run([script, "--help"], capture_output=True, check=True)
        helps.append(time.perf_counter() - began)
    return {
        "import_s": median(float(seconds) for seconds, _ in imports),
        "import_loads_torch": imports[0][1] == "True",
        "help_s": median(helps),
    }
