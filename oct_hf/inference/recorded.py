"""What a model's run recorded for those who predict with it: its gate, its rule for eyes, its method for heat maps."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from oct_hf.errors import ModelError
from oct_hf.evaluation.aggregation import DEFAULT, RULES
from oct_hf.inference.description import file_of
from oct_hf.inference.gate import Gate, SignGate
from oct_hf.untrusted import read_json


def recorded_run(model: str | Path) -> dict:
    """The content of a model's run.json; empty where there is none that can be read.

    Args:
        model: a model folder or a Hub id.
    """
    try:
        file = file_of(model, "run.json")
        found = read_json(file) if file else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def recorded(model: str | Path, key: str):
    """What is there under a key, such as "gate"; None where nothing is."""
    return recorded_run(model).get(key)


def views_of(points: dict) -> dict[str, dict]:
    """Of a run's operating points what each question got: a disease, "urgent referral", "any disease"."""
    return {**points["diseases"], "urgent referral": points["urgent"], "any disease": points["any_disease"]}


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
    chosen = recorded(model, "per_eye") or {}
    try:
        rule, eyes = chosen["rule"], int(chosen["eyes"]["validation"])
    except (KeyError, TypeError, ValueError):
        return DEFAULT, 0
    return (rule, eyes) if rule in RULES else (DEFAULT, 0)
