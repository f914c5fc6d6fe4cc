from dataclasses import replace

import numpy as np
import pytest
from simulated_patients import blurred, simulated

from oct_hf.errors import DataError
from oct_hf.evaluation.intervals import intervals
from oct_hf.evaluation.learning_curve import learning_curve


@pytest.fixture(scope="module")
def good():
    return simulated(60, 5, seed=3, apart=3.0)


def test_a_doubling_brings_the_slope_of_a_line_through_the_values(good):
    kinds = [[blurred(good, noise, 1), blurred(good, noise, 2)] for noise in (4.0, 2.0, 1.0)]
    found = learning_curve([10, 20, 40], kinds)
    assert found["patients"] == [10, 20, 40]
    for name, row in found["metrics"].items():
        values = [np.mean([one.measure()[name] for one in kind]) for kind in kinds]
        assert [value["value"] for value in row["values"]] == pytest.approx(values, abs=1e-6)
        slope = np.polyfit(np.log2([10, 20, 40]), values, 1)[0]
        assert row["per_doubling"]["value"] == pytest.approx(slope, abs=1e-6)
        assert 0 < row["per_doubling"]["low"] < slope < row["per_doubling"]["high"]
        assert row["last_doubling"]["value"] == pytest.approx(values[2] - values[1], abs=1e-6)
        assert row["last_doubling"]["low"] < row["last_doubling"]["value"] < row["last_doubling"]["high"]
    # Twice as far apart, half as much a doubling.
    further = learning_curve([10, 40, 160], kinds)["metrics"]["auroc"]["per_doubling"]
    assert 2 * further["value"] == pytest.approx(found["metrics"]["auroc"]["per_doubling"]["value"])


def test_a_flat_curve_has_nought_in_its_interval_and_each_point_its_own(good):
    kinds = [[blurred(good, 1.0, 1)], [blurred(good, 1.0, 2)], [blurred(good, 1.0, 3)]]
    found = learning_curve([10, 20, 40], kinds)["metrics"]["balanced_accuracy"]
    assert found["per_doubling"]["low"] < 0 < found["per_doubling"]["high"]
    known = intervals(kinds[0][0])["metrics"]["balanced_accuracy"]
    value = found["values"][0]
    assert value["high"] - value["low"] == pytest.approx(known["high"] - known["low"], rel=0.3)


def test_what_makes_no_curve_is_refused(good):
    with pytest.raises(DataError, match="two numbers of patients"):
        learning_curve([10, 10], [[good], [good]])
    with pytest.raises(DataError, match="ascending"):
        learning_curve([20, 10], [[good], [good]])
    with pytest.raises(DataError, match="same test images"):
        learning_curve([10, 20], [[good], [good.rows(np.arange(100))]])
    with pytest.raises(DataError, match="over one patient"):
        alone = replace(good, groups=np.full(len(good.groups), "p"))
        learning_curve([10, 20], [[alone], [alone]])
