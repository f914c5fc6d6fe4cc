"""Features chosen by an ant colony, and the machine on the chosen ones as layers of a network.

After "Optical coherence tomography image classification using hybrid deep learning and ant colony optimization" (doi
10.3390/s23156706): deep features of several networks joined, a part of them chosen, an SVM or k-NN on that part. Here a
choice is scored on patients that the machine didn't see; the colony is that of Blum and Dorigo, "The hyper-cube
framework for ant colony optimization" (2004), whose trail is a probability, so that no scale of scores has to be set.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.feature_selection import f_classif
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from oct_hf.errors import ModelError
from oct_hf.model.combined import NearestNeighbours

TRAIL_LIMITS = (0.02, 0.98)  # of a feature's probability: no choice is ever closed
CONVERGED = 0.1  # the colony begins anew once every feature's trail is this near to 0 or 1


def choose_features(
    score: Callable[[np.ndarray], float],
    start: np.ndarray,
    *,
    ants: int = 20,
    rounds: int = 60,
    evaporation: float = 0.15,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """The best choice of features that a colony finds.

    Each ant takes feature i with the probability of its trail. After each round the trail moves by `evaporation`
    towards the best choice of the round and, with as much weight, towards the best one since the start. When all ants
    go one way, the colony starts anew; the best choice of all is kept.

    Args:
        score: of a choice, bool `(features,)`; higher is better. It is asked once for each.
        start: float `(features,)` from 0 to 1, the trail before the first ant; `relevance` gives one.
        ants: a round.
        rounds: of the colony.
        evaporation: from 0 to 1.
        seed: of the ants.

    Returns:
        the choice, bool `(features,)` with at least one True, and its score.
    """
    rng, start = np.random.default_rng(seed), np.clip(np.asarray(start, np.float64), *TRAIL_LIMITS)
    known: dict[bytes, float] = {}
    nothing = (-np.inf, np.zeros(len(start), bool))
    trail, here, best = start, nothing, nothing  # a score and its choice, since the start and of all

    def scored(choice: np.ndarray) -> float:
        key = np.packbits(choice).tobytes()
        if key not in known:
            known[key] = float(score(choice))
        return known[key]

    for _ in range(rounds):
        choices = rng.random((ants, len(trail))) < trail
        choices[~choices.any(1), np.argmax(trail)] = True
        scores = [scored(choice) for choice in choices]
        leader = int(np.argmax(scores))
        here = max(here, (scores[leader], choices[leader]), key=lambda one: one[0])
        best = max(best, here, key=lambda one: one[0])
        target = (choices[leader].astype(float) + here[1]) / 2
        trail = np.clip(trail + evaporation * (target - trail), *TRAIL_LIMITS)
        if np.minimum(trail, 1 - trail).max() < CONVERGED:
            trail, here = start, nothing
    return best[1], best[0]


def relevance(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A trail to start from: 0.1 to 0.9 by the rank of each feature's F statistic; 0.1 where it is constant."""
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names each constant feature, of which deep networks have many
        statistic = np.nan_to_num(f_classif(features, labels)[0], nan=0.0, posinf=np.finfo(float).max)
    order = np.argsort(np.argsort(statistic, kind="stable"), kind="stable")
    return np.where(statistic > 0, 0.1 + 0.8 * (order + 1) / len(order), 0.1)


def unseen_patients_score(
    features: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    estimator=None,
    *,
    folds: int = 3,
    price: float = 0.01,
    seed: int = 0,
) -> Callable[[np.ndarray], float]:
    """A score for `choose_features`: balanced accuracy on patients left out, less `price` for the share of features.

    Args:
        features: float `(n, features)`, of the training side alone; so are the other two.
        labels: int `(n,)`.
        patients: `(n,)`; no patient is in two folds.
        estimator: of scikit-learn; a linear SVM on standardised features where not given.
    """
    estimator = estimator or linear_machine(seed)
    parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, labels, patients))

    def score(choice: np.ndarray) -> float:
        answers = cross_val_predict(estimator, features[:, choice], labels, cv=parts)
        return balanced_accuracy_score(labels, answers) - price * choice.mean()

    return score


