"""Where to cut a probability, and what the cut then misses: thresholds from validation, counts from the test side.

A threshold is one of the scores seen in validation, and every image with that score or more is positive, so that ties
fall to one side and whoever reads the published predictions finds the same counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from oct_hf.data.splits import HELD_OUT
from oct_hf.errors import DataError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.labels import NORMAL_LABELS, REFERRAL, REFERRAL_COST, REFERRAL_LEVELS

TARGET_SPECIFICITY, TARGET_SENSITIVITY = 0.95, 0.95
RULE = "positive where the score is at least the threshold; thresholds are scores of validation images"
THRESHOLDS = np.arange(1, 100) / 100


def operating_points(
    predictions: Predictions,
    *,
    specificity: float = TARGET_SPECIFICITY,
    sensitivity: float = TARGET_SENSITIVITY,
    levels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Operating points of every question that the probabilities answer.

    Args:
        predictions: with the sides "validation" and "test".
        specificity, sensitivity: targets on the validation side, above 0 and at most 1.
        levels: the referral level of each label, where a clinic has its own; `labels.REFERRAL` where not given.

    Returns:
        plain data: `rule`, `targets`, `diseases` (a view by label, each against the rest), `urgent` (the urgent labels
        against the rest), `any_disease` (1 - p of the normal label, as a sum) and `referral` (`levels` and the weighted
        error). A view has `labels` (the positive ones) and two points, `at_specificity` and `at_sensitivity`, or None
        for what can't be had, with `why`. A point has `threshold` and what `counts` gives for `validation` and `test`.

    Raises:
        DataError: targets out of range, unknown levels, or labels that the model doesn't know.
    """
    for target in (specificity, sensitivity):
        if not 0 < target <= 1:
            raise DataError(f"a target of sensitivity or specificity lies above 0 and at most at 1, not at {target}")
    graded = referral_levels(predictions.names, levels)
    sides = {side: _side(predictions.of(side)) for side in HELD_OUT}
    found = {
        key: _view(sides, predictions.names, wanted, specificity, sensitivity)
        for key, wanted in questions(predictions.names, graded).items()
    }
    return {
        "rule": RULE,
        "targets": {"specificity": float(specificity), "sensitivity": float(sensitivity)},
        "diseases": {name: found[name] for name in predictions.names if name in found},
        "urgent": found.get("urgent referral") or _absent(_why_not_urgent(graded)),
        "any_disease": found.get("any disease") or _absent("the model has no label for a normal retina"),
        "referral": {"levels": graded, **weighted_error(sides["test"], predictions.names, graded)},
    }


def questions(names: Sequence[str], levels: Mapping[str, str | None]) -> dict[str, list[str]]:
    """The positive labels of each question: one a disease, "urgent referral" and "any disease".

    The second is left out where a label has no level or none is urgent, the third without a label for normal.
    """
    diseases = [name for name in names if name not in NORMAL_LABELS]
    asked = {name: [name] for name in diseases}
    if not _why_not_urgent(levels):
        asked["urgent referral"] = [name for name in names if levels[name] == "urgent"]
    if len(diseases) == len(names) - 1:
        asked["any disease"] = diseases
    return asked


def scores(probabilities: np.ndarray, names: Sequence[str], positive: Sequence[str]) -> np.ndarray:
    """The probability that one of the `positive` labels is true, float64 `(n,)` of `(n, k)`.

    A sum even where it is 1 - p of the one label that remains: float32 keeps small probabilities, not small rests.
    """
    columns = [i for i, name in enumerate(names) if name in positive]
    return np.asarray(probabilities, np.float64)[:, columns].sum(1)


def threshold_for_specificity(score: np.ndarray, positive: np.ndarray, target: float) -> float | None:
    """The lowest seen score at which at least `target` of the negative cases lie below; None where none does.

    Args:
        score: float `(n,)`.
        positive: bool `(n,)`, with at least one negative case.
        target: share of the negative cases.
    """
    candidates = np.unique(score)
    kept = np.searchsorted(np.sort(score[~positive]), candidates, side="left")  # negatives below each candidate
    enough = candidates[kept >= _at_least(target, int((~positive).sum()))]
    return float(enough[0]) if len(enough) else None


