"""Several kinds of training on the same test B-scans: their means over seeds, also on resamples of patients."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from oct_hf.errors import DataError
from oct_hf.evaluation.intervals import draws
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.resampled import ByPatient

MEASURED = ("balanced_accuracy", "auroc")


def paired(kinds: Sequence[Sequence[Predictions]]) -> tuple[list[list[ByPatient]], Predictions]:
    """The same test rows of each training, by patient; and the first training's.

    Raises:
        DataError: other rows, labels or patients in one of them, or a single patient.
    """
    sides = [[_sorted(one.of("test")) for one in kind] for kind in kinds]
    first = sides[0][0]
    for one in (one for kind in sides for one in kind):
        same = (np.array_equal(getattr(one, name), getattr(first, name)) for name in ("hashes", "labels", "groups"))
        if one.names != first.names or not all(same):
            raise DataError("several trainings are compared on the same test images with the same labels and patients")
    if len(set(first.groups)) < 2:
        raise DataError("a comparison of trainings has no interval over one patient")
    return [[ByPatient.of_predictions(one) for one in kind] for kind in sides], first


def means(measured: list[list[ByPatient]], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Of each metric `(kinds, b)`, as means over the trainings of a kind; `weights` are resamples `(b, patients)`."""

    def mean(kind: list[ByPatient], name: str) -> np.ndarray:
        found = (one.counted(weights) if name == "balanced_accuracy" else one.ranked(weights, False) for one in kind)
        return np.mean([values[name] for values in found], axis=0)

    return {name: np.stack([mean(kind, name) for kind in measured]) for name in MEASURED}


def drawn_means(measured: list[list[ByPatient]], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """`means` of bootstrap resamples of patients, without those in which one isn't defined."""
    blocks = [means(measured, weights) for weights in draws(measured[0][0].groups, resamples, seed)]
    joined = {name: np.concatenate([block[name] for block in blocks], 1) for name in MEASURED}
    return {name: values[:, np.isfinite(values).all(0)] for name, values in joined.items()}


def reach_of(patients: int, level: float) -> float:
    """How many standard deviations of a bootstrap over patients an interval reaches to each side."""
    return float(stats.t.ppf((1 + level) / 2, patients - 1) * np.sqrt(patients / (patients - 1)))


def span(value: float, drawn: np.ndarray, reach: float) -> dict:
    """A value with its interval."""
    half = reach * drawn.std()
    return {"value": float(value), "low": float(value - half), "high": float(value + half)}


def _sorted(side: Predictions) -> Predictions:
    return side.rows(np.argsort(side.hashes.astype(str), kind="stable"))
