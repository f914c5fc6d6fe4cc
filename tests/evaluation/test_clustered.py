import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special, stats
from simulated_patients import simulated
from sklearn import metrics

from oct_hf.evaluation import clustered
from oct_hf.evaluation.clustered import Estimate


@pytest.mark.parametrize("right", [0, 1, 17, 39, 40])
def test_with_one_image_a_patient_it_is_wilsons_interval(right):
    part = (np.arange(40) < right).astype(float)
    expected = stats.binomtest(right, 40).proportion_ci(0.95, method="wilson")
    assert clustered.proportion(part, np.ones(40), 0.95) == pytest.approx((expected.low, expected.high))


def test_images_that_are_all_alike_count_as_one_each_patient():
    right = np.random.default_rng(0).random(60) < 0.7
    estimate = clustered.ratio(8.0 * right, np.full(60, 8.0))
    assert estimate.value * (1 - estimate.value) / estimate.variance == pytest.approx(59)  # the n - 1 of a variance
    # The residuals' fourth moment is known by hand; t has 59 degrees of freedom, the most there may be.
    wider = stats.t.ppf(0.975, 59) / stats.norm.ppf(0.975)
    assert clustered.size(estimate, 0.95) == pytest.approx(59 / wider**2, rel=1e-3)


def test_independent_images_count_nearly_all_and_never_more_than_there_are():
    images = np.full(200, 10.0)
    drawn = [np.random.default_rng(s).binomial(10, 0.6, 200).astype(float) for s in range(40)]
    sizes = [float(clustered.size(clustered.ratio(part, images), 0.95)) for part in drawn]
    assert 1800 < np.mean(sizes) < 2100
    spread = np.concatenate([np.full(100, 5.0), np.full(100, 7.0)])  # less alike than chance would have them
    assert clustered.size(clustered.ratio(spread, images), 0.95) > 2000
    assert clustered.proportion(spread, images, 0.95) == pytest.approx(clustered.wilson(0.6, 2000, 0.95))


def test_the_size_of_few_patients_is_that_of_the_formula_worked_by_hand():
    # Influences 3, 1, 1, -2, -3 hundredths of 20 patients: variance 24e-4, fourth powers 180e-8, so e = 576/180 = 3.2
    # carriers; freedom 2 / (1/3.2 - 1/20) = 7.619, t 2.3262, squared over z 1.4087; 0.8 * 0.2 / 24e-4 = 66.67 cases,
    # 47.33 after t; weight 4.2^-1.5 = 0.1162 of 10: exp(0.8838 ln 47.33 + 0.1162 ln 10) = 39.51.
    estimate = Estimate(np.float64(0.8), 10.0, 20, np.array([0.03, 0.01, 0.01, -0.02, -0.03] + 15 * [0.0]))
    assert estimate.carriers == pytest.approx(3.2)
    assert clustered.size(estimate, 0.95) == pytest.approx(39.51, abs=0.01)


def test_one_error_more_never_makes_the_interval_jump():
    images = np.full(20, 15.0)
    none, one = images.copy(), images - (np.arange(20) == 3)
    lows = [clustered.proportion(part, images, 0.95)[0] for part in (none, one)]
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
    influences = (np.array([0.03, -0.04, 0, 0]), np.array([0, 0, 0.05, -0.12]))
    estimates = [Estimate(value, 1, 4, row) for value, row in zip((0.6, 0.8), influences, strict=True)]
    limits = [(e.value - 2 * d, e.value + 2 * d) for e, d in zip(estimates, (0.05, 0.13), strict=True)]
    reach = np.hypot(0.05, 0.13)
    assert clustered.mean_of(estimates, limits) == pytest.approx((0.7 - reach, min(0.7 + reach, 1)))


def test_a_mean_of_classes_that_go_together_is_less_sure():
    together = [Estimate(0.6, 1, 2, np.array([0.03, -0.03])), Estimate(0.7, 1, 2, np.array([0.05, -0.05]))]
    low, high = clustered.mean_of(together, [(0.5, 0.7), (0.6, 0.8)])
    assert (low, high) == pytest.approx((0.55, 0.75))


def test_a_mean_of_proportions_is_doubted_less_than_each_alone():
    rng = np.random.default_rng(2)
    counts = [(rng.binomial(10, 0.8, 12).astype(float), np.full(12, 10.0)) for _ in range(3)]
    low, high = clustered.mean_proportion(counts, 0.95)
    alone = [clustered.proportion(*both, 0.95) for both in counts]
    wide = clustered.mean_of([clustered.ratio(*both) for both in counts], alone)
    assert wide[0] < low < np.mean([part.sum() / 120 for part, _ in counts]) < high < wide[1]


def test_the_interval_of_an_auroc_stays_inside_0_and_1_and_has_a_width_at_1():
    estimate = clustered.area(np.arange(10.0), np.arange(10) > 5, np.arange(10), 10)
    low, high = clustered.logit(estimate.value, clustered.size(estimate, 0.95), 0.95)
    assert estimate.value == high == 1.0
    assert low == pytest.approx(stats.binomtest(4, 4).proportion_ci(0.95, method="wilson").low)


def test_the_logit_interval_is_that_of_a_binomial_models_linear_predictor():
    fit = sm.GLM(np.repeat([1.0, 0.0], (83, 17)), np.ones(100), family=sm.families.Binomial()).fit()
    expected = special.expit(fit.conf_int(0.05)[0])
    assert clustered.logit(0.83, 100, 0.95) == pytest.approx(expected, rel=1e-6)


