"""What `oct-hf info` prints: versions, devices, recipes, caches, and what each extra lacks."""

import importlib.metadata
import os
import platform
import re

from oct_hf import __version__


def about() -> dict[str, dict]:
    """Facts of this installation and machine by section; versions are read from metadata, so little is imported."""
    import datasets
    import torch
    from huggingface_hub import constants

    from oct_hf.inference.on_torch import best_device
    from oct_hf.training.arguments import bf16_is_faster
    from oct_hf.training.recipe_file import load_recipe, recipe_names

    base, extras = {}, {}
    for requirement in importlib.metadata.requires("oct-hf") or []:
        name = re.match(r"[\w-]+", requirement)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name == "oct-hf":
            continue
        (extras.setdefault(extra[1], {}) if extra else base)[name] = _installed(name)
    return {
        "versions": {"oct-hf": __version__, "python": platform.python_version(), **base},
        "machine": {
            "cores": os.cpu_count(),
            "device": best_device(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "bf16 is native": bf16_is_faster(),
        },
        "recipes": {name: load_recipe(name).description for name in recipe_names()},
        "extras": {
            name: "missing: " + ", ".join(m for m, v in found.items() if v == "not installed")
            if "not installed" in found.values()
            else "complete"
            for name, found in extras.items()
        },
        "caches": {"models": constants.HF_HUB_CACHE, "data sets": str(datasets.config.HF_DATASETS_CACHE)},
    }


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
