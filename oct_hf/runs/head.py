"""A run that trains no network: its features are read once, some are chosen, and a machine on them is the last layer.

The colony sees the training side alone, and scores a choice on patients left out of it in turn; the validation side
says afterwards what the choice was worth. Its choice is written down, so that a run that was stopped goes on after it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from oct_hf.data.pixels import Pixels
from oct_hf.errors import ModelError, RecipeError
from oct_hf.images import Preprocessing
from oct_hf.inference.on_torch import best_device
from oct_hf.model.combined import pass_on
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.runs.labelled import LabelledSet
from oct_hf.training.batches import normalise
from oct_hf.training.distillation import entering_classifier
from oct_hf.training.feature_selection import (
    as_layer,
    as_neighbours,
    choose_features,
    features_used,
    linear_machine,
    nearest_machine,
    relevance,
    unseen_patients_score,
)
from oct_hf.training.recipe import HeadRecipe, Recipe
from oct_hf.whole import write_json

CHOICE = "head.json"


def fit_head(
    recipe: Recipe,
    folder: Path,
    data: LabelledSet,
    model: OCTForImageClassification,
    preprocessing: Preprocessing,
    facts: dict,
) -> OCTForImageClassification:
    """The network with the recipe's machine as its last layer.

    Args:
        recipe: with a section `head`.
        folder: the run's; a choice of features that lies there isn't made again.
        data: B-scans on their sides.
        model: on its base weights, which stay as they are.
        preprocessing: of its input.
        facts: of the run; `head`, `training` and `seconds` are filled in.

    Raises:
        ModelError: the network doesn't end in one linear layer.
        RecipeError: a class has too few patients to leave any out.
    """
    began, wanted, seed = time.monotonic(), recipe.head, recipe.train.seed
    assert wanted is not None
    check_head(model)
    rows = {side: np.flatnonzero(data.sides == side) for side in ("train", "validation")}
    print(f"reading features of {len(rows['train'])} B-scans", file=sys.stderr)
    read, labels = {}, {}
    for side, chosen in rows.items():
        pixels = Pixels.from_dataset(data.dataset.select(chosen), preprocessing)
        read[side], labels[side] = features_of(model, pixels, preprocessing, recipe.train.batch_size), pixels.labels
    facts["seconds"]["features"] = round(time.monotonic() - began, 1)
    patients = np.array(data.patients, dtype=object)[rows["train"]]
    choice, found = _choice(wanted, folder, read["train"], labels["train"], patients, seed)
    machine = make_machine(wanted, len(labels["train"]), seed).fit(read["train"][:, choice], labels["train"])
    whole = make_machine(wanted, len(labels["train"]), seed).fit(read["train"], labels["train"])
    answers = whole.predict(read["validation"])
    model = put_on(model, machine, choice, read["train"], labels["train"], wanted)
    facts["model"]["parameters"] = sum(p.numel() for p in model.parameters())  # the neighbours' network has fewer
    used, features = features_used(model.timm_model)
    facts["head"] = {
        "machine": wanted.machine,
        "select": wanted.select,
        "features": features,
        "chosen": used,
        **found,
        "validation_with_all": float(balanced_accuracy_score(labels["validation"], answers)),
    }
    facts["training"] = untrained(len(rows["train"]), round(time.monotonic() - began, 1))
    return model


def untrained(images: int, seconds: float) -> dict:
    """The facts `training` of a run without gradients."""
    none = {"epochs": 0, "best_epoch": None, "steps": 0, "resumed": False, "bf16": False, "processes": 1, "history": []}
    return none | {"images": images, "seconds": seconds}


def check_head(model: OCTForImageClassification) -> None:
    """Raises ModelError where the network doesn't end in one linear layer with a bias, which the machine replaces."""
    last = model.timm_model.get_classifier()
    if not isinstance(last, nn.Linear) or last.bias is None:
        kind = type(last).__name__
        raise ModelError(f"head: takes the place of one linear layer, and {model.config.architecture} ends in a {kind}")


