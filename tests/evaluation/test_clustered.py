import numpy as np
import pytest
from scipy import stats
from simulated_patients import simulated

from oct_hf.evaluation import clustered
from oct_hf.evaluation.clustered import Estimate


@pytest.mark.parametrize("right", [0, 1, 17, 39, 40])
def test_with_one_image_a_patient_it_is_wilsons_interval(right):
    part = np.arange(40) < right
    estimate = clustered.ratio(part.astype(float), np.ones(40))
    expected = stats.binomtest(right, 40).proportion_ci(0.95, method="wilson")
    assert estimate.size == pytest.approx(40)
    assert clustered.wilson(estimate.value, estimate.size, 0.95) == pytest.approx((expected.low, expected.high))


def test_images_that_are_all_alike_count_as_one_each_patient():
    right = np.random.default_rng(0).random(60) < 0.7
    estimate = clustered.ratio(8.0 * right, np.full(60, 8.0))
    assert 59 <= estimate.size <= 60


def test_independent_images_count_nearly_all_and_never_more_than_there_are():
    sizes = [
        float(clustered.ratio(np.random.default_rng(s).binomial(10, 0.6, 200), np.full(200, 10.0)).size)
        for s in range(40)
    ]
    assert max(sizes) <= 2000
    assert np.mean(sizes) > 1700


def test_one_error_more_never_makes_the_interval_jump():
    images = np.full(20, 15.0)
    none, one = images.copy(), images - (np.arange(20) == 3)
    lows = [clustered.wilson(e.value, e.size, 0.95)[0] for e in (clustered.ratio(p, images) for p in (none, one))]
    assert lows[0] == pytest.approx(stats.binomtest(20, 20).proportion_ci(0.95, method="wilson").low)
    assert abs(lows[0] - lows[1]) < 0.1


def test_auroc_with_one_image_a_patient_has_delongs_variance():
    # By hand: of 0.9, 0.6, 0.5 the shares 1, 2/3, 2/3 of the negatives are below, of 0.7, 0.3, 0.1 the shares
    # 1/3, 1, 1 of the positives above; variances 1/27 and 4/27, each over 3.
    scores, positive = np.array([0.9, 0.6, 0.5, 0.7, 0.3, 0.1]), np.array([1, 1, 1, 0, 0, 0], bool)
    estimate = clustered.area(scores, positive, np.arange(6), 6)
    assert estimate.value == pytest.approx(7 / 9)
    assert (estimate.influence**2).sum() == pytest.approx(5 / 81)


def test_auroc_has_obuchowskis_variance_where_patients_have_equally_many_images():
    rng = np.random.default_rng(3)
    patients, images = 30, 6
    group = np.repeat(np.arange(patients), images)
    positive = np.tile(np.arange(images) < 2, patients)
    scores = (rng.normal(size=patients)[group] + rng.normal(size=len(group)) + 1.5 * positive).round(1)
    estimate = clustered.area(scores, positive, group, patients)
    wins = (scores[positive][:, None] > scores[~positive]) + 0.5 * (scores[positive][:, None] == scores[~positive])
    area, m, n = wins.mean(), positive.sum(), (~positive).sum()
    assert estimate.value == pytest.approx(area)
    first = [wins.mean(1)[group[positive] == i].sum() - 2 * area for i in range(patients)]
    second = [wins.mean(0)[group[~positive] == i].sum() - 4 * area for i in range(patients)]
    correction = patients / (patients - 1)
    variance = correction * (np.dot(first, first) / m**2 + np.dot(second, second) / n**2)
    variance += 2 * correction * np.dot(first, second) / (m * n)
    assert (estimate.influence**2).sum() == pytest.approx(variance)


def test_a_mean_of_unrelated_classes_has_walds_interval_where_theirs_are_walds():
    estimates = [Estimate(0.6, 1, np.array([0.03, -0.04, 0, 0])), Estimate(0.8, 1, np.array([0, 0, 0.05, -0.12]))]
    limits = [(e.value - 2 * d, e.value + 2 * d) for e, d in zip(estimates, (0.05, 0.13), strict=True)]
    reach = np.hypot(0.05, 0.13)
    assert clustered.mean_of(estimates, limits) == pytest.approx((0.7 - reach, min(0.7 + reach, 1)))


def test_a_mean_of_classes_that_go_together_is_less_sure():
    together = [Estimate(0.6, 1, np.array([0.03, -0.03])), Estimate(0.7, 1, np.array([0.05, -0.05]))]
    low, high = clustered.mean_of(together, [(0.5, 0.7), (0.6, 0.8)])
    assert (low, high) == pytest.approx((0.55, 0.75))


def test_the_interval_of_an_auroc_stays_inside_0_and_1_and_has_a_width_at_1():
    estimate = clustered.area(np.arange(10.0), np.arange(10) > 5, np.arange(10), 10)
    low, high = clustered.logit(estimate, 4, 0.95)
    assert estimate.value == high == 1.0
    assert 0.4 < low < 0.7


def test_accuracy_is_covered_as_often_as_promised_and_plain_wilson_is_not():
    rng = np.random.default_rng(5)
    images = rng.integers(1, 31, (2000, 50))
    right = rng.binomial(images, rng.beta(0.9 * 7 / 3, 0.1 * 7 / 3, (2000, 50)))
    estimate = clustered.ratio(right, images)
    held = [
        ((low <= 0.9) & (high >= 0.9)).mean()
        for low, high in (clustered.wilson(estimate.value, n, 0.95) for n in (estimate.size, images.sum(1)))
    ]
    assert 0.93 < held[0] < 0.97
    assert held[1] < 0.8


def test_auroc_is_covered_as_often_as_promised_and_delongs_interval_is_not():
    held, plain = [], []
    many = simulated(20_000, 1, classes=2, apart=1.2, seed=99)
    true = float(_area(many, np.arange(20_000)).value)
    for seed in range(300):
        given = simulated(50, 8, classes=2, apart=1.2, seed=seed)
        group = np.repeat(np.arange(50), 8)
        for found, patients, groups in ((held, 20, group), (plain, 160, np.arange(400))):
            low, high = clustered.logit(_area(given, groups), patients, 0.95)
            found.append(low <= true <= high)
    assert 0.92 < np.mean(held) < 0.99
    assert np.mean(plain) < 0.85


def _area(given, group) -> Estimate:
    return clustered.area(
        given.probabilities[:, 0].astype(float), given.labels == given.names[0], group, int(group.max()) + 1
    )


def test_a_noisy_calibration_error_of_a_calibrated_model_reaches_0():
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(size=15)).mean() * 0.02
    drawn = np.abs(0.02 * rng.normal(size=(500, 15)) + 0.02 * rng.normal(size=15)).mean(1)
    low, high = clustered.without_bias(noise, drawn, 0.95)
    assert low == 0
    assert noise <= high < 0.05
