"""Heat maps of a run: how far they can be believed, and what the network went by where it was most wrong."""

from dataclasses import dataclass

import numpy as np
import torch

from oct_hf.data.encoded import Encoded
from oct_hf.evaluation.explain import DEFAULT, QUICK, can_explain, explain, stages
from oct_hf.evaluation.faithfulness import marked_phantoms, measure_faithfulness
from oct_hf.evaluation.predictions import Predictions
from oct_hf.images import read_image, to_gray
from oct_hf.inference.predictor import Predictor
from oct_hf.runs.labelled import LabelledSet

SEED = 0
WORST = 12  # errors that a report shows


@dataclass(frozen=True)
class WrongAnswer:
    """A test B-scan that the model is sure of and wrong about.

    Attributes:
        image: uint8 `(height, width)`.
        heat: float32 `(height, width)` of the model's input, 0 to 1; None where nothing can draw it.
        truth, answer: labels.
        probability: of the answer.
        group: whose it is, as it is published.
    """

    image: np.ndarray
    heat: np.ndarray | None
    truth: str
    answer: str
    probability: float
    group: str


def measure_explanations(predictor: Predictor, data: LabelledSet, count: int) -> dict | None:
    """`measure_faithfulness` on test B-scans, each of another patient as far as there are so many; and on phantoms.

    Args:
        predictor: the finished model.
        data: the run's B-scans.
        count: of test B-scans, and of phantoms.

    Returns:
        None where `count` is 0 or the libraries aren't installed.
    """
    if not count or not can_explain():
        return None
    chosen = _one_of_each_patient(data, count)
    encoded = Encoded(data.dataset)
    images = [to_gray(read_image(encoded[row])) for row in chosen]
    groups = [data.patients[row] for row in chosen]
    marked = marked_phantoms(predictor.labels, count, SEED)
    size = predictor.preprocessing.height, predictor.preprocessing.width
    image = torch.zeros(1, 3, *size, device=predictor.model.device)
    methods = QUICK if stages(predictor.model.timm_model, image) else (DEFAULT,)
    return measure_faithfulness(predictor, predictor.preprocessing, images, groups, marked, methods, seed=SEED)


def worst_errors(predictor: Predictor, data: LabelledSet, predictions: Predictions, facts: dict) -> list[WrongAnswer]:
    """The test B-scans whose wrong label the model is surest of, the surest first."""
    test = predictions.of("test")
    answers = test.probabilities.argmax(1)
    wrong = np.flatnonzero(answers != test.indices())
    wrong = wrong[np.argsort(-test.probabilities[wrong, answers[wrong]], kind="stable")][:WORST]
    if not len(wrong):
        return []
    place = {value: row for row, value in enumerate(data.hashes)}
    encoded = Encoded(data.dataset)
    images = [to_gray(read_image(encoded[place[str(test.hashes[row])]])) for row in wrong]
    heats = [None] * len(wrong)
    if can_explain():
        method = (facts["explanations"] or {}).get("method") or DEFAULT
        pixels = np.stack([predictor.preprocessing(image) for image in images])
        heats = explain(predictor, pixels, answers[wrong], method)
    return [
        WrongAnswer(
            image,
            heat,
            str(test.labels[row]),
            test.names[answers[row]],
            float(test.probabilities[row, answers[row]]),
            str(test.groups[row]),
        )
        for image, heat, row in zip(images, heats, wrong, strict=True)
    ]


def _one_of_each_patient(data: LabelledSet, count: int) -> list[int]:
    """Rows of the test side: each patient's first before anyone's second, in an order that the hashes give."""
    rows = sorted(np.flatnonzero(data.sides == "test").tolist(), key=lambda row: data.hashes[row])
    seen: dict[str, int] = {}
    ranked = []
    for row in rows:
        seen[data.patients[row]] = seen.get(data.patients[row], 0) + 1
        ranked.append((seen[data.patients[row]], data.hashes[row], row))
    return [row for *_, row in sorted(ranked)[:count]]
