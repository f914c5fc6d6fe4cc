import dataclasses

import numpy as np
import pytest

from oct_hf.evaluation.aggregation import RULES, join
from oct_hf.evaluation.per_eye import eyes_of, measure_eyes
from oct_hf.evaluation.predictions import Predictions

NAMES = ("DME", "NORMAL")


def predictions(eyes: list[tuple[str, str, str, str, list[float]]], names=NAMES) -> Predictions:
    """Rows of (group, eye, side, label, probability of DME of each B-scan)."""
    rows = [(g, e, side, label, p) for g, e, side, label, values in eyes for p in values]
    text = [np.array([row[at] for row in rows], dtype=object) for at in range(4)]
    probabilities = np.array([[p, 1 - p] if len(names) == 2 else [p, 1 - p, 0] for *_, p in rows], np.float32)
    hashes = np.array([f"{n:064x}" for n in range(len(rows))], dtype=object)
    return Predictions(names, hashes, text[0], text[3], text[2], probabilities, text[1])


def few_show_it() -> Predictions:
    """DME that one B-scan of six shows; what is normal never looks like it: a mean loses each of them."""
    eyes = []
    for side in ("validation", "test"):
        for n in range(6):
            eyes.append((f"{side}{n}", "OD", side, "DME", [0.9, 0.1, 0.1, 0.1, 0.1, 0.1]))
            eyes.append((f"{side}{n}", "OS", side, "NORMAL", [0.2] * 6))
    return predictions(eyes)


def test_the_rule_that_fits_the_validation_eyes_is_chosen():
    found = measure_eyes(few_show_it())
    assert found["rule"] == "maximum" and found["eyes"] == {"validation": 12, "test": 12} and found["bscans"] == 6
    assert found["validation"]["mean"]["balanced_accuracy"] == 0.5
    assert found["validation"]["maximum"]["balanced_accuracy"] == found["test"]["balanced_accuracy"] == 1.0


def test_one_eye_more_does_not_choose_a_rule_that_is_over_sure():
    eyes = [(f"d{n}", "OD", "DME", [0.9] + [0.78] * 5) for n in range(5)] + [("d5", "OD", "DME", [0.9] + [0.3] * 5)]
    eyes += [(f"n{n}", "OD", "NORMAL", [0.45] + [0.15] * 5) for n in range(6)]
    both = [(side + group, eye, side, *rest) for side in ("validation", "test") for group, eye, *rest in eyes]
    found = measure_eyes(predictions(both))
    assert found["validation"]["maximum"]["balanced_accuracy"] > found["validation"]["mean"]["balanced_accuracy"]
    assert found["validation"]["maximum"]["log_loss"] > found["validation"]["mean"]["log_loss"]
    assert found["rule"] == "mean"


def test_the_test_side_has_no_say():
    both = few_show_it()
    turned = dataclasses.replace(both, probabilities=both.probabilities.copy())
    turned.probabilities[both.sides == "test"] = both.probabilities[both.sides == "test"][:, ::-1]
    found = measure_eyes(turned)
    assert found["rule"] == "maximum" and found["test"]["balanced_accuracy"] < 0.6
    assert found["validation"] == measure_eyes(both)["validation"]


@pytest.mark.parametrize("rule", RULES)
def test_an_eye_is_its_own_bscans_alone(rule):
    mixed = few_show_it()
    eyes = eyes_of(mixed, rule)
    for group, eye, answer in zip(eyes.groups, eyes.eyes, eyes.probabilities, strict=True):
        mine = (mixed.groups == group) & (mixed.eyes == eye)
        assert mine.sum() == 6 and answer == pytest.approx(join(mixed.probabilities[mine], NAMES, rule))
    order = np.random.default_rng(0).permutation(len(mixed.hashes))
    assert measure_eyes(mixed.rows(order)) == measure_eyes(mixed)


def test_the_worst_case_labels_an_eye_and_what_is_not_settled_is_left_out():
    names = ("DRUSEN", "CNV", "NORMAL")
    worst = [
        ("a", "OD", "test", "NORMAL", [0.5]),
        ("a", "OD", "test", "DRUSEN", [0.5]),
        ("a", "OD", "test", "CNV", [0.5]),
        ("a", "", "test", "CNV", [0.5]),  # an unknown eye is none
        ("b", "OS", "test", "NORMAL", [0.5]),
    ]
    eyes = eyes_of(predictions(worst, names), "mean")
    assert list(zip(eyes.groups, eyes.eyes, eyes.labels, strict=True)) == [("a", "OD", "CNV"), ("b", "OS", "NORMAL")]
    unsettled = [
        ("a", "OD", "test", "DME", [0.5]),
        ("a", "OD", "test", "AMD", [0.5]),
        ("b", "OS", "test", "DME", [0.5]),
        ("b", "OS", "test", "NORMAL", [0.5]),
    ]
    eyes = eyes_of(predictions(unsettled, ("DME", "AMD", "NORMAL")), "mean")
    assert list(eyes.labels) == ["DME"]


def test_nothing_is_chosen_where_no_eye_has_two_bscans_or_none_is_known():
    single = [(f"p{n}", "OD", ("validation", "test")[n % 2], NAMES[n // 2 % 2], [0.4]) for n in range(16)]
    assert measure_eyes(predictions(single)) is None
    assert measure_eyes(dataclasses.replace(few_show_it(), eyes=None)) is None
    unknown = few_show_it()
    unknown.eyes[:] = ""
    assert measure_eyes(unknown) is None


def test_eyes_go_into_the_file_and_a_file_without_them_is_read(tmp_path):
    for number, written in enumerate((few_show_it(), dataclasses.replace(few_show_it(), eyes=None))):
        written.write(tmp_path / f"{number}.parquet")
        read = Predictions.read(tmp_path / f"{number}.parquet")
        assert measure_eyes(read) == measure_eyes(written)
        assert (read.eyes is None) == (written.eyes is None)
