"""Whether a faster model may stand for the float one: how far balanced accuracy falls and calibration error rises.

Both are measured on the same held-out B-scans. Signs are measured one by one and averaged. int8 computes the same
network. A cascade asks another one, so it must give the same answers; its probabilities were fitted to the float
model's, and a test side is too small to tell how far calibration error rises, which is only reported.
"""

import numpy as np

from oct_hf.errors import DataError
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.evaluation.predictions import Predictions

LARGEST_FALL = 0.005  # of balanced accuracy
LARGEST_RISE = 0.01  # of the expected calibration error
LEAST_AGREEMENT = 0.995  # of a cascade: the share of the same answers
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
    return _compared(own, int8, "int8")


def compare_cascade(own: Predictions, cascade: Predictions) -> dict:
    """What is lost where a cascade answers in place of its full model; see `compare_int8`.

    Returns: as there, `cascade` in place of `int8`; `within_rule` by `LARGEST_FALL` and `LEAST_AGREEMENT`.
    """
    found = _compared(own, cascade, "cascade")
    same = found["agreement"] >= LEAST_AGREEMENT - _ROUNDING
    return found | {"within_rule": bool(same and _fall(found, "cascade") <= LARGEST_FALL + _ROUNDING)}


def same_answers(own: np.ndarray, other: np.ndarray, several: bool = False) -> np.ndarray:
    """Of probabilities `(n, labels)` of two models, bool `(n,)`: the same most probable label; of signs, bool
    `(n, labels)`: on the same side of 0.5.
    """
    return (own > 0.5) == (other > 0.5) if several else own.argmax(1) == other.argmax(1)


def in_words(found: dict) -> str:
    """What `compare_int8` or `compare_cascade` gave, on one line."""
    name = "cascade" if "cascade" in found else "int8"
    before, after = found["float"], found[name]
    rise, least = f", may rise by {LARGEST_RISE}", ""
    if name == "cascade":
        rise, least = "", f", must be {LEAST_AGREEMENT:.1%}"
    return (
        f"balanced accuracy {after['balanced_accuracy']:.4f} (float {before['balanced_accuracy']:.4f}, may fall by "
        f"{LARGEST_FALL}), ECE {after['ece']:.4f} (float {before['ece']:.4f}{rise}), "
        f"{found['agreement']:.1%} the same answers on {found['images']} held-out B-scans{least}"
    )


def _fall(found: dict, name: str) -> float:
    return found["float"]["balanced_accuracy"] - found[name]["balanced_accuracy"]


def _compared(own: Predictions, other: Predictions, name: str) -> dict:
    row = {value: number for number, value in enumerate(other.hashes)}
    if own.names != other.names or set(own.hashes) != row.keys() or len(row) != len(own.hashes):
        raise DataError(f"the predictions of {name} are not of the same B-scans and labels")
    other = own.with_probabilities(other.probabilities[[row[value] for value in own.hashes]])
    found = {"images": len(own.hashes), "float": _scores(own), name: _scores(other)}
    rise = found[name]["ece"] - found["float"]["ece"]
    return found | {
        "agreement": float(same_answers(own.probabilities, other.probabilities, own.truth is not None).mean()),
        "largest_difference": float(np.abs(own.probabilities - other.probabilities).max()),
        "within_rule": bool(_fall(found, name) <= LARGEST_FALL + _ROUNDING and rise <= LARGEST_RISE + _ROUNDING),
    }


def _scores(answers: Predictions) -> dict[str, float]:
    parts = [answers] if answers.truth is None else [answers.of_sign(name) for name in answers.names]
    found = [measure(part.probabilities.astype(np.float64), part.indices(), part.names) for part in parts]
    return {key: float(np.mean([one[key] for one in found])) for key in ("balanced_accuracy", "ece")}
