"""What a published repository says of itself, beside what its files give when everything is made again.

Apart from `verify.py`, which compares the two: here nothing is judged.
"""

import copy
import math
import re
from collections.abc import Callable
from functools import cached_property

import numpy as np

from oct_hf.data.corrections import NAME as CORRECTIONS
from oct_hf.data.corrections import describe_corrections
from oct_hf.data.leakage import LINKS_FILE, Links, certificate, read_links
from oct_hf.data.splits import count_sides, fingerprint, read_split_table
from oct_hf.errors import ModelError
from oct_hf.evaluation.assessment import assess, assess_external, refit
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.signs import refit_signs, sign_facts
from oct_hf.hub.allowed import CODE_BRANCH
from oct_hf.hub.download import Downloaded
from oct_hf.hub.fast import fast_facts
from oct_hf.hub.kinds import SIGNS, kind_of
from oct_hf.inference.predictor import Predictor
from oct_hf.training.callbacks import selection
from oct_hf.training.feature_selection import features_used
from oct_hf.training.recipe_file import load_recipe
from oct_hf.untrusted import read_json

REFIT = 1e-3  # relative, of a temperature fitted again

# Where each part of run.json comes from.
SOURCES = {
    **dict.fromkeys(("results", "intervals", "per_eye", "per_patient", "calibration"), "predictions.parquet gives"),
    **dict.fromkeys(("operating_points", "abstention", "gate", "subgroups", "signs"), "predictions.parquet gives"),
    "external": "its predictions give",
    "fast": "the files and their predictions give",
    "labels": "predictions.parquet has",
    "split": "split.csv gives",
    "data": "split.csv and recipe.yaml give",
    "model": "the weights, config.json and recipe.yaml give",
    "head": "the weights and recipe.yaml give",
    "training": "its history and split.csv give",
    "recipe": "recipe.yaml says",
    "name": "recipe.yaml says",
}


class Claims:
    """What a repository says, and what its files give when it is made again; each is made once.

    Attributes:
        model: where it lies.
        said: the content of run.json.
    """

    def __init__(self, model: Downloaded, said: dict):
        self.model, self.folder, self.said = model, model.folder, said

    def measured(self, settings: dict) -> dict:
        """The facts of run.json that follow from the predictions, by the recipe's `evaluation`."""
        raise NotImplementedError

    def classes(self) -> list[str]:
        """The labels of split.csv, in the order of the card."""
        raise NotImplementedError

    @cached_property
    def answers(self) -> Predictions:
        return Predictions.read(self.folder / "predictions.parquet")

    @cached_property
    def split(self) -> dict[str, list[str]]:
        return read_split_table(self.folder / "split.csv")

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor(self.folder, device="cpu")

    @cached_property
    def found(self) -> dict:
        """run.json with everything that the repository's other files say put in its place."""
        run = copy.deepcopy(self.said)
        hashes, patients, labels, sides = (self.split[c] for c in ("content_hash", "patient_id", "label", "side"))
        recipe = load_recipe(self.folder / "recipe.yaml").to_dict()
        network, corrected = self.predictor.model, self.folder / CORRECTIONS
        run |= self.measured(recipe["evaluation"])
        run["labels"] = list(self.answers.names)
        run["split"] |= {
            "sides": count_sides(labels, patients, sides, self.classes()),
            "certificate": self._certificate(hashes, patients, sides),
        }
        run["data"] |= {
            "images": len(hashes),
            "groups": len(set(patients)),
            "fingerprint": fingerprint(hashes, patients, labels),
            "corrections": describe_corrections(corrected if corrected.exists() else None, hashes),
            **{key: recipe["data"][key] for key in ("name", "homepage", "license", "citation", "public", "grouped_by")},
            "title": recipe["data"]["title"] or recipe["data"]["name"],
        }
        run["model"].pop("code", None)
        run["model"] |= {
            "base": recipe["model"]["base"],
            "weights": recipe["model"]["weights"],
            "architecture": network.config.architecture,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "image_size": network.config.pretrained_cfg["input_size"][-1],
            **({"code": CODE_BRANCH} if getattr(network.config, "needs_code", False) else {}),
        }
        history = run["training"]["history"]
        run["training"] |= {
            "epochs": len(history),
            "best_epoch": 1 + max(range(len(history)), key=lambda i: selection(history[i])) if history else None,
            "images": _trained_on(labels, sides, recipe["split"]["labelled_per_class"]),
        }
        if "head" in run:
            run["head"] |= dict(zip(("chosen", "features"), features_used(network.timm_model), strict=True))
            run["head"] |= {key: recipe["head"][key] for key in ("machine", "select")}
        if "fast" in run:
            run["fast"] = fast_facts(self.folder, self.answers)
        run["recipe"] = {key: recipe[key] for key in run["recipe"] if key in recipe}
        run["name"] = recipe["name"]
        return run

    def calibrated(self, notes: list[dict], refit: Callable[[list[float]], list[dict]]) -> list[dict] | None:
        """What fitting temperatures gives where the published ones are undone, if the weights hold them.

        Args:
            notes: what run.json says of the calibration of each; of all outputs together, or one an output.
            refit: the same, where these temperatures are undone and fitted again.

        Returns:
            where none is published, why this network takes none; None where nobody asked for any.
        """
        said = [note["temperature"] for note in notes]
        if None in said:
            return [{"temperature": None, "why": self._not_foldable()}] * len(said) if "why" in notes[0] else None
        folded = np.broadcast_to(getattr(self.predictor.model.config, "calibration_temperature", 1.0), len(said))
        return [
            # Published probabilities are rounded to 32 bits, so the fit ends beside the published number.
            found | {"temperature": held} if math.isclose(found["temperature"], told, rel_tol=REFIT) else found
            for told, held, found in zip(said, folded.tolist(), refit(said), strict=True)
        ]

    def _not_foldable(self) -> str | None:
        """Why no temperature can lie in these weights."""
        try:
            copy.deepcopy(self.predictor.model).fold_temperature(2.0)
        except ValueError as error:
            return str(error)
        return None

    @cached_property
    def links(self) -> Links | None:
        """The near-duplicates that travel with the repository; None where its certificate says that none do."""
        searched = self.said["split"]["certificate"].get("near_duplicates")
        return read_links(self.folder / LINKS_FILE, searched["neighbour"] is None) if searched else None

    def _certificate(self, hashes: list[str], patients: list[str], sides: list[str]) -> dict:
        said = self.said["split"]["certificate"]
        made = certificate(hashes, patients, sides, self.links)
        if made["near_duplicates"]:  # how they were searched for is told by no file
            made["near_duplicates"] |= {key: said["near_duplicates"][key] for key in ("method", "copy", "neighbour")}
        return {key: made[key] for key in said if key in made}  # oct-hf 0.1 counted less


