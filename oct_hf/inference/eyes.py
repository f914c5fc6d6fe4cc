"""From the B-scans of a volume to one answer for the eye.

A disease may show in few B-scans only, and a mean over all loses it; a maximum trusts each single one. Which rule fits
depends on model and device, so it is the user's to choose, and every answer says by which it came.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oct_hf.data.volumes import Volume, read_volumes
from oct_hf.errors import OCTError, did_you_mean

NORMAL = ("NORMAL", "NO", "NoSRF")  # labels that say that nothing was found
DRIVING = 3  # B-scans that are named


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


@dataclass(frozen=True)
class EyeAnswer:
    """The answer for one acquisition of one eye.

    Attributes:
        file: as it was given.
        volume: what was read.
        labels: `k` labels.
        bscans: float32 `(n, k)`, probabilities of each B-scan.
        rule: how they were joined.
        probabilities: float `(k,)`, of the eye.
        driving: numbers of the B-scans, from 0, in which the eye's label is most probable, the first the most.
    """

    file: str
    volume: Volume
    labels: tuple[str, ...]
    bscans: np.ndarray
    rule: str
    probabilities: np.ndarray
    driving: tuple[int, ...]

    @property
    def predicted(self) -> str:
        """The eye's most probable label."""
        return self.labels[int(np.argmax(self.probabilities))]


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


def answer_eyes(predictor, path: str | Path, rule: str = DEFAULT) -> Iterator[EyeAnswer]:
    """One answer for each acquisition in a device's file.

    Args:
        predictor: a `Predictor`.
        path: the file.
        rule: a key of `RULES`.

    Raises:
        DataError: the file can't be read.
        OCTError: no such rule.
    """
    labels = predictor.labels
    for volume in read_volumes(path):
        answers = predictor.predict(iter(volume.bscans))
        bscans = np.array([list(answer.probabilities.values()) for answer in answers], np.float32)
        joined = join(bscans, labels, rule)
        order = np.argsort(-bscans[:, int(np.argmax(joined))], kind="stable")[:DRIVING]
        yield EyeAnswer(str(path), volume, labels, bscans, rule, joined, tuple(map(int, order)))
