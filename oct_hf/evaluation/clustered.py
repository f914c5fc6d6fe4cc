"""Variances over patients in closed form, and the intervals made of them that hold at few patients and near 0 or 1.

Every estimate is written as a sum of one number a patient (its structural component, or influence), so that images of
one patient may be as alike as they are. Which of these forms is used where was chosen by scripts/interval_coverage.py.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special, stats


@dataclass(frozen=True)
class Estimate:
    """A value and what is known of its spread; arrays, so that many data sets go through at once.

    Attributes:
        value: `(…)`.
        size: `(…)`, the number of independent cases that would give this spread.
        influence: `(…, groups)`, a patient's part in the deviation of the value; its sum of squares is the variance.
    """

    value: np.ndarray
    size: np.ndarray
    influence: np.ndarray


def ratio(part: np.ndarray, whole: np.ndarray, independent: np.ndarray | None = None) -> Estimate:
    """A proportion over images of patients, with its effective sample size.

    The design effect is the linearised variance over patients (Rao and Scott, "A simple method for the analysis of
    clustered binary data", 1992; each patient's residual divided by sqrt(1 - its share), the CR2 of Bell and McCaffrey,
    2002) over the variance of independent images, and at least 1, as Korn and Graubard (1998) have it. A design effect
    that rests on e patients with an error counts e/(e+1); the rest is that of images which are all alike within a
    patient (Kish's effective number of patients). So 0 and 1 have an interval too, and one error doesn't make it jump.

    Args:
        part: `(…, groups)`, such as the right images of each patient.
        whole: `(…, groups)`, all of them; a patient may have none.
        independent: `(…)`, the variance that independent images would have; `p(1-p)/(n-1)` where not given.
    """
    n = whole.sum(-1)
    value = part.sum(-1) / n
    share = whole / n[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = (part - value[..., None] * whole) / n[..., None]
        influence = np.where(share < 1, residual / np.sqrt(1 - share), 0.0)
        variance = value * (1 - value)
        if independent is None:
            independent = variance / (n - 1)
        effect = np.maximum((influence**2).sum(-1) / independent, 1.0)
    alike = n**2 / (whole**2).sum(-1)
    odd = np.minimum((part > 0).sum(-1), (part < whole).sum(-1))
    return Estimate(value, _trusted(np.where(np.isfinite(effect), effect, 1.0) / n, alike, odd), influence)


def size(value: float, variance: float, alike: float, odd: int) -> float:
    """The effective size of any value between 0 and 1 whose variance is known, such as by bootstrap.

    Args:
        alike: effective number of patients.
        odd: patients with an error, or right ones where these are fewer; trusted as in `ratio`.
    """
    room = value * (1 - value)
    return float(_trusted(variance / room, alike, odd)) if room > 1e-12 else float(alike)


def _trusted(inverse: np.ndarray, alike: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """The size from the inverse of the one that was estimated, shrunk to `alike`."""
    trust = odd / (odd + 1)
    return 1 / (trust * inverse + (1 - trust) / alike)


def wilson(value: np.ndarray, size: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval (1927) for a proportion of `size` cases, which needs not be whole."""
    z = stats.norm.ppf((1 + level) / 2)
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(value * (1 - value) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def area(scores: np.ndarray, positive: np.ndarray, group: np.ndarray, groups: int) -> Estimate:
    """AUROC with Obuchowski's components ("Nonparametric analysis of clustered ROC curve data", Biometrics 1997).

    A patient's part is the sum of its positive cases' deviations (the share of negatives below them) and of its
    negative cases' (the share of positives above), each divided by sqrt(1 - the patient's share) as in `ratio`; that is
    Obuchowski's I/(I-1) where patients have equally many images, and DeLong et al. (1988) where each has one.

    Args:
        scores: `(n,)`.
        positive: bool `(n,)`, both kinds present.
        group: int `(n,)`, which patient, below `groups`.

    Returns:
        its `size` is the effective number of patients with the rarer kind of case.
    """
    value, influence, alike = 0.0, np.zeros(groups), np.inf
    for rows, sign in ((positive, 1), (~positive, -1)):
        below = _beaten(sign * scores[rows], np.sort(sign * scores[~rows])) / (~rows).sum()
        value = below.mean()
        count = np.bincount(group[rows], minlength=groups)
        share = count / count.sum()
        deviation = np.bincount(group[rows], below, groups) / count.sum() - value * share
        influence += np.where(share < 1, deviation / np.sqrt(np.where(share < 1, 1 - share, 1)), 0)
        alike = min(alike, 1 / (share**2).sum())
    return Estimate(value, alike, influence)


def logit(estimate: Estimate, patients: int, level: float) -> tuple[float, float]:
    """An interval on the logit scale, which can't leave 0 to 1, with a t distribution.

    Its degrees of freedom are those of the patients that carry the variance, (sum u^2)^2 / sum u^4 of the influences u
    (after Satterthwaite, 1946), and at most `patients - 1`. Where there is no variance (0, 1), Wilson's for as many
    cases as there are effective patients.

    Args:
        estimate: of one data set.
        patients: with the rarer kind of case.
    """
    variance = float((estimate.influence**2).sum())
    room = float(estimate.value * (1 - estimate.value))
    if room <= 1e-12 or variance <= 1e-24:
        return tuple(float(limit) for limit in wilson(estimate.value, estimate.size, level))
    freedom = max(min(patients - 1, variance**2 / float((estimate.influence**4).sum())), 1)
    reach = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance) / room
    middle = special.logit(estimate.value)
    return float(special.expit(middle - reach)), float(special.expit(middle + reach))


def logit_of_spread(value: float, deviation: float, alike: float, level: float) -> tuple[float, float]:
    """As `logit`, from a standard deviation and with the normal distribution."""
    room = value * (1 - value)
    if room <= 1e-12 or deviation <= 1e-12:
        return tuple(float(limit) for limit in wilson(value, alike, level))
    reach = stats.norm.ppf((1 + level) / 2) * deviation / room
    return tuple(float(special.expit(special.logit(value) + r)) for r in (-reach, reach))


def cube_root(estimate: Estimate, patients: int, level: float) -> tuple[float, float]:
    """For a positive mean with a long tail, on Wilson and Hilferty's scale (1931).

    Freedom as in `logit` and at least 3, or one patient with a large loss would make the limit endless.
    """
    variance = float((estimate.influence**2).sum())
    root = float(estimate.value) ** (1 / 3)
    if root == 0 or variance == 0:
        return float(estimate.value), float(estimate.value)
    freedom = min(patients - 1, max(variance**2 / float((estimate.influence**4).sum()), 3))
    reach = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance) / (3 * root**2)
    return max(root - reach, 0.0) ** 3, (root + reach) ** 3