def threshold_for_sensitivity(score: np.ndarray, positive: np.ndarray, target: float) -> float:
    """The highest seen score that at least `target` of the positive cases reach.

    Args:
        score: float `(n,)`.
        positive: bool `(n,)`, with at least one positive case.
        target: share of the positive cases.
    """
    reached = np.sort(score[positive])[::-1]
    return float(reached[_at_least(target, len(reached)) - 1])


def counts(score: np.ndarray, positive: np.ndarray, threshold: float) -> dict[str, Any]:
    """`tp`, `fp`, `tn`, `fn`, and `sensitivity`, `specificity`, `ppv` and `npv` from them; None for 0 of 0."""
    said = score >= threshold
    tp, fp = int((said & positive).sum()), int((said & ~positive).sum())
    fn, tn = int((~said & positive).sum()), int((~said & ~positive).sum())
    return {
        **{"tp": tp, "fp": fp, "tn": tn, "fn": fn},
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
    }


def at_prevalence(sensitivity: float, specificity: float, prevalence: float) -> dict[str, float | None]:
    """Predictive values where the disease is as frequent as `prevalence`, by Bayes' theorem.

    A test side is rarely as a clinic is: predictive values from its counts hold only at its own share of disease
    (Altman and Bland, "Diagnostic tests 2: predictive values", BMJ 1994).

    Args:
        sensitivity, specificity, prevalence: each 0 to 1.

    Returns:
        `ppv` and `npv`; None where no case would be positive, or negative.

    Raises:
        DataError: a number outside 0 to 1.
    """
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity), ("prevalence", prevalence)):
        if not 0 <= value <= 1:
            raise DataError(f"{name} lies between 0 and 1, not at {value}")
    tp, fn = sensitivity * prevalence, (1 - sensitivity) * prevalence
    tn, fp = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
    return {"ppv": _ratio(tp, tp + fp), "npv": _ratio(tn, tn + fn)}


def net_benefit(score, positive, thresholds: Sequence[float] | np.ndarray = THRESHOLDS) -> dict[str, list[float]]:
    """A decision curve: net benefit = tp / n - fp / n * t / (1 - t), by the probability t from which one would act.

    Vickers and Elkin, "Decision curve analysis" (Medical Decision Making, 2006). Only of use with calibrated
    probabilities, and at the share of disease that these cases have.

    Args:
        score: float `(n,)`, the probability of the positive answer.
        positive: bool `(n,)`.
        thresholds: each above 0 and below 1.

    Returns:
        lists of equal length: `threshold`, `model`, `treat_all` and `treat_none` (always 0).

    Raises:
        DataError: no case, or a threshold out of range.
    """
    score, positive, t = np.asarray(score, np.float64), np.asarray(positive, bool), np.asarray(thresholds, np.float64)
    if not len(score) or score.shape != positive.shape:
        raise DataError(f"net benefit needs cases, one score each: {len(score)} scores, {len(positive)} labels")
    if not ((t > 0) & (t < 1)).all():
        raise DataError("thresholds of a decision curve lie between 0 and 1")
    weight, share = t / (1 - t), positive.mean()
    said = score >= t[:, None]
    true, false = (said & positive).mean(1), (said & ~positive).mean(1)
    return {
        "threshold": t.tolist(),
        "model": (true - false * weight).tolist(),
        "treat_all": (share - (1 - share) * weight).tolist(),
        "treat_none": np.zeros(len(t)).tolist(),
    }


def decision_curves(predictions: Predictions, levels: Mapping[str, str] | None = None) -> dict[str, dict]:
    """`net_benefit` on the test side for every question of `operating_points`, by its name."""
    names, (probabilities, labels) = predictions.names, _side(predictions.of("test"))
    asked = questions(names, referral_levels(names, levels)) if len(labels) else {}
    return {
        key: net_benefit(scores(probabilities, names, wanted), _is_one_of(labels, names, wanted))
        for key, wanted in asked.items()
    }