def features_of(model, pixels: Pixels, preprocessing: Preprocessing, batch_size: int) -> np.ndarray:
    """What a network's classifier is given, float32 `(n, features)`, of each picture as it is."""
    network, device, parts = model.timm_model, best_device(), []
    network.to(device).eval()
    with torch.inference_mode(), entering_classifier(network) as seen:
        for start in range(0, len(pixels), batch_size):
            batch = np.stack([pixels.images[row] for row in range(start, min(start + batch_size, len(pixels)))])
            network(normalise(torch.from_numpy(batch).to(device), preprocessing))
            parts.append(seen.pop().float().cpu().numpy())
    network.to("cpu")
    return np.concatenate(parts)


def make_machine(wanted: HeadRecipe, cases: int, seed: int):
    """The recipe's machine, not fitted; of few cases at most half are neighbours."""
    if wanted.machine == "knn":
        return nearest_machine(min(wanted.neighbours, max(1, cases // 2)), wanted.temperature)
    return linear_machine(seed, wanted.c)


def _choice(
    wanted: HeadRecipe, folder: Path, features: np.ndarray, labels: np.ndarray, patients: np.ndarray, seed: int
) -> tuple[np.ndarray, dict]:
    """Which features are taken, bool `(features,)`, and how that was found."""
    everything = np.ones(features.shape[1], bool)
    if wanted.select == "all":
        return everything, {"left_out": None}
    file = folder / CHOICE
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        choice = np.zeros(features.shape[1], bool)
        choice[known["choice"]] = True
        return choice, known["found"]
    began = time.monotonic()
    some = _some_patients(patients, wanted.images, seed)
    features, labels, patients = features[some], labels[some], patients[some]
    fewest = min(len(set(patients[labels == label])) for label in set(labels.tolist()))
    if fewest < wanted.folds:
        raise RecipeError(
            f"head.folds: {wanted.folds}, and a class has {fewest} patients among the {len(labels)} B-scans that the "
            f"colony looks at; head.folds=2 takes 2, and more B-scans have more (head.images={wanted.images})"
        )
    machine = make_machine(wanted, len(labels) // 2, seed)
    print(f"an ant colony chooses among {features.shape[1]} features on {len(labels)} B-scans", file=sys.stderr)
    score, plain = (
        unseen_patients_score(features, labels, patients, machine, folds=wanted.folds, price=price, seed=seed)
        for price in (wanted.price, 0.0)
    )
    settings = {"ants": wanted.ants, "rounds": wanted.rounds, "evaporation": wanted.evaporation, "seed": seed}
    choice, _ = choose_features(score, relevance(features, labels), **settings)
    found = {
        "left_out": {
            "chosen": plain(choice),
            "all": plain(everything),
            "images": len(labels),
            "patients": len(set(patients)),
            "folds": wanted.folds,
            "seconds": round(time.monotonic() - began, 1),
        }
    }
    write_json(file, {"choice": np.flatnonzero(choice).tolist(), "found": found})
    return choice, found


def _some_patients(patients: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Rows of whole patients, drawn until they have so many B-scans."""
    names, number, counts = np.unique(patients.astype(str), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    taken = order[: 1 + int(np.searchsorted(counts[order].cumsum(), images))]
    return np.flatnonzero(np.isin(number, taken))


def put_on(
    model: OCTForImageClassification,
    machine,
    choice: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    wanted: HeadRecipe,
) -> OCTForImageClassification:
    """The network that ends in the fitted machine; for the nearest neighbours a new one that holds their cases."""
    if wanted.machine == "svm":
        model.timm_model.get_classifier().load_state_dict(as_layer(machine, choice).state_dict())
        return model
    layers, arguments = as_neighbours(machine, choice, features[:, choice], labels, wanted.temperature)
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    made_of: dict[str, Any] = {**(model.config.model_args or {}), "neighbours": arguments}
    ended = OCTForImageClassification.from_timm(
        "joined",
        names,
        image_size=tuple(model.config.pretrained_cfg["input_size"][1:]),
        descriptions=model.config.label_descriptions,
        **made_of,
    )
    network = ended.timm_model
    for part in ("backbones", "inputs"):
        getattr(network, part).load_state_dict(getattr(model.timm_model, part).state_dict())
    network.neighbours.load_state_dict(layers.state_dict())
    pass_on(network.fc)
    return ended
