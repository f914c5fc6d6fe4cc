"""Out-of-fold predictions of every B-scan of a set, each by a network that never saw its patient: for label errors.

The folds are those of `folds.py`, in the same folders; a cross-validation by patient and a search for label errors in
one folder train once.
"""

import dataclasses
from pathlib import Path

import numpy as np

from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.folds import fold_recipes, train_folds, write_pooled
from oct_hf.training.recipe import Recipe

POOLED = "out_of_fold.parquet"


def out_of_fold(
    recipe: Recipe, out: str | Path, folds: int = 5, overwrite: bool = False, cache_dir: str | None = None
) -> Predictions:
    """Trains a recipe once a fold and pools what each network says of the fold it didn't see.

    `out/fold-0` … hold the runs, `out/out_of_fold.parquet` the result. Every image of the set is in one fold, guards
    between a set's own folds too. A call that was stopped goes on when made again; one with other folds, settings or
    images is refused.

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
    folders = train_folds(fold_recipes(recipe, folds, own=False), Path(out), overwrite, cache_dir)
    parts = []
    for fold, run in enumerate(folders):
        held_out = Predictions.read(run / "model" / "predictions.parquet").of("test")
        parts.append(dataclasses.replace(held_out, sides=np.full(len(held_out.sides), f"fold {fold}", dtype=object)))
    pooled = Predictions.pool(parts)
    write_pooled(pooled, Path(out) / POOLED)
    return pooled