class LabelClaims(Claims):
    """Of a model that answers one label a B-scan."""

    def measured(self, settings: dict) -> dict:
        notes = None
        if settings["calibrate"]:
            notes = self.calibrated([self.said["calibration"]], lambda said: [refit(self.answers, *said)])
        found = assess(self.answers, settings, notes[0] if notes else None)
        if "external" in self.said:
            found["external"] = [self._external(said, settings) for said in self.said["external"]]
        return found

    def classes(self) -> list[str]:
        return list(self.answers.names)

    def _external(self, said: dict, settings: dict) -> dict:
        """What the predictions on another set give."""
        file = str(said["file"])
        if not re.fullmatch(r"external/[\w.-]+\.parquet", file):
            raise ModelError(f"run.json: external predictions lie in external/NAME.parquet, not in {file}")
        return said | assess_external(self.answers, Predictions.read(self.folder / file), settings)


class SignClaims(Claims):
    """Of a model that answers signs, several a B-scan."""

    def measured(self, settings: dict) -> dict:
        names, notes = self.answers.names, None
        if settings["calibrate"]:
            said = [self.said["signs"]["signs"][name]["calibration"] for name in names]
            notes = self.calibrated(said, lambda told: list(refit_signs(self.answers, told).values()))
        return sign_facts(self.answers, settings, dict(zip(names, notes, strict=True)) if notes else None)

    def classes(self) -> list[str]:
        said = self.said["split"]["sides"]["test"]["classes"]
        there = set(self.split["label"])
        return list(said) if said.keys() == there else sorted(there)


def read_claims(model: Downloaded) -> Claims:
    """What a repository says of itself.

    Raises:
        ModelError: it isn't a repository of this package.
    """
    try:
        said = read_json(model.folder / "run.json")
        known = "files" in said and ("results" in said) != ("signs" in said)  # of one kind, not of both
    except (OSError, ValueError, TypeError):
        known = False
    if not known:
        raise ModelError(f"{model.name}: no run.json of oct-hf in it, so there is nothing to verify")
    return (SignClaims if kind_of(said) is SIGNS else LabelClaims)(model, said)


def _trained_on(labels: list[str], sides: list[str], per_class: int | None) -> int:
    """Images whose label was trained on."""
    training = [label for label, side in zip(labels, sides, strict=True) if side == "train"]
    return len(training) if per_class is None else per_class * len(set(training))


def equal(one, other) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return type(one) is type(other) and one == other


def flat(content, above: str = "") -> dict:
    """Every value of nested dicts and lists by its dotted path."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {k: v for key, value in items for k, v in flat(value, f"{above}.{key}" if above else str(key)).items()}
    return {above: content}
