import json

import numpy as np
import pytest
from simulated_patients import predictions as of_arrays
from simulated_patients import simulated
from sklearn import metrics

from oct_hf.errors import DataError
from oct_hf.evaluation.intervals import METRICS, PER_CLASS, draws, intervals
from oct_hf.evaluation.resampled import ByPatient


def test_every_metric_has_an_interval_around_its_value():
    given = simulated(40, 6)
    found, measured = intervals(given, resamples=200), given.measure()
    assert found["patients"] == 40
    assert set(METRICS) == set(measured) - {"groups", "n", "per_class", "confusion_matrix"}
    for name in METRICS:
        row = found["metrics"][name]
        assert row["low"] < measured[name] < row["high"], name
        assert row["method"]
    for label, row in measured["per_class"].items():
        assert set(PER_CLASS) == set(row) - {"n"}
        for name in PER_CLASS:
            assert found["per_class"][label][name]["low"] <= row[name] <= found["per_class"][label][name]["high"]


def test_the_same_seed_gives_the_same_numbers_in_any_order_of_the_rows():
    given = simulated(15, 4)
    turned = of_arrays(given.probabilities[::-1], given.indices()[::-1], np.repeat(np.arange(15), 4)[::-1])
    first, second = intervals(given, 100), intervals(turned, 100)
    assert first == intervals(given, 100)
    for name in METRICS:
        assert first["metrics"][name]["low"] == pytest.approx(second["metrics"][name]["low"], abs=1e-9)


def test_alike_images_make_no_interval_narrower():
    few, many = simulated(30, 1, seed=4), simulated(30, 1, seed=4)
    repeated = of_arrays(
        np.repeat(many.probabilities, 12, 0), np.repeat(many.indices(), 12), np.repeat(np.arange(30), 12)
    )
    narrow, wide = intervals(few, 300), intervals(repeated, 300)
    for name in set(METRICS) - {"ece"}:  # whose bins are finer with more rows
        widths = [found["metrics"][name]["high"] - found["metrics"][name]["low"] for found in (narrow, wide)]
        assert 0.97 < widths[1] / widths[0] < 1.3, name  # wider where it isn't known that they are alike


@pytest.mark.parametrize(
    "labels, group",
    [
        ([0, 1, 0], [0, 1, 2]),
        ([0, 0, 0], [0, 1, 2]),
        ([0, 1, 2], [0, 0, 0]),
        ([0, 1, 2, 2, 1], [0, 0, 1, 1, 1]),
        ([0, 1, 0, 1, 2, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
    ids=["a class absent", "one class alone", "one patient", "two patients", "ten images"],
)
@pytest.mark.parametrize("kind", ["equal scores", "certain", "always wrong"])
def test_there_is_always_a_number_or_the_reason_why_not(labels, group, kind):
    certain = np.eye(3)[labels]
    answers = {"equal scores": np.full_like(certain, 1 / 3), "certain": certain, "always wrong": np.roll(certain, 1, 1)}
    found = intervals(of_arrays(answers[kind], np.array(labels), group), resamples=50)
    json.dumps(found, allow_nan=False)
    rows = [found["metrics"][name] for name in METRICS]
    rows += [found["per_class"][label][name] for label in "ABC" for name in PER_CLASS]
    for row in rows:
        assert row.keys() == {"why"} or row["low"] <= row["high"]


def test_a_class_that_is_absent_says_so():
    found = intervals(of_arrays(np.full((6, 3), 1 / 3), np.array([0, 1] * 3), range(6)), resamples=50)
    assert found["per_class"]["C"]["recall"] == {"why": "no positive case"}
    assert found["per_class"]["C"]["precision"] == {"why": "never predicted"}
    assert found["metrics"]["auroc"] == {"why": "a class with no positive case"}
    assert intervals(of_arrays(np.eye(3), np.arange(3), [0, 0, 0]))["metrics"]["accuracy"] == {"why": "one patient"}


def test_perfect_answers_are_no_certainty():
    found = intervals(of_arrays(np.eye(2)[[0, 1] * 15], np.array([0, 1] * 15), range(30)), resamples=50)
    for name in ("accuracy", "balanced_accuracy", "auroc", "auprc", "f1", "cohen_kappa", "mcc"):
        assert 0.5 < found["metrics"][name]["low"] < 0.95, name


def test_no_probabilities_is_one_clear_line():
    with pytest.raises(DataError, match="row 1 of the predictions"):
        intervals(of_arrays([[0.5, 0.5], [0.9, 0.9]], np.array([0, 1]), [0, 1]))


def test_the_spread_of_f1_is_that_of_a_plain_resampling_of_patients():
    given = simulated(40, 5, seed=3)
    rows = given.groups.astype(str)
    patients = [np.flatnonzero(rows == name) for name in np.unique(rows)]
    rng = np.random.default_rng(1)
    plain = []
    for _ in range(400):
        drawn = np.concatenate([patients[i] for i in rng.integers(0, 40, 40)])
        answers = given.probabilities[drawn].argmax(1)
        plain.append(metrics.f1_score(given.indices()[drawn], answers, average="macro"))
    weights = next(draws(40, 4000, 0, 4000))
    ours = ByPatient.of_predictions(given).counted(weights)["f1"]
    assert ours.mean() == pytest.approx(np.mean(plain), abs=0.01)
    assert ours.std() == pytest.approx(np.std(plain), rel=0.15)


def test_a_calibrated_models_error_reaches_0_and_an_overconfident_ones_does_not():
    given = simulated(200, 5, seed=7)  # calibrated: classes 2 apart, spread 2
    sure = given.probabilities.astype(float) ** 4
    sure = of_arrays(sure / sure.sum(1, keepdims=True), given.indices(), np.repeat(np.arange(200), 5))
    calibrated, overconfident = (intervals(one, 300)["metrics"]["ece"] for one in (given, sure))
    assert calibrated["low"] == 0 and calibrated["high"] < 0.1
    assert overconfident["low"] > 0.1
