"""A training side with fewer labels, or fewer patients: to learn from few, or to measure what more would bring."""

import hashlib
from collections.abc import Sequence

import numpy as np

from oct_hf.data.splits import UNUSED, Strings
from oct_hf.errors import DataError


def choose_labelled(
    hashes: Sequence[str], patients: Sequence[str], labels: Sequence[str], per_class: int, seed: int = 0
) -> np.ndarray:
    """Which of `n` training images keep their label where few are to have one: of as many patients as there are.

    Each patient of a class gives one image, in an order drawn from `seed` and the content hashes, then each a second
    one, until there are enough; so anyone who has the split.csv makes the same choice.

    Args:
        hashes, patients, labels: `n` strings each, of the training side.
        per_class: how many images of each class.
        seed: another one gives another choice.

    Returns:
        bool `(n,)`.

    Raises:
        DataError: a class has fewer images.
    """
    keys = [_place(seed, value) for value in hashes]
    turn = dict.fromkeys(zip(labels, patients, strict=True), 0)
    placed: list[tuple[int, bytes, int]] = []
    for row in sorted(range(len(hashes)), key=keys.__getitem__):
        group = labels[row], patients[row]
        placed.append((turn[group], keys[row], row))
        turn[group] += 1
    chosen, counts = np.zeros(len(hashes), bool), dict.fromkeys(labels, 0)
    for _, _, row in sorted(placed):
        if counts[labels[row]] < per_class:
            counts[labels[row]] += 1
            chosen[row] = True
    for label, count in counts.items():
        if count < per_class:
            raise DataError(f"split.labelled_per_class: {per_class}, and {label} has {count} images to train on")
    return chosen


def fewer_patients(
    patients: Sequence[str], labels: Sequence[str], sides: Strings, share: float, seed: int = 0
) -> np.ndarray:
    """Sides with a share of each class's training patients; the others are `unused`.

    Of the same seed a smaller share's patients are among a larger one's, and each class has one at least. A patient of
    several classes counts for each of them, and stays with all images where one of them keeps him.

    Args:
        patients, labels, sides: `n` strings each.
        share: above 0 and up to 1.
        seed: another one keeps others.

    Returns:
        `n` strings.
    """
    training = [row for row, side in enumerate(sides) if side == "train"]
    kept: set[str] = set()
    for label in {labels[row] for row in training}:
        own = {patients[row] for row in training if labels[row] == label}
        drawn = sorted(own, key=lambda name: _place(seed, name))
        kept.update(drawn[: max(1, round(share * len(own)))])
    gone = [side == "train" and patient not in kept for patient, side in zip(patients, sides, strict=True)]
    return np.where(gone, UNUSED, np.asarray(sides))


def _place(seed: int, value: str) -> bytes:
    """Where a value comes in the order that a seed draws, whatever else there is."""
    return hashlib.blake2b(f"{seed} {value}".encode(), digest_size=16).digest()
