"""What `oct-hf info` prints: versions, devices, recipes, caches, and what each extra lacks."""

import contextlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path

from oct_hf import __version__


def about() -> dict[str, dict]:
    """Facts of this installation and machine by section; versions are read from metadata, so little is imported."""
    import torch
    from datasets import config as datasets_config
    from huggingface_hub import constants

    from oct_hf.data.fetch import data_folder
    from oct_hf.data.splits import KEY_FILE
    from oct_hf.inference.backends import BACKENDS
    from oct_hf.inference.choice import cache_folder
    from oct_hf.inference.on_torch import best_device
    from oct_hf.training.arguments import bf16_is_faster
    from oct_hf.training.recipe_file import load_recipe, recipe_names

    base, extras = _installed_requirements()
    optional = {name: found for extra in extras.values() for name, found in extra.items() if found}
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "versions": {
            "oct-hf": __version__,
            "python": platform.python_version(),
            **{name: found or "not installed" for name, found in base.items()},
            **dict(sorted(optional.items())),
        },
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "device": best_device(),
            "gpu": ", ".join(gpus) or "none",
            "bf16 is native": bf16_is_faster(),
            "backends of predict": ", ".join(name for name, backend in BACKENDS.items() if backend.installed),
        },
        "recipes": {name: load_recipe(name).description for name in recipe_names()},
        "extras": {name: _missing(name, found) for name, found in extras.items()},
        "caches": {
            "models": _place(Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE"),
            "data sets": _place(Path(datasets_config.HF_DATASETS_CACHE), "HF_DATASETS_CACHE"),
            "downloads": _place(data_folder(), "OCT_HF_DATA"),
            "what is remembered of this machine": _place(cache_folder(), "OCT_HF_CACHE", inside=False),
            "key of pseudonyms": _place(KEY_FILE.parent, "OCT_HF_HOME"),
        },
    }


def requirements() -> dict[str, list[str]]:
    """What this package asks for, as pip takes it, by extra; under "" what it always needs."""
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("oct-hf") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if not requirement.startswith("oct-hf"):
            found.setdefault(extra[1] if extra else "", []).append(requirement.strip())
    return found


def _installed_requirements() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]]]:
    """Versions of what is always needed, and by extra; None of what isn't installed."""
    names = {
        extra: [re.split(r"[^\w-]", requirement, maxsplit=1)[0] for requirement in found]
        for extra, found in requirements().items()
    }
    versions = {extra: {name: _installed(name) for name in found} for extra, found in names.items()}
    return versions.pop("", {}), versions


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing(extra: str, found: dict[str, str | None]) -> str:
    missing = [name for name, version in found.items() if version is None]
    return f'missing: {", ".join(missing)}; pip install "oct-hf[{extra}]"' if missing else "complete"


def _place(folder: Path, variable: str, inside: bool = True) -> dict[str, str | int]:
    """A folder, the bytes in it (links not followed; with `inside` in its own folders too), and what moves it."""
    held = 0
    for place, folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a file that went meanwhile
                held += os.lstat(os.path.join(place, name)).st_size
        if not inside:
            folders.clear()
    return {"folder": str(folder), "bytes": held, "variable": variable}
