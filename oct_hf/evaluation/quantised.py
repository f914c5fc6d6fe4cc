"""Whether an int8 model may stand for the float one: how far balanced accuracy falls and calibration error rises.

Both are measured on the same held-out B-scans. Signs are measured one by one and averaged.
"""

import numpy as np

from oct_hf.errors import DataError
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.evaluation.predictions import Predictions

LARGEST_FALL = 0.005  # of balanced accuracy
LARGEST_RISE = 0.01  # of the expected calibration error
_ROUNDING = 1e-9


def compare_int8(own: Predictions, int8: Predictions) -> dict:
    """What is lost where an int8 model answers in place of its float one.

    Args:
        own: the answers of the float model on held-out B-scans.
        int8: those of the int8 model on the same ones, in any order.

    Returns:
        `images`; `float` and `int8`, each with `balanced_accuracy` and `ece`; `agreement`, the share of B-scans with
        the same most probable label (of signs: of answers on the same side of 0.5); `largest_difference` of a
        probability; and `within_rule`, see `LARGEST_FALL` and `LARGEST_RISE`.

    Raises:
        DataError: they are answers on other B-scans, or of other labels.
    """
    row = {value: number for number, value in enumerate(int8.hashes)}
    if own.names != int8.names or set(own.hashes) != row.keys() or len(row) != len(own.hashes):
        raise DataError("the int8 model's predictions are not of the same B-scans and labels")
    other = own.with_probabilities(int8.probabilities[[row[value] for value in own.hashes]])
    pair = own.probabilities, other.probabilities
    answers = [p > 0.5 if own.truth is not None else p.argmax(1) for p in pair]
    before, after = _scores(own), _scores(other)
    fall = before["balanced_accuracy"] - after["balanced_accuracy"]
    rise = after["ece"] - before["ece"]
    return {
        "images": len(own.hashes),
        "float": before,
        "int8": after,
        "agreement": float((answers[0] == answers[1]).mean()),
        "largest_difference": float(np.abs(pair[0] - pair[1]).max()),
        "within_rule": bool(fall <= LARGEST_FALL + _ROUNDING and rise <= LARGEST_RISE + _ROUNDING),
    }


def in_words(found: dict) -> str:
    """What `compare_int8` gave, on one line."""
    before, after = found["float"], found["int8"]
    return (
        f"balanced accuracy {after['balanced_accuracy']:.4f} (float {before['balanced_accuracy']:.4f}, may fall by "
        f"{LARGEST_FALL}), ECE {after['ece']:.4f} (float {before['ece']:.4f}, may rise by {LARGEST_RISE}), "
        f"{found['agreement']:.1%} the same answers on {found['images']} held-out B-scans"
    )


def _scores(answers: Predictions) -> dict[str, float]:
    parts = [answers] if answers.truth is None else [answers.of_sign(name) for name in answers.names]
    found = [measure(part.probabilities.astype(np.float64), part.indices(), part.names) for part in parts]
    return {key: float(np.mean([one[key] for one in found])) for key in ("balanced_accuracy", "ece")}
