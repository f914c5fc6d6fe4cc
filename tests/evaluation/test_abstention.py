import json

import numpy as np
import pytest
from crepes import ConformalClassifier
from crepes.extras import hinge
from scipy.special import expit

from oct_hf.errors import DataError
from oct_hf.evaluation.abstention import describe_abstention, fit_conformal, measure_sets, risk_coverage
from oct_hf.evaluation.predictions import Predictions
from oct_hf.inference.gate import SCORES, prediction_sets

NAMES = ("AMD", "DME", "NORMAL")


def predictions(probabilities, labels, groups, side="validation", names=NAMES) -> Predictions:
    n = len(labels)
    text = [[f"h{side}{i}" for i in range(n)], [f"P{g}" for g in groups], [names[i] for i in labels], [side] * n]
    return Predictions(names, *(np.array(c, dtype=object) for c in text), np.asarray(probabilities, np.float32))


def drawn(images: int, seed: int, side="validation") -> Predictions:
    """One image a patient, of a model that is right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    logits = rng.normal(0, 1, (images, 3)) + 1.5 * np.eye(3)[labels]
    values = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return predictions(values, labels, range(images), side)


def patients(count: int, images: int, seed: int, side="validation") -> Predictions:
    """Patients with about `images` B-scans, which are as hard as their patient is, and a little harder or easier."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(count), rng.integers(1, 2 * images, count))
    sure = expit(rng.normal(1, 1.5, count)[group] + rng.normal(0, 0.2, len(group)))
    labels = rng.integers(0, 2, count)[group]
    values = np.where(labels[:, None] == [0, 1], sure[:, None], 1 - sure[:, None])
    return predictions(values, labels, group, side, ("CNV", "NORMAL"))


@pytest.mark.parametrize("by_label", [False, True])
def test_with_one_image_a_patient_the_sets_are_those_of_crepes(by_label):
    fitted, new = drawn(150, 1), drawn(400, 2)
    alphas = hinge(fitted.probabilities.astype(float), np.array(NAMES), np.array(fitted.labels.tolist()))
    crepes = ConformalClassifier().fit(alphas, bins=fitted.indices() if by_label else None)
    inside = np.column_stack(
        [
            crepes.predict_p(1 - new.probabilities[:, [i]].astype(float), smoothing=False, **bins)[:, 0] > 0.1
            for i in range(3)
            for bins in [{"bins": np.full(400, i)} if by_label else {}]
        ]
    )
    inside[np.arange(400), new.probabilities.argmax(1)] = True
    sets = prediction_sets(new.probabilities, fit_conformal(fitted, 0.9, by_label=by_label))
    assert (sets == inside).all() and 1.05 < sets.sum(1).mean() < 2.9


def test_new_patients_are_covered_as_promised_and_images_alone_would_promise_too_much():
    covered, naive = [], []
    for seed in range(300):
        fitted, new = patients(12, 20, seed), patients(200, 20, 10_000 + seed, "test")
        covered.append(measure_sets(new, fit_conformal(fitted))["coverage_by_patient"])
        as_if = predictions(
            fitted.probabilities, fitted.indices(), range(len(fitted.labels)), names=("CNV", "NORMAL")
        )  # each image its own patient
        naive.append(measure_sets(new, fit_conformal(as_if))["coverage_by_patient"])
    error = np.std(covered) / np.sqrt(len(covered))
    assert error < 0.006
    assert np.mean(covered) >= 0.9 - 2 * error
    assert np.mean(naive) < 0.9 - 3 * error


def test_each_label_is_covered_as_promised_when_each_has_a_threshold():
    """A model that is worse at DME than at the others covers DME too seldom, unless its threshold is its own."""
    together, each = [], []
    for seed in range(200):
        sides = []
        for side, images, number in (("validation", 200, seed), ("test", 600, 5000 + seed)):
            rng = np.random.default_rng(number)
            labels = rng.choice(3, images, p=[0.5, 0.15, 0.35])
            logits = rng.normal(0, 1, (images, 3)) + np.array([3, 1.0, 3])[labels, None] * np.eye(3)[labels]
            values = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            sides.append(predictions(values, labels, range(images), side))
        for found, by_label in ((together, False), (each, True)):
            measured = measure_sets(sides[1], fit_conformal(sides[0], 0.9, by_label=by_label))
            found.append([measured["labels"][name]["coverage"] for name in NAMES])
    assert np.mean(together, 0)[1] < 0.85
    error = np.std(each, 0) / np.sqrt(len(each))
    assert (np.mean(each, 0) >= 0.9 - 2 * error).all()


def test_a_patient_weighs_as_much_as_another_however_many_images_there_are():
    scores = np.r_[np.full(10, 0.05), np.linspace(0.1, 0.9, 9)]  # a patient of ten images, nine of one
    values = np.stack([1 - scores, scores, 0 * scores], 1)
    given = predictions(values, np.zeros(19, int), np.r_[np.zeros(10, int), np.arange(1, 10)])
    # Ten patients and the new one: 9/11 is short of 0.85, 10/11 is not, so the last of ten.
    assert fit_conformal(given, 0.85)["threshold"] == pytest.approx(0.9)
    assert fit_conformal(given, 0.8)["threshold"] == pytest.approx(0.8)  # 9/11


@pytest.mark.parametrize("score", SCORES)
def test_too_few_patients_rule_nothing_out_and_that_is_said(score):
    few, enough = patients(8, 30, 1), patients(9, 30, 1)
    conformal = fit_conformal(few, 0.9, score)
    assert conformal["threshold"] is None and conformal["patients"] == 8
    assert conformal["note"] == "too few validation patients to rule out all labels (8): 90% needs 9"
    assert prediction_sets(np.array([[0.99, 0.01]]), conformal).all()
    conformal = fit_conformal(enough, 0.9, score)
    assert conformal["threshold"] is not None and "note" not in conformal


