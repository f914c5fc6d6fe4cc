"""Intervals over patients: the images of one patient are alike, so patients are what is counted, never single images.

The percentile bootstrap, which most papers print, covers far less than it says with few patients or values near 1; so
each metric has the method that kept its promise in scripts/interval_coverage.py; coverage.py has what was measured.
"""

import numpy as np

from oct_hf.evaluation import clustered
from oct_hf.evaluation.clustered import Estimate
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.resampled import BLOCK, ByPatient
from oct_hf.parallel import in_order

METRICS = ("accuracy", "balanced_accuracy", "auroc", "auprc", "f1", "cohen_kappa", "mcc", "log_loss", "ece")
PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "auprc")
_BOOTSTRAPPED = ("f1", "cohen_kappa", "mcc", "auprc", "ece", "class_auprc")

WILSON = "Wilson, effective sample size over patients"
MEAN = "from those of the classes, with their covariance over patients (MOVER)"
AREA = "Obuchowski, effective sample size over patients, logit scale"
PRECISION = "linearised and patient bootstrap, effective sample size, logit scale"
SPREAD = "Wilson, effective sample size by patient bootstrap"
LOSS = "linearised over patients, Hall's transformation for skewness"
SQUARES = "patient bootstrap, bias removed from the square, and the net gap"