def test_auprc_is_scikit_learns_and_its_parts_are_the_derivatives_by_the_patients_weights():
    given = simulated(15, 5, classes=2, seed=8, digits=1)
    group, positive, scores = np.repeat(np.arange(15), 5), given.labels == "A", given.probabilities[:, 0].astype(float)
    estimate = clustered.precision_area(scores, positive, group, 15)
    assert estimate.value == pytest.approx(metrics.average_precision_score(positive, scores))
    for patient in range(15):
        more, less = (
            metrics.average_precision_score(positive, scores, sample_weight=1 + step * (group == patient))
            for step in (1e-4, -1e-4)
        )
        expected = (more - less) / 2e-4 * np.sqrt(15 / 14)
        assert estimate.influence[patient] == pytest.approx(expected, abs=1e-7)


def test_halls_transformation_makes_a_t_of_the_studentised_mean():
    losses = np.array([1.0, 2, 3, 6])
    low, high = clustered.skewed(clustered.ratio(losses, np.ones(4)), 0.95)
    # Mean 3, standard error sqrt(14/3)/2; the skewness over sqrt(n) is 18 / 14^1.5. Hall (1992), equation 2.4.
    skewness, error = 18 / 14**1.5, np.sqrt(14 / 3) / 2
    for limit, sign in ((low, 1), (high, -1)):
        t = (3 - limit) / error
        transformed = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
        assert transformed == pytest.approx(sign * stats.t.ppf(0.975, 3))
    assert high - 3 > 3 - low > 0


def test_the_fewer_patients_carry_a_loss_the_wider_its_interval():
    # The influences of the size worked by hand above: no skewness but -6 of 24^1.5, and 7.619 degrees of freedom.
    estimate = Estimate(np.float64(0.8), 10.0, 20, np.array([0.03, 0.01, 0.01, -0.02, -0.03] + 15 * [0.0]))
    assert estimate.freedom == pytest.approx(7.619, abs=1e-3)
    low, high = clustered.skewed(estimate, 0.95)
    bend, error = -6 / 24**1.5 / 3, np.sqrt(24e-4)
    for limit, sign in ((low, 1), (high, -1)):
        t = (0.8 - limit) / error
        assert ((1 + bend * t) ** 3 - 1) / (3 * bend) + bend / 2 == pytest.approx(sign * 2.3262, abs=1e-4)
    one = Estimate(
        np.float64(0.8), 1.0, 100, np.array([0.05] + 99 * [1e-4])
    )  # at least 3 degrees, else 12.7 in z's place
    assert clustered.skewed(one, 0.95)[1] < 1.2


def test_a_mean_without_skewness_has_students_interval_and_a_loss_is_never_below_0():
    even = np.array([1.0, 2, 3, 4, 5])
    expected = stats.t.interval(0.95, 4, 3, stats.sem(even))
    assert clustered.skewed(clustered.ratio(even, np.ones(5)), 0.95) == pytest.approx(expected)
    assert clustered.skewed(clustered.ratio(even - 0.9, np.ones(5)), 0.999)[0] == 0
    assert clustered.skewed(clustered.ratio(np.full(5, 0.3), np.ones(5)), 0.95) == pytest.approx((0.3, 0.3))


def test_accuracy_is_covered_as_often_as_promised_and_plain_wilson_is_not():
    rng = np.random.default_rng(5)
    images = rng.integers(1, 31, (4000, 50))
    for true, alike in ((0.9, 0.3), (0.98, 0.0)):
        chance = rng.beta(true * (1 - alike) / alike, (1 - true) * (1 - alike) / alike, images.shape) if alike else true
        right = rng.binomial(images, chance)
        low, high = clustered.proportion(right, images, 0.95)
        assert 0.93 < ((low <= true) & (high >= true)).mean() < 0.97
    right = rng.binomial(images, rng.beta(0.9 * 7 / 3, 0.1 * 7 / 3, images.shape))
    low, high = clustered.wilson(right.sum(1) / images.sum(1), images.sum(1), 0.95)
    assert ((low <= 0.9) & (high >= 0.9)).mean() < 0.8


def test_auroc_is_covered_as_often_as_promised_and_delongs_interval_is_not():
    held, plain = [], []
    many = simulated(20_000, 1, classes=2, apart=1.2, seed=99)
    true = float(_area(many, np.arange(20_000)).value)
    for seed in range(300):
        given = simulated(50, 8, classes=2, apart=1.2, seed=seed)
        for found, groups in ((held, np.repeat(np.arange(50), 8)), (plain, np.arange(400))):
            estimate = _area(given, groups)
            low, high = clustered.logit(estimate.value, clustered.size(estimate, 0.95), 0.95)
            found.append(low <= true <= high)
    assert 0.92 < np.mean(held) < 0.98
    assert np.mean(plain) < 0.85


def _area(given, group) -> Estimate:
    return clustered.area(
        given.probabilities[:, 0].astype(float), given.labels == given.names[0], group, int(group.max()) + 1
    )


def test_the_net_gap_reaches_as_far_above_as_the_accuracy_below():
    images = np.full(30, 10.0)
    right = images - np.isin(np.arange(30), (3, 9, 20))
    low, _ = clustered.proportion(right, images, 0.95)
    sure = clustered.largest_net_gap(images - right, right, images, 0.95)  # confidence 1 everywhere
    assert sure == pytest.approx(1 - low)
    gap = 0.95 * images - right  # too modest, so that more right ones are what makes it larger
    _, high = clustered.proportion(right, images, 0.95)
    assert clustered.largest_net_gap(gap, right, images, 0.95) == pytest.approx(high - 0.95)


def test_a_noisy_calibration_error_of_a_calibrated_model_reaches_0():
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(size=15)).mean() * 0.02
    drawn = np.abs(0.02 * rng.normal(size=(500, 15)) + 0.02 * rng.normal(size=15)).mean(1)
    low, high = clustered.without_bias(noise, drawn, 0.95)
    assert low == 0
    assert noise <= high < 0.05
