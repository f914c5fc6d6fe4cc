"""From the B-scans of a volume to one answer for the eye, which says by which rule it came."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from oct_hf.data.volumes import Volume, read_volumes
from oct_hf.errors import DataError
from oct_hf.evaluation.aggregation import DEFAULT, join

DRIVING = 3  # B-scans that are named


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

    def without_pixels(self) -> "EyeAnswer":
        """The same without B-scans and fundus, so that the answers of a large folder fit in memory."""
        empty = np.empty((0, *self.volume.bscans.shape[1:]), np.uint8)
        return replace(self, volume=replace(self.volume, bscans=empty, en_face=None, positions=None))

    @property
    def predicted(self) -> str:
        """The eye's most probable label."""
        return self.labels[int(np.argmax(self.probabilities))]


def answer_eyes(predictor, path: str | Path, rule: str = DEFAULT, most: int | None = None) -> Iterator[EyeAnswer]:
    """One answer for each acquisition in a device's file.

    Args:
        predictor: a `Predictor`.
        path: the file.
        rule: a key of `RULES`.
        most: B-scans of an acquisition; one with more is refused before any of it is predicted.

    Raises:
        DataError: the file can't be read, an acquisition has more than `most` B-scans, or the predictor's labels are
            signs, several a B-scan.
        OCTError: no such rule.
    """
    labels = predictor.labels
    if predictor.several:
        raise DataError(f"{path}: signs of an eye's B-scans aren't joined yet; give its B-scans as pictures")
    for volume in read_volumes(path):
        if most is not None and len(volume.bscans) > most:
            count = f"has {len(volume.bscans)} B-scans, at most {most} are taken here"
            raise DataError(f"{path}: {count}; oct-hf predict takes any number")
        answers = predictor.predict(iter(volume.bscans))
        bscans = np.array([list(answer.probabilities.values()) for answer in answers], np.float32)
        joined = join(bscans, labels, rule)
        order = np.argsort(-bscans[:, int(np.argmax(joined))], kind="stable")[:DRIVING]
        yield EyeAnswer(str(path), volume, labels, bscans, rule, joined, tuple(map(int, order)))
