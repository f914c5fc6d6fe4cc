"""How good the answers are eye by eye and patient by patient, and which rule joins their B-scans best.

The rule is chosen on the validation side alone.
"""

from dataclasses import replace

import numpy as np

from oct_hf.data.splits import HELD_OUT
from oct_hf.evaluation.aggregation import NORMAL, RULES, join
from oct_hf.evaluation.intervals import intervals
from oct_hf.evaluation.predictions import Predictions
from oct_hf.labels import SEVERITY

ONE_EYE = "one"  # in the column `eye`, where each group is a single eye
_SHOWN = ("n", "balanced_accuracy", "accuracy", "auroc", "log_loss")


def eyes_of(predictions: Predictions, rule: str) -> Predictions:
    """One row an eye, of one side.

    The label is the worst case of its B-scans. Eyes whose B-scans show several diseases are left out where it isn't
    settled which of them is worse, and B-scans of an unknown eye.

    Args:
        predictions: with `eyes`.
        rule: a key of `aggregation.RULES`.
    """
    eyes = predictions.eyes
    assert eyes is not None
    rows: dict[tuple[str, str], list[int]] = {}
    # In one order, so that the sums don't depend on that of the rows.
    order = np.lexsort((predictions.hashes.astype(str), eyes.astype(str), predictions.groups.astype(str)))
    whose = list(zip(predictions.groups.tolist(), eyes.tolist(), strict=True))
    for row in order.tolist():
        if eyes[row]:
            rows.setdefault(whose[row], []).append(row)
    keys, labels, joined = [], [], []
    for key, mine in rows.items():
        worst = _worst(set(predictions.labels[mine]))
        if worst is not None:
            keys.append(key)
            labels.append(worst)
            joined.append(join(predictions.probabilities[mine], predictions.names, rule))
    text = lambda values: np.array(list(values), dtype=object)  # noqa: E731
    return Predictions(
        predictions.names,
        text(" ".join(key) for key in keys),
        text(group for group, _ in keys),
        text(labels),
        text(predictions.sides[:1].tolist() * len(keys)),
        np.array(joined).reshape(len(keys), len(predictions.names)),
        text(eye for _, eye in keys),
    )


def measure_patients(predictions: Predictions) -> dict | None:
    """As `measure_eyes`, with all B-scans of a patient joined; None where groups are eyes and not patients."""
    if predictions.eyes is not None and ONE_EYE in predictions.eyes:
        return None
    whole = np.full(len(predictions.hashes), "both", dtype=object)
    return measure_eyes(replace(predictions, eyes=whole))


def measure_eyes(predictions: Predictions) -> dict | None:
    """The rule that is best on the validation eyes, and what it gives on the test eyes.

    The log loss decides, then the balanced accuracy, then the order mean, maximum, noisy-or. Of a dozen validation eyes
    one more or less makes a balanced accuracy; on real B-scans rules chosen by it were worse on the test eyes.

    Returns:
        `rule`; `eyes`, their number on each side; `bscans`, the median number an eye; `validation`, the scores of each
        rule; `test`, those of the chosen one, and `intervals`, over patients, by the score's name. None where no eye
        is known, or none has two B-scans.
    """
    if predictions.eyes is None:
        return None
    validation, test = (predictions.of(side) for side in HELD_OUT)
    known = [(g, e) for g, e in zip(predictions.groups, predictions.eyes, strict=True) if e]
    counts = np.unique([" ".join(key) for key in known], return_counts=True)[1] if known else np.ones(1)
    scores = {}
    for rule in RULES:
        eyes = eyes_of(validation, rule)
        if len(eyes.hashes) < 2 or counts.max() < 2:
            return None
        scores[rule] = _scores(eyes)
    better = lambda rule: (-(scores[rule]["log_loss"] or 0), scores[rule]["balanced_accuracy"] or 0)  # noqa: E731
    rule = max(RULES, key=better)
    tested = eyes_of(test, rule)
    if not len(tested.hashes):
        return None
    return {
        "rule": rule,
        "eyes": {"validation": scores[rule]["n"], "test": len(tested.hashes)},
        "bscans": float(np.median(counts)),
        "validation": scores,
        "test": _scores(tested),
        "intervals": {name: found for name, found in intervals(tested)["metrics"].items() if name in _SHOWN},
    }


def _scores(eyes: Predictions) -> dict:
    measured = eyes.measure()
    return {key: measured[key] for key in _SHOWN}


def _worst(labels: set[str]) -> str | None:
    if labels <= set(SEVERITY):
        return max(labels, key=SEVERITY.index)
    diseases = labels - set(NORMAL)
    if len(diseases) > 1:
        return None
    return diseases.pop() if diseases else labels.pop()