def intervals(predictions: Predictions, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> dict:
    """An interval for every metric of `Predictions.measure`.

    Args:
        predictions: of one side.
        resamples: bootstrap resamples of patients, for the metrics without a variance in closed form.
        level: share of data sets whose interval is to hold the true value.
        seed: of the resamples.

    Returns:
        `level`, `resamples`, `patients`; `metrics`, by name; and `per_class`, by label and name. Each is a dict with
        `low`, `high` and `method`, or with `why` there is none.

    Raises:
        DataError: no row, values that are no probabilities, or a label that the model doesn't know.
    """
    data = ByPatient.of_predictions(predictions)
    result = {"level": level, "resamples": resamples, "patients": data.groups}
    if data.groups < 2:
        one = {"why": "one patient"}
        per_class = {name: dict.fromkeys(PER_CLASS, one) for name in predictions.names}
        return result | {"metrics": dict.fromkeys(METRICS, one), "per_class": per_class}
    every = _Every(data, resamples, level, seed)
    per_class = {name: every.of_class(c) for c, name in enumerate(predictions.names)}
    return result | {"metrics": every.of_all(), "per_class": per_class}


def draws(patients: int, resamples: int, seed: int, step: int | None = None):
    """How often each patient is in a resample: float64 `(b, patients)` in blocks that fit the memory."""
    rng = np.random.default_rng(seed)
    step = step or max(1, BLOCK // patients)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(patients, np.full(patients, 1 / patients), size=size).astype(np.float64)


class _Every:
    """The intervals of one set of predictions."""

    def __init__(self, data: ByPatient, resamples: int, level: float, seed: int):
        self.data, self.level = data, level
        self.values = {name: found[0] for name, found in data.all(np.ones((1, data.groups))).items()}
        blocks = [found for _, found in in_order(data.all, draws(data.groups, resamples, seed))]
        self.drawn = {name: np.concatenate([block[name] for block in blocks]) for name in _BOOTSTRAPPED}
        self.changes = data.changes()
        self.images = data.confusion.sum((1, 2))
        self.right = np.trace(data.confusion, axis1=1, axis2=2)
        self.counts = [_counts(data.confusion, c) for c in range(data.classes)]
        self.areas = [self._area(c) for c in range(data.classes)]

    def of_all(self) -> dict:
        present = [c for c in range(self.data.classes) if self.counts[c]["recall"][1].any()]
        kinds = {
            "accuracy": _found(*clustered.proportion(self.right, self.images, self.level), WILSON),
            "balanced_accuracy": self._balanced(present),
            "auroc": self._mean_area(),
            "auprc": self._mean_precision_area(),
            "f1": self._spread("f1"),
            "cohen_kappa": self._spread("cohen_kappa", lowest=-1),
            "mcc": self._spread("mcc", lowest=-1),
            "log_loss": _found(*clustered.skewed(clustered.ratio(self.data.losses, self.images), self.level), LOSS),
            "ece": self._calibration(),
        }
        return {name: kinds[name] for name in METRICS}

    def of_class(self, c: int) -> dict:
        found = {name: self._share(*self.counts[c][name]) for name in ("precision", "recall", "specificity", "f1")}
        area = self.areas[c]
        if isinstance(area, str):
            found["auroc"] = found["auprc"] = {"why": area}
        else:
            found["auroc"] = self._of_area(area[0])
            found["auprc"] = self._precision_area(area[1], self.drawn["class_auprc"][:, c])
        return {name: found[name] for name in PER_CLASS}

    def _share(self, part, whole, nothing: str) -> dict:
        patients = int((whole > 0).sum())
        if patients < 2:
            return {"why": nothing if not patients else "cases of one patient"}
        return _found(*clustered.proportion(part, whole, self.level), WILSON)

    def _balanced(self, present: list[int]) -> dict:
        counts = [self.counts[c]["recall"][:2] for c in present]
        if min((whole > 0).sum() for _, whole in counts) < 2:
            return {"why": "a class with cases of one patient"}
        return _found(*clustered.mean_proportion(counts, self.level), MEAN)

    def _area(self, c: int) -> tuple[Estimate, Estimate] | str:
        """AUROC and AUPRC of a class, or why there is none."""
        positive, group = self.data.labels == c, self.data.group
        if not positive.any() or positive.all():
            return "no positive case" if not positive.any() else "no negative case"
        if min(len(np.unique(group[rows])) for rows in (positive, ~positive)) < 2:
            return "cases of one patient"
        given = (self.data.probabilities[:, c], positive, group, self.data.groups)
        return clustered.area(*given), clustered.precision_area(*given)

    def _of_area(self, area: Estimate) -> dict:
        return _found(*clustered.logit(area.value, clustered.size(area, self.level), self.level), AREA)

    def _mean_area(self) -> dict:
        joined = self._joined(0)
        return {"why": joined} if isinstance(joined, str) else self._of_area(joined)

    def _mean_precision_area(self) -> dict:
        joined = self._joined(1)
        return {"why": joined} if isinstance(joined, str) else self._precision_area(joined, self.drawn["auprc"])

    def _joined(self, which: int) -> Estimate | str:
        """The mean over the classes of the first or second that `_area` gives, or why there is none."""
        found = []
        for areas in self.areas:
            if isinstance(areas, str):
                return f"a class with {areas}"
            found.append(areas[which])
        return clustered.mean(found, self.data.groups)

    def _precision_area(self, area: Estimate, drawn: np.ndarray) -> dict:
        """With the geometric mean of two variances: few patients make the linearised too small, the other too large."""
        defined = _defined(drawn)
        if defined is None:
            return {"why": "not defined in most resamples"}
        size = clustered.size(area, self.level, np.sqrt(area.variance * defined.var()))
        return _found(*clustered.logit(area.value, size, self.level), PRECISION)

    def _spread(self, name: str, lowest: float = 0) -> dict:
        """Between `lowest` and 1: as a share of that room, with the bootstrap's variance."""
        value, drawn = self.values[name], _defined(self.drawn[name])
        if not np.isfinite(value) or drawn is None:
            return {"why": "not defined" if not np.isfinite(value) else "not defined in most resamples"}
        room, share = 1 - lowest, self.images / self.images.sum()
        influence = np.nan_to_num(self.changes[name]) / np.sqrt(1 - share) / room
        estimate = Estimate((value - lowest) / room, 1 / (share**2).sum(), self.data.groups, influence)
        size = clustered.size(estimate, self.level, drawn.var() / room**2)
        low, high = clustered.wilson(estimate.value, size, self.level)
        return _found(lowest + room * low, lowest + room * high, SPREAD)

    def _calibration(self) -> dict:
        low, high = clustered.without_bias(self.values["ece"], self.drawn["ece"], self.level)
        net = clustered.largest_net_gap(self.data.gaps, self.right, self.images, self.level)
        return _found(low, min(max(high, net), 1.0), SQUARES)


def _counts(confusion: np.ndarray, c: int) -> dict[str, tuple]:
    """For each share of a class: its numerator and denominator by patient, and why there may be none.

    F1 is a share of 2 TP + FP + FN in which each right image counts twice.
    """
    hit, true, predicted = confusion[:, c, c], confusion[:, c].sum(1), confusion[:, :, c].sum(1)
    images = confusion.sum((1, 2))
    return {
        "precision": (hit, predicted, "never predicted"),
        "recall": (hit, true, "no positive case"),
        "specificity": (images - true - predicted + hit, images - true, "no negative case"),
        "f1": (2 * hit, true + predicted, "no positive case, and never predicted"),
    }


def _defined(drawn: np.ndarray) -> np.ndarray | None:
    """The resamples that define the metric; None where fewer than half do."""
    finite = drawn[np.isfinite(drawn)]
    return finite if 2 * len(finite) >= len(drawn) and len(finite) > 1 else None


def _found(low, high, method: str) -> dict:
    return {"low": float(low), "high": float(high), "method": method}
