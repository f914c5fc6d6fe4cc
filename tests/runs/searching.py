"""A search small enough for tests, in this process and on a cluster."""

import dataclasses

from oct_hf.training.recipe import Recipe

SPACE = {"learning_rate": {"low": 1e-4, "high": 3e-2, "log": True}, "train.class_weights": [None, "auto"]}


def of_two_epochs(recipe: Recipe) -> Recipe:
    """The recipe on two labels, for two epochs."""
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, labels=("DME", "NORMAL"), scans=1),
        train=dataclasses.replace(recipe.train, epochs=2, freeze_epochs=0, ema=0.0),
    )
