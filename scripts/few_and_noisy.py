"""Measures what wrong or few training labels, and fewer patients, cost, and what each method wins back; over folds.

python scripts/few_and_noisy.py [KEY=VALUE …] [--recipe NAME] --data PATH [--folds K] [--seeds N …] [--wrong SHARE …]
                                [--few N …] [--patients SHARE …] [--methods NAME …] [--out FOLDER]

On each fold cross-entropy is trained on the labels as they are; then, with a share of the training side's labels made
wrong, cross-entropy and each method for wrong labels; then, with N labels a class, cross-entropy and FixMatch, which
sees the other training B-scans without their labels. Both take the same steps on the labelled ones. With a share of
each class's training patients alone, in as many more epochs, cross-entropy tells what each doubling of the patients
brought. Validation sides stay whole and keep their labels, and test sides are never touched. FOLDER gets
few_and_noisy.json, few_and_noisy.md and each training's predictions, so that a measurement that was stopped goes on.
Without --recipe it is `neh_2018` with settings for a quick training on a machine without a GPU (FAST below).
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from oct_hf.data.fewer import fewer_patients
from oct_hf.data.splits import read_split_table, write_split
from oct_hf.errors import OCTError, RunError
from oct_hf.evaluation.label_errors import plant_errors, write_planted
from oct_hf.evaluation.learning_curve import learning_curve
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.won_back import won_back
from oct_hf.runs.facts import hardware, public_recipe
from oct_hf.runs.folder import differing
from oct_hf.runs.folds import fold_recipes
from oct_hf.runs.labelled import LabelledSet, assign_sides, load_data
from oct_hf.runs.run import train_and_predict
from oct_hf.runs.training import Stopped
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import change_recipe, load_recipe
from oct_hf.whole import write_json, written_beside

FAST = {
    "model.base": "pip:efficientnet_lite0",
    "model.image_size": 96,
    "augment": "light",
    "train.epochs": 12,
    "train.freeze_epochs": 0,
    "train.class_weights": None,
    "train.label_smoothing": 0.0,
    "train.ema": 0.0,
    "train.bf16": False,  # convolutions by depth take three times as long in bfloat16 on a CPU
    "evaluation.explain": 0,
}
PLAIN = "cross_entropy"
GOOD = "good labels"
# How a method changes the recipe; the share is how many labels are wrong, which co-teaching must be told.
FOR_WRONG: dict[str, Callable[[float, Recipe], dict]] = {
    "gce": lambda share, recipe: {"train.loss": "gce"},
    "symmetric": lambda share, recipe: {"train.loss": "symmetric"},
    "elr": lambda share, recipe: {"train.loss": "elr"},
    "co_teaching": lambda share, recipe: {
        "co_teaching": {"forget_rate": share, "gradual": max(1, recipe.train.epochs // 4)}
    },
}
RATIO = 3  # of FixMatch, B-scans without a label for each one with


def trainings(
    recipe: Recipe,
    data: LabelledSet,
    place: Path,
    wrong: Sequence[float],
    few: Sequence[int],
    shares: Sequence[float],
    seeds: Sequence[int],
) -> dict[tuple[str, str], Recipe]:
    """The recipes of one fold and seed by condition and method.

    Args:
        recipe: of the fold, split by a file.
        data: its B-scans.
        place: for the files of planted errors, and of splits with fewer patients.
        wrong, few: shares of wrong labels, and labels of a class.
        shares: of the training patients.
        seeds: of what is planted.
    """
    found = {(GOOD, PLAIN): recipe}
    training = [row for row, side in enumerate(data.sides) if side == "train"]
    for share in wrong:
        condition, file = f"{share:.0%} wrong", place / f"wrong-{round(100 * share)}.csv"
        columns = ([column[row] for row in training] for column in (data.hashes, data.labels))
        write_planted(file, plant_errors(*columns, data.names, share, [*seeds, round(1000 * share)]))
        noisy = change_recipe(recipe, {"data.corrections": str(file)})
        found[condition, PLAIN] = noisy
        for name, change in FOR_WRONG.items():
            found[condition, name] = change_recipe(noisy, change(share, recipe))
    for count in few:
        condition, less = f"{count} a class", {"split.labelled_per_class": count}
        for name, weight in ((PLAIN, 0.0), ("fixmatch", 1.0)):
            found[condition, name] = change_recipe(recipe, less | {"semi": {"ratio": RATIO, "weight": weight}})
    for share in shares:
        file = place / f"patients-{1000 * share:.0f}.csv"
        sides = fewer_patients(data.patients, data.labels, data.sides, share, seeds[0])
        file.parent.mkdir(parents=True, exist_ok=True)
        write_split(file, data.hashes, data.patients, data.labels, sides)
        as_long = {"split.path": str(file), "train.epochs": round(recipe.train.epochs / share)}  # the same steps
        found[of_patients(share), PLAIN] = change_recipe(recipe, as_long)
    return found


def of_patients(share: float) -> str:
    """What a condition with a share of the training patients is called."""
    return f"{share:.4g} of the patients"


def answers(recipe: Recipe, place: Path) -> tuple[Predictions, dict]:
    """Test predictions of a recipe and what its training was; trained once, and kept without its weights.

    Raises:
        RunError: another recipe was trained there.
        OCTError, Stopped: as `train_and_predict`.
    """
    predictions, told = place.with_suffix(".parquet"), place.with_suffix(".json")
    if not told.exists():
        found, facts = train_and_predict(recipe, place)
        test = found.of("test")
        with written_beside(predictions) as beside:
            test.write(beside)
        kept = {key: facts[key] for key in ("recipe_given", "training", "semi") if key in facts}
        write_json(told, kept | {"balanced_accuracy": test.measure()["balanced_accuracy"]})
        shutil.rmtree(place)
    known = json.loads(told.read_text(encoding="utf-8"))
    moved = {"data.path", "data.corrections", "split.path"}
    if different := set(differing(recipe.to_dict(), known["recipe_given"])) - moved:
        keys = ", ".join(sorted(different)[:5])
        raise RunError(f"{place} is of another recipe (it differs in {keys}); choose another folder with --out")
    return Predictions.read(predictions), known


def compare_methods(
    recipe: Recipe,
    out: Path,
    folds: int,
    seeds: Sequence[int],
    wrong: Sequence[float],
    few: Sequence[int],
    methods: Sequence[str],
    shares: Sequence[float] = (),
) -> dict:
    """Trains everything and compares.

    Returns:
        `recipe`, `data`, `folds`, `seeds`, `hardware`; `trainings`, a row each; `won_back`, by condition and method
        what `won_back` gives, cross-entropy's own being what was lost; and with shares of the patients `curve`, what
        `learning_curve` gives.
    """
    parts: dict[tuple[str, str], dict[int, list[Predictions]]] = {}
    learned_from: dict[str, list[int]] = {}  # training patients by condition, one number a training
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    for number, fold in enumerate(fold_recipes(recipe, folds)):
        data = assign_sides(load_data(fold.data)[0], fold)
        split = out / f"split-{number}.csv"
        write_split(split, data.hashes, data.patients, data.labels, data.sides)
        for seed in seeds:
            of_file = {"split.by": "file", "split.path": str(split), "split.folds": None, "split.test_fold": None}
            seeded = change_recipe(fold, of_file)
            seeded = change_recipe(seeded, {"train.seed": seed, "split.seed": seed})
            place = out / f"seed-{seed}" / f"fold-{number}"
            conditions = trainings(seeded, data, place, wrong, few, shares, [seed, number])
            for (condition, name), one in conditions.items():
                if name != PLAIN and name not in methods:
                    continue
                print(f"seed {seed}, fold {number}, {condition}, {name}", file=sys.stderr, flush=True)
                found, told = answers(one, place / condition.replace("%", "").replace(" ", "-") / name)
                parts.setdefault((condition, name), {}).setdefault(seed, []).append(found)
                if name == PLAIN:
                    learned_from.setdefault(condition, []).append(_training_patients(one.split.path))
                training = {key: told["training"][key] for key in ("best_epoch", "steps", "images", "seconds")}
                rows.append(
                    {"seed": seed, "fold": number, "labels": condition, "method": name}
                    | {"balanced_accuracy": told["balanced_accuracy"]}
                    | training
                )
    pooled = {key: [Predictions.pool(by_seed[seed]) for seed in seeds] for key, by_seed in parts.items()}
    compared: dict[str, dict] = {}
    for condition, name in pooled:
        if condition != GOOD:
            sides = (pooled[GOOD, PLAIN], pooled[condition, PLAIN], pooled[condition, name])
            compared.setdefault(condition, {})[name] = won_back(*sides)
    curve = {}
    if shares:
        on_curve = [*(of_patients(share) for share in sorted(shares)), GOOD]
        learned = [statistics.mean(learned_from[condition]) for condition in on_curve]
        curve = {"curve": learning_curve(learned, [pooled[condition, PLAIN] for condition in on_curve])}
    return {
        "recipe": public_recipe(recipe).to_dict(),
        "data": {"title": recipe.data.title or recipe.data.name, "grouped_by": recipe.data.grouped_by},
        "folds": folds,
        "seeds": list(seeds),
        "hardware": hardware(),
        "won_back": compared,
        "trainings": rows,
        **curve,
    }


def _training_patients(split: str | None) -> int:
    assert split  # each fold's was written
    table = read_split_table(split)
    return len({name for name, side in zip(table["patient_id"], table["side"], strict=True) if side == "train"})


# --- what a reader gets ----------------------------------------------------------------------------------------------


def markdown(result: dict) -> str:
    """The table, and what one has to know to read it."""
    first = next(one for methods in result["won_back"].values() for one in methods.values())
    data, machine, base = result["data"], result["hardware"], result["recipe"]["model"]
    unit = data["grouped_by"]
    lines = [
        f"# Wrong and few labels on {data['title']}",
        "",
        f"{first['rows']:,} B-scans of {first['patients']:,} {unit}s, each answered by a network that never saw its "
        f"{unit} ({result['folds']} folds, mean of {first['seeds']} seed(s)); {base['base']} at {base['image_size']} "
        f"pixels, {result['recipe']['train']['epochs']} epochs. Labels of training sides alone were made wrong or "
        "taken away; validation sides, by which the epoch is chosen, kept theirs. Balanced accuracy and AUROC of all "
        f"answers. Won back: the method less cross-entropy on the same labels, and as a share of what cross-entropy "
        f"lost; 95 % intervals over {unit}s, Fieller's for the share. Co-teaching is told the share of wrong labels.",
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores.",
        "",
        "| labels | method | balanced accuracy | AUROC | lost | won back | share of it |",
        "|---|---|---|---|---|---|---|",
    ]
    accuracy, area = (first["metrics"][name]["good"] for name in ("balanced_accuracy", "auroc"))
    lines.append(f"| {GOOD} | {PLAIN} | {accuracy:.3f} | {area:.3f} | | | |")
    for condition, methods in result["won_back"].items():
        for name, found in methods.items():
            row, area = found["metrics"]["balanced_accuracy"], found["metrics"]["auroc"]["method"]
            told = [_span(row["lost"]), "", ""] if name == PLAIN else ["", _span(row["won"]), _span(row["share"])]
            cells = [condition, name, f"{row['method']:.3f}", f"{area:.3f}", *told]
            lines.append("| " + " | ".join(cells) + " |")
    if "curve" in result:
        lines += ["", *_curve(result["curve"], unit)]
    return "\n".join(lines) + "\n"


def _curve(curve: dict, unit: str) -> list[str]:
    accuracy, area = curve["metrics"]["balanced_accuracy"], curve["metrics"]["auroc"]
    rows = zip(curve["patients"], accuracy["values"], area["values"], strict=True)
    shown = [f"| {count:.0f} | {_shown(first)} | {_shown(second)} |" for count, first, second in rows]
    brought, last = (
        f"{_span(accuracy[key])} of balanced accuracy and {_span(area[key])} of AUROC"
        for key in ("per_doubling", "last_doubling")
    )
    return [
        f"| {unit}s to train on | balanced accuracy | AUROC |",
        "|---|---|---|",
        *shown,
        "",
        f"Each doubling of them brought {brought}; the last one {last}.",
    ]


def _shown(found: dict) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def _span(found: dict) -> str:
    if found["value"] is None:
        return f"n/a: {found['why']}"
    if found["low"] is None:
        return f"{found['value']:+.3f} ({found['why']})"
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def main() -> None:
    """Prints the table, and writes it and all figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", help="of the recipe, as KEY=VALUE")
    parser.add_argument("--recipe", help="name or YAML file; a fast one where not given")
    parser.add_argument("--data", type=Path, help="the images, where the recipe needs any")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--wrong", type=float, nargs="*", default=[0.2, 0.4], help="shares of wrong labels")
    parser.add_argument("--few", type=int, nargs="*", default=[10, 25, 50], help="labels of a class")
    parser.add_argument("--patients", type=float, nargs="*", default=[], help="shares of the training patients")
    parser.add_argument("--methods", nargs="+", choices=(*FOR_WRONG, "fixmatch"), default=[*FOR_WRONG, "fixmatch"])
    parser.add_argument("--out", type=Path, default=Path("runs/few_and_noisy"))
    given = parser.parse_args()
    if not given.wrong and not given.few and not given.patients:
        parser.error("nothing to measure: give --wrong, --few or --patients")
    if any(not 0 < share < 1 for share in given.patients):
        parser.error("--patients: shares lie above 0 and below 1; all of them are measured anyway")
    path = [f"data.path={json.dumps(str(given.data))}"] if given.data else []
    fast = [] if given.recipe else [f"{key}={json.dumps(value)}" for key, value in FAST.items()]
    try:
        recipe = load_recipe(given.recipe or "neh_2018", [*fast, *given.settings, *path])
        recipe = dataclasses.replace(recipe, search={}, push_to_hub=False)
        conditions = given.wrong, given.few, given.methods, given.patients
        result = compare_methods(recipe, given.out, given.folds, given.seeds, *conditions)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except OCTError as error:
        sys.exit(str(error))
    write_json(given.out / "few_and_noisy.json", result)
    text = markdown(result)
    (given.out / "few_and_noisy.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
