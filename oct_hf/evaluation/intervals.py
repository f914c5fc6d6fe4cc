"""Intervals over patients: the images of one patient are alike, so whole patients are drawn, never single images."""

import numpy as np

from oct_hf.evaluation.predictions import Predictions


def patient_bootstrap(
    predictions: Predictions, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of accuracy and balanced accuracy by the cluster bootstrap (Field and Welsh, 2007).

    Resamples in which a class is absent say nothing of balanced accuracy and are left out of its interval.

    Args:
        predictions: of one side; its groups (patients) are drawn with replacement.
        resamples: how often.
        level: share of the resampled values inside the interval.
        seed: of the draws.

    Returns:
        (low, high) by the metric's name.
    """
    classes, labels = len(predictions.names), predictions.indices()
    _, group = np.unique(predictions.groups.astype(str), return_inverse=True)
    groups = group.max() + 1
    # Counts by patient, not image by image: a resample is then one row of a matrix product.
    cells = (group * classes + labels) * classes + predictions.probabilities.argmax(1)
    confusion = np.bincount(cells, minlength=groups * classes**2).reshape(groups, -1)
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    counts = (drawn @ confusion).reshape(resamples, classes, classes)
    right, true = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2)
    whole = (true > 0).all(1)
    values = {
        "accuracy": right.sum(1) / true.sum(1),
        "balanced_accuracy": (right[whole] / true[whole]).mean(1),
    }
    tail = (1 - level) / 2
    return {name: tuple(np.quantile(found, (tail, 1 - tail)).tolist()) for name, found in values.items() if len(found)}
