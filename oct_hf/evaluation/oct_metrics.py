"""The `evaluate` metric for OCT classifiers: everything a card reports, in one pass over the probabilities.

A value that can't be computed is None and never 0 or NaN: no positive case means no sensitivity. The file also works
alone, through `evaluate.load("…/oct_metrics.py")`; that loader's parser wants one import a line.
"""

import datasets
import evaluate
import numpy as np
from sklearn import metrics

from oct_hf.errors import DataError

ECE_BINS = 15
LESS_IS_BETTER = ("log_loss", "ece", "brier")

_DESCRIPTION = """Accuracy, balanced accuracy, per-class precision, recall (sensitivity), specificity, F1, one-vs-rest
AUROC and AUPRC, Cohen's kappa, Matthews correlation, log loss, expected calibration error and the confusion matrix."""

_INPUTS = """
Args:
    predictions: probabilities, one list a case, one number a class, each list summing to 1.
    references: index of the true class of each case.
    label_names: names of the classes; "0", "1", … where not given.
Returns:
    a dict; `per_class` holds one dict a label, `confusion_matrix` has true classes as rows, predicted ones as columns.
Example:
    >>> from oct_hf import OCTMetrics
    >>> result = OCTMetrics().compute(predictions=[[0.9, 0.1], [0.3, 0.7]], references=[0, 1])
    >>> result["accuracy"]
    1.0
"""

_CITATION = """@article{Maier-Hein2024, title={Metrics reloaded: recommendations for image analysis validation},
author={Maier-Hein, Lena and others}, journal={Nature Methods}, year={2024}}"""


class OCTMetrics(evaluate.Metric):
    """`OCTMetrics().compute(predictions=probabilities, references=labels, label_names=names)`."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, label_names=None):
        probabilities = np.asarray(predictions, dtype=np.float64)
        names = label_names or [str(i) for i in range(probabilities.shape[1])]
        return measure(probabilities, np.asarray(references), names)


def measure(probabilities, labels, names) -> dict:
    """What `OCTMetrics` computes, from arrays.

    Args:
        probabilities: `(n, classes)`, rows summing to 1.
        labels: int `(n,)`.
        names: one a class.

    Raises:
        DataError: no case, shapes that don't fit, values that are no probabilities or labels out of range.
    """
    check(probabilities, labels, names)
    # Stored probabilities are rounded to 32 bits; sums are made exact again for the log loss.
    probabilities = probabilities / probabilities.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(labels, predicted, labels=range(len(names)))
    per_class = {name: _of_class(confusion, probabilities[:, c], labels == c, c) for c, name in enumerate(names)}
    recalls = [row["recall"] for row in per_class.values() if row["recall"] is not None]
    several = len(set(labels.tolist()) | set(predicted.tolist())) > 1
    return {
        "n": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "auroc": _mean([row["auroc"] for row in per_class.values()]),
        "auprc": _mean([row["auprc"] for row in per_class.values()]),
        "f1": _mean([row["f1"] for row in per_class.values()]),
        "cohen_kappa": float(metrics.cohen_kappa_score(labels, predicted)) if several else None,
        "mcc": _mcc(confusion),
        "log_loss": float(metrics.log_loss(labels, probabilities, labels=range(len(names)))),
        "ece": expected_calibration_error(probabilities, labels),
        "per_class": per_class,
        "confusion_matrix": confusion.tolist(),
    }


def check(probabilities, labels, names) -> None:
    """Raises DataError, with the row, where these are not probabilities and labels of the named classes."""
    if probabilities.ndim != 2 or len(probabilities) == 0:
        raise DataError(
            f"predictions: expected n rows of {len(names)} probabilities, found shape {probabilities.shape}"
        )
    if probabilities.shape[1] != len(names):
        raise DataError(f"predictions have {probabilities.shape[1]} classes, the labels {len(names)}")
    if len(labels) != len(probabilities):
        raise DataError(f"{len(probabilities)} predictions, but {len(labels)} true labels")
    finite = np.isfinite(probabilities).all(1) & (probabilities >= 0).all(1)
    if not finite.all():
        raise DataError(f"row {int(np.argmin(finite))} of the predictions has negative or undefined values")
    off = np.abs(probabilities.sum(1) - 1) > 1e-3
    if off.any():
        row = int(np.argmax(off))
        raise DataError(f"row {row} of the predictions sums to {probabilities[row].sum():.4f}, not to 1")
    if labels.min() < 0 or labels.max() >= len(names):
        raise DataError(f"true labels must lie in 0..{len(names) - 1}, found {labels.min()}..{labels.max()}")


def expected_calibration_error(probabilities, labels, bins: int = ECE_BINS) -> float:
    """Mean gap between the confidence in the predicted class and its accuracy, over bins of equally many cases.

    Equal-mass bins after Nixon et al., "Measuring calibration in deep learning" (2019): the equal-width bins of Guo et
    al. (2017) are mostly empty for a confident model.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    groups = [g for g in np.array_split(order, min(bins, len(order))) if len(g)]
    return float(sum(len(g) * abs(confidence[g].mean() - right[g].mean()) for g in groups) / len(order))


def _of_class(confusion, scores, positive, c: int) -> dict:
    hit = int(confusion[c, c])
    missed, false = int(confusion[c].sum()) - hit, int(confusion[:, c].sum()) - hit
    rejected = int(confusion.sum()) - hit - missed - false
    both = positive.any() and not positive.all()
    return {
        "n": hit + missed,
        "precision": _ratio(hit, hit + false),
        "recall": _ratio(hit, hit + missed),
        "specificity": _ratio(rejected, rejected + false),
        "f1": _ratio(2 * hit, 2 * hit + missed + false),
        "auroc": float(metrics.roc_auc_score(positive, scores)) if both else None,
        "auprc": float(metrics.average_precision_score(positive, scores)) if both else None,
    }


def _mcc(confusion) -> float | None:
    """Gorodkin's R_K (2004); undefined where one class holds all the true or all the predicted labels."""
    confusion = confusion.astype(np.float64)  # the fourth power of 55,109 cases no longer fits an int64
    true, predicted, n = confusion.sum(1), confusion.sum(0), confusion.sum()
    spread = (n**2 - (true**2).sum()) * (n**2 - (predicted**2).sum())
    return float((np.trace(confusion) * n - true @ predicted) / np.sqrt(spread)) if spread else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: list) -> float | None:
    return None if any(v is None for v in values) else float(np.mean(values))


def short_name(key: str) -> str:
    """A metric's name where there is little room: `balanced accuracy`, `AUROC`."""
    return key.upper() if key in ("auroc", "auprc", "f1", "mcc", "ece") else key.replace("_", " ")
