import json
import math

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as sk
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from oct_hf.errors import DataError
from oct_hf.evaluation.calibration import (
    _equal_mass,
    brier_decomposition,
    describe_calibration,
    fit_temperature,
    fit_temperatures,
    rescale,
)
from oct_hf.evaluation.oct_metrics import expected_calibration_error


def drawn(n=600, k=3, too_sure=1.0, seed=0):
    """Logits of a calibrated model times `too_sure`, labels, and patients with very different numbers of cases."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, k))
    labels = (softmax(logits, 1).cumsum(1) < rng.random((n, 1))).sum(1)
    return logits * too_sure, labels, rng.geometric(0.05, n)


class AsGiven(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose decision function is its input."""

    classes_ = np.arange(3)

    def fit(self, X, y):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def decision_function(self, X):
        return X

    def predict(self, X):
        return X.argmax(1)


@pytest.mark.filterwarnings("ignore:Since FrozenEstimator does not appear to accept sample_weight")
@pytest.mark.parametrize("too_sure", [0.4, 1.0, 3.0])
def test_the_temperature_is_scikit_learns(too_sure):
    logits, labels, groups = drawn(too_sure=too_sure)
    _, index, count = np.unique(groups, return_inverse=True, return_counts=True)
    for weights, given in ((None, None), (1 / count[index], groups)):
        theirs = CalibratedClassifierCV(FrozenEstimator(AsGiven()), method="temperature")
        theirs.fit(logits, labels, sample_weight=weights)
        wanted = 1 / theirs.calibrated_classifiers_[0].calibrators[0].beta_
        fitted = fit_temperature(logits, labels, given, spread=None)
        assert fitted.value == pytest.approx(wanted, rel=1e-5) and fitted.why is None
    assert fit_temperature(logits, labels).value == pytest.approx(too_sure, rel=0.15)


def test_few_patients_hold_the_temperature_near_one_and_many_outweigh_that():
    logits, labels, groups = drawn(2000, too_sure=4.0)
    apart = []
    for patients in (6, 30, 400):
        rows = np.isin(groups, np.unique(groups)[:patients]) if patients < 400 else np.full(2000, True)
        z, y, whose = logits[rows], labels[rows], groups[rows] if patients < 400 else np.arange(2000)
        count = len(np.unique(whose))
        weights = 1 / np.unique(whose, return_counts=True)[1][np.unique(whose, return_inverse=True)[1]]
        grid = np.exp(np.linspace(-1, 2, 3001))
        losses = [-weights @ np.log(softmax(z / t, 1)[np.arange(len(y)), y]) for t in grid]
        wanted = grid[np.argmin(losses + (np.log(grid) / 0.5) ** 2 / 2)]
        assert fit_temperature(z, y, whose).value == pytest.approx(wanted, rel=2e-3)
        plain = fit_temperature(z, y, whose, spread=None).value
        assert 1 < wanted < plain and count == (patients if patients < 400 else 2000)
        apart.append(plain / wanted)
    assert apart[0] > 1.5 and apart[0] > apart[1] > apart[2] and apart[2] < 1.02


