"""Out-of-fold predictions: every B-scan predicted by a network that never saw its patient.

Each fold is a whole run of the recipe in a folder of its own, so it stops, goes on and is checked like any other; what
is pooled are the `predictions.parquet` files that those runs wrote, not a second way to predict.
"""

import dataclasses
from pathlib import Path

import numpy as np

from oct_hf.data.splits import split_by_patient, write_split
from oct_hf.errors import RunError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.labelled import LabelledSet, load_data, public_ids
from oct_hf.runs.run import finetune
from oct_hf.training.recipe import Recipe, SplitRecipe

POOLED = "out_of_fold.parquet"


def out_of_fold(
    recipe: Recipe, out: str | Path, folds: int = 5, overwrite: bool = False, cache_dir: str | None = None
) -> Predictions:
    """Trains a recipe once a fold and pools what each network says of the fold it didn't see.

    `out/folds/0` … hold the runs and the split.csv of each, `out/out_of_fold.parquet` the result. The recipe's split
    counts for the share of `validation` and the seed alone; every image of the set is in one fold. A call that was
    stopped goes on when made again.

    Args:
        recipe: what to train.
        out: folder for the runs.
        folds: how many; 2 or more, and no more than a class has patients.
        overwrite: replace other runs there.
        cache_dir: for the prepared data; the `datasets` library's own cache by default.

    Returns:
        one row an image, in the order of the folds; `sides` says "fold 0", "fold 1", ….

    Raises:
        OCTError: too few patients, other folds in `out`, or whatever `finetune` refuses.
        Stopped: Ctrl-C or SIGTERM; the fold's checkpoint is saved.
    """
    # Absolute, because a run remembers its split.csv and is to go on from any working directory.
    place = Path(out).resolve()
    data = _unsplit(recipe, cache_dir)
    numbers = fold_numbers(data, folds, recipe.split.seed)
    plan = [_sides(data, numbers == fold, recipe) for fold in range(folds)]
    files = [place / "folds" / f"{fold}.csv" for fold in range(folds)]
    _keep_splits(data, plan, files, overwrite)
    parts = []
    for fold, file in enumerate(files):
        run = file.with_suffix("")
        split = SplitRecipe(by="file", path=str(file), seed=recipe.split.seed)
        finetune(dataclasses.replace(recipe, split=split, push_to_hub=False), run, overwrite, cache_dir)
        held_out = Predictions.read(run / "model" / "predictions.parquet").of("test")
        parts.append(dataclasses.replace(held_out, sides=np.full(len(held_out.sides), f"fold {fold}", dtype=object)))
    pooled = Predictions.pool(parts)
    beside = place / (POOLED + ".new")
    pooled.write(beside)
    beside.replace(place / POOLED)
    return pooled


def fold_numbers(data: LabelledSet, folds: int, seed: int) -> np.ndarray:
    """The fold of each of `n` images, int `(n,)`: disjoint by patient and stratified by class.

    Raises:
        RunError: fewer than 2 folds.
        DataError: a class has fewer patients than folds.
    """
    if folds < 2:
        raise RunError(f"{folds} fold(s) leave nothing to train on; take 2 or more")
    shares = {str(fold): 1 / folds for fold in range(folds)}
    return split_by_patient(data.labels, data.patients, shares, seed).astype(int)


def _unsplit(recipe: Recipe, cache_dir: str | None) -> LabelledSet:
    dataset, _ = load_data(recipe.data, cache_dir)
    names = dataset.features["label"].names
    labels = [names[i] for i in dataset["label"][:]]
    patients = public_ids(dataset["patient_id"][:], recipe.data)
    return LabelledSet(dataset, dataset["content_hash"][:], labels, names, patients, np.full(len(labels), "test"))


def _sides(data: LabelledSet, held_out: np.ndarray, recipe: Recipe) -> np.ndarray:
    labels, patients = np.array(data.labels)[~held_out], np.array(data.patients)[~held_out]
    shares = {"train": 1 - recipe.split.validation, "validation": recipe.split.validation}
    sides = np.full(len(held_out), "test", dtype="<U10")
    sides[~held_out] = split_by_patient(labels.tolist(), patients.tolist(), shares, recipe.split.seed)
    return sides


def _keep_splits(data: LabelledSet, plan: list[np.ndarray], files: list[Path], overwrite: bool) -> None:
    """Writes each fold's split.csv; refuses a folder where runs of other folds, labels or images already lie."""
    files[0].parent.mkdir(parents=True, exist_ok=True)
    there = set(files[0].parent.glob("*.csv"))
    for sides, file in zip(plan, files, strict=True):
        beside = file.with_suffix(".new")
        write_split(beside, data.hashes, data.patients, data.labels, sides)
        other = file in there and beside.read_bytes() != file.read_bytes()
        if (other or there - set(files)) and not overwrite:
            beside.unlink()
            raise RunError(
                f"{file.parent} holds runs of other folds, labels or images; choose another folder with --out, "
                f"or replace them with --overwrite"
            )
        beside.replace(file)
    for file in there - set(files):
        file.unlink()
