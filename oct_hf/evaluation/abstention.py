"""When a model should rather not name one label, fitted on the validation side and measured on the test side.

Conformal sets with one threshold for patients, not images: the images of a patient are alike, so that each patient
weighs the same and their number, not that of the images, decides how sure the threshold is. crepes and MAPIE have no
such quantile and keep a calibrated object; here it is a few lines, and the tests hold it to crepes' where every patient
has one image. All of it comes from `predictions.parquet` alone, so anybody can compute it again.
"""

import math

import numpy as np

from oct_hf.data import quality
from oct_hf.errors import DataError, did_you_mean
from oct_hf.evaluation.predictions import Predictions
from oct_hf.inference.gate import SCORES, prediction_sets, within

LEVEL = 0.9
SCORE = "lac"
ACCEPTED = 0.99  # of the validation B-scans
COVERAGES = (1.0, 0.9, 0.8, 0.7)
_POINTS = 100  # of a curve that is stored


def fit_conformal(predictions: Predictions, level: float = LEVEL, score: str = SCORE, by_label: bool = False) -> dict:
    """The threshold for prediction sets that hold the true label with probability `level`.

    For a random image of a new patient from the same place, whatever the model: hierarchical conformal prediction
    (Lee, Barber & Willett, "Distribution-free inference with hierarchical data", 2023), the weighted quantile in which
    an image counts 1 / ((patients + 1) x images of its patient). With one image a patient it is split conformal
    prediction. That the validation side also chose epoch and temperature is outside the promise; so the coverage that
    was measured on the test side stands beside it.

    Args:
        predictions: of the validation side.
        level: 0 to 1.
        score: a key of `gate.SCORES`.
        by_label: a threshold a label, so that the promise holds for the patients of each label (Mondrian; Vovk 2012).

    Returns:
        plain numbers: `level`, `score`, `patients`, `images`; `threshold`, a number or a dict of one a label, with None
        where there are fewer than level / (1 - level) patients: then nothing is ruled out, and `note` says so.

    Raises:
        DataError: no image, an unknown score, or a level that isn't between 0 and 1.
    """
    if score not in SCORES:
        raise DataError(f'no score "{score}"{did_you_mean(score, SCORES)}; there are {", ".join(SCORES)}')
    if not 0 < level < 1:
        raise DataError(f"level {level}: must be between 0 and 1")
    if not len(predictions.labels):
        raise DataError("conformal sets need validation images, and there are none")
    true, (_, group) = predictions.indices(), np.unique(predictions.groups.astype(str), return_inverse=True)
    given = SCORES[score](predictions.probabilities)[np.arange(len(true)), true]
    result = {"level": level, "score": score, "patients": int(group.max() + 1), "images": len(true)}
    if by_label:
        rows = {name: true == index for index, name in enumerate(predictions.names)}
        found = {name: _patient_quantile(given[mine], group[mine], level) for name, mine in rows.items()}
        few = [f"{name} ({len(set(group[rows[name]]))})" for name, value in found.items() if value is None]
    else:
        found = _patient_quantile(given, group, level)
        few = [f"all labels ({result['patients']})"] if found is None else []
    result["threshold"] = found
    if few:
        needed = math.ceil(level / (1 - level) - 1e-9)
        result["note"] = f"too few validation patients to rule out {', '.join(few)}: {level:.0%} needs {needed}"
    return result


