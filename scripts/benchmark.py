"""Measures what the README claims of speed and memory, as ratios within one run.

python scripts/benchmark.py [data] [duplicates] [training] [serving] [startup] [push] [evaluation]
    [--data FOLDER] [--run FOLDER] [--out FILE]

Pairs run in turn, each preparation in a process of its own; the median ratio counts. Timings depend on the machine and
on what else it does, so none of them is a test.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.data import benchmark_data
from benchmarks.duplicates import benchmark_duplicates
from benchmarks.evaluation import benchmark_evaluation
from benchmarks.push import benchmark_push
from benchmarks.serving import benchmark_serving
from benchmarks.startup import benchmark_startup
from benchmarks.training import benchmark_training


def main() -> None:
    """Runs the parts asked for and prints and writes what they measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all where none is named")
    parser.add_argument("--data", type=Path, help="folder with JPEG B-scans; phantoms where not given")
    parser.add_argument("--run", type=Path, help="finished run to push; a small one is made where not given")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    given = parser.parse_args()
    parts = ("data", "duplicates", "training", "serving", "startup", "push", "evaluation")
    if strange := set(given.parts) - set(parts):
        parser.error(f"no benchmark {', '.join(strange)}; there are {', '.join(parts)}")
    results = {"cores": os.cpu_count(), "data_from": "a folder of B-scans" if given.data else "phantoms"}
    with tempfile.TemporaryDirectory() as scratch:
        for part in given.parts or parts:
            run = {
                "data": lambda: benchmark_data(given.data, Path(scratch)),
                "duplicates": lambda: benchmark_duplicates(Path(scratch)),
                "training": lambda: benchmark_training(Path(scratch)),
                "serving": lambda: benchmark_serving(given.data, Path(scratch)),
                "startup": benchmark_startup,
                "push": lambda: benchmark_push(given.run, Path(scratch)),
                "evaluation": lambda: benchmark_evaluation(Path(scratch)),
            }[part]
            results[part] = run()
            print(part)
            for key, value in results[part].items():
                print(f"  {key:<28} {value}")
    given.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
