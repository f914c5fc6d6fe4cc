"""How far probabilities can be believed, and the one number that mends most of it.

The temperature is fitted here on the validation side with scipy; scikit-learn's temperature scaling wants an estimator
to calibrate, weighs no patients and runs to T = 0 where all answers are right. Into the weights it goes elsewhere
(`OCTForImageClassification.fold_temperature`). Beside every calibration error stands what a perfect model of the same
confidences would show: with few images that is far from 0.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics

from oct_hf.errors import DataError
from oct_hf.evaluation.oct_metrics import ECE_BINS, check, expected_calibration_error

BOUNDS = (0.02, 50.0)  # a temperature outside says that the logits mean nothing
FEWEST_CASES, FEWEST_PATIENTS = 20, 5  # below, one unusual patient would set the temperature
SPREAD = 0.5  # of log T before anything is seen: 95 of 100 temperatures lie from 0.38 to 2.7
DRAWS = 1000
CHUNK = 2_000_000  # simulated cases at a time: 16 MB


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: T; probabilities are softmax(logits / T). 1.0 where none could be fitted.
        why: why it isn't the minimum that was looked for, where it isn't.
        n: cases it was fitted on.
        patients: patients they come from; None where not given.
        log_loss_before, log_loss_after: weighted as in the fit, in nats; None without cases.
    """

    value: float
    why: str | None
    n: int
    patients: int | None
    log_loss_before: float | None
    log_loss_after: float | None

    def to_dict(self) -> dict:
        """The same as plain data."""
        return asdict(self)


def fit_temperature(
    logits, labels, groups: Sequence | np.ndarray | None = None, spread: float | None = SPREAD
) -> Temperature:
    """The temperature that minimises the log loss, after Guo et al., "On calibration of modern neural networks" (2017),
    held towards 1 where patients are few.

    A dozen patients can't tell T = 0.6 from 1, and the minimum of their log loss alone made real models worse than no
    temperature at all. So the log loss of m patients (cases, without groups) is summed as that of m observations, and
    to it comes (log T)^2 / (2 spread^2): T is the most probable one of a log-normal prior, which a hundred patients
    outweigh.

    With `groups` every patient weighs the same: the B-scans of one patient are alike, so someone with two hundred of
    them tells little more of the model than someone with ten, but would set the temperature alone.

    Where all answers are right, the log loss falls down to T = 0, which claims certainty. Then T is at most 1 and
    sharpens only until the mean confidence is Laplace's rule of succession, (m + 1) / (m + 2). Too few cases or
    patients, one class alone or logits without differences leave T at 1.

    Args:
        logits: float `(n, k)`, of the validation side; logarithms of probabilities serve as well.
        labels: int `(n,)`.
        groups: `(n,)`, the patient of each.
        spread: standard deviation of log T that is expected beforehand; None expects nothing, as Guo et al.

    Raises:
        DataError: shapes that don't fit, undefined logits, or labels out of range.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    weights, patients = _checked(logits, labels, groups)
    n = len(labels)

    def loss(temperature: float) -> float:
        return float(-weights @ log_softmax(logits / temperature, axis=1)[np.arange(n), labels])

    def result(value: float, why: str | None) -> Temperature:
        before, after = (loss(1.0), loss(value)) if n else (None, None)
        return Temperature(float(value), why, n, patients, before, after)

    too_few = _too_few(n, patients)
    if too_few:
        return result(1.0, too_few)
    if len(np.unique(labels)) == 1:
        return result(1.0, "the validation side shows one class only, so nothing tells right from sure")
    if np.ptp(logits, axis=1).max() == 0:
        return result(1.0, "all logits of a case are alike, so no temperature changes them")
    independent = n if patients is None else patients

    def surprise(x: float) -> float:
        held = 0.0 if spread is None else (x / spread) ** 2 / (2 * independent)
        return loss(np.exp(x)) + held

    # The loss is convex in 1 / T, so it has one minimum; over log T, where the prior is convex, the search treats both
    # sides of 1 alike.
    options = {"xatol": 1e-10}
    found = minimize_scalar(surprise, bounds=np.log(BOUNDS), method="bounded", options=options)
    value = float(np.exp(found.x))
    if _all_right(logits, labels):
        bounded, why = _when_all_right(logits, weights, independent)
        if spread is not None and bounded < value < 1:
            whose = "cases" if patients is None else "patients"
            return result(
                value, f"all validation answers are right; sharpened as far as {independent} {whose} bear out"
            )
        return result(bounded, why)
    for bound, word in zip(BOUNDS, ("below", "above"), strict=True):
        if abs(np.log(value / bound)) < 1e-3:
            return result(bound, f"the log loss still falls {word} T = {bound:g}, the bound of the search")
    return result(value, None)


def fit_temperatures(
    logits, labels, groups: Sequence | np.ndarray | None = None, spread: float | None = SPREAD
) -> list[Temperature]:
    """One temperature for each sigmoid output of a multi-label head, each by its binary cross-entropy.

    Args:
        logits: float `(n, k)`; probabilities are sigmoid(logits / T), output by output.
        labels: `(n, k)` of 0 and 1; NaN where it isn't known whether a case has the finding.
        groups: `(n,)`, the patient of each.
        spread: as in `fit_temperature`.

    Raises:
        DataError: as `fit_temperature`.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    if logits.ndim != 2 or labels.shape != logits.shape:
        raise DataError(f"labels of sigmoid outputs must have the logits' shape {logits.shape}, not {labels.shape}")
    patients = None if groups is None else np.asarray(groups)
    fitted = []
    for z, y in zip(logits.T, labels.T, strict=True):
        known = ~np.isnan(y)
        if not np.isin(y[known], (0, 1)).all():
            raise DataError("labels of sigmoid outputs must be 0, 1 or NaN")
        # sigmoid(z / T) is softmax((0, z) / T).
        two = np.stack([np.zeros_like(z), z], axis=1)[known]
        whose = None if patients is None else patients[known]
        fitted.append(fit_temperature(two, y[known].astype(int), whose, spread))
    return fitted


