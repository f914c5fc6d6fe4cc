from simulated_patients import simulated

from oct_hf.evaluation.coverage import BAND, COVERAGE, EDGE, promise
from oct_hf.evaluation.intervals import METRICS, intervals


def found(patients: int, **rows) -> dict:
    middle = {name: {"low": 0.4, "high": 0.6} for name in METRICS}
    return {"patients": patients, "metrics": middle | rows}


def test_what_was_measured_of_as_few_patients_is_told():
    assert "with 20 patients" in promise(found(23))
    assert "with 500 patients" in promise(found(4000))
    assert promise(found(19)) is None


def test_every_metric_was_measured_and_one_outside_the_band_is_named():
    for patients, told in COVERAGE.items():
        assert {*told, *EDGE[patients]} == {*METRICS, "class"}
        told = EDGE[patients] | told  # all that is known of a metric that was near a bound in every setting
        apart = [limits for limits in told.values() if limits[0] < BAND[0] or limits[1] > BAND[1]]
        named = promise(found(patients)).partition("those of ")[2]
        assert named.count(" in ") == len(apart)
        assert all(f"{least:g}" in named and f"{most:g} %" in named for least, most in apart)


def test_a_value_near_1_has_what_was_measured_there():
    least, most = EDGE[50]["accuracy"]
    near = promise(found(50, accuracy={"low": 0.95, "high": 0.999}))
    assert near.endswith(f"; near 0 or 1 those of the accuracy in {least:g}–{most:g} %")
    assert "near 0 or 1" not in promise(found(50, accuracy={"low": 0.9, "high": 0.98}))
    assert "near 0 or 1" not in promise(found(50, accuracy={"why": "one patient"}))


def test_it_speaks_of_intervals_as_they_come():
    text = promise(intervals(simulated(25, 4), resamples=50))
    assert text.startswith("in simulations with 20 patients such 95 % intervals held the true value")
