from dataclasses import replace

import numpy as np
import pytest
from simulated_patients import blurred, simulated
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from oct_hf.errors import DataError
from oct_hf.evaluation.comparison import compare
from oct_hf.evaluation.won_back import won_back


@pytest.fixture(scope="module")
def three():
    good = [simulated(40, 5, seed=3, apart=3.0)]
    return good, [blurred(good[0], 3.0, 1)], [blurred(good[0], 1.0, 2)]


def test_what_was_lost_and_won_are_paired_differences_with_their_intervals(three):
    good, bad, method = three
    found = won_back(good, bad, method)
    assert found["patients"] == 40 and found["rows"] == 200 and found["seeds"] == 1
    lost, won = (compare(bad[0], other[0], permutations=10)["metrics"] for other in (good, method))
    for name, row in found["metrics"].items():
        for key, other in (("lost", lost), ("won", won)):
            assert row[key]["value"] == pytest.approx(other[name]["difference"])
            assert (row[key]["low"], row[key]["high"]) == pytest.approx((other[name]["low"], other[name]["high"]))
        assert row["share"]["value"] == pytest.approx(won[name]["difference"] / lost[name]["difference"])


def test_seeds_are_averaged_whatever_the_order_of_their_rows(three):
    good, bad, method = three
    more = (
        [good[0], blurred(good[0], 0.5, 8)],
        [bad[0], blurred(good[0], 3.0, 9)],
        [method[0], blurred(good[0], 1.0, 7)],
    )
    order = np.random.default_rng(0).permutation(200)
    more[1][1] = more[1][1].rows(order)
    row = won_back(*more)["metrics"]
    for key, kind in zip(("good", "bad", "method"), more, strict=True):
        accuracy = [balanced_accuracy_score(one.indices(), one.probabilities.argmax(1)) for one in kind]
        area = [roc_auc_score(one.indices(), one.probabilities.astype(float), multi_class="ovr") for one in kind]
        assert row["balanced_accuracy"][key] == pytest.approx(np.mean(accuracy))
        assert row["auroc"][key] == pytest.approx(np.mean(area), abs=1e-6)


def test_all_and_nothing_won_back_are_known_for_sure(three):
    good, bad, _ = three
    for method, share in ((good, 1.0), (bad, 0.0)):
        found = won_back(good, bad, method)["metrics"]["auroc"]["share"]
        assert (found["value"], found["low"], found["high"]) == pytest.approx((share, share, share), abs=1e-6)


def test_the_shares_interval_is_above_a_half_just_where_the_difference_to_a_half_is_above_nothing():
    seen = set()
    for seed in range(8):
        good = [simulated(30, 4, seed=seed, apart=3.0)]
        bad, method = [blurred(good[0], 3.0, seed)], [blurred(good[0], 1.2, seed + 50)]
        for row in won_back(good, bad, method, resamples=400)["metrics"].values():
            assert row["share"]["low"] < row["share"]["value"] < row["share"]["high"]
            assert (row["share"]["low"] > 0.5) == (row["beyond_half"]["low"] > 0)
            assert (row["share"]["low"] > 0) == (row["won"]["low"] > 0)
            seen.add(row["share"]["low"] > 0.5)
    assert seen == {True, False}


def test_where_nothing_was_lost_for_sure_no_share_has_bounds(three):
    good, _, method = three
    near = [blurred(good[0], 0.05, 4)]
    share = won_back(good, near, method)["metrics"]["balanced_accuracy"]["share"]
    assert share["low"] is None and share["why"] == "it isn't sure that anything was lost"


def test_other_images_or_labels_are_refused(three):
    good, bad, method = three
    with pytest.raises(DataError, match="on the same test images"):
        won_back(good, [bad[0].rows(np.arange(150))], method)
    turned = bad[0].labels.copy()
    turned[0] = "A" if turned[0] != "A" else "B"
    with pytest.raises(DataError, match="on the same test images"):
        won_back(good, [replace(bad[0], labels=turned)], method)
