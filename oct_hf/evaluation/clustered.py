"""Variances over patients in closed form, and the intervals made of them that hold at few patients and near 0 or 1.

Every estimate is written as a sum of one number a patient (its structural component, or influence), so that images of
one patient may be as alike as they are. An interval then is the textbook one for as many independent cases as have that
spread; how much a spread is trusted that few patients carry was chosen by scripts/interval_coverage.py.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

Numbers = np.ndarray | np.floating | float  # of many data sets at once, or of one
_NONE = 1e-24  # a variance that is only rounding


@dataclass(frozen=True)
class Estimate:
    """A value and what is known of its spread; arrays, so that many data sets go through at once.

    Attributes:
        value: `(…)`, between 0 and 1 where a size is asked for.
        alike: `(…)`, the number of independent cases where the images of a patient are all alike: Kish's effective
            number of patients, of the rarer kind of case.
        patients: `(…)`, those with a case, of the rarer kind.
        influence: `(…, groups)`, a patient's part in the deviation of the value; its sum of squares is the variance.
    """

    value: Numbers
    alike: Numbers
    patients: Numbers
    influence: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """`(…)`, linearised."""
        return (self.influence**2).sum(-1)

    @property
    def carriers(self) -> np.ndarray:
        """`(…)`, how many patients carry the variance: (sum u^2)^2 / sum u^4 of the influences u; 0 if none."""
        variance, fourth = self.variance, (self.influence**4).sum(-1)
        return np.where(variance > _NONE, variance**2 / np.where(variance > _NONE, fourth, 1), 0.0)

    @property
    def freedom(self) -> np.ndarray:
        """`(…)`, degrees of freedom of the variance, by the variance of a variance (Satterthwaite, 1946).

        2 / (1/e - 1/patients) for e carriers; from 1 to the patients but one.
        """
        spread = 1 / np.maximum(self.carriers, 1e-9) - 1 / np.maximum(self.patients, 1)
        return np.clip(2 / np.maximum(spread, 1e-9), 1, np.maximum(self.patients - 1, 1))


def size(estimate: Estimate, level: float, variance: Numbers | None = None, doubt: float = 1.5) -> np.ndarray:
    """The effective sample size: of how many independent cases the value has this spread.

    That is value (1 - value) / variance, with two corrections where few patients carry the variance. It is divided by
    the square of t over z, as Korn and Graubard have it ("Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", Survey Methodology 1998), t of the estimate's degrees of
    freedom. And it is drawn to the size of patients whose images are all alike, on the scale of the logarithm and with
    the weight (1 + e)^-doubt for e carriers, so that 0 and 1 have an interval too, and one error doesn't make it jump.

    Args:
        variance: `(…)`, where another one is known to be better than the linearised, such as by bootstrap.
        doubt: how soon a spread that few patients carry is trusted.
    """
    variance = estimate.variance if variance is None else variance
    room = estimate.value * (1 - estimate.value)
    wider = stats.t.ppf((1 + level) / 2, estimate.freedom) / stats.norm.ppf((1 + level) / 2)
    known = (room > 1e-12) & (variance > _NONE)
    found = np.where(known, room / np.where(known, variance, 1), 1) / wider**2
    trust = np.where(known, 1 - (1 + estimate.carriers) ** -doubt, 0.0)
    return np.exp(trust * np.log(found) + (1 - trust) * np.log(estimate.alike))


def ratio(part: np.ndarray, whole: np.ndarray) -> Estimate:
    """A proportion over images of patients.

    Its variance is the linearised one of Rao and Scott ("A simple method for the analysis of clustered binary data",
    1992), each patient's residual divided by sqrt(1 - its share), the CR2 of Bell and McCaffrey (2002).

    Args:
        part: `(…, groups)`, such as the right images of each patient.
        whole: `(…, groups)`, all of them; a patient may have none.
    """
    n = whole.sum(-1)
    value = part.sum(-1) / n
    share = whole / n[..., None]
    residual = (part - value[..., None] * whole) / n[..., None]
    influence = np.where(share < 1, residual / np.sqrt(np.where(share < 1, 1 - share, 1)), 0.0)
    return Estimate(value, n**2 / (whole**2).sum(-1), (whole > 0).sum(-1), influence)


def proportion(part: np.ndarray, whole: np.ndarray, level: float, doubt: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a `ratio` for its effective `size`, which is never more than there are images.

    Where each patient has one image nothing is to be estimated, and it is Wilson's own.
    """
    estimate, images = ratio(part, whole), whole.sum(-1)
    cases = np.where(whole.max(-1) > 1, np.minimum(size(estimate, level, doubt=doubt), images), images)
    return wilson(estimate.value, cases, level)


