import json

import numpy as np
import pytest

from oct_hf.evaluation.assessment import assess, assess_external, calibrate, make_gate, refit
from oct_hf.evaluation.predictions import Predictions
from oct_hf.training.recipe import EvaluationRecipe

SETTINGS = vars(EvaluationRecipe())


def made(seed=0, n=600, sharp=3.0, **traits):
    """Validation and test B-scans of 100 patients, whose probabilities claim `sharp` times too much."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 3))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random((n, 1)) > shares.cumsum(1)).sum(1)
    claimed = np.exp(sharp * logits) / np.exp(sharp * logits).sum(1, keepdims=True)
    names = ("CNV", "DRUSEN", "NORMAL")
    text = [np.array([f"{kind}{i // step}" for i in range(n)], dtype=object) for kind, step in (("h", 1), ("p", 6))]
    sides = np.array(["validation", "test"], dtype=object)[(np.arange(n) >= n // 2).astype(int)]
    label = np.array(names, dtype=object)[labels]
    return Predictions(names, *text, label, sides, claimed.astype(np.float32), None, traits)


def test_claims_that_are_too_sure_are_mended_and_the_temperature_is_found_again_in_what_is_published():
    raw = made()
    calibrated, note = calibrate(raw)
    assert note["temperature"] == pytest.approx(3.0, rel=0.2) and note["patients"] == 50
    facts = assess(calibrated, SETTINGS, note)["calibration"]
    before, after = facts["before"]["test"], facts["after"]["test"]
    assert before["ece"] > before["ece_if_perfect"]["q95"] and after["ece"] < after["ece_if_perfect"]["q95"]
    assert refit(calibrated, note["temperature"])["temperature"] == pytest.approx(note["temperature"], rel=1e-4)
    np.testing.assert_array_equal(calibrated.probabilities.argmax(1), raw.probabilities.argmax(1))


def test_the_facts_are_plain_data_without_undefined_numbers_and_the_same_again():
    calibrated, note = calibrate(made())
    facts = assess(calibrated, SETTINGS, note)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts == assess(calibrated, SETTINGS, note)


@pytest.mark.parametrize("rows", [slice(0, 3), slice(0, 6)])
def test_few_rows_get_answers_that_say_what_can_not_be_computed(rows):
    few = made()
    few = few.rows(np.r_[np.arange(600)[rows], 300 + np.arange(600)[rows]])
    calibrated, note = calibrate(few)
    facts = assess(calibrated, SETTINGS, note)
    assert note["temperature"] == 1.0 and "too few" in note["why"]
    json.dumps(facts, allow_nan=False)
    assert facts["intervals"]["metrics"]["accuracy"] == {"why": "one patient"}
    assert facts["abstention"]["conformal"]["threshold"] is None


def test_the_gate_asks_for_no_more_than_validation_scans_gave():
    likeness = np.full(600, 0.999, np.float32)
    likeness[:12] = 0.05  # two validation patients of fifty
    gate = make_gate(made(likeness=likeness), 0.9)
    assert gate.likeness == pytest.approx(0.05)
    assert make_gate(made(), 0.9).likeness is None


def test_other_data_are_compared_with_the_models_own_test_side():
    home = made(intensity=np.full(600, 40, np.float32), likeness=np.full(600, 0.99, np.float32))
    other = made(1, intensity=np.full(600, 90, np.float32), likeness=np.repeat([0.99, 1e-4], 300).astype(np.float32))
    facts = assess_external(home, other.rows(other.sides == "test"), SETTINGS)
    assert facts["refused"] == 1.0 and facts["shift"]["intensity"]["ks"] == 1.0
    alone = assess_external(None, other, SETTINGS)
    assert alone["shift"] is alone["refused"] is None and alone["results"]["n"] == 600