def test_a_label_with_too_few_patients_is_always_in():
    labels = np.r_[np.zeros(30, int), np.ones(3, int), np.full(30, 2)]
    given = predictions(0.01 + 0.97 * np.eye(3)[labels], labels, range(63))
    conformal = json.loads(json.dumps(fit_conformal(given, by_label=True)))
    assert list(conformal["threshold"]) == list(NAMES) and conformal["threshold"]["DME"] is None
    assert conformal["note"].startswith("too few validation patients to rule out DME (3)")
    assert prediction_sets(np.array([[0.98, 0.01, 0.01]]), conformal).tolist() == [[True, True, False]]


def test_aps_adds_up_what_is_at_least_as_probable():
    assert SCORES["aps"](np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])) == pytest.approx(
        np.array([[0.5, 0.8, 1.0], [0.8, 0.8, 1.0]])
    )
    conformal = {"score": "aps", "threshold": 0.8}
    assert prediction_sets(np.array([[0.5, 0.3, 0.2], [0.1, 0.05, 0.85]]), conformal).tolist() == [
        [True, True, False],
        [False, False, True],  # the most probable one although its score is above the threshold
    ]


def test_sets_are_counted_by_hand():
    values = [[0.8, 0.1, 0.1], [0.45, 0.45, 0.1], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7]]
    given = predictions(values, [0, 1, 2, 0], [0, 0, 1, 2], "test")
    found = measure_sets(given, {"score": "lac", "threshold": 0.6})  # in from a probability of 0.4
    assert found["coverage"] == 0.5 and found["coverage_by_patient"] == pytest.approx(1 / 3)
    assert found["mean_size"] == 1.25 and found["single"] == 0.75 and found["single_right"] == pytest.approx(1 / 3)
    assert found["empty"] == 0 and found["full"] == 0
    assert found["labels"]["AMD"] == {"images": 2, "patients": 2, "coverage": 0.5, "coverage_by_patient": 0.5}
    found = measure_sets(given, {"score": "lac", "threshold": 0.25})
    assert found["empty"] == 0.75 and found["single"] == 1 and found["labels"]["NORMAL"]["coverage"] == 0


def test_a_label_without_images_has_no_coverage():
    found = measure_sets(predictions([[0.8, 0.1, 0.1]], [0], [0], "test"), {"score": "lac", "threshold": 0.5})
    assert found["labels"]["DME"] == {"images": 0, "patients": 0, "coverage": None, "coverage_by_patient": None}
    found = measure_sets(predictions([[0.4, 0.4, 0.2]], [0], [0], "test"), {"score": "lac", "threshold": 0.7})
    assert found["single"] == 0 and found["single_right"] is None


def test_risk_and_coverage_by_hand():
    found = risk_coverage(np.array([0.6, 0.9, 0.7, 0.8]), np.array([True, True, True, False]))
    assert found["curve"] == {"coverage": [0.25, 0.5, 0.75, 1.0], "risk": pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])}
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert found["e_aurc"] == pytest.approx(found["aurc"] - (1 / 4) / 4)
    assert found["selective_accuracy"] == pytest.approx({"1.0": 3 / 4, "0.9": 3 / 4, "0.8": 3 / 4, "0.7": 2 / 3})


def test_the_best_order_has_no_excess_and_its_area_is_the_papers():
    wrong = np.arange(20_000) >= 16_000
    found = risk_coverage(-np.arange(20_000), ~wrong)
    assert found["e_aurc"] == 0
    assert found["aurc"] == pytest.approx(0.2 + 0.8 * np.log(0.8), abs=1e-4)  # r + (1 - r) ln(1 - r) of Geifman et al.
    assert len(found["curve"]["risk"]) == 100 and found["curve"]["coverage"][-1] == 1


def test_answers_of_one_confidence_have_no_order():
    right = np.random.default_rng(0).random(50) < 0.7
    found = risk_coverage(np.ones(50), right)
    assert found["aurc"] == pytest.approx(1 - right.mean())
    assert found["selective_accuracy"]["0.7"] == pytest.approx(right.mean())
    assert found["curve"] == risk_coverage(np.ones(50), right[::-1])["curve"]


def test_what_is_told_of_a_run_is_fitted_on_validation_and_plain():
    sides = patients(40, 5, 3), patients(60, 5, 4, "test")
    both = Predictions.pool(sides)
    found = describe_abstention(both, 0.9)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["conformal"] == fit_conformal(sides[0], 0.9) and found["conformal"]["patients"] == 40
    assert found["sets"] == measure_sets(sides[1], found["conformal"]) and found["sets"]["patients"] == 60
    assert found["selective"]["selective_accuracy"]["1.0"] == pytest.approx(sides[1].measure()["accuracy"])
    with pytest.raises(DataError, match="validation images, and there are none"):
        describe_abstention(sides[1])
    with pytest.raises(DataError, match="test images, and there are none"):
        describe_abstention(sides[0])


def test_levels_and_scores_that_are_none_are_refused():
    given = drawn(20, 1)
    with pytest.raises(DataError, match="level 90: must be between 0 and 1"):
        fit_conformal(given, 90)
    with pytest.raises(DataError, match='no score "apps" \\(did you mean "aps"\\?\\)'):
        fit_conformal(given, 0.9, "apps")