def referral_levels(names: Sequence[str], levels: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """The level of each label, None where no source gives one.

    Raises:
        DataError: a level that isn't one of `labels.REFERRAL_LEVELS`.
    """
    given = {name: level for name, (level, _) in REFERRAL.items()} if levels is None else dict(levels)
    for name, level in given.items():
        if level not in REFERRAL_LEVELS:
            raise DataError(f"{name}: referral is {', '.join(REFERRAL_LEVELS)}, not {level}")
    return {name: given.get(name) for name in names}


def weighted_error(side: tuple[np.ndarray, np.ndarray], names: Sequence[str], levels: Mapping) -> dict:
    """What the referral of the predicted class (the most probable one) costs by `labels.REFERRAL_COST`.

    Args:
        side: probabilities `(n, k)` and labels int `(n,)`.
        names: `k` labels.
        levels: of each of them.

    Returns:
        `weighted_error`, 0 to 1: the cost as a share of the greatest that these cases could have cost; `confusion`,
        true levels as rows and predicted ones as columns, in the order of `labels.REFERRAL_LEVELS`; or None, `why`.
    """
    probabilities, labels = side
    lacking = _without_level(levels)
    if lacking or not len(labels):
        return {"weighted_error": None, "confusion": None, "why": lacking or "there is no test image"}
    level = np.array([REFERRAL_LEVELS.index(levels[name]) for name in names])
    cost = np.array([[REFERRAL_COST[true][said] for said in REFERRAL_LEVELS] for true in REFERRAL_LEVELS])
    confusion = metrics.confusion_matrix(level[labels], level[probabilities.argmax(1)], labels=range(len(cost)))
    share = (confusion * cost).sum() / (confusion.sum(1) @ cost.max(1))
    return {"weighted_error": float(share), "confusion": confusion.tolist(), "why": None}


# --- one view --------------------------------------------------------------------------------------------------------


def _side(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    return predictions.probabilities.astype(np.float64), predictions.indices()


def _is_one_of(labels: np.ndarray, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    return np.isin(labels, [i for i, name in enumerate(names) if name in wanted])


def _view(sides: dict, names, wanted: list[str], specificity: float, sensitivity: float) -> dict:
    cut = {
        side: (scores(probabilities, names, wanted), _is_one_of(labels, names, wanted))
        for side, (probabilities, labels) in sides.items()
    }
    score, positive = cut["validation"]
    if positive.all() or not positive.any():
        kind = "negative" if len(positive) and positive.all() else "positive"
        return _absent(f"no {kind} case among {len(positive)} validation images", wanted)
    above = threshold_for_specificity(score, positive, specificity)
    why = f"no validation score keeps {specificity:g} of the {int((~positive).sum())} negative images below it"
    return {
        "labels": wanted,
        "at_specificity": None if above is None else _point(cut, above),
        "at_sensitivity": _point(cut, threshold_for_sensitivity(score, positive, sensitivity)),
        "why": why if above is None else None,
    }


def _point(cut: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float) -> dict:
    return {"threshold": threshold} | {side: counts(*found, threshold) for side, found in cut.items()}


def _absent(why: str | None, wanted: list[str] | None = None) -> dict:
    return {"labels": wanted, "at_specificity": None, "at_sensitivity": None, "why": why}


def _without_level(levels: Mapping[str, str | None]) -> str | None:
    lacking = [name for name, level in levels.items() if level is None]
    return f"no source gives {', '.join(lacking)} one level of referral" if lacking else None


def _why_not_urgent(levels: Mapping[str, str | None]) -> str | None:
    lacking = _without_level(levels)
    if lacking or "urgent" in levels.values():
        return lacking
    return "no label is urgent"


def _at_least(target: float, n: int) -> int:
    """The fewest of `n` that are a share of `target`; 0.07 * 100 is 7.000000000000001 in floating point."""
    return max(1, int(np.ceil(target * n - 1e-9)))


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
