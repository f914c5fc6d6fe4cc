"""Rules by which the B-scans of an eye make one answer.

A disease may show in few B-scans only, and a mean over all loses it; a maximum trusts each single one. Which rule fits
depends on model and device, so a run chooses it on its validation eyes (`per_eye.py`).
"""

from collections.abc import Callable, Sequence

import numpy as np

from oct_hf.errors import OCTError, did_you_mean

NORMAL = ("NORMAL", "NO", "NoSRF")  # labels that say that nothing was found


def mean(probabilities: np.ndarray, normal: int | None) -> np.ndarray:
    """The mean over B-scans."""
    return probabilities.mean(0)


def maximum(probabilities: np.ndarray, normal: int | None) -> np.ndarray:
    """Each disease as in the B-scan that shows it most, normal as in the one that is least so; scaled to sum to 1."""
    score = probabilities.max(0)
    if normal is not None:
        score[normal] = probabilities[:, normal].min()
    return score / score.sum()


def noisy_or(probabilities: np.ndarray, normal: int | None) -> np.ndarray:
    """1 - prod(1 - p) for each disease, prod(p) for normal; scaled to sum to 1 (Pearl 1988, 4.3.2).

    As if B-scans were independent, which neighbours aren't: it is soon sure.
    """
    score = -np.expm1(np.log1p(-np.minimum(probabilities, 1 - 1e-9)).sum(0))
    if normal is not None:
        score[normal] = np.exp(np.log(np.maximum(probabilities[:, normal], 1e-30)).sum())
    return score / score.sum()


RULES: dict[str, Callable[[np.ndarray, int | None], np.ndarray]] = {
    "mean": mean,
    "maximum": maximum,
    "noisy-or": noisy_or,
}
DEFAULT = "mean"


def join(probabilities: np.ndarray, labels: Sequence[str], rule: str = DEFAULT) -> np.ndarray:
    """One distribution over the labels for the B-scans of an eye; their order doesn't matter.

    Args:
        probabilities: `(n, k)`, n at least 1.
        labels: `k` labels.
        rule: a key of `RULES`.

    Raises:
        OCTError: no such rule.
    """
    if rule not in RULES:
        raise OCTError(f'no rule "{rule}"{did_you_mean(rule, RULES)}; there are {", ".join(RULES)}')
    normal = next((labels.index(name) for name in NORMAL if name in labels), None)
    return RULES[rule](np.asarray(probabilities, np.float64).copy(), normal)