def test_on_a_dozen_patients_it_is_better_on_others_than_the_plain_minimum():
    lost = {None: 0.0, "held": 0.0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        whose = np.repeat(np.arange(212), 5)  # B-scans of a patient are right or wrong together
        z = rng.normal(0, 1.5, (212, 3))[whose] + rng.normal(0, 0.3, (1060, 3))
        y = (softmax(z[::5], 1).cumsum(1) < rng.random((212, 1))).sum(1)[whose]
        few = whose < 12
        for name in lost:
            found = fit_temperature(z[few], y[few], whose[few], *([None] if name is None else []))
            lost[name] += sk.log_loss(y[~few], softmax(z[~few] / found.value, 1), labels=[0, 1, 2]) / 60
    assert lost["held"] < lost[None] - 0.01


def test_probabilities_serve_as_logits_and_one_over_t_undoes_t():
    logits, labels, _ = drawn(too_sure=2)
    p = softmax(logits, 1)
    fitted = fit_temperature(logits, labels)
    assert fit_temperature(np.log(p), labels).value == pytest.approx(fitted.value, rel=1e-6)
    calibrated = rescale(p, fitted.value)
    assert np.abs(calibrated - softmax(logits / fitted.value, 1)).max() < 1e-12
    assert np.abs(rescale(calibrated, 1 / fitted.value) - p).max() < 1e-12
    assert fitted.log_loss_after == pytest.approx(sk.log_loss(labels, calibrated))
    assert fitted.log_loss_before == pytest.approx(sk.log_loss(labels, p)) and fitted.n == 600
    assert np.isfinite(rescale(np.array([[1.0, 0.0]]), 2.0)).all()


def test_every_patient_weighs_the_same():
    # One patient of 1,000 B-scans on whom the model is far too sure beside 50 of one B-scan each.
    many = np.tile([[4.0, 0.0]], (1000, 1)), np.arange(1000) % 2
    logits, labels, _ = drawn(50, 2, seed=3)
    z, y = np.concatenate([many[0], logits]), np.concatenate([many[1], labels])
    groups = np.concatenate([np.zeros(1000, int), np.arange(1, 51)])
    equal, single = fit_temperature(z, y, groups), fit_temperature(z, y)
    assert equal.patients == 51 and single.patients is None
    assert abs(equal.value - fit_temperature(logits, labels).value) < 0.3 < single.value - equal.value


def test_when_all_answers_are_right_the_rule_of_succession_bounds_the_confidence():
    _, labels, _ = drawn(60)
    unsure = np.eye(3)[labels]
    fitted = fit_temperature(unsure, labels, spread=None)
    assert softmax(unsure / fitted.value, 1).max(1).mean() == pytest.approx(61 / 62)
    assert fitted.value < 1 and "all validation answers are right" in fitted.why
    patients = np.arange(60) % 10
    fewer = fit_temperature(unsure, labels, patients, spread=None)
    assert softmax(unsure / fewer.value, 1).max(1).mean() == pytest.approx(11 / 12)
    sure = fit_temperature(unsure * 20, labels)
    assert sure.value == 1.0 and "all validation answers are right" in sure.why
    hardly = fit_temperature(unsure * 1e-3, labels, spread=None)
    assert hardly.value == 0.02 and hardly.why
    for groups, bound, whose in ((None, fitted, "60 cases"), (patients, fewer, "10 patients")):
        held = fit_temperature(unsure, labels, groups)
        assert bound.value < held.value < 1 and held.why.endswith(f"sharpened as far as {whose} bear out")
    assert fit_temperature(unsure * 20, labels).value == 1.0


def test_answers_that_are_all_wrong_end_at_the_bound():
    _, labels, _ = drawn(60)
    wrong = np.eye(3)[(labels + 1) % 3] * 5
    fitted = fit_temperature(wrong, labels, spread=None)
    assert fitted.value == 50 and fitted.why == "the log loss still falls above T = 50, the bound of the search"
    hardly, hit = np.eye(3)[labels] * 1e-4, np.arange(60) == 0
    hardly[hit] = np.eye(3)[(labels[hit] + 1) % 3] * 1e-4
    assert (
        fit_temperature(hardly, labels, spread=None).why
        == "the log loss still falls below T = 0.02, the bound of the search"
    )


@pytest.mark.parametrize(
    "logits, labels, groups, why",
    [
        (np.zeros((0, 3)), np.zeros(0, int), None, "0 validation cases are too few"),
        (np.eye(3), np.array([0, 1, 1]), None, "3 validation cases are too few"),
        (np.random.rand(40, 3), np.arange(40) % 3, np.arange(40) % 4, "4 validation patients are too few"),
        (np.random.rand(40, 3), np.ones(40, int), None, "one class only"),
        (np.ones((40, 3)), np.arange(40) % 3, None, "no temperature changes them"),
    ],
)
def test_a_side_that_tells_nothing_leaves_the_probabilities_alone(logits, labels, groups, why):
    fitted = fit_temperature(logits, labels, groups)
    assert fitted.value == 1.0 and why in fitted.why
    assert "NaN" not in json.dumps(fitted.to_dict())


def test_each_sigmoid_output_gets_its_own_temperature_by_binary_cross_entropy():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (3000, 2))
    labels = (rng.random(true.shape) < expit(true)).astype(float)
    labels[:500, 1] = np.nan
    fitted = fit_temperatures(true * [3, 0.5], labels, spread=None)
    assert [t.value for t in fitted] == pytest.approx([3, 0.5], rel=0.1)
    assert [t.n for t in fitted] == [3000, 2500]
    z = 3 * true[:, 0]
    assert fitted[0].log_loss_after == pytest.approx(sk.log_loss(labels[:, 0], expit(z / fitted[0].value)))
    near = [sk.log_loss(labels[:, 0], expit(z / (fitted[0].value * f))) for f in (0.99, 1.01)]
    assert min(near) > fitted[0].log_loss_after
    with pytest.raises(DataError, match="0, 1 or NaN"):
        fit_temperatures(true, labels + 1)
    with pytest.raises(DataError, match="must have the logits' shape"):
        fit_temperatures(true, labels[:, 0])


