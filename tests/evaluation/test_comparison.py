import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from simulated_patients import predictions, simulated

from oct_hf.errors import DataError
from oct_hf.evaluation.comparison import COMPARED, compare, compare_all, holm
from oct_hf.evaluation.oct_metrics import measure


def other_model(given, seed: int, noise: float = 1.0, sharper: float = 1.0):
    """Another model's answers to the same images: noise in the scores, alike within a patient."""
    group = np.unique(given.groups.astype(str), return_inverse=True)[1]
    rng = np.random.default_rng([seed, 7])
    scores = sharper * np.log(given.probabilities.astype(float))
    scores += noise * rng.normal(size=(group.max() + 1, scores.shape[1]))[group]
    powers = np.exp(scores)
    return replace(given, probabilities=(powers / powers.sum(1, keepdims=True)).astype(np.float32))


def test_every_swap_of_few_patients_is_looked_at():
    first = simulated(5, 6, seed=3)
    second = other_model(first, 0, noise=2)
    found = compare(first, second, resamples=50)
    assert found["exact"]
    assert found["permutations"] == 32
    group, pair = np.repeat(np.arange(5), 6), [p.probabilities.astype(float) for p in (first, second)]
    differences = {name: [] for name in COMPARED}
    for swap in itertools.product((False, True), repeat=5):
        swapped = np.array(swap)[group][:, None]
        one, two = np.where(swapped, pair[1], pair[0]), np.where(swapped, pair[0], pair[1])
        results = [measure(answers, first.indices(), first.names) for answers in (one, two)]
        for name in COMPARED:
            differences[name].append(results[1][name] - results[0][name])
    for name in COMPARED:
        row, all_of_them = found["metrics"][name], np.array(differences[name])
        assert row["difference"] == pytest.approx(all_of_them[0], abs=1e-12)
        assert row["p"] == pytest.approx((np.abs(all_of_them) >= abs(all_of_them[0]) - 1e-9).mean())


def test_with_one_image_a_patient_it_is_scipys_paired_permutation_test():
    first = simulated(12, 1, seed=5, apart=3)
    second = other_model(first, 1, noise=4)
    right = [(p.probabilities.argmax(1) == first.indices()).astype(float) for p in (first, second)]
    expected = stats.permutation_test(
        right[::-1],
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    found = compare(first, second, resamples=50)["metrics"]["accuracy"]
    assert 0 < found["p"] < 1
    assert found["p"] == pytest.approx(expected.pvalue)


def test_models_of_one_kind_give_p_values_of_every_size_and_intervals_that_hold_0():
    values, held = [], []
    for seed in range(100):
        base = simulated(30, 3, seed=seed)
        pair = other_model(base, seed), other_model(base, seed + 1000)
        found = compare(*pair, permutations=99, resamples=100)["metrics"]
        values.append(found["log_loss"]["p"])
        held.append(found["accuracy"]["low"] <= 0 <= found["accuracy"]["high"])
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) <= 0.05) <= 0.1
    assert 0.9 <= np.mean(held) < 1


def test_a_better_model_is_found_and_its_interval_excludes_0():
    worse = other_model(simulated(80, 4), 0, noise=3)
    found = compare(worse, simulated(80, 4), permutations=999)["metrics"]
    for name in ("balanced_accuracy", "accuracy", "auroc"):
        assert found[name]["p"] == 0.001
        assert 0 < found[name]["low"] < found[name]["difference"] < found[name]["high"]
    assert found["log_loss"]["high"] < 0


def test_a_model_is_no_better_than_itself():
    given = simulated(20, 3)
    for row in compare(given, given, permutations=99, resamples=50)["metrics"].values():
        assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)


def test_only_test_images_that_both_have_are_compared():
    given = simulated(20, 3)
    sides = given.sides.copy()
    sides[:6] = "train"
    shuffled = np.random.default_rng(0).permutation(len(sides))[:50]
    columns = {c: getattr(given, c)[shuffled] for c in ("hashes", "groups", "labels", "sides", "probabilities")}
    found = compare(replace(given, sides=sides), replace(given, **columns), 99, resamples=50)
    assert found["rows"] + found["only_first"] == 54
    assert found["rows"] + found["only_second"] == 50
    assert found["metrics"]["auroc"]["difference"] == pytest.approx(0, abs=1e-12)
    json.dumps(found, allow_nan=False)


def test_labels_in_another_order_are_the_same_labels():
    given = simulated(20, 3)
    turned = replace(given, names=given.names[::-1], probabilities=given.probabilities[:, ::-1])
    assert compare(given, turned, 99, resamples=50)["metrics"]["log_loss"]["difference"] == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_compared_is_one_clear_line():
    given = simulated(8, 2)
    with pytest.raises(DataError, match="other labels: A, B, C, and A, B, X"):
        compare(given, replace(given, names=("A", "B", "X")))
    with pytest.raises(DataError, match="2 of the 16 common images have another true label"):
        labels = given.labels.copy()
        labels[:2] = np.where(labels[:2] == "A", "B", "A")
        compare(given, replace(given, labels=labels))
    with pytest.raises(DataError, match="no test image in common"):
        compare(given, replace(given, sides=np.full(16, "validation", dtype=object)))
    with pytest.raises(DataError, match="an image is twice"):
        compare(given, replace(given, hashes=np.full(16, "h", dtype=object)))
    with pytest.raises(DataError, match="two runs or more"):
        compare_all({"one": given})
    with pytest.raises(DataError, match=r"^one and two: "):
        compare_all({"one": given, "two": replace(given, names=("A", "B", "X"))})


def test_one_patient_and_absent_classes_have_no_p_value():
    lone = predictions(np.eye(3), np.arange(3), [0, 0, 0])
    assert compare(lone, lone)["metrics"]["accuracy"] == {"why": "one patient"}
    some = predictions(np.full((4, 3), 1 / 3), np.array([0, 1, 0, 1]), range(4))
    found = compare(some, some, resamples=20)
    assert found["metrics"]["auroc"] == {"why": "a class has no case on this side"}
    json.dumps(found, allow_nan=False)


def test_p_values_of_many_runs_are_holms():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    given = simulated(20, 3)
    found = compare_all({"base": given, "bad": other_model(given, 0, noise=3), "same": given}, permutations=199)
    assert found["first"] == "base"
    rows = [found["runs"][name]["metrics"]["log_loss"] for name in ("bad", "same")]
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
    assert rows[0]["p_holm"] == pytest.approx(2 * rows[0]["p"])
