"""Everything that a run says of its model's answers, made from predictions.parquet alone.

One function for the run that writes the facts and for whoever verifies them, so that no figure can be published that
its predictions don't give.
"""

import numpy as np

from oct_hf.data import quality
from oct_hf.data.splits import HELD_OUT
from oct_hf.evaluation.abstention import describe_abstention, fit_conformal, fit_likeness, measure_sets
from oct_hf.evaluation.calibration import describe_calibration, fit_temperature, logits, rescale
from oct_hf.evaluation.coverage import promise
from oct_hf.evaluation.intervals import intervals
from oct_hf.evaluation.operating_points import operating_points
from oct_hf.evaluation.per_eye import measure_eyes, measure_patients
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.shift import describe_shift
from oct_hf.evaluation.subgroups import subgroups
from oct_hf.inference.gate import Gate


def calibrate(predictions: Predictions) -> tuple[Predictions, dict]:
    """Fits a temperature on the validation side and applies it to both.

    Returns:
        the calibrated answers; and `temperature`, `why` (it isn't the minimum of the log loss), `n`, `patients`.
    """
    fitted = predictions.of("validation")
    found = fit_temperature(logits(fitted.probabilities), fitted.indices(), fitted.groups)
    note = {"temperature": found.value, "why": found.why, "n": found.n, "patients": found.patients}
    return predictions.with_probabilities(rescale(predictions.probabilities, found.value)), note


def assess(predictions: Predictions, settings: dict, calibration: dict | None = None) -> dict:
    """The facts of run.json that follow from the predictions.

    Args:
        predictions: of the validation and test sides, as they are published.
        settings: the recipe's `evaluation`: `level`, `sensitivity`, `specificity`.
        calibration: what `calibrate` gave when they were calibrated; None where nobody asked for it; `temperature`
            None and `why` where it couldn't be.

    Raises:
        DataError: a side without rows, values that are no probabilities, or a label that the model doesn't know.
    """
    test = predictions.of("test")
    found = intervals(test)
    return {
        "results": {side: predictions.of(side).measure() for side in HELD_OUT},
        "intervals": found | {"promise": promise(found)},
        "per_eye": measure_eyes(predictions),
        "per_patient": measure_patients(predictions),
        "calibration": _calibration(predictions, calibration),
        "operating_points": operating_points(
            predictions, specificity=settings["specificity"], sensitivity=settings["sensitivity"]
        ),
        "abstention": describe_abstention(predictions, settings["level"]),
        "gate": make_gate(predictions, settings["level"]).to_dict(),
        "subgroups": subgroups(test),
    }


def make_gate(predictions: Predictions, level: float) -> Gate:
    """What lets the model decline, fitted on the validation side; see `inference/gate.py`."""
    fitted = predictions.of("validation")
    likeness = None
    if "likeness" in fitted.traits:
        likeness = fit_likeness(fitted.traits["likeness"].astype(np.float64), fitted.groups)
    version = None if likeness is None else quality.version()
    return Gate(predictions.names, fit_conformal(fitted, level), likeness, version)


def refit(predictions: Predictions, temperature: float) -> dict:
    """What `calibrate` gives where its temperature is undone first; the same temperature, if it is true."""
    undone = rescale(predictions.probabilities, 1 / temperature)
    return calibrate(predictions.with_probabilities(undone))[1]


def assess_external(home: Predictions | None, other: Predictions, settings: dict) -> dict:
    """What another set's B-scans show of a model: its facts under `external` of run.json.

    Args:
        home: the model's own predictions, for what differs between the sets; None where there are none.
        other: all rows on the side "test"; labels already read as the model's.
        settings: the recipe's `evaluation`.
    """
    found = intervals(other)
    facts = {
        "results": other.measure(),
        "intervals": found | {"promise": promise(found)},
        "calibration": describe_calibration(other.probabilities, other.indices()),
        "subgroups": subgroups(other),
        "shift": None,
        "sets": None,
        "refused": None,
    }
    if home is not None and len(home.of("validation").hashes):
        gate = make_gate(home, settings["level"])
        facts["shift"] = describe_shift(home.of("test"), other)
        facts["sets"] = None if gate.conformal is None else measure_sets(other, gate.conformal)
        if gate.likeness is not None and "likeness" in other.traits:
            facts["refused"] = float((other.traits["likeness"] < gate.likeness).mean())
    return facts


def _calibration(predictions: Predictions, calibration: dict | None) -> dict:
    described = {"after": _described(predictions)}
    if calibration is None or calibration["temperature"] is None:
        return described | (calibration or {"temperature": None})
    before = predictions.with_probabilities(rescale(predictions.probabilities, 1 / calibration["temperature"]))
    return calibration | {"before": _described(before)} | described


def _described(predictions: Predictions) -> dict:
    sides = {side: predictions.of(side) for side in HELD_OUT}
    return {side: describe_calibration(rows.probabilities, rows.indices()) for side, rows in sides.items()}
