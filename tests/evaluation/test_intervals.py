import json

import numpy as np
import pytest
from simulated_patients import predictions as of_arrays
from simulated_patients import simulated

from oct_hf.errors import DataError
from oct_hf.evaluation.intervals import COVERAGE, METRICS, PER_CLASS, intervals, patient_bootstrap, promise
from oct_hf.evaluation.predictions import Predictions


def predictions(groups: int, images: int, right: float, seed: int = 0) -> Predictions:
    """Patients who are right or wrong as a whole, the worst case of correlated images."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.integers(0, 2, groups), images)
    answer = np.where(np.repeat(rng.random(groups) < right, images), label, 1 - label)
    names = ("A", "B")
    text = [np.array(column, dtype=object) for column in ([f"h{i}" for i in range(len(label))], label, label, label)]
    group = np.array([f"P{i}" for i in np.repeat(np.arange(groups), images)], dtype=object)
    labels = np.array([names[i] for i in label], dtype=object)
    sides = np.full(len(label), "test", dtype=object)
    return Predictions(names, text[0], group, labels, sides, np.eye(2, dtype=np.float32)[answer])


def test_images_of_one_patient_count_as_one_draw():
    few, many = predictions(60, 1, 0.8), predictions(60, 25, 0.8)
    assert patient_bootstrap(few)["accuracy"] == patient_bootstrap(many)["accuracy"]
    low, high = patient_bootstrap(many)["accuracy"]
    as_if_independent = predictions(60 * 25, 1, 0.8)
    assert high - low > 3 * np.ptp(patient_bootstrap(as_if_independent)["accuracy"])


def test_the_interval_is_that_of_a_plain_resampling_of_patients():
    given = predictions(40, 5, 0.7)
    groups = np.unique(given.groups.astype(str))
    right = np.array([(given.probabilities.argmax(1) == given.indices())[given.groups == g].mean() for g in groups])
    rng = np.random.default_rng(1)
    plain = [right[rng.integers(0, len(groups), len(groups))].mean() for _ in range(4000)]
    assert np.allclose(patient_bootstrap(given)["accuracy"], np.quantile(plain, (0.025, 0.975)), atol=0.02)


def test_it_holds_the_true_value_about_as_often_as_it_says():
    held = sum(low <= 0.8 <= high for s in range(200) for low, high in [_accuracy(s)])
    assert 180 <= held <= 198


def _accuracy(seed: int) -> tuple[float, float]:
    return patient_bootstrap(predictions(100, 3, 0.8, seed), resamples=500)["accuracy"]


def test_a_class_that_a_resample_lacks_is_no_zero():
    given = predictions(6, 2, 1.0)
    assert len(set(given.labels)) == 2
    low, high = patient_bootstrap(given)["balanced_accuracy"]
    assert low == high == 1.0


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
        assert widths[1] == pytest.approx(widths[0], rel=0.1), name


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


def test_what_was_measured_of_few_patients_is_told():
    assert "20 patients" in promise(23)
    assert "500 patients" in promise(4000)
    assert promise(3) is None
    for told in COVERAGE.values():
        assert set(told) == set(METRICS)
        assert all(50 < least <= most <= 100 for least, most in told.values())
