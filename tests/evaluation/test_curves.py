import numpy as np
from sklearn import metrics

from oct_hf.evaluation.curves import GRID, curves
from oct_hf.evaluation.predictions import Predictions


def made(n=400, patients=40, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    score = np.clip(0.3 * labels + rng.uniform(0, 0.7, n), 0, 1)
    score = score if decimals is None else score.round(decimals)
    text = np.array([str(i) for i in range(n)], dtype=object)
    groups = np.array([f"p{i % patients}" for i in range(n)], dtype=object)
    names = np.array(["A", "B"], dtype=object)
    sides = np.array(["test"] * n, dtype=object)
    probabilities = np.stack([1 - score, score], 1)
    return Predictions(("A", "B"), text, groups, names[labels], sides, probabilities), labels, score


def test_the_roc_curve_is_scikit_learns_with_tied_scores_too():
    for decimals in (None, 1):
        predictions, labels, score = made(decimals=decimals)
        fpr, tpr, _ = metrics.roc_curve(labels, score, drop_intermediate=False)
        found = curves(predictions, resamples=2)["B"]["roc"]["value"]
        np.testing.assert_allclose(found, np.interp(GRID, fpr, tpr), atol=1e-12)


def test_precision_is_the_best_at_that_sensitivity_or_a_higher_one():
    predictions, labels, score = made()
    precision, recall, _ = metrics.precision_recall_curve(labels, score)
    expected = [precision[:-1][recall[:-1] >= at - 1e-12].max() for at in GRID]
    np.testing.assert_allclose(curves(predictions, resamples=2)["B"]["pr"]["value"], expected, atol=1e-12)


def test_bands_hold_the_curve_are_the_same_again_and_narrow_with_patients():
    few, many = (made(2000, patients)[0] for patients in (10, 500))
    wide, narrow = (curves(p, 200)["B"]["roc"] for p in (few, many))
    assert wide == curves(few, 200)["B"]["roc"]
    for band in (wide, narrow):
        inside = (np.array(band["low"]) <= band["value"]) & (np.array(band["value"]) <= band["high"])
        assert inside.mean() > 0.95
    assert all(0 <= low <= high <= 1 for low, high in zip(wide["low"], wide["high"], strict=True))
    grouped = made(2000, 10)[0]
    copies = grouped.rows(np.tile(np.arange(40), 50))  # the same forty B-scans fifty times: no more is known
    assert np.mean(np.subtract(curves(copies, 200)["B"]["roc"]["high"], curves(copies, 200)["B"]["roc"]["low"])) > (
        3 * np.mean(np.subtract(narrow["high"], narrow["low"]))
    )


def test_a_class_without_cases_has_no_curve_and_one_patient_no_band():
    predictions, labels, _ = made()
    assert curves(predictions.rows(labels == 0), 2) == {"A": None, "B": None}
    alone = curves(predictions.rows(predictions.groups == "p1"), 2)["A"]
    assert alone["roc"]["low"] is None and len(alone["roc"]["value"]) == 101
