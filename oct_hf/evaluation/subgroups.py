"""How a model does on parts of the test side: by eye, device, picture size and quality.

A small part says little: where it has too few patients for an interval that keeps its promise, or not every class, it
is marked instead of being read like the others.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from oct_hf.evaluation.intervals import intervals
from oct_hf.evaluation.predictions import Predictions

FEW = 20  # patients: below it no interval was found to keep its promise
COMMON = 0.1  # share of the B-scans from which a picture size is named
QUALITY_BANDS = ((0.0, "0 to 0.25"), (0.25, "0.25 to 0.5"), (0.5, "0.5 to 0.75"), (0.75, "0.75 to 1"))
SHOWN = ("balanced_accuracy", "auroc")


def _eyes(predictions: Predictions) -> np.ndarray | None:
    eyes = predictions.eyes
    return None if eyes is None else np.where(np.isin(eyes, ("OD", "OS")), eyes, "").astype(object)


def _sizes(predictions: Predictions) -> np.ndarray | None:
    if not {"width", "height"} <= predictions.traits.keys():
        return None
    pairs = zip(predictions.traits["width"], predictions.traits["height"], strict=True)
    sizes = [f"{width}x{height} pixels" for width, height in pairs]
    counted = Counter(sizes)
    return np.array([s if counted[s] >= COMMON * len(sizes) else "other sizes" for s in sizes], dtype=object)


def _qualities(predictions: Predictions) -> np.ndarray | None:
    if "quality" not in predictions.traits:
        return None
    edges, names = zip(*QUALITY_BANDS, strict=True)
    bands = np.searchsorted(edges, predictions.traits["quality"], side="right") - 1
    return np.array([names[band] for band in bands], dtype=object)


def _devices(predictions: Predictions) -> np.ndarray | None:
    return predictions.traits.get("device")


# What B-scans are told apart by: a value each, "" where it isn't known, or None where it is of no B-scan.
GROUPINGS: dict[str, Callable[[Predictions], np.ndarray | None]] = {
    "eye": _eyes,
    "device": _devices,
    "size": _sizes,
    "quality": _qualities,
}


def subgroups(predictions: Predictions) -> list[dict]:
    """Scores of each part of one side, with intervals over patients.

    Args:
        predictions: of one side.

    Returns:
        one dict a part: `by` (a key of `GROUPINGS`), `value`, `n` B-scans, `groups` (patients), for each of `SHOWN`
        its value and `interval` (as `intervals` gives it), and `unsure`: why the part says little, "" where it does
        say something. A grouping with a single value has no part; parts are sorted by value.
    """
    rows = []
    for by, values_of in GROUPINGS.items():
        values = values_of(predictions)
        known = [] if values is None else sorted(set(values) - {"", None})
        if len(known) > 1:
            rows += [{"by": by, "value": value, **_of(predictions.rows(values == value))} for value in known]
    return rows


def _of(part: Predictions) -> dict:
    measured, found = part.measure(), intervals(part)["metrics"]
    present = set(part.labels)
    reasons = []
    if measured["groups"] < FEW:
        reasons.append(f"{measured['groups']} of at least {FEW} patients")
    if absent := [name for name in part.names if name not in present]:
        reasons.append(f"no {', '.join(absent)}")
    return {
        "n": measured["n"],
        "groups": measured["groups"],
        **{name: {"value": measured[name], "interval": found[name]} for name in SHOWN},
        "unsure": "; ".join(reasons),
    }
