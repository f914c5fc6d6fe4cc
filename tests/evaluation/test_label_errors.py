import importlib.util

import numpy as np
import pytest

from oct_hf.errors import DataError
from oct_hf.evaluation.label_errors import find_suspects, recovered
from oct_hf.evaluation.predictions import Predictions

NAMES = ("CNV", "DME", "DRUSEN", "NORMAL")


def simulated(n=1000, accuracy=0.95, flipped=0.1, seed=0):
    """Predictions of a network that is right in `accuracy` of the cases, and the images whose label was flipped."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % 4
    seen = np.where(rng.random(n) < accuracy, true, (true + rng.integers(1, 4, n)) % 4)
    values = 0.4 * rng.dirichlet(np.ones(4), n)
    values[np.arange(n), seen] += 0.6
    given = true.copy()
    wrong = rng.choice(n, round(flipped * n), replace=False)
    given[wrong] = (true[wrong] + rng.integers(1, 4, len(wrong))) % 4
    hashes = np.array([f"{i:064x}" for i in range(n)], dtype=object)
    groups = np.array([f"P{i // 8:05d}" for i in range(n)], dtype=object)
    labels = np.array([NAMES[i] for i in given], dtype=object)
    sides = np.array(["fold 0"] * n, dtype=object)
    found = Predictions(NAMES, hashes, groups, labels, sides, values.astype(np.float32))
    return found, set(hashes[wrong]), dict(zip(hashes, (NAMES[i] for i in true), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_come_first(seed):
    predictions, planted, true = simulated(seed=seed)
    suspects = find_suspects(predictions)
    result = recovered([s.content_hash for s in suspects], planted)
    assert result["recall"] >= 0.8 and result["precision"] >= 0.6
    assert recovered([s.content_hash for s in suspects[:40]], planted)["precision"] >= 0.6
    right = [s.suggested == true[s.content_hash] for s in suspects if s.content_hash in planted]
    assert np.mean(right) > 0.9


def test_the_surest_come_first_and_each_says_why():
    predictions, _, _ = simulated()
    suspects = find_suspects(predictions)
    scores = [s.score for s in suspects]
    assert scores == sorted(scores) and 0 <= scores[0] < scores[-1] <= 1
    for s in suspects:
        assert predictions.hashes[s.row] == s.content_hash and predictions.labels[s.row] == s.given != s.suggested
        others = {k: v for k, v in s.probabilities.items() if k != s.given}
        assert s.suggested == max(others, key=others.get)
        assert 1 <= s.unit_suspects <= s.unit_images <= 8


def test_an_eye_mislabelled_as_a_whole_is_told_as_one():
    predictions, _, _ = simulated(accuracy=1, flipped=0)
    eye = np.flatnonzero((predictions.groups == "P00003") & (predictions.probabilities.argmax(1) == 0))
    predictions.labels[eye], predictions.probabilities[eye] = "DME", (0.97, 0.01, 0.01, 0.01)
    units = [f"{group} OD" for group in predictions.groups]
    found = {s.content_hash: s for s in find_suspects(predictions, units)}
    for row in eye:
        one = found[predictions.hashes[row]]
        same_label = (predictions.groups == "P00003") & (predictions.labels == "DME")
        assert one.unit_suspects >= len(eye) and one.unit_images == same_label.sum() and one.suggested == "CNV"


def test_a_clean_set_has_few_suspects():
    predictions, _, _ = simulated(accuracy=0.99, flipped=0)
    assert len(find_suspects(predictions)) <= 20


def test_recall_at_a_precision_is_read_off_the_ranking():
    result = recovered(["a", "x", "b", "x2", "x3", "c"], {"a", "b", "c", "d"})
    assert result["recall"] == 0.75 and result["precision"] == 0.5
    assert result["recall_at_precision_0.6"] == 0.5  # a, x, b: 2 of 3
    assert recovered([], {"a"})["recall"] == 0


def test_a_label_without_images_is_named():
    predictions, _, _ = simulated(n=80, flipped=0)
    predictions.labels[predictions.labels == "DRUSEN"] = "CNV"
    with pytest.raises(DataError, match="no image of DRUSEN"):
        find_suspects(predictions)


def test_without_cleanlab_the_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "cleanlab" else real(name, *a))
    with pytest.raises(DataError, match=r'pip install "oct-hf\[labels\]"'):
        find_suspects(simulated(n=40)[0])
