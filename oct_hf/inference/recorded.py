"""What a model's run recorded for those who predict with it: its gate, its rule for eyes, its method for heat maps."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from oct_hf.errors import ModelError
from oct_hf.evaluation.aggregation import DEFAULT, RULES
from oct_hf.inference.description import file_of
from oct_hf.inference.gate import Gate, SignGate


def recorded(model: str | Path, key: str):
    """What run.json of a model has under a key; None where there is no such file or key.

    Args:
        model: a model folder or a Hub id.
        key: such as "gate".
    """
    try:
        file = file_of(model, "run.json")
        return json.loads(file.read_text(encoding="utf-8"))[key] if file else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recorded_gate(model: str | Path, labels: Sequence[str], always: bool = False) -> Gate | None:
    """What lets a model decline; None where its run recorded nothing that fits its labels.

    Args:
        model: a model folder or a Hub id.
        labels: of the model.
        always: it may decline nothing; of a model of signs the thresholds stay.
    """
    found = recorded(model, "gate")
    try:
        if found is None:
            return None
        gate = (SignGate if "thresholds" in found else Gate).from_dict(found, labels)
    except ModelError:
        return None
    if always:
        return replace(gate, likeness=None) if isinstance(gate, SignGate) else None
    return gate


def recorded_rule(model: str | Path) -> tuple[str, int]:
    """The rule that a model's run chose, and on how many validation eyes; the default and 0 where it chose none."""
    chosen = recorded(model, "per_eye")
    try:
        rule, eyes = chosen["rule"], int(chosen["eyes"]["validation"])
    except (KeyError, TypeError, ValueError):
        return DEFAULT, 0
    return (rule, eyes) if rule in RULES else (DEFAULT, 0)
