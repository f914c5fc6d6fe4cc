"""What a run records of itself for run.json and the card: counts, fingerprint, versions, machine; no paths."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import timm
import torch

from oct_hf import __version__
from oct_hf.data.corrections import NAME, describe_corrections
from oct_hf.data.leakage import certificate
from oct_hf.data.splits import count_sides, fingerprint
from oct_hf.hub.allowed import CODE_BRANCH
from oct_hf.hub.card import most_demanding
from oct_hf.model.pip_bases import backbones_of, pip_base
from oct_hf.runs.autoencoder import autoencoder_facts
from oct_hf.runs.labelled import LabelledSet, is_public
from oct_hf.training.recipe import HubRecipe, Recipe
from oct_hf.whole import file_sha256

LIBRARIES = (
    "torch",
    "transformers",
    "datasets",
    "timm",
    "evaluate",
    "huggingface-hub",
    "albumentations",
    "scikit-learn",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
)


HOME_FACTS = ("status", "recipe_given")  # of no use to a stranger; the recipe as given may name paths


def run_facts(recipe: Recipe, data: LabelledSet, skipped: list[dict], model) -> dict:
    """What is known before training; training and measurement add theirs."""
    own = getattr(model.config, "needs_code", False)
    return {
        "format": 1,
        "status": "training",
        "name": recipe.name,
        "package": __version__,
        "labels": data.outputs,
        "recipe": public_recipe(recipe).to_dict(),
        "recipe_given": recipe.to_dict(),
        "data": {
            "name": recipe.data.name,
            "title": recipe.data.title or recipe.data.name,
            "homepage": recipe.data.homepage,
            "license": recipe.data.license,
            "citation": recipe.data.citation,
            "public": recipe.data.public,
            "grouped_by": recipe.data.grouped_by,
            "images": len(data.labels),
            "groups": len(set(data.patients)),
            "left_out": len(skipped),
            "corrections": describe_corrections(recipe.data.corrections, data.hashes),
            "fingerprint": fingerprint(data.hashes, data.patients, data.labels),
        },
        "split": {
            "by": recipe.split.by,
            "test_fold": public_recipe(recipe).split.test_fold,
            "seed": recipe.split.seed,
            "sides": count_sides(data.labels, data.patients, data.sides, data.names),
            "certificate": certificate(data.hashes, data.patients, data.sides, data.links),
        },
        "model": {
            "architecture": model.config.architecture,
            **base_facts(recipe.model.base, recipe.model.weights, model.config.pretrained_cfg),
            **({"hub_id": None} if own else {}),
            "parameters": sum(p.numel() for p in model.parameters()),
            "image_size": model.config.pretrained_cfg["input_size"][-1],
            **({"code": CODE_BRANCH} if own else {}),
            **({"denoise": autoencoder_facts(Path(recipe.model.denoise).expanduser())} if recipe.model.denoise else {}),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": hardware(),
    }


def base_facts(base: str, weights: str, cfg: dict) -> dict:
    """Where a network's first weights came from, and under which licence.

    Args:
        base, weights: as a recipe has them.
        cfg: timm's `pretrained_cfg` of the network.
    """
    names = backbones_of(base)
    packed = [found for name in names if (found := pip_base(name))] if weights == "hub" else []
    tag = base if "." in base else f"{base}.{_default_tag(base)}"
    files = [one.path() for one in packed] if weights in ("hub", "random") else [Path(weights).expanduser()]
    licences = [one.license for one in packed] or [cfg.get("license")]
    if len(names) > 1 and not packed:
        licences = [getattr(timm.get_pretrained_cfg(name, allow_unregistered=False), "license", None) for name in names]
    alone = weights == "hub" and "/" not in base and len(names) == 1 and not packed
    return {
        "base": _name_only(base),
        "hub_id": f"timm/{tag}" if alone else None,
        "package": ", ".join(f"{one.package} {one.version}" for one in packed) or None,
        "weights": _name_only(weights),
        "weights_sha256": ", ".join(map(file_sha256, files)) or None,
        "license": most_demanding(licences),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # some come with an extra
            found[name] = importlib.metadata.version(name)
    return found


def hardware() -> dict:
    """What this machine computes with."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "system": platform.system()}


def _default_tag(base: str) -> str | None:
    cfg = timm.get_pretrained_cfg(base) if timm.is_model(base) else None
    return cfg.tag if cfg else None


def _name_only(text: str) -> str:
    return Path(text).name if Path(text).expanduser().exists() and text not in ("hub", "random") else text


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe without this machine's paths and its author's repository; a weights file keeps its name."""
    # Where each patient is a fold, its name is the patient's id; a rerun then takes split.csv.
    folds = {} if is_public(recipe.data) else {"test_fold": None, "validation_fold": None}
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data,
            path=None,
            corrections=NAME if recipe.data.corrections else None,
            generated=recipe.data.generated and _name_only(recipe.data.generated),
        ),
        split=dataclasses.replace(recipe.split, path=None, **folds),
        push_to_hub=False,
        hub=HubRecipe(),
        report_to=(),
        search={},
        model=_without_paths(recipe.model, "base", "weights", "denoise"),
        pretrain=_without_paths(recipe.pretrain, "unlabelled"),
        teacher=_without_paths(recipe.teacher, "base", "weights", "unlabelled"),
        semi=_without_paths(recipe.semi, "unlabelled"),
        adversarial=_without_paths(recipe.adversarial, "unlabelled"),
        ensemble=_without_paths(recipe.ensemble, "members"),
    )


def training_id(recipe: Recipe, data: LabelledSet) -> str:
    """SHA-256 that is another one for another training: other settings of it, other B-scans, sides or labels.

    It is the same on every machine; the patients' pseudonyms, which are not, don't count.
    """
    told = public_recipe(recipe).to_dict()
    told = {key: value for key, value in told.items() if key not in ("name", "description", "evaluation", "card")}
    told["split"] |= {key: getattr(recipe.split, key) for key in ("test_fold", "validation_fold")}
    rows = sorted(zip(data.hashes, data.labels, data.sides.tolist(), strict=True))
    return hashlib.sha256(json.dumps([told, rows], sort_keys=True).encode()).hexdigest()


def _without_paths(section, *keys: str):
    """A section of the recipe, or None, with files and folders by their names alone."""
    given = {key: getattr(section, key) for key in keys if getattr(section, key, None)}
    named = {k: _name_only(v) if isinstance(v, str) else tuple(map(_name_only, v)) for k, v in given.items()}
    return dataclasses.replace(section, **named) if named else section
