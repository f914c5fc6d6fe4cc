import numpy as np
from scipy import stats

from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.shift import describe_shift


def side(labels, **traits):
    text = [np.array([f"{kind}{i}" for i in range(len(labels))], dtype=object) for kind in "hg"]
    labels = np.array(labels, dtype=object)
    sides = np.array(["test"] * len(labels), dtype=object)
    return Predictions(("A", "B"), *text, labels, sides, np.full((len(labels), 2), 0.5, np.float32), None, traits)


def test_sizes_shares_and_distances_are_those_of_the_two_sets():
    rng = np.random.default_rng(0)
    dark, bright = rng.normal(40, 5, 60).astype(np.float32), rng.normal(60, 5, 40).astype(np.float32)
    home = side(["A"] * 45 + ["B"] * 15, width=np.full(60, 512), height=np.full(60, 496), intensity=dark)
    other = side(
        ["A"] * 10 + ["B"] * 30, width=np.repeat([512, 768], [10, 30]), height=np.full(40, 496), intensity=bright
    )
    shift = describe_shift(home, other)
    assert shift["sizes"] == {"home": {"512x496": 1.0}, "other": {"768x496": 0.75, "512x496": 0.25}}
    assert shift["classes"]["B"] == {"home": 0.25, "other": 0.75}
    assert shift["intensity"]["ks"] == stats.ks_2samp(dark, bright).statistic > 0.9
    assert shift["intensity"]["home"][1] == round(float(np.median(dark)), 4)


def test_a_set_does_not_differ_from_itself():
    home = side(["A", "B", "A"], quality=np.array([0.1, 0.5, 0.9], np.float32))
    assert describe_shift(home, home)["quality"]["ks"] == 0


def test_what_one_of_them_does_not_record_is_left_open():
    shift = describe_shift(side(["A", "B"]), side(["A", "B"], quality=np.array([0.1, 0.5], np.float32)))
    assert shift["sizes"] == {"home": None, "other": None} and shift["quality"] is None
