"""Predictions on simulated patients, for the tests of intervals and comparisons."""

from dataclasses import replace

import numpy as np

from oct_hf.evaluation.predictions import Predictions


def simulated(
    patients: int, images: int, classes: int = 3, seed: int = 0, apart: float = 2.0, digits: int | None = None
) -> Predictions:
    """Images of a patient are alike, by half the spread of the scores; `digits` rounds those, for ties."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(patients), images)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, max(patients - classes, 0))])[group]
    scores = rng.normal(size=(patients, classes))[group] + rng.normal(size=(len(group), classes))
    scores[np.arange(len(group)), labels] += apart
    if digits is not None:
        scores = scores.round(digits)
    powers = np.exp(scores)
    return predictions(powers / powers.sum(1, keepdims=True), labels, group)


def predictions(probabilities, labels, group, names: str = "ABCDEFGH") -> Predictions:
    """From arrays; patients, images and classes are named by number or letter."""
    text = lambda values: np.array(list(values), dtype=object)  # noqa: E731
    return Predictions(
        tuple(names[: np.shape(probabilities)[1]]),
        text(f"h{i:06}" for i in range(len(labels))),
        text(f"P{g:05}" for g in group),
        text(names[i] for i in labels),
        text("test" for _ in labels),
        np.asarray(probabilities, np.float32),
    )


def blurred(given, noise: float, seed: int):
    """The same model with noise in its scores."""
    scores = np.log(given.probabilities.astype(float))
    scores += noise * np.random.default_rng([seed, 5]).normal(size=scores.shape)
    powers = np.exp(scores)
    return replace(given, probabilities=(powers / powers.sum(1, keepdims=True)).astype(np.float32))
