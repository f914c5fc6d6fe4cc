"""ROC and precision-recall curves, one class against the rest, with bands over patients.

The band is pointwise: at each false positive rate (or recall) the middle 95 % of what resampled patients give.
"""

import numpy as np

from oct_hf.evaluation.predictions import Predictions

GRID = np.linspace(0, 1, 101)
_BLOCK = 100  # resamples at once: 8 MB for 10,000 B-scans


def curves(predictions: Predictions, resamples: int = 500, level: float = 0.95, seed: int = 0) -> dict[str, dict]:
    """Both curves of each label.

    Args:
        predictions: of one side.
        resamples: of the patients, with replacement.
        level: share of the resampled curves inside the band.
        seed: of the draws.

    Returns:
        by label `roc` (sensitivity at each false positive rate of `GRID`) and `pr` (precision at each sensitivity of
        it), each with `value`, `low` and `high` as lists of 101 numbers; `low` and `high` are None where there is one
        patient only, and the label is None where it has no positive or no negative case.
    """
    truth = predictions.indices()
    _, group = np.unique(predictions.groups.astype(str), return_inverse=True)
    groups = int(group.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    found = {}
    for number, name in enumerate(predictions.names):
        positive = truth == number
        if positive.all() or not positive.any():
            found[name] = None
            continue
        score = predictions.probabilities[:, number].astype(np.float64)
        order = np.argsort(-score, kind="stable")
        # Where the threshold may lie: behind the last of equal scores.
        last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
        once = _both(np.ones((1, len(score))), positive[order], last)
        both = {kind: {"value": rows[0].tolist(), "low": None, "high": None} for kind, rows in once.items()}
        if groups > 1:
            blocks = [
                _both(drawn[start : start + _BLOCK][:, group[order]], positive[order], last)
                for start in range(0, resamples, _BLOCK)
            ]
            for kind, curve in both.items():
                rows = np.concatenate([block[kind] for block in blocks])
                tail = (1 - level) / 2
                low, high = np.nanquantile(rows, (tail, 1 - tail), axis=0)
                curve |= {"low": low.tolist(), "high": high.tolist()}
        found[name] = both
    return found


def _both(weights: np.ndarray, positive: np.ndarray, last: np.ndarray) -> dict[str, np.ndarray]:
    """Curves on `GRID`, `(r, 101)`, of weighted cases sorted by falling score; NaN where a resample has no case.

    Args:
        weights: `(r, n)`.
        positive: bool `(n,)`.
        last: positions of the last case of each score.
    """
    hits = np.cumsum(weights * positive, axis=1)[:, last]
    false = np.cumsum(weights * ~positive, axis=1)[:, last]
    roc, pr = (np.full((len(weights), len(GRID)), np.nan) for _ in range(2))
    for row, (hit, wrong) in enumerate(zip(hits, false, strict=True)):
        if hit[-1] and wrong[-1]:
            recall = np.append(0, hit / hit[-1])
            roc[row] = np.interp(GRID, np.append(0, wrong / wrong[-1]), recall)
            # From the best precision at that sensitivity or a higher one (the usual interpolation of PR curves).
            precision = hit / np.maximum(hit + wrong, 1e-12)
            best = np.maximum.accumulate(precision[::-1])[::-1]
            pr[row] = best[np.minimum(np.searchsorted(recall[1:], GRID), len(best) - 1)]
    return {"roc": roc, "pr": pr}
