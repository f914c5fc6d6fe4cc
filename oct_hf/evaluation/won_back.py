"""How much of what wrong or few labels cost does a method win back? Paired over patients and averaged over seeds.

Lost is what cross-entropy gives with good labels less what it gives with bad ones; won is what a method gives with the
bad ones less what cross-entropy gives with them. Their quotient has no standard deviation where nothing may have been
lost, so its interval is Fieller's.
"""

from collections.abc import Sequence

import numpy as np

from oct_hf.evaluation.paired import MEASURED, drawn_means, means, paired, reach_of, span
from oct_hf.evaluation.predictions import Predictions


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
    measured, first = paired((good, bad, method))
    count = measured[0][0].groups
    whole, drawn = means(measured, np.ones((1, count))), drawn_means(measured, resamples, seed)
    reach = reach_of(count, level)
    metrics = {name: _row(whole[name][:, 0], drawn[name], reach) for name in MEASURED}
    return {"rows": len(first.hashes), "patients": count, "seeds": len(bad), "level": level, "metrics": metrics}


def _row(whole: np.ndarray, drawn: np.ndarray, reach: float) -> dict:
    lost, won = whole[0] - whole[1], whole[2] - whole[1]
    moved = np.stack([drawn[0] - drawn[1], drawn[2] - drawn[1]])
    return {
        **dict(zip(("good", "bad", "method"), whole.tolist(), strict=True)),
        "lost": span(lost, moved[0], reach),
        "won": span(won, moved[1], reach),
        "beyond_half": span(won - lost / 2, moved[1] - moved[0] / 2, reach),
        "share": _share(lost, won, np.cov(moved, ddof=0) * reach**2),
    }


def _share(lost: float, won: float, spread: np.ndarray) -> dict:
    """Fieller's interval, from the covariance of lost and won times the square of the reach."""
    a, b, c = lost**2 - spread[0, 0], lost * won - spread[0, 1], won**2 - spread[1, 1]
    if lost <= 0 or a <= 0:
        value = float(won / lost) if lost > 0 else None
        return {"value": value, "low": None, "high": None, "why": "it isn't sure that anything was lost"}
    root = float(np.sqrt(max(0.0, b**2 - a * c)))
    return {"value": float(won / lost), "low": float((b - root) / a), "high": float((b + root) / a)}