def linear_machine(seed: int = 0, c: float = 1.0) -> Pipeline:
    """A linear SVM, one class against the rest, on standardised features; classes weigh the same."""
    return make_pipeline(StandardScaler(), LinearSVC(C=c, class_weight="balanced", random_state=seed, max_iter=10_000))


def nearest_machine(neighbours: int = 5, temperature: float = 0.07) -> Pipeline:
    """The nearest neighbours by cosine similarity of standardised features; each votes with exp(similarity / T)."""
    votes: Any = partial(_votes, temperature=temperature)
    return make_pipeline(StandardScaler(), KNeighborsClassifier(neighbours, weights=votes, metric="cosine"))


def _votes(distances: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp(-distances / temperature)


def as_layer(machine, choice: np.ndarray) -> torch.nn.Linear:
    """A fitted machine as a layer over all features, whose weights are zero where a feature wasn't chosen.

    It ends a network of the features as any classifier does, so that export, calibration and every loader take it. Its
    outputs are the machine's margins; of two classes the second has them, and the first the same turned round.

    Args:
        machine: a pipeline as `linear_machine` makes it, fitted on the chosen features.
        choice: bool `(features,)`.

    Raises:
        ModelError: it isn't linear. The nearest neighbours are layers of their own, see `as_neighbours`.
    """
    last = machine.steps[-1][1] if isinstance(machine, Pipeline) else machine
    scaler = machine.steps[0][1] if isinstance(machine, Pipeline) and len(machine.steps) == 2 else None
    if not (hasattr(last, "coef_") and isinstance(scaler, StandardScaler)):
        raise ModelError(
            f"{type(last).__name__} can't be a layer of a network: only a linear machine on standardised features can"
        )
    weight = last.coef_ / scaler.scale_
    bias = last.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    layer = torch.nn.Linear(len(choice), len(weight))
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, torch.from_numpy(np.flatnonzero(choice))] = torch.from_numpy(weight).float()
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def as_neighbours(
    machine: Pipeline, choice: np.ndarray, features: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[NearestNeighbours, dict]:
    """Fitted nearest neighbours as layers that hold their cases, and the arguments that such layers are made with.

    Args:
        machine: as `nearest_machine` makes it, fitted on the chosen features.
        choice: bool `(all,)`.
        features: float `(n, features)`, the chosen ones that it was fitted on.
        labels: int `(n,)`, from 0 on.
        temperature: of the votes.
    """
    scaler, nearest = machine.steps[0][1], machine.steps[1][1]
    classes = len(nearest.classes_)
    cases = torch.from_numpy(scaler.transform(features)).float()
    arguments = {
        "cases": len(features),
        "features": int(choice.sum()),
        "classes": classes,
        "k": nearest.n_neighbors,
        "temperature": temperature,
    }
    layers = NearestNeighbours(**arguments)
    layers.chosen.copy_(torch.from_numpy(np.flatnonzero(choice)))
    layers.mean.copy_(torch.from_numpy(scaler.mean_))
    layers.scale.copy_(torch.from_numpy(scaler.scale_))
    layers.cases.copy_(torch.nn.functional.normalize(cases))
    layers.labels.copy_(torch.eye(classes)[torch.from_numpy(labels)])
    return layers, arguments


def features_used(network: Any) -> tuple[int, int]:
    """How many features a network's answer hangs on, and of how many: read off its weights."""
    neighbours = getattr(network, "neighbours", None)
    if neighbours is not None:
        return len(neighbours.chosen), network.num_features
    weight = network.get_classifier().weight
    return int((weight != 0).any(0).sum()), weight.shape[1]
