from itertools import product

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from oct_hf.errors import ModelError
from oct_hf.training.feature_selection import (
    as_layer,
    choose_features,
    linear_machine,
    relevance,
    unseen_patients_score,
)


def cases(classes: int = 3, count: int = 90, useful: int = 3, useless: int = 7, seed: int = 0):
    """Features of which the first `useful` tell the class; 3 cases a patient, who leaves a mark on the rest."""
    rng = np.random.default_rng(seed)
    patients = np.arange(count) // 3
    labels = (patients % classes).astype(int)
    told = np.eye(classes)[labels][:, :useful] * 3 + rng.normal(size=(count, useful))
    marks = rng.normal(size=(patients.max() + 1, useless))[patients] + 0.1 * rng.normal(size=(count, useless))
    return np.hstack([told, marks]), labels, patients


@pytest.mark.parametrize("seed", range(8))
def test_the_colony_finds_the_best_of_all_choices(seed):
    """Values of single features, and of pairs that are only together worth something: all 4,096 choices are tried."""
    rng = np.random.default_rng(seed)
    single, pairs = rng.normal(size=12), np.triu(rng.normal(size=(12, 12)), 1)

    def score(choice: np.ndarray) -> float:
        taken = choice.astype(float)
        return float(single @ taken + taken @ pairs @ taken)

    best = max(score(np.array(choice)) for choice in product((False, True), repeat=12) if any(choice))
    choice, found = choose_features(score, np.full(12, 0.5), rounds=120, seed=seed)
    assert found == score(choice) == pytest.approx(best)


def test_the_same_seed_chooses_the_same_and_no_choice_is_scored_twice():
    asked = []

    def score(choice: np.ndarray) -> float:
        asked.append(choice.tobytes())
        return -abs(choice.sum() - 3)

    first, _ = choose_features(score, np.full(8, 0.3), seed=4)
    assert len(asked) == len(set(asked)) and first.sum() == 3
    assert np.array_equal(choose_features(score, np.full(8, 0.3), seed=4)[0], first)


def test_an_ant_that_took_nothing_takes_the_likeliest_feature():
    choice, _ = choose_features(lambda choice: -choice.sum(), np.array([0.0, 0.0, 0.05]), ants=50, rounds=1)
    assert choice.sum() == 1


def test_features_that_tell_the_patient_and_not_the_disease_are_left():
    features, labels, patients = cases()
    score = unseen_patients_score(features, labels, patients)
    choice, found = choose_features(score, relevance(features, labels), ants=8, rounds=8)
    assert choice[:3].all() and choice.sum() < len(choice)
    assert found >= score(np.ones(10, bool))


def test_relevance_ranks_what_tells_the_class_first_and_survives_a_constant():
    features, labels, _ = cases()
    found = relevance(np.hstack([features, np.ones((len(labels), 1))]), labels)
    assert found[:3].min() > found[3:].max() and found[-1] == 0.1 and found.max() <= 0.9


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_machine_is_a_layer(classes):
    features, labels, _ = cases(classes, useful=2)
    choice = np.zeros(features.shape[1], bool)
    choice[[0, 1, 5]] = True
    machine = linear_machine().fit(features[:, choice], labels)
    layer = as_layer(machine, choice)
    with torch.inference_mode():
        answers = layer(torch.from_numpy(features).float()).numpy()
    margins = machine.decision_function(features[:, choice])
    assert answers.shape == (len(labels), classes)
    assert np.allclose(answers if classes > 2 else answers[:, 1], margins, atol=1e-4)
    assert np.array_equal(answers.argmax(1), machine.predict(features[:, choice]))
    assert torch.equal(layer.weight[:, ~choice], torch.zeros(classes, int((~choice).sum())))


@pytest.mark.parametrize("machine", [KNeighborsClassifier(3), make_pipeline(StandardScaler(), SVC(kernel="rbf"))])
def test_what_is_not_linear_says_that_it_is_no_layer(machine):
    features, labels, _ = cases()
    machine.fit(features, labels)
    with pytest.raises(ModelError, match="can't be a layer of a network"):
        as_layer(machine, np.ones(features.shape[1], bool))
