"""How threads of OpenMP should wait for each other: training steps alone, and beside processes that work."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from benchmarks.material import ENVIRONMENT, bscans, median

TURNS, BATCH_SIZE, BATCHES = 3, 16, 4
SPINNING, ASLEEP = {}, {"OMP_WAIT_POLICY": "PASSIVE"}  # torch's own way, and the other


def benchmark_waiting() -> dict:
    """Images/s of bare steps with threads that spin while they wait, as torch's do, and with such that sleep, in turn.

    Busy: beside one process a core that never waits.
    """
    from oct_hf.training.arguments import bf16_is_faster

    bf16 = str(bf16_is_faster())
    pairs: dict[str, list[tuple[float, float]]] = {"quiet": [], "busy": []}
    for _ in range(TURNS):
        for state, beside in (("quiet", 0), ("busy", os.cpu_count() or 1)):
            with _working(beside):
                pairs[state].append((_steps(SPINNING, bf16), _steps(ASLEEP, bf16)))
    return {
        state: {
            "spinning": median(spinning for spinning, _ in found),
            "asleep": median(asleep for _, asleep in found),
            "ratio": median(spinning / asleep for spinning, asleep in found),
        }
        for state, found in pairs.items()
    }


@contextmanager
def _working(count: int):
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _steps(settings: dict[str, str], bf16: str) -> float:
    variables = {key: value for key, value in ENVIRONMENT.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = variables | settings | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, __file__, bf16], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _bare_steps(bf16: bool) -> None:
    import torch  # noqa: F401  (before the package, whose own setting then comes too late)

    from benchmarks import trainings

    material = trainings.Material(bscans(None)[: BATCH_SIZE * BATCHES], BATCH_SIZE * BATCHES)
    print(trainings.bare(material, BATCH_SIZE, bf16))


if __name__ == "__main__":
    _bare_steps(sys.argv[1] == "True")
