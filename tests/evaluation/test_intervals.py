import numpy as np

from oct_hf.evaluation.intervals import patient_bootstrap
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
