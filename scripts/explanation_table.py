"""Measures how far each kind of heat map can be believed for one model, and prints it as a table.

python scripts/explanation_table.py MODEL [IMAGE …] [--images N] [--marked N] [--slow N] [--steps N] [--out FILE]

MODEL is a run, a model folder or a Hub id, IMAGEs are files and folders. If the model's split.csv knows any
of them, only those of its test side are taken. Without IMAGEs phantoms are drawn. --out writes all figures.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from oct_hf.data.phantom import LABELS, draw
from oct_hf.data.splits import read_split_table
from oct_hf.evaluation.faithfulness import PHANTOM_SIZE, marked_phantoms, measure_faithfulness
from oct_hf.images import read_image, to_gray
from oct_hf.inference.inputs import find_images
from oct_hf.inference.on_torch import quiet_transformers
from oct_hf.inference.predictor import Predictor
from oct_hf.model.folder import model_folder
from oct_hf.whole import file_sha256

SEED = 2**31 + 7  # of the phantoms that stand for images; no training set uses it
COLUMNS = ("deletion", "insertion", "insertion_minus_deletion", "pointing_game", "energy", "iou")


def held_out(folder: Path, paths: list[Path], count: int) -> tuple[list[np.ndarray], list[str]]:
    """At most `count` B-scans that the model wasn't trained on, evenly from all, and whose they are."""
    split, sides = folder / "split.csv", {}
    if split.is_file():
        table = read_split_table(split)
        sides = dict(zip(table["content_hash"], zip(table["side"], table["patient_id"], strict=True), strict=True))
    known = [(path, sides.get(file_sha256(path))) for path in find_images(paths)]
    if any(side for _, side in known):
        known = [(path, side) for path, side in known if side and side[0] == "test"]
    chosen = [known[i] for i in np.unique(np.linspace(0, len(known) - 1, count).round().astype(int))]
    images = [to_gray(read_image(path)) for path, _ in chosen]
    return images, [side[1] if side else path.name for path, side in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--images", dest="count", type=int, default=24)
    parser.add_argument("--marked", type=int, default=48)
    parser.add_argument("--slow", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    quiet_transformers()
    folder = model_folder(given.model)
    predictor = Predictor(folder, backend="torch")
    if given.images:
        images, groups = held_out(folder, given.images, given.count)
    else:
        images = [draw(LABELS[i % len(LABELS)], SEED, i, 0, *PHANTOM_SIZE).image for i in range(given.count)]
        groups = None
    marked = marked_phantoms(predictor.labels, given.marked)
    began = time.process_time()
    measured = measure_faithfulness(
        predictor.model,
        predictor.preprocessing,
        images,
        groups,
        marked,
        slow_images=given.slow,
        steps=given.steps,
    )
    print(f"| method | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} | sanity rho |")
    print("|---|" + "---|" * (len(COLUMNS) + 1))
    for name, one in (measured["methods"] | measured["baselines"]).items():
        cells = [_cell(one.get(column)) for column in COLUMNS]
        rho = one.get("sanity", {}).get("rho")
        refused = "" if one.get("sanity", {}).get("passed", True) else " (refused)"
        print(f"| {name} | {' | '.join(cells)} | {'' if rho is None else f'{rho:.2f}'}{refused} |")
    print(f"\nbest: {measured['method']}; {measured['settings']}; {time.process_time() - began:.0f} s of CPU")
    if given.out:
        given.out.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def _cell(figure: dict | None) -> str:
    if not figure or figure["mean"] is None:
        return ""
    span = "" if figure["low"] is None else f" ({figure['low']:.2f}–{figure['high']:.2f})"
    return f"{figure['mean']:.3f}{span}"


if __name__ == "__main__":
    main()
