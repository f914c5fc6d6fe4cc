"""Every metric of a card for very many resamples of patients at once.

A resample is a weight for each patient. Counts are a matrix product of weights and per-patient counts; for the metrics
over ranks the rows are sorted once, and only the thresholds at which a positive case lies are looked at: each row is a
positive case of one class alone, so all classes together cost no more than one.
"""

from functools import cached_property

import numpy as np
from scipy import sparse

from oct_hf.evaluation import oct_metrics
from oct_hf.evaluation.predictions import Predictions

BLOCK = 250_000  # numbers in one intermediate array: 2 MB stay in a core's cache
SHARES = ("recall", "precision", "specificity", "f1")


class ByPatient:
    """Predictions as counts by patient.

    Attributes:
        probabilities: float64 `(n, k)`, rows summing to 1.
        labels: int `(n,)`.
        group: int `(n,)`, which patient, 0 to `groups - 1`.
        confusion: float64 `(groups, k, k)`, true classes as rows.
        losses: float64 `(groups,)`, the summed log losses of a patient's rows.
        gaps: float64 `(groups,)`, their summed confidences minus the right ones.
    """

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray, group: np.ndarray, groups: int):
        self.probabilities = probabilities / probabilities.sum(1, keepdims=True)
        self.labels, self.group, self.groups = labels, group, groups
        self.classes = probabilities.shape[1]
        self.predicted = self.probabilities.argmax(1)
        cells = (group * self.classes + labels) * self.classes + self.predicted
        counts = np.bincount(cells, minlength=groups * self.classes**2).astype(np.float64)
        self.confusion = counts.reshape(groups, self.classes, self.classes)
        tiny = np.finfo(np.float64).eps  # as sklearn.metrics.log_loss
        answered = np.clip(self.probabilities[np.arange(len(labels)), labels], tiny, 1 - tiny)
        self.losses = np.bincount(group, -np.log(answered), minlength=groups)
        gaps = self.probabilities.max(1) - (self.predicted == labels)
        self.gaps = np.bincount(group, gaps, minlength=groups)

    @classmethod
    def of_predictions(cls, predictions: Predictions) -> "ByPatient":
        """Patients in alphabetical order.

        Raises:
            DataError: no row, values that are no probabilities, or a label that the model doesn't know.
        """
        probabilities, labels = predictions.probabilities.astype(np.float64), predictions.indices()
        oct_metrics.check(probabilities, labels, predictions.names)
        names, group = np.unique(predictions.groups.astype(str), return_inverse=True)
        return cls(probabilities, labels, group, len(names))

    def counted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """What the confusion matrix and the losses give.

        Args:
            weights: `(b, groups)`, how often each patient is in a resample.

        Returns:
            `(b,)` for a metric of all classes, `(b, k)` for `class_…`; NaN where a resample doesn't define it. A class
            that no row has is left out of the balanced accuracy, one that a resample lacks makes it undefined.
        """
        counts = (weights @ self.confusion.reshape(self.groups, -1)).reshape(-1, self.classes, self.classes)
        return self._of_counts(counts) | {"log_loss": _finite(weights @ self.losses, counts.sum((1, 2)))}

    def changes(self) -> dict[str, np.ndarray]:
        """How `f1`, `cohen_kappa` and `mcc` change with the weight of each patient, `(groups,)`.

        Central differences of the counts, whose error is far below that of the variances made of them.
        """
        whole, step = self.confusion.sum(0), 1e-4
        more, less = (self._of_counts(whole + way * step * self.confusion) for way in (1, -1))
        return {name: (more[name] - less[name]) / (2 * step) for name in ("f1", "cohen_kappa", "mcc")}

    def _of_counts(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """From confusion matrices `(b, k, k)`."""
        hit, true, predicted = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2), counts.sum(1)
        n, right = true.sum(1), hit.sum(1)
        by_chance = (true * predicted).sum(1)
        there = self.confusion.sum((0, 2)) > 0
        both = (n**2 - (true**2).sum(1)) * (n**2 - (predicted**2).sum(1))
        values = {
            "accuracy": _finite(right, n),
            "cohen_kappa": _finite(right * n - by_chance, n**2 - by_chance),
            "mcc": _finite(right * n - by_chance, np.sqrt(np.maximum(both, 0))),
            "class_recall": _finite(hit, true),
            "class_precision": _finite(hit, predicted),
            "class_specificity": _finite(n[:, None] - true - predicted + hit, n[:, None] - true),
            "class_f1": _finite(2 * hit, true + predicted),
        }
        values["balanced_accuracy"] = values["class_recall"][:, there].mean(1)
        values["f1"] = values["class_f1"].mean(1)
        return values

    def ranked(self, weights: np.ndarray, precision: bool = True) -> dict[str, np.ndarray]:
        """AUROC and, where asked for, AUPRC (average precision), one against the rest; tied scores as scikit-learn.

        Args:
            weights: as in `counted`.

        Returns:
            `auroc`, `auprc` `(b,)` and `class_auroc`, `class_auprc` `(b, k)`.
        """
        turned = np.ascontiguousarray(weights.T, dtype=np.float64)
        kinds = ("auroc", "auprc") if precision else ("auroc",)
        found = {kind: np.full((len(weights), self.classes), np.nan) for kind in kinds}
        for c in range(self.classes):
            ranks = self._ranks[c]
            if ranks.defined:
                step = max(1, BLOCK // max(ranks.thresholds, self.groups))
                for start in range(0, len(weights), step):
                    rows = slice(start, start + step)
                    for kind, values in zip(kinds, ranks.areas(turned[:, rows], precision), strict=False):
                        found[kind][rows, c] = values
        return {f"class_{kind}": values for kind, values in found.items()} | {
            kind: values.mean(1) for kind, values in found.items()
        }

    @cached_property
    def _ranks(self) -> list["_Ranks"]:
        return [
            _Ranks(self.probabilities[:, c], self.labels == c, self.group, self.groups) for c in range(self.classes)
        ]

    def calibrated(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The expected calibration error, its bins of equal mass drawn anew in each resample.

        The gap between confidence and accuracy, summed along the sorted rows, is linear between two rows, so a bin's
        edge inside a row that was drawn several times needs no copy of the row. Rows of one confidence keep their
        order, copies lying together.

        Args:
            weights: as in `counted`, whole numbers.

        Returns:
            `ece` `(b,)`.
        """
        confidence = self.probabilities.max(1)
        order = np.argsort(confidence, kind="stable")
        gap = (confidence - (self.predicted == self.labels))[order]
        group, found = self.group[order], []
        step = max(1, BLOCK // len(order))
        for start in range(0, len(weights), step):
            drawn = np.take(weights[start : start + step], group, axis=1).astype(np.float64)
            passed = np.cumsum(drawn, 1)
            drawn *= gap
            summed = np.cumsum(drawn, 1)
            found += [_bin_gaps(*rows, gap) for rows in zip(passed, summed, strict=True)]
        return {"ece": np.array(found)}

    def all(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`counted`, `ranked` and `calibrated` in one."""
        weights = np.asarray(weights, dtype=np.float64)
        return self.counted(weights) | self.ranked(weights) | self.calibrated(weights)


class _Ranks:
    """One class against the rest, as sparse counts by threshold and patient."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray, group: np.ndarray, groups: int):
        self.defined = bool(positive.any() and not positive.all())
        levels = np.unique(scores[positive])
        self.thresholds = len(levels)
        if not self.defined:
            return
        # Highest first: a row is counted at the highest threshold that it reaches; some reach none.
        reached = len(levels) - np.searchsorted(levels, scores, side="right")
        counted = reached < len(levels)
        tied = counted & ~positive
        tied[tied] = levels[len(levels) - 1 - reached[tied]] == scores[tied]

        def counts(rows):
            ones = np.ones(int(rows.sum()))
            return sparse.csr_array((ones, (reached[rows], group[rows])), shape=(len(levels), groups))

        self.positive, self.everything, self.tied = counts(positive), counts(counted), counts(tied)
        self.any_tied = bool(tied.any())
        self.negatives = np.bincount(group[~positive], minlength=groups).astype(np.float64)

    def areas(self, weights: np.ndarray, precision: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """AUROC and average precision `(b,)` for weights `(groups, b)`; NaN where one kind of case is lacking."""
        here = self.positive @ weights
        above = np.cumsum(here, 0)
        total, negatives = above[-1].copy(), self.negatives @ weights
        everything = np.cumsum(self.everything @ weights, 0)
        below = negatives - everything
        below += above
        if self.any_tied:
            below += 0.5 * (self.tied @ weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            area = np.where(total * negatives > 0, np.einsum("ub,ub->b", here, below) / (total * negatives), np.nan)
            if not precision:
                return area, None
            np.divide(above, everything, out=above, where=everything > 0)
            average = np.where(total * negatives > 0, np.einsum("ub,ub->b", here, above) / total, np.nan)
        return area, average


def _finite(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """A quotient; NaN where it is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = part / whole
    return np.where(np.isfinite(found), found, np.nan)


def _bin_gaps(passed: np.ndarray, summed: np.ndarray, gap: np.ndarray) -> float:
    """The error of one resample from running sums `(n,)` of its weights and of its weighted gaps."""
    n = round(passed[-1])
    if not n:
        return np.nan
    bins = min(oct_metrics.ECE_BINS, n)
    # As numpy.array_split: the first bins hold one more.
    edges = np.cumsum(n // bins + (np.arange(bins) < n % bins))
    rows = np.searchsorted(passed, edges, side="left")
    at_edges = summed[rows] - (passed[rows] - edges) * gap[rows]
    return float(np.abs(np.diff(at_edges, prepend=0.0)).sum() / n)