def rescale(probabilities, temperature: float) -> np.ndarray:
    """Probabilities at another temperature: softmax(log(p) / T), float64 `(n, k)`.

    1 / T undoes what T did, so the probabilities before calibration can be had from those of a calibrated model.

    Args:
        probabilities: `(n, k)`.
        temperature: above 0.
    """
    return softmax(logits(probabilities) / temperature, axis=1)


def logits(probabilities) -> np.ndarray:
    """Logarithms of probabilities, float64 `(n, k)`: logits up to a number that the softmax takes away again."""
    return np.log(np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float32).tiny))


def describe_calibration(
    probabilities, labels, *, bins: int = ECE_BINS, draws: int = DRAWS, seed: int = 0
) -> dict[str, object]:
    """Calibration as plain data.

    Args:
        probabilities: `(n, k)`, rows summing to 1.
        labels: int `(n,)`.
        bins: of equally many cases.
        draws: simulations for `ece_if_perfect`.
        seed: of these.

    Returns:
        `n`, `accuracy`, mean `confidence`, `log_loss` (nats) and:

        - `ece`, of `oct_metrics`, and `ece_if_perfect`: `mean` and `q95` of the ECE of a model whose every confidence
          is true, at these confidences and this n (Bröcker and Smith, "Increasing the reliability of reliability
          diagrams", 2007). Cases are drawn one by one; images of one patient are alike, so the real noise is larger.
          Both are None, with `why`, where cases can't fill the bins.
        - `brier`: sum over classes of the squared error, mean over cases, 0 to 2; and its parts, see
          `brier_decomposition`.
        - `bins`: what `reliability` gives.

    Raises:
        DataError: no case, or these are no probabilities and labels.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    check(probabilities, labels, range(probabilities.shape[-1]))
    probabilities = probabilities / probabilities.sum(1, keepdims=True)  # float32 sums to 1 within 1e-7
    n, k = probabilities.shape
    confidence, right = _answers(probabilities, labels)
    enough = n >= bins
    return {
        "n": n,
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "log_loss": float(metrics.log_loss(labels, probabilities, labels=range(k))),
        "ece": expected_calibration_error(probabilities, labels, bins) if enough else None,
        "ece_if_perfect": _ece_if_perfect(confidence, bins, draws, seed) if enough else None,
        "why": None if enough else f"{n} cases can't fill {bins} bins",
        **brier_decomposition(probabilities, labels, bins),
        "bins": reliability(probabilities, labels, bins),
    }


def reliability(probabilities, labels, bins: int = ECE_BINS) -> list[dict]:
    """The bins of a reliability diagram, from low to high confidence in the predicted class.

    Args:
        probabilities: `(n, k)`, rows summing to 1.
        labels: int `(n,)`.
        bins: of equally many cases.

    Returns:
        of each bin mean `confidence`, `accuracy`, `n` and `right`.
    """
    confidence, right = _answers(np.asarray(probabilities, np.float64), np.asarray(labels))
    return [
        {
            "confidence": float(confidence[rows].mean()),
            "accuracy": float(right[rows].mean()),
            "n": len(rows),
            "right": int(right[rows].sum()),
        }
        for rows in _equal_mass(confidence, bins)
    ]


def brier_decomposition(probabilities, labels, bins: int = ECE_BINS) -> dict[str, Any]:
    """The Brier score (1950) of all classes and what it is made of.

    brier = reliability - resolution + uncertainty + within_bin_variance - within_bin_covariance, exactly, summed over
    the classes. The first three are Murphy's (1973), which alone add up only where all forecasts of a bin are equal;
    the other two are what binning hides (Stephenson, Coelho and Jolliffe, "Two extra components in the Brier score
    decomposition", 2008).

    Args:
        probabilities: `(n, k)`.
        labels: int `(n,)`.
        bins: of equally many cases, for each class by its own probability.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    n, k = probabilities.shape
    hits = (labels[:, None] == np.arange(k)).astype(float)
    parts = dict.fromkeys(
        ("reliability", "resolution", "uncertainty", "within_bin_variance", "within_bin_covariance"), 0.0
    )
    for forecast, hit in zip(probabilities.T, hits.T, strict=True):
        rate = hit.mean()
        parts["uncertainty"] += rate * (1 - rate)
        for rows in _equal_mass(forecast, bins):
            f, o, share = forecast[rows], hit[rows], len(rows) / n
            parts["reliability"] += share * (f.mean() - o.mean()) ** 2
            parts["resolution"] += share * (o.mean() - rate) ** 2
            parts["within_bin_variance"] += share * f.var()
            parts["within_bin_covariance"] += share * 2 * np.mean((f - f.mean()) * (o - o.mean()))
    brier = float(((probabilities - hits) ** 2).sum(1).mean())
    return {"brier": brier, "brier_parts": {name: float(value) for name, value in parts.items()}}


# --- the fit ---------------------------------------------------------------------------------------------------------


def _checked(logits, labels, groups) -> tuple[np.ndarray, int | None]:
    """Weights that sum to 1, and how many patients."""
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise DataError(f"expected logits (n, classes) and n labels, found shapes {logits.shape} and {labels.shape}")
    if not np.isfinite(logits).all():
        raise DataError(f"row {int(np.argmin(np.isfinite(logits).all(1)))} of the logits has undefined values")
    if len(labels) and (labels.min() < 0 or labels.max() >= logits.shape[1]):
        raise DataError(f"true labels must lie in 0..{logits.shape[1] - 1}, found {labels.min()}..{labels.max()}")
    if groups is None:
        return np.full(len(labels), 1 / max(len(labels), 1)), None
    groups = np.asarray(groups)
    if groups.shape != labels.shape:
        raise DataError(f"{len(labels)} labels, but {len(groups)} groups")
    _, group, count = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    return 1 / (count[group] * max(len(count), 1)), len(count)


def _too_few(n: int, patients: int | None) -> str | None:
    if n < FEWEST_CASES:
        return f"{n} validation cases are too few to fit a temperature; it takes {FEWEST_CASES}"
    if patients is not None and patients < FEWEST_PATIENTS:
        return f"{patients} validation patients are too few to fit a temperature; it takes {FEWEST_PATIENTS}"
    return None


def _all_right(logits, labels) -> bool:
    """Whether every true class has the one largest logit."""
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return bool((logits[np.arange(len(labels)), labels] > others.max(1)).all())


def _when_all_right(logits, weights, independent: int) -> tuple[float, str]:
    limit = (independent + 1) / (independent + 2)

    def excess(x: float) -> float:
        return float(weights @ softmax(logits / np.exp(x), axis=1).max(1)) - limit

    if excess(0.0) >= 0:
        return 1.0, "all validation answers are right, so none shows how sure the model may be"
    low = np.log(BOUNDS[0])
    root: Any = brentq(excess, low, 0.0) if excess(low) > 0 else None
    value = BOUNDS[0] if root is None else float(np.exp(root))
    return value, f"all validation answers are right; sharpened to a mean confidence of {limit:.3f}, no further"


def _answers(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The confidence in each predicted class, and whether it is right."""
    return probabilities.max(1), probabilities.argmax(1) == labels


# --- bins ------------------------------------------------------------------------------------------------------------


def _equal_mass(scores: np.ndarray, bins: int) -> list[np.ndarray]:
    """The rows of each bin, as `expected_calibration_error` makes them."""
    order = np.argsort(scores, kind="stable")
    return np.array_split(order, min(bins, len(order)))


def _ece_if_perfect(confidence: np.ndarray, bins: int, draws: int, seed: int) -> dict[str, float]:
    """The predicted class is the true one with the probability that the model says, and that is all ECE looks at."""
    groups = _equal_mass(confidence, bins)
    ordered = confidence[np.concatenate(groups)]
    starts = np.cumsum([0, *(len(rows) for rows in groups[:-1])])
    said = np.add.reduceat(ordered, starts)
    random, errors = np.random.default_rng(seed), []
    step = max(1, CHUNK // len(ordered))
    for first in range(0, draws, step):
        right = random.random((min(step, draws - first), len(ordered))) < ordered
        gaps = np.abs(np.add.reduceat(right, starts, axis=1, dtype=np.float64) - said)
        errors.append(gaps.sum(1) / len(ordered))
    found = np.concatenate(errors)
    return {"mean": float(found.mean()), "q95": float(np.quantile(found, 0.95))}
