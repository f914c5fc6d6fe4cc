"""How much of what wrong or few labels cost does a method win back? Paired over patients and averaged over seeds.

Lost is what cross-entropy gives with good labels less what it gives with bad ones; won is what a method gives with the
bad ones less what cross-entropy gives with them. Their quotient has no standard deviation where nothing may have been
lost, so its interval is Fieller's.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from oct_hf.errors import DataError
from oct_hf.evaluation.intervals import draws
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.resampled import ByPatient

MEASURED = ("balanced_accuracy", "auroc")


def won_back(
    good: Sequence[Predictions],
    bad: Sequence[Predictions],
    method: Sequence[Predictions],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict:
    """What was lost, what was won back of it, and the share.

    Of each metric the mean over the trainings counts. All are measured on the same bootstrap resamples of patients, and
    the interval of a difference is `± t sd` as in `comparison.compare`; that another seed trains otherwise is in it
    only as far as the mean hides it. The share's interval holds every theta for which `won - theta * lost` may be 0
    (Fieller, "Some problems in interval estimation", JRSS B 1954).

    Args:
        good: out-of-fold predictions of cross-entropy on good labels, one set a seed.
        bad: of cross-entropy on bad labels.
        method: of the method on the bad labels.
        resamples, seed: of the patients.
        level: of the intervals.

    Returns:
        `rows`, `patients`, `seeds`, `level`; `metrics`, by name: `good`, `bad`, `method` (means over seeds), `lost`,
        `won` and `beyond_half`, which is `won - lost / 2`, each with `value`, `low`, `high`; and `share` with the same,
        or without bounds and with `why`.

    Raises:
        DataError: other rows, labels or patients in one of them, or a single patient.
    """
    sides = [[_sorted(one.of("test")) for one in kind] for kind in (good, bad, method)]
    first = sides[0][0]
    for one in (one for kind in sides for one in kind):
        same = (np.array_equal(getattr(one, name), getattr(first, name)) for name in ("hashes", "labels", "groups"))
        if one.names != first.names or not all(same):
            raise DataError("what was lost and won is told on the same test images with the same labels and patients")
    count = len(set(first.groups))
    if count < 2:
        raise DataError("what was lost and won has no interval over one patient")
    measured = [[ByPatient.of_predictions(one) for one in kind] for kind in sides]
    whole = _values(measured, np.ones((1, count)))
    drawn = [_values(measured, weights) for weights in draws(count, resamples, seed)]
    drawn = {name: np.concatenate([block[name] for block in drawn], 1) for name in MEASURED}
    reach = float(stats.t.ppf((1 + level) / 2, count - 1) * np.sqrt(count / (count - 1)))
    metrics = {name: _row(whole[name][:, 0], drawn[name], reach) for name in MEASURED}
    return {"rows": len(first.hashes), "patients": count, "seeds": len(bad), "level": level, "metrics": metrics}


def _sorted(side: Predictions) -> Predictions:
    return side.rows(np.argsort(side.hashes.astype(str), kind="stable"))


def _values(measured: list[list[ByPatient]], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Of each metric `(3, b)`: good, bad, method, as means over seeds."""

    def mean(kind: list[ByPatient], name: str) -> np.ndarray:
        found = (one.counted(weights) if name == "balanced_accuracy" else one.ranked(weights, False) for one in kind)
        return np.mean([values[name] for values in found], axis=0)

    return {name: np.stack([mean(kind, name) for kind in measured]) for name in MEASURED}


def _row(whole: np.ndarray, drawn: np.ndarray, reach: float) -> dict:
    drawn = drawn[:, np.isfinite(drawn).all(0)]
    lost, won = whole[0] - whole[1], whole[2] - whole[1]
    moved = np.stack([drawn[0] - drawn[1], drawn[2] - drawn[1]])
    return {
        **dict(zip(("good", "bad", "method"), whole.tolist(), strict=True)),
        "lost": _span(lost, moved[0], reach),
        "won": _span(won, moved[1], reach),
        "beyond_half": _span(won - lost / 2, moved[1] - moved[0] / 2, reach),
        "share": _share(lost, won, np.cov(moved, ddof=0) * reach**2),
    }


def _span(value: float, drawn: np.ndarray, reach: float) -> dict:
    half = reach * drawn.std()
    return {"value": float(value), "low": float(value - half), "high": float(value + half)}


def _share(lost: float, won: float, spread: np.ndarray) -> dict:
    """Fieller's interval, from the covariance of lost and won times the square of the reach."""
    a, b, c = lost**2 - spread[0, 0], lost * won - spread[0, 1], won**2 - spread[1, 1]
    if lost <= 0 or a <= 0:
        value = float(won / lost) if lost > 0 else None
        return {"value": value, "low": None, "high": None, "why": "it isn't sure that anything was lost"}
    root = float(np.sqrt(max(0.0, b**2 - a * c)))
    return {"value": float(won / lost), "low": float((b - root) / a), "high": float((b + root) / a)}