@pytest.mark.parametrize(
    "logits, labels, groups, text",
    [
        (np.zeros(4), np.zeros(4, int), None, "expected logits"),
        (np.zeros((4, 2)), np.zeros(3, int), None, "expected logits"),
        ([[0, 1], [np.nan, 1]], [0, 1], None, "row 1 of the logits"),
        (np.zeros((4, 2)), np.full(4, 2), None, r"true labels must lie in 0\.\.1"),
        (np.zeros((4, 2)), np.zeros(4, int), np.zeros(3), "4 labels, but 3 groups"),
    ],
)
def test_what_can_not_be_fitted_is_refused(logits, labels, groups, text):
    with pytest.raises(DataError, match=text):
        fit_temperature(logits, labels, groups)


def test_brier_score_and_log_loss_are_scikit_learns():
    logits, labels, _ = drawn(too_sure=2)
    p = softmax(logits, 1)
    found = describe_calibration(p, labels)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(labels, p, labels=[0, 1, 2]), abs=1e-12)
    assert found["log_loss"] == pytest.approx(sk.log_loss(labels, p), abs=1e-12)
    assert found["accuracy"] == sk.accuracy_score(labels, p.argmax(1))
    two, binary = softmax(logits[:, :2], 1), labels % 2
    both = sk.brier_score_loss(binary, two[:, 1], scale_by_half=False)
    assert describe_calibration(two, binary)["brier"] == pytest.approx(both, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_float32_probabilities_need_no_warning():
    p = softmax(drawn()[0], 1).astype(np.float32)
    assert describe_calibration(p, drawn()[1])["log_loss"] == pytest.approx(sk.log_loss(drawn()[1], p), abs=1e-6)


@pytest.mark.parametrize("n, k", [(600, 3), (17, 4), (3, 2), (1, 2)])
def test_the_parts_of_the_brier_score_add_up(n, k):
    logits, labels, _ = drawn(n, k, too_sure=2)
    found = brier_decomposition(softmax(logits, 1), labels)
    parts = found["brier_parts"]
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    total += parts["within_bin_variance"] - parts["within_bin_covariance"]
    assert total == pytest.approx(found["brier"], abs=1e-12)


def test_murphys_three_parts_of_a_hand_worked_example():
    # Forecasts 0.8 (of 5, 4 true) and 0.2 (of 5, 2 true); the base rate is 0.6. By class:
    # reliability 0.5 * 0.2**2, resolution 0.5 * 0.2**2 + 0.5 * 0.2**2, uncertainty 0.6 * 0.4; twice, for two classes.
    p = np.repeat([0.8, 0.2], 5)
    labels = np.array([1, 1, 1, 1, 0, 1, 1, 0, 0, 0])
    parts = brier_decomposition(np.stack([1 - p, p], 1), labels, bins=2)["brier_parts"]
    assert parts["reliability"] == pytest.approx(0.04)
    assert parts["resolution"] == pytest.approx(0.08)
    assert parts["uncertainty"] == pytest.approx(0.48)
    assert parts["within_bin_variance"] == parts["within_bin_covariance"] == pytest.approx(0)


def test_the_bins_are_those_of_the_calibration_error():
    logits, labels, _ = drawn(too_sure=2)
    p = softmax(logits, 1)
    found = describe_calibration(p, labels)
    gaps = [row["n"] * abs(row["confidence"] - row["accuracy"]) for row in found["bins"]]
    assert sum(gaps) / 600 == pytest.approx(found["ece"], abs=1e-12)
    assert found["ece"] == pytest.approx(expected_calibration_error(p, labels)) and found["ece"] > 0.1
    assert [row["n"] for row in found["bins"]] == [40] * 15
    assert all(row["accuracy"] == row["right"] / row["n"] for row in found["bins"])


def test_the_error_of_a_perfect_model_is_what_simulated_labels_give():
    logits, _, _ = drawn(200)
    p = softmax(logits, 1)
    found = describe_calibration(p, np.zeros(200, int), draws=2000)["ece_if_perfect"]
    rng = np.random.default_rng(9)
    labels = (p.cumsum(1)[None] < rng.random((2000, 200, 1))).sum(2)
    errors = [expected_calibration_error(p, row) for row in labels]
    assert found["mean"] == pytest.approx(np.mean(errors), rel=0.02)
    assert found["q95"] == pytest.approx(np.quantile(errors, 0.95), rel=0.03)
    again = describe_calibration(p, np.zeros(200, int), draws=2000)["ece_if_perfect"]
    assert again == found
    assert describe_calibration(p, np.zeros(200, int), draws=2000, seed=1)["ece_if_perfect"] != found


def test_the_error_of_a_perfect_model_of_one_bin_is_a_binomials_mean_deviation():
    # All confidences 0.8, n = 20, one bin: E |right / 20 - 0.8|, right ~ Binomial(20, 0.8), is known exactly.
    p = np.tile([0.8, 0.2], (20, 1))
    exact = sum(math.comb(20, r) * 0.8**r * 0.2 ** (20 - r) * abs(r / 20 - 0.8) for r in range(21))
    found = describe_calibration(p, np.zeros(20, int), bins=1, draws=20_000)["ece_if_perfect"]
    assert found["mean"] == pytest.approx(exact, rel=0.02)


def test_simulation_in_parts_equals_simulation_at_once(monkeypatch):
    p = softmax(drawn(300)[0], 1)
    whole = describe_calibration(p, np.zeros(300, int))["ece_if_perfect"]
    monkeypatch.setattr("oct_hf.evaluation.calibration.CHUNK", 7 * 300)
    assert describe_calibration(p, np.zeros(300, int))["ece_if_perfect"] == whole


def test_calibration_mends_what_was_too_sure_and_keeps_the_answers():
    logits, labels, _ = drawn(4000, too_sure=3)
    fitted = fit_temperature(logits[:2000], labels[:2000])
    given = softmax(logits[2000:], 1)
    before, after = (describe_calibration(p, labels[2000:]) for p in (given, rescale(given, fitted.value)))
    assert before["ece"] > 0.1 > 0.05 > after["ece"]
    assert after["ece"] < after["ece_if_perfect"]["q95"] * 1.5
    assert before["accuracy"] == after["accuracy"]
    assert after["log_loss"] < before["log_loss"]
    assert after["brier_parts"]["reliability"] < before["brier_parts"]["reliability"]


@pytest.mark.parametrize(
    "probabilities, labels",
    [
        (np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [1.0, 0.0, 0.0]]), np.array([0, 0, 2])),
        (np.full((40, 3), 1 / 3), np.arange(40) % 2),
        (np.tile([1.0, 0.0], (40, 1)), np.zeros(40, int)),
        (softmax(np.random.default_rng(0).normal(size=(50, 2)), 1).astype(np.float32), np.zeros(50, int)),
    ],
    ids=["three rows", "equal scores, a class absent", "certain", "one class, float32"],
)
def test_hard_cases_give_numbers_or_none_and_never_nan(probabilities, labels):
    found = describe_calibration(probabilities, labels)
    json.dumps(found, allow_nan=False)
    few = len(labels) < 15
    assert (found["ece"] is None) == (found["ece_if_perfect"] is None) == few
    assert found["why"] == ("3 cases can't fill 15 bins" if few else None)


def test_what_is_no_probability_is_refused():
    with pytest.raises(DataError, match=r"row 0 of the predictions sums to 1\.2"):
        describe_calibration(np.array([[0.6, 0.6]]), np.array([0]))
    with pytest.raises(DataError, match="expected n rows"):
        describe_calibration(np.zeros((0, 2)), np.zeros(0, int))


def test_bins_hold_equally_many():
    assert [len(rows) for rows in _equal_mass(np.arange(7.0), 3)] == [3, 2, 2]