def wilson(value: Numbers, size: Numbers, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval (1927) for a proportion of `size` cases, which needs not be whole."""
    z = stats.norm.ppf((1 + level) / 2)
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(value * (1 - value) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def logit(value: Numbers, size: Numbers, level: float) -> tuple[float, float]:
    """Of an area between 0 and 1, on the logit scale, which leaves more room on the far side; at 0 and 1 Wilson's."""
    room = value * (1 - value)
    if room <= 1e-12:
        low, high = wilson(value, size, level)
        return float(low), float(high)
    middle, reach = special.logit(value), stats.norm.ppf((1 + level) / 2) / np.sqrt(size * room)
    return float(special.expit(middle - reach)), float(special.expit(middle + reach))


def area(scores: np.ndarray, positive: np.ndarray, group: np.ndarray, groups: int) -> Estimate:
    """AUROC with Obuchowski's components ("Nonparametric analysis of clustered ROC curve data", Biometrics 1997).

    A patient's part is the sum of its positive cases' deviations (the share of negatives below them) and of its
    negative cases' (the share of positives above), each divided by sqrt(1 - the patient's share) as in `ratio`; that is
    Obuchowski's I/(I-1) where patients have equally many images, and DeLong et al. (1988) where each has one.

    Args:
        scores: `(n,)`.
        positive: bool `(n,)`, both kinds present.
        group: int `(n,)`, which patient, below `groups`.
    """
    value, influence = 0.0, np.zeros(groups)
    for rows, sign in ((positive, 1), (~positive, -1)):
        below = _beaten(sign * scores[rows], np.sort(sign * scores[~rows])) / (~rows).sum()
        value = below.mean()
        count = np.bincount(group[rows], minlength=groups)
        share = count / count.sum()
        deviation = np.bincount(group[rows], below, groups) / count.sum() - value * share
        influence += np.where(share < 1, deviation / np.sqrt(np.where(share < 1, 1 - share, 1)), 0)
    return Estimate(value, *_rarer(positive, group), influence)


def precision_area(scores: np.ndarray, positive: np.ndarray, group: np.ndarray, groups: int) -> Estimate:
    """Average precision (AUPRC), linearised: its derivative by the weight of each patient (Jaeckel, 1972).

    A case changes the precision at each threshold that it reaches, a positive one also how often its own threshold
    counts. Times sqrt(I/(I-1)) for I patients.

    Args:
        scores, positive, group, groups: as for `area`.
    """
    levels, level = np.unique(scores, return_inverse=True)
    here = np.bincount(level[positive], minlength=len(levels)) / positive.sum()
    reached = np.cumsum(np.bincount(level, minlength=len(levels))[::-1])[::-1]
    precision = np.cumsum(here[::-1])[::-1] * positive.sum() / reached
    value = here @ precision
    more, all_of_it = np.cumsum(here / reached), np.cumsum(here * precision / reached)
    change = positive * (more[level] + (precision[level] - value) / positive.sum()) - all_of_it[level]
    influence = np.bincount(group, change, groups) * np.sqrt(groups / max(groups - 1, 1))
    return Estimate(value, *_rarer(positive, group), influence)


def _rarer(positive: np.ndarray, group: np.ndarray) -> tuple[float, int]:
    """`alike` and `patients` of an estimate that compares two kinds of case."""
    counts = [np.unique(group[rows], return_counts=True)[1] for rows in (positive, ~positive)]
    return min(c.sum() ** 2 / (c**2).sum() for c in counts), min(len(c) for c in counts)


def mean(estimates: list[Estimate], patients: int) -> Estimate:
    """The mean of areas of several classes, which the images of `patients` bear on."""
    return Estimate(
        np.mean([float(e.value) for e in estimates]),
        min(e.alike for e in estimates),
        patients,
        np.mean([e.influence for e in estimates], 0),
    )


def skewed(estimate: Estimate, level: float) -> tuple[float, float]:
    """For a mean above 0 with a long tail, such as the log loss.

    Hall's monotone cubic transformation takes the skewness out of the studentised mean ("On the removal of skewness by
    transformation", JRSS B 1992): ((1 + b T)^3 - 1) / (3 b) + b / 2 for T = (mean - truth) / sd, and b a third of the
    sum of u^3 over sd^3 for the patients' influences u. What it makes is taken for a t of the estimate's degrees of
    freedom, at least 3, or one patient with a large loss would make the limit endless.
    """
    value, spread = float(estimate.value), float(np.sqrt(estimate.variance))
    if spread <= np.sqrt(_NONE):
        return value, value
    bend = float((estimate.influence**3).sum()) / spread**3 / 3
    reach = float(stats.t.ppf((1 + level) / 2, max(float(estimate.freedom), 3)))
    high, low = (value - spread * _straight(side * reach, bend) for side in (-1, 1))
    return max(low, 0.0), high


def _straight(transformed: float, bend: float) -> float:
    """The studentised mean that Hall's transformation makes `transformed` of."""
    if abs(bend) < 1e-6:
        return transformed
    return float(np.cbrt(1 + 3 * bend * (transformed - bend / 2)) - 1) / bend


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


def largest_net_gap(gaps: np.ndarray, right: np.ndarray, images: np.ndarray, level: float) -> float:
    """How far confidence and accuracy may differ over all images, which no calibration error is below.

    A confident model's errors are few, and chance shows too few of them more often than too many. Wilson's interval of
    the accuracy knows that; so the gap's upper limit is as far off, in standard errors, as the accuracy's.

    Args:
        gaps: `(groups,)`, a patient's summed confidences minus the right images.
        right, images: `(groups,)`, how many.
    """
    gap, accuracy = ratio(gaps, images), ratio(right, images)
    low, high = proportion(right, images, level)
    reach = accuracy.value - low if gap.value >= 0 else high - accuracy.value
    known = accuracy.variance > _NONE
    return float(abs(gap.value) + reach * (np.sqrt(gap.variance / accuracy.variance) if known else 1.0))


def mean_of(estimates: list[Estimate], limits: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
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


def mean_proportion(counts: list[tuple[np.ndarray, np.ndarray]], level: float) -> tuple[float, float]:
    """The interval of a mean of proportions, such as the balanced accuracy.

    Errors in all of them together are better known than those in one, so each is given less `doubt` than alone; that
    covered nearer to the level.

    Args:
        counts: of each proportion (part, whole) by patient, as for `ratio`.
    """
    limits = [proportion(*both, level, doubt=2) for both in counts]
    return mean_of([ratio(*both) for both in counts], limits)


def _beaten(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of the sorted `others` are below each score, ties as a half."""
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / 2
