"""Out-of-fold predictions: every B-scan predicted by a network that never saw its patient.

Each fold is a whole run of the recipe in a folder of its own, so it stops, goes on and is checked like any other; what
is pooled are the `predictions.parquet` files that those runs wrote, not a second way to predict.
"""

import dataclasses
from pathlib import Path

import numpy as np

from oct_hf.errors import RunError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.run import finetune
from oct_hf.training.recipe import Recipe

POOLED = "out_of_fold.parquet"


def out_of_fold(
    recipe: Recipe, out: str | Path, folds: int = 5, overwrite: bool = False, cache_dir: str | None = None
) -> Predictions:
    """Trains a recipe once a fold and pools what each network says of the fold it didn't see.

    `out/folds/0` … hold the runs, `out/out_of_fold.parquet` the result. Of the recipe's split, the share `validation`,
    the seed and `near_duplicates` count; every image of the set is in one fold. A call that was stopped goes on when
    made again; one with other folds, settings or images is refused.

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
    if folds < 2:
        raise RunError(f"{folds} fold(s) leave nothing to train on; take 2 or more")
    parts = []
    for fold in range(folds):
        run = Path(out) / "folds" / str(fold)
        # A validation fold of the data set's own would be one of ours by chance of its name.
        split = {"by": "patient", "folds": folds, "test_fold": str(fold), "validation_fold": None, "path": None}
        split = dataclasses.replace(recipe.split, **split)
        finetune(dataclasses.replace(recipe, split=split, push_to_hub=False), run, overwrite, cache_dir)
        held_out = Predictions.read(run / "model" / "predictions.parquet").of("test")
        parts.append(dataclasses.replace(held_out, sides=np.full(len(held_out.sides), f"fold {fold}", dtype=object)))
    pooled = Predictions.pool(parts)
    beside = Path(out) / (POOLED + ".new")
    pooled.write(beside)
    beside.replace(Path(out) / POOLED)
    return pooled
