"""Measures how many planted label errors the search for label errors finds, on phantoms, whose true label is known.

python scripts/planted_label_errors.py [KEY=VALUE …] [--seeds N …] [--folds K] [--unit image|patient] [--compare]
                                       [--out FOLDER]

The wrong labels enter as any correction does: a corrections.csv, here with one label in ten made wrong. FOLDER gets
planted-UNIT.json and the runs, so that a stopped measurement goes on. What is called a suspect, and in which order, was
chosen on seed 0 (--seeds 0 --compare); the seeds measured by default are others.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from oct_hf.evaluation.label_errors import find_suspects, plant_errors, recovered, write_planted
from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.labelled import load_data
from oct_hf.runs.out_of_fold import out_of_fold
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import load_recipe
from oct_hf.whole import write_json

SHARE = 0.1  # of the labels is wrong
SETTINGS = ("data.height=128", "data.width=128", "epochs=8", "label_smoothing=0.1")  # on top of the recipe `demo`
FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given")
RANKINGS = ("normalized_margin", "self_confidence", "confidence_weighted_entropy")


def plant(recipe: Recipe, seed: int, unit: str, path: Path) -> dict[str, tuple[str, str]]:
    """Writes a corrections.csv that makes labels wrong, each any other with equal chance.

    Args:
        recipe: its data get the errors.
        seed: of which are wrong.
        unit: "image", or "patient" for all images of one, to the same wrong label.
        path: the file.

    Returns:
        content hash -> true label, planted label.
    """
    dataset, _ = load_data(dataclasses.replace(recipe.data, corrections=None))
    names, hashes = dataset.features["label"].names, dataset["content_hash"][:]
    units = None if unit == "image" else dataset["patient_id"][:]
    wrong = plant_errors(hashes, [names[i] for i in dataset["label"][:]], names, SHARE, [seed, 1], units)
    write_planted(path, wrong)
    return wrong


def measure(recipe: Recipe, seed: int, unit: str, folds: int, out: Path) -> tuple[dict, Predictions, set[str]]:
    """Plants, predicts out of fold and counts; the seed draws phantoms, errors, folds and the network's start.

    Returns:
        the figures, the predictions, and the content hashes of the wrong labels.
    """
    sections = {name: dataclasses.replace(getattr(recipe, name), seed=seed) for name in ("data", "split", "train")}
    recipe = dataclasses.replace(recipe, **sections)
    wrong = plant(recipe, seed, unit, out / "corrections.csv")
    data = dataclasses.replace(recipe.data, corrections=str(out / "corrections.csv"))
    began = time.monotonic()
    predictions = out_of_fold(dataclasses.replace(recipe, data=data), out, folds)
    # Not `find_label_errors`: it passes over images that a corrections.csv speaks of, and so over all that are planted.
    suspects = find_suspects(predictions)
    labels = zip(predictions.hashes, predictions.labels, strict=True)
    true = np.array([wrong.get(value, (label,))[0] for value, label in labels])
    predicted = np.array(predictions.names)[predictions.probabilities.argmax(1)]
    right = [s.suggested == wrong[s.content_hash][0] for s in suspects if s.content_hash in wrong]
    result = {
        "seed": seed,
        "images": len(true),
        **recovered([s.content_hash for s in suspects], set(wrong)),
        "suggested_label_is_true": float(np.mean(right)) if right else None,
        "accuracy_on_true_labels": float((predicted == true).mean()),
        "seconds": round(time.monotonic() - began),
    }
    return result, predictions, set(wrong)


def compare(predictions: Predictions, planted: set[str]) -> dict:
    """Recall, precision and recall at a precision of 0.6 for each of cleanlab's filters and rankings."""
    found = {}
    for filter_by in FILTERS:
        for rank_by in RANKINGS:
            suspects = find_suspects(predictions, filter_by=filter_by, rank_by=rank_by)
            found[f"{filter_by}, {rank_by}"] = recovered([s.content_hash for s in suspects], planted)
    return found


def main() -> None:
    """Prints one line a seed and the worst of them, and writes planted.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", help="of the recipe demo, as KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--unit", choices=("image", "patient"), default="image")
    parser.add_argument("--compare", action="store_true", help="try every filter and ranking of cleanlab")
    parser.add_argument("--out", type=Path, default=Path("runs/planted"))
    given = parser.parse_args()
    recipe = load_recipe("demo", [*SETTINGS, *given.settings])
    rows, compared = [], {}
    for seed in given.seeds:
        place = given.out / f"{given.unit}-{seed}"
        result, predictions, planted = measure(recipe, seed, given.unit, given.folds, place)
        rows.append(result)
        print(json.dumps(result), flush=True)
        if given.compare:
            compared[seed] = compare(predictions, planted)
            for name, one in compared[seed].items():
                print(f"  {name}: {one['recall']:.3f} at {one['precision']:.3f}, {one['recall_at_precision_0.6']:.3f}")
    worst = {key: min(row[key] for row in rows) for key in ("recall", "precision", "recall_at_precision_0.6")}
    print(f"{given.unit}s, worst of {len(rows)} seed(s): {json.dumps(worst)}")
    settings = {"recipe": recipe.to_dict(), "folds": given.folds, "unit": given.unit, "share": SHARE}
    given.out.mkdir(parents=True, exist_ok=True)
    content = {"worst": worst, "seeds": rows, "compared": compared, **settings}
    write_json(given.out / f"planted-{given.unit}.json", content)


if __name__ == "__main__":
    main()