def without_bias(value: float, drawn: np.ndarray, level: float) -> tuple[float, float]:
    """For a mean of absolute gaps, such as the ECE, which noise only makes larger.

    Noise adds to the square of such a value, and resampling adds as much once more: the quantiles of the resampled
    squares are moved down by that, the low one by both, so that a calibrated model's interval reaches 0, the high one
    by the second, so that the measured value stays inside.

    Args:
        drawn: `(b,)`, the resampled values.
    """
    tail = (1 - level) / 2
    noise = max(float((drawn**2).mean()) - value**2, 0.0)
    low, high = np.quantile(drawn, (tail, 1 - tail)) ** 2 - (2 * noise, noise)
    return float(np.sqrt(max(low, 0.0))), float(np.sqrt(max(high, 0.0)))


def mean_of(estimates: list[Estimate], limits: list[tuple[float, float]]) -> tuple[float, float]:
    """The interval of a mean over classes from those of the classes (MOVER: Zou and Donner, Statist. Med. 2008).

    The distance to each limit stands for a standard error on that side; correlations are those of the influences, so
    that one patient's images in two classes count as what they are.

    Args:
        estimates: one a class.
        limits: (low, high) of each.
    """
    values, (low, high) = np.array([e.value for e in estimates]), np.array(limits).T
    influence = np.stack([e.influence for e in estimates])
    norm = np.sqrt((influence**2).sum(1))
    influence = influence / np.where(norm > 0, norm, 1)[:, None]
    correlation = influence @ influence.T
    np.fill_diagonal(correlation, 1)
    reach = [np.sqrt(max(d @ correlation @ d, 0)) / len(values) for d in (values - low, high - values)]
    return float(max(values.mean() - reach[0], 0)), float(min(values.mean() + reach[1], 1))


def _beaten(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of the sorted `others` are below each score, ties as a half."""
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / 2
