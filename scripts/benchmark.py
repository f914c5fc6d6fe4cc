"""Measures what the README claims of speed and memory, as ratios within one run; and ways to train, on one split.

python scripts/benchmark.py [data] [duplicates] [training] [processes] [waiting] [inference] [serving] [startup] [push]
    [evaluation] [--data FOLDER] [--model FOLDER] [--images N] [--backends NAME …] [--run FOLDER] [--out FILE]
python scripts/benchmark.py memory [--data FOLDER] [--model FOLDER] [--out FILE]
python scripts/benchmark.py systems --recipes MAIN [OTHER …] [--data FOLDER] [--folds K]
    [--set [NAME:]KEY=VALUE …] [--ensemble NAME …] [--elsewhere data.KEY=VALUE …] [--folder runs/systems] [--out FILE]

Pairs run in turn, each preparation in a process of its own; the median ratio counts. Timings depend on the machine and
on what else it does, so none of them is a test.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

from benchmarks.data import benchmark_data
from benchmarks.duplicates import benchmark_duplicates
from benchmarks.evaluation import benchmark_evaluation
from benchmarks.inference import benchmark_inference, benchmark_memory
from benchmarks.material import model_of
from benchmarks.push import benchmark_push
from benchmarks.serving import benchmark_serving
from benchmarks.startup import benchmark_startup
from benchmarks.systems import benchmark_systems
from benchmarks.training import benchmark_processes, benchmark_training
from benchmarks.waiting import benchmark_waiting

PARTS = (
    "data",
    "duplicates",
    "training",
    "processes",
    "waiting",
    "inference",
    "serving",
    "startup",
    "push",
    "evaluation",
)  # without a name, all of them
LONG = ("systems", "memory")  # only by name: the one trains, the other answers 100,000 files


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (these where none is named); {', '.join(LONG)}"
    )
    parser.add_argument("--data", type=Path, help="folder with JPEG B-scans; phantoms where not given")
    parser.add_argument("--model", type=Path, help="run or model folder for inference, serving, startup and memory")
    parser.add_argument("--images", type=int, default=2000, help="files for inference")
    parser.add_argument(
        "--backends", nargs="+", metavar="NAME", help="for inference; all of the model's where not given"
    )
    parser.add_argument("--run", type=Path, help="finished run to push; a small one is made where not given")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    systems = parser.add_argument_group("systems")
    systems.add_argument("--recipes", nargs="+", help="names or YAML files, the main one first; all that come along")
    systems.add_argument("--folds", type=int, default=1, help="1 for the main recipe's split, more to cross-validate")
    systems.add_argument("--set", nargs="+", default=[], metavar="[NAME:]KEY=VALUE", help="for every recipe, or one")
    systems.add_argument("--ensemble", nargs="+", default=[], metavar="NAME", help="systems to average as one more")
    systems.add_argument(
        "--elsewhere", nargs="+", default=[], metavar="data.KEY=VALUE", help="another set to ask all systems about"
    )
    systems.add_argument("--folder", type=Path, default=Path("runs/systems"), help="for runs and leaderboard")
    given = parser.parse_args()
    if strange := set(given.parts) - {*PARTS, *LONG}:
        parser.error(f"no benchmark {', '.join(strange)}; there are {', '.join((*PARTS, *LONG))}")
    return given


def main() -> None:
    """Runs the parts asked for and prints and writes what they measured."""
    given = arguments()
    results = {"cores": os.cpu_count(), "data_from": "a folder of B-scans" if given.data else "phantoms"}
    with tempfile.TemporaryDirectory() as scratch:

        def model() -> Path:
            return model_of(given.model, Path(scratch))

        for part in given.parts or PARTS:
            run = {
                "data": lambda: benchmark_data(given.data, Path(scratch)),
                "duplicates": lambda: benchmark_duplicates(Path(scratch)),
                "training": lambda: benchmark_training(given.data, Path(scratch)),
                "processes": lambda: benchmark_processes(Path(scratch)),
                "waiting": benchmark_waiting,
                "inference": lambda: benchmark_inference(
                    given.data, model(), Path(scratch), given.images, given.backends
                ),
                "memory": lambda: benchmark_memory(given.data, model(), Path(scratch)),
                "serving": lambda: benchmark_serving(given.data, model(), Path(scratch)),
                "startup": lambda: benchmark_startup(given.data, model(), Path(scratch)),
                "push": lambda: benchmark_push(given.run, Path(scratch)),
                "evaluation": lambda: benchmark_evaluation(Path(scratch)),
                "systems": lambda: _systems(given),
            }[part]
            results[part] = run()
            print(part)
            for key, value in results[part].items():
                print(f"  {key:<28} {value}")
    given.out.write_text(json.dumps(results, indent=2) + "\n")


def _systems(given: argparse.Namespace) -> dict:
    from oct_hf.errors import OCTError
    from oct_hf.runs.training import Stopped
    from oct_hf.training.recipe_file import recipe_names

    command = shlex.join(["python", "scripts/benchmark.py", *(_without_place(word, given) for word in sys.argv[1:])])
    main_one = "folder" if given.data else "demo"
    names = given.recipes or [main_one, *(name for name in recipe_names() if name != main_one)]
    try:
        return benchmark_systems(
            names, given.data, given.folder, given.folds, given.set, given.ensemble, given.elsewhere, command
        )
    except OCTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)


def _without_place(word: str, given: argparse.Namespace) -> str:
    """A word of the command line without where the data lie on this machine."""
    key, _, path = word.rpartition("=")
    if key == "data.path" or word == str(given.data):
        return (f"{key}=" if key else "") + f"{Path(path).name}/"
    return word


if __name__ == "__main__":
    main()