def fit_likeness(likeness: np.ndarray, groups: np.ndarray, accepted: float = ACCEPTED) -> float:
    """The least likeness (`data/quality.py`) of a B-scan: the package's threshold, or less where this site needs it.

    It is lowered until `accepted` of the validation B-scans pass, each patient weighing the same, and never raised: a
    threshold from the B-scans of one device would refuse those of the next.

    Args:
        likeness: `(n,)`, of validation B-scans.
        groups: `n` patients.
        accepted: 0 to 1.
    """
    _, mine, counts = np.unique(np.asarray(groups).astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(likeness, kind="stable")
    below = np.cumsum(1 / counts[mine[order]]) / len(counts)
    allowed = int(np.searchsorted(below, 1 - accepted + 1e-9, side="right"))  # so many may be refused
    return min(quality.threshold(), float(np.asarray(likeness)[order[allowed]]))


def describe_abstention(predictions: Predictions, level: float = LEVEL, score: str = SCORE) -> dict:
    """Fitted on the validation rows, measured on the test rows: what a card says of abstention.

    Args:
        predictions: with rows of both sides, as in `predictions.parquet`.
        level, score: as in `fit_conformal`.

    Returns:
        `conformal` and `conformal_by_label`, what `fit_conformal` gives; `sets` and `sets_by_label`, what
        `measure_sets` finds of them on the test side; `selective`, its `risk_coverage`.

    Raises:
        DataError: a side without images.
    """
    fitted, test = predictions.of("validation"), predictions.of("test")
    whole, each = (fit_conformal(fitted, level, score, by_label) for by_label in (False, True))
    return {
        "conformal": whole,
        "sets": measure_sets(test, whole),
        "conformal_by_label": each,
        "sets_by_label": measure_sets(test, each),
        "selective": risk_coverage(test.probabilities.max(1), test.probabilities.argmax(1) == test.indices()),
    }


def measure_sets(predictions: Predictions, conformal: dict) -> dict:
    """How often the sets of some images hold the true label, and how large they are.

    Returns:
        shares from 0 to 1, None without an image: `coverage` over images; `coverage_by_patient`, the mean of the
        patients' own, which is what the level promises; `mean_size`, in labels; `single`, sets of one label, and
        `single_right`, how often that is the true one; `full`, sets that rule nothing out; `empty`, sets that held
        nothing until the most probable label was put in; `labels`, both coverages and the counts label by label.

    Raises:
        DataError: no image.
    """
    if not len(predictions.labels):
        raise DataError("prediction sets are measured on test images, and there are none")
    true = predictions.indices()
    sets = prediction_sets(predictions.probabilities, conformal)
    hit, size = sets[np.arange(len(true)), true], sets.sum(1)
    by_label = {name: _covered(hit, predictions.groups, true == i) for i, name in enumerate(predictions.names)}
    return {
        **_covered(hit, predictions.groups, np.ones(len(true), bool)),
        "mean_size": float(size.mean()),
        "single": float((size == 1).mean()),
        "single_right": float(hit[size == 1].mean()) if (size == 1).any() else None,
        "full": float((size == len(predictions.names)).mean()),
        "empty": float((~within(predictions.probabilities, conformal).any(1)).mean()),
        "labels": by_label,
    }


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> dict:
    """How the share of errors falls when only the surest answers are given.

    Answers of the same confidence have no order: each counts the errors of its like in equal shares, so that the
    result doesn't depend on the order of the rows.

    Args:
        confidence: `(n,)`, larger is surer, such as the largest probability.
        right: bool `(n,)`.

    Returns:
        `images`; `selective_accuracy` by coverage, as text; `aurc`, the mean over i = 1..n of the risk of the i surest
        (Geifman, Uziel & El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers", ICLR 2019);
        `e_aurc`, what it is above that of the best order, which they approximate and which here is exact; and the
        curve, `coverage` and `risk`, in at most 100 points.

    Raises:
        DataError: no image.
    """
    n = len(right)
    if not n:
        raise DataError("a risk-coverage curve needs images, and there are none")
    wrong = ~np.asarray(right, bool)
    _, alike, counts = np.unique(-np.asarray(confidence, np.float64), return_inverse=True, return_counts=True)
    share = np.bincount(alike, wrong) / counts
    kept = np.arange(1, n + 1)
    risk = np.cumsum(np.repeat(share, counts)) / kept
    best = np.maximum(kept - (n - wrong.sum()), 0) / kept
    points = np.unique(np.ceil(np.linspace(n / min(n, _POINTS), n, min(n, _POINTS)) - 1e-9).astype(int)) - 1
    return {
        "images": n,
        "selective_accuracy": {str(c): float(1 - risk[math.ceil(c * n - 1e-9) - 1]) for c in COVERAGES},
        "aurc": float(risk.mean()),
        "e_aurc": float(risk.mean() - best.mean()),
        "curve": {"coverage": (kept[points] / n).tolist(), "risk": risk[points].tolist()},
    }


def _patient_quantile(scores: np.ndarray, group: np.ndarray, level: float) -> float | None:
    patients, mine, counts = np.unique(group, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    weight = np.cumsum(1 / counts[mine[order]]) / (len(patients) + 1)  # the new patient's own share comes after all
    enough = np.flatnonzero(weight >= level - 1e-9)
    return float(scores[order[enough[0]]]) if len(enough) else None


def _covered(hit: np.ndarray, groups: np.ndarray, rows: np.ndarray) -> dict:
    _, group = np.unique(groups[rows].astype(str), return_inverse=True)
    shares = np.bincount(group, hit[rows]) / np.bincount(group)
    return {
        "images": int(rows.sum()),
        "patients": len(shares),
        "coverage": float(hit[rows].mean()) if len(shares) else None,
        "coverage_by_patient": float(shares.mean()) if len(shares) else None,
    }
