"""Cross-validation: a recipe trained once a fold, every B-scan answered by a network that never saw its patient.

Each fold is a whole run in a folder of its own, so it stops, goes on and is checked like any other; what is pooled are
the `predictions.parquet` files that those runs wrote, not a second way to predict. What a run chooses on its validation
side (temperature, thresholds, the rule for an eye) stays with its fold: a validation B-scan of one fold is a test
B-scan of another, so a choice on all of them together would have seen the answers.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oct_hf.data.splits import SIDES
from oct_hf.errors import RunError
from oct_hf.evaluation.assessment import assess_external
from oct_hf.evaluation.intervals import intervals
from oct_hf.evaluation.per_eye import eyes_of
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.of_labels import operating_rows
from oct_hf.runs.facts import public_recipe
from oct_hf.runs.folder import plain_errors, read_run
from oct_hf.runs.labelled import load_data, one_label_only
from oct_hf.runs.run import finetune
from oct_hf.training import processes
from oct_hf.training.recipe import HubRecipe, Recipe
from oct_hf.whole import write_json, written_beside

POOLED, FACTS = "predictions.parquet", "folds.json"
SCORES = ("balanced_accuracy", "accuracy", "auroc", "f1", "mcc", "log_loss", "ece")


def cross_validate(
    recipe: Recipe,
    out: str | Path,
    folds: int = 5,
    seeds: Sequence[int] = (),
    overwrite: bool = False,
    cache_dir: str | None = None,
) -> dict:
    """Trains a recipe once a fold, pools the test sides and measures them; a call that was stopped goes on.

    `out/fold-0` … hold the runs, `out/predictions.parquet` the pooled test sides, `out/folds.json` what is returned.
    With `seeds` each of them (as `train.seed`, on the same folds) has such a folder of its own, `out/seed-S`, and
    `out/predictions.parquet` is that of the first seed: averaging their answers would measure an ensemble, which is
    another model than the recipe's.

    The intervals are over patients, as those of one run. That the networks of the folds have training patients in
    common isn't in them (Bates, Hastie & Tibshirani, "Cross-validation: what does it estimate and how well does it do
    it?", JASA 2023).

    Args:
        recipe: what to train. Where it is split by the set's own folds (`split.by: fold`), those are taken.
        out: folder for the runs.
        folds: how many; 2 or more, and no more than a class has patients.
        seeds: of the training, to see how much chance alone changes; the recipe's own where none is given.
        overwrite: replace other runs there.
        cache_dir: for the prepared data; the `datasets` library's own cache by default.

    Returns:
        `name`, `folds`, `seeds`, `recipe`; `by_seed`, for each seed what `pooled_facts` gives; and `over_seeds`:
        `mean`, `sd` (None for one seed) and `values` of each score.

    Raises:
        OCTError: too few patients, other folds in `out`, or whatever `finetune` refuses.
        Stopped: Ctrl-C or SIGTERM; the fold's checkpoint is saved.
    """
    out = Path(out)
    if len(set(seeds)) < len(seeds):
        raise RunError(f"a seed is given twice: {', '.join(map(str, seeds))}")
    if read_run(out) is not None:
        raise RunError(f"{out} holds a single run; choose another folder for the folds with --out")
    parts = fold_recipes(recipe, folds, cache_dir)
    with plain_errors(out):
        if not seeds:
            return _one_seed(recipe, parts, out, overwrite, cache_dir)
        found = {}
        for seed in seeds:
            whole, *seeded = (_with_seed(one, seed) for one in (recipe, *parts))
            found |= _one_seed(whole, seeded, out / f"seed-{seed}", overwrite, cache_dir)["by_seed"]
        facts = _facts(recipe, folds, found)
        _write(out, facts, Predictions.read(out / f"seed-{seeds[0]}" / POOLED))
    return facts


def fold_recipes(recipe: Recipe, folds: int, cache_dir: str | None = None, own: bool = True) -> list[Recipe]:
    """The recipe once for each fold that is held out.

    Args:
        recipe: of its split the share `validation`, the seed and `near_duplicates` count.
        folds: how many.
        cache_dir: for the prepared data.
        own: take the folds of the data set itself where the recipe is split by them; they leave out guards. Without
            it every image is in one fold.

    Raises:
        RunError: fewer than two folds, or the data set has another number of its own.
    """
    one_label_only(recipe.data, "training on folds")
    if folds < 2:
        raise RunError(f"{folds} fold(s) leave nothing to train on; take 2 or more")
    # A validation fold of the data set's own would be one of ours by chance of its name.
    change = {"by": "patient", "folds": folds, "validation_fold": None, "path": None}
    named = [str(number) for number in range(folds)]
    if own and (names := own_folds(recipe, cache_dir)):
        if len(names) != folds:
            raise RunError(
                f"{recipe.data.title or recipe.data.name} has {len(names)} folds of its own ({', '.join(names)}): "
                f"take --folds {len(names)}, or split.by=patient"
            )
        change, named = {"validation_fold": None}, names
    splits = [dataclasses.replace(recipe.split, **change, test_fold=name) for name in named]
    return [dataclasses.replace(recipe, split=split, push_to_hub=False, hub=HubRecipe()) for split in splits]


def own_folds(recipe: Recipe, cache_dir: str | None = None) -> list[str]:
    """The folds that a data set names, where the recipe is split by them; none where they are published sides."""
    if recipe.split.by != "fold":
        return []
    named = set(load_data(recipe.data, cache_dir)[0]["fold"][:]) - {"guard", ""}
    return [] if named & set(SIDES) else sorted(named)


def train_folds(recipes: Sequence[Recipe], out: Path, overwrite: bool, cache_dir: str | None) -> list[Path]:
    """Trains each recipe in a folder of its own under `out`; what is finished stays. The folders, in order."""
    folders = [out / f"fold-{number}" for number in range(len(recipes))]
    for one, folder in zip(recipes, folders, strict=True):
        finetune(one, folder, overwrite, cache_dir)
    return folders


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))


def _one_seed(recipe: Recipe, recipes: list[Recipe], out: Path, overwrite: bool, cache_dir: str | None) -> dict:
    folders = train_folds(recipes, out, overwrite, cache_dir)
    runs = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in folders]
    parts = [Predictions.read(folder / "model" / POOLED).of("test") for folder in folders]
    facts = _facts(recipe, len(recipes), {str(recipe.train.seed): pooled_facts(parts, runs)})
    _write(out, facts, Predictions.pool(parts))
    return facts


def pooled_facts(parts: Sequence[Predictions], runs: Sequence[dict]) -> dict:
    """What the test sides of all folds show together.

    Args:
        parts: of each fold the test rows.
        runs: of each fold the run.json.

    Returns:
        `labels` and `data`; what `assess_external` gives of all rows: `results`, `intervals`, `calibration`,
        `subgroups`; `per_eye` and `per_patient`, joined by each fold's own rule; `operating_points`, counts at each
        fold's own thresholds added up; `by_fold`, each fold's scores, temperature and epoch; `spread`, `mean`, `sd`,
        `low` and `high` of them.
    """
    pooled = Predictions.pool(parts)
    found = assess_external(None, pooled, runs[0]["recipe"]["evaluation"])
    by_fold = [
        {
            "fold": number,
            "images": len(part.hashes),
            "patients": len(set(part.groups)),
            **{name: run["results"]["test"][name] for name in SCORES},
            "temperature": run["calibration"]["temperature"],
            "best_epoch": run["training"]["best_epoch"],
            "seconds": run["training"]["seconds"],
        }
        for number, (part, run) in enumerate(zip(parts, runs, strict=True))
    ]
    whole = [dataclasses.replace(part, eyes=np.full(len(part.hashes), "both", dtype=object)) for part in parts]
    return {
        "labels": runs[0]["labels"],
        "data": runs[0]["data"],
        **{key: found[key] for key in ("results", "intervals", "calibration", "subgroups")},
        "per_eye": _joined(parts, [run["per_eye"] for run in runs]),
        "per_patient": _joined(whole, [run["per_patient"] for run in runs]),
        "operating_points": add_points([run["operating_points"] for run in runs]),
        "by_fold": by_fold,
        "spread": {name: _spread([row[name] for row in by_fold]) for name in SCORES},
    }


def add_points(found: Sequence[dict]) -> list[dict]:
    """Test counts at the operating points of several folds, added up.

    Args:
        found: of each fold what `operating_points` gives.

    Returns:
        rows of `question`, `target`, `folds` (that could choose a threshold), `tp`, `fp`, `tn`, `fn`, and
        `sensitivity` and `specificity` from them; None for 0 of 0.
    """
    rows: dict[tuple[str, str], dict] = {}
    for points in found:
        for question, target, point in operating_rows(points):
            start = {"question": question, "target": target, "folds": 0, "tp": 0, "fp": 0, "tn": 0, "fn": 0}
            row = rows.setdefault((question, target), start)
            row["folds"] += 1
            for key in ("tp", "fp", "tn", "fn"):
                row[key] += point["test"][key]
    for row in rows.values():
        ill, well = row["tp"] + row["fn"], row["tn"] + row["fp"]
        row["sensitivity"] = row["tp"] / ill if ill else None
        row["specificity"] = row["tn"] / well if well else None
    return list(rows.values())


def _joined(parts: Sequence[Predictions], found: Sequence[dict | None]) -> dict | None:
    rules = [one["rule"] for one in found if one is not None]
    if len(rules) < len(found):
        return None
    eyes = Predictions.pool([eyes_of(part, rule) for part, rule in zip(parts, rules, strict=True)])
    measured = eyes.measure()
    return {
        "rules": rules,
        "n": len(eyes.hashes),
        "results": {name: measured[name] for name in SCORES},
        "intervals": {name: span for name, span in intervals(eyes)["metrics"].items() if name in SCORES},
    }


def _facts(recipe: Recipe, folds: int, by_seed: dict[str, dict]) -> dict:
    return {
        "format": 1,
        "name": recipe.name,
        "folds": folds,
        "seeds": [int(seed) for seed in by_seed],
        "recipe": public_recipe(recipe).to_dict(),
        "by_seed": by_seed,
        "over_seeds": {name: _spread([one["results"][name] for one in by_seed.values()]) for name in SCORES},
    }


def _spread(values: list[float | None]) -> dict:
    """Of folds or seeds; `sd` with n - 1, None for one value or where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "sd": None, "low": None, "high": None, "values": values}
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "sd": sd, "low": min(known), "high": max(known), "values": values}


def _write(out: Path, facts: dict, pooled: Predictions) -> None:
    if processes.is_main():
        write_pooled(pooled, out / POOLED)
        write_json(out / FACTS, facts)
    processes.wait()


def write_pooled(pooled: Predictions, path: Path) -> None:
    """Writes a whole file or none."""
    with written_beside(path) as beside:
        pooled.write(beside)
