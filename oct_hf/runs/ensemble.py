"""Trained models as one network that averages their probabilities, and what each of them has learned from.

An average is only as honest as its members: none may have learned from what the ensemble is calibrated or tested on.
What they did learn from stands in their split.csv; for images that the ensemble's own data don't have it is kept in
members.csv, so that nobody takes it for a teacher of those either.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oct_hf.data.splits import HELD_OUT, learned_from
from oct_hf.errors import DataError, ModelError, RunError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.card import model_licence, most_demanding
from oct_hf.hub.download import download
from oct_hf.labels import describe
from oct_hf.model.combined import pass_on
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.runs.labelled import LabelledSet
from oct_hf.training.callbacks import SNAPSHOTS
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import change_recipe, load_recipe, make_recipe, value_of
from oct_hf.whole import file_sha256


@dataclass(frozen=True)
class Member:
    """A trained model that an ensemble is made of.

    Attributes:
        name: as the recipe has it.
        folder: with its weights.
        about: with run.json, split.csv and predictions.parquet; for a snapshot those of its run's model.
        run: the content of run.json.
        learned: of each image that it learned from, by content hash, patient and label.
    """

    name: str
    folder: Path
    about: Path
    run: dict
    learned: dict[str, tuple[str, str]]

    @classmethod
    def at(cls, name: str) -> "Member":
        """What lies in a run, a model folder, one of a run's snapshots, or on the Hub.

        Raises:
            ModelError: no model, or none that says what it learned from.
        """
        folder = download(name).folder
        about = folder.resolve()
        if about.parent.name == SNAPSHOTS and not (about / "run.json").exists():  # the Hub's cache has that name too
            about = about.parent.parent / "model"
        try:
            run = json.loads((about / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ModelError(f"{name}: no finished run (no run.json in its model), so it can't be a member") from None
        return cls(name, folder, about, run, learned_from(about))


def ensemble_recipe(members: list[str], name: str, overrides: list[str]) -> Recipe:
    """The recipe that averages runs on the data and split of the first.

    Args:
        members: as `EnsembleRecipe` has them.
        name: of the new run.
        overrides: `key=value` of the recipe.

    Raises:
        RunError: the first was trained elsewhere, so that nothing says where its data lie.
        OCTError: as `Member.at` and `load_recipe`.
    """
    first = Member.at(members[0])
    home = first.about.parent / "run.json"
    known = json.loads(home.read_text(encoding="utf-8")) if home.is_file() else {}
    if "recipe_given" in known:
        base = make_recipe(known["recipe_given"])
    else:
        base = load_recipe(first.about / "recipe.yaml")
        if base.data.name != "phantom" and not any(text.startswith("data.path=") for text in overrides):
            raise RunError(f"{members[0]} was trained elsewhere, so give the images with --data PATH")
    # What the first was trained with says nothing of the others.
    parts = {"pretrain": None, "teacher": None, "head": None, "push_to_hub": False, "search": {}, "train": {}}
    about = f"The mean of the probabilities of {len(members)} networks."
    parts |= {"name": name, "description": about, "ensemble": {"members": members}}
    values = {key: value_of(value) for key, _, value in (text.partition("=") for text in overrides)}
    return change_recipe(make_recipe(base.to_dict() | parts), values)


def build_ensemble(recipe: Recipe, data: LabelledSet) -> tuple[OCTForImageClassification, dict, dict | None]:
    """The network of a recipe's members.

    Returns:
        the model; its facts; and, as `write_split` takes them, the images that members learned from and that the data
        don't have, if any.

    Raises:
        ModelError: a member that can't be loaded, knows other labels, or doesn't say what it learned from.
        DataError: a member learned from what is held out here.
    """
    assert recipe.ensemble is not None
    members = [Member.at(name) for name in recipe.ensemble.members]
    for member in members:
        check_held_out(member, data, recipe.data.title or recipe.data.name)
    models = [_loaded(member, data.names) for member in members]
    cfgs = [model.config.pretrained_cfg for model in models]
    sizes = [tuple(cfg["input_size"][1:]) for cfg in cfgs]
    parts = [
        {
            "architecture": model.config.architecture,
            "model_args": getattr(model.config, "model_args", None) or {},
            "num_classes": len(data.names),
            "size": list(size),
            "mean": list(cfg["mean"]),
            "std": list(cfg["std"]),
        }
        for model, cfg, size in zip(models, cfgs, sizes, strict=True)
    ]
    texts = {name: describe(name) for name in data.names}
    whole = OCTForImageClassification.from_timm(
        "ensemble", data.names, image_size=max(sizes), descriptions=texts, members=parts
    )
    for own, model in zip(whole.timm_model.members, models, strict=True):
        own.load_state_dict(model.timm_model.state_dict())
    pass_on(whole.timm_model.fc)
    whole.config.pretrained_cfg["interpolation"] = cfgs[0]["interpolation"]
    facts = {"members": [_facts(member, model, data) for member, model in zip(members, models, strict=True)]}
    whole.config.pretrained_cfg["license"] = most_demanding([one["licence"] for one in facts["members"]])
    return whole, facts, _elsewhere(members, data)


def check_held_out(member: Member, data: LabelledSet, title: str) -> None:
    """Raises DataError where a member learned from a B-scan, or a patient of the same set, that is held out here."""
    held = np.flatnonzero(np.isin(data.sides, HELD_OUT))
    scans = sum(data.hashes[row] in member.learned for row in held)
    patients = 0
    if member.run["data"]["title"] == title:  # elsewhere the same id may be another patient
        theirs = {patient for patient, _ in member.learned.values()}
        patients = len({data.patients[row] for row in held} & theirs)
    if scans or patients:
        raise DataError(
            f"ensemble.members: {member.name} learned from {scans} of the B-scans (patients: {patients}) that this "
            "split holds out, as folds do of each other; take runs on one split (other seeds or recipes; "
            f"split.by=file split.path={member.about / 'split.csv'})"
        )


def _loaded(member: Member, names: list[str]) -> OCTForImageClassification:
    try:
        model = OCTForImageClassification.from_pretrained(str(member.folder))
    except (OSError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise ModelError(f"ensemble.members: {member.name} can't be loaded ({why})") from None
    known = [model.config.id2label[number] for number in range(model.config.num_labels)]
    if known != names:
        raise ModelError(
            f"ensemble.members: {member.name} knows {', '.join(known)}, and the data has {', '.join(names)}"
        )
    return model


def _facts(member: Member, model: OCTForImageClassification, data: LabelledSet) -> dict:
    """What is told of a member; its own balanced accuracy where it was tested on the same B-scans."""
    number = "" if member.about == member.folder.resolve() else f", snapshot {member.folder.name}"
    alone = None
    if not number:
        tested = Predictions.read(member.about / "predictions.parquet").of("test")
        same = set(tested.hashes) == {data.hashes[row] for row in np.flatnonzero(data.sides == "test")}
        alone = member.run["results"]["test"]["balanced_accuracy"] if same else None
    return {
        "name": member.run["name"] + number,
        "architecture": model.config.architecture,
        "image_size": model.config.pretrained_cfg["input_size"][-1],
        "images": len(member.learned),
        "seed": member.run["recipe"]["train"]["seed"],
        "weights_sha256": file_sha256(member.folder / "model.safetensors"),
        "licence": model_licence(member.run),
        "balanced_accuracy": alone,
    }


def _elsewhere(members: list[Member], data: LabelledSet) -> dict | None:
    known, others = set(data.hashes), {}
    for member in members:
        others |= {digest: about for digest, about in member.learned.items() if digest not in known}
    if not others:
        return None
    patients, labels = zip(*others.values(), strict=True)
    return {"hashes": list(others), "patients": patients, "labels": labels, "sides": ["train"] * len(others)}
