"""A Space with the page of a published model: a folder to push, of which nothing goes to the model's repository.

The package itself lies beside app.py, so the Space runs the version that wrote it, wherever that came from.
"""

import importlib.metadata
import re
import shutil
from pathlib import Path

import oct_hf
from oct_hf import __version__
from oct_hf.about import requirements
from oct_hf.errors import OCTError, RunError
from oct_hf.hub.card import template
from oct_hf.inference.description import load_description
from oct_hf.packaged import packaged

EXTRAS = ("onnx", "explain", "volumes")  # beside Gradio, which a Space brings itself
_APP = '''"""The page of {model}; README.md says what it is."""

import os

from oct_hf.inference.app import serve

serve("{model}", int(os.environ.get("GRADIO_SERVER_PORT", "7860")), os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"))
'''


def write_space(model: str, folder: Path) -> None:
    """Writes README.md, app.py, requirements.txt and the package to a new folder.

    Args:
        model: its id on the Hub, where the Space will load it from.
        folder: of the Space; it may not hold anything yet.

    Raises:
        RunError: the folder isn't empty, or the model is on this machine only.
        ModelError: there is no such model.
    """
    if Path(model).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise RunError(f"{model}: a Space loads its model from the Hub; oct-hf publish it, and give its id (you/name)")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: not empty; give a new folder for the Space")
    labels = load_description(model).labels
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise OCTError('the app needs Gradio: pip install "oct-hf[app]"') from None
    folder.mkdir(parents=True, exist_ok=True)
    _copy_package(folder / "oct_hf")
    (folder / "app.py").write_text(_APP.format(model=model), encoding="utf-8")
    asked = requirements()
    needed = sorted(line for extra in ("", *EXTRAS) for line in asked.get(extra, []))
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
    card = template("space.md.jinja").render(model=model, labels=labels, gradio=gradio, version=__version__)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _copy_package(target: Path) -> None:
    """As a wheel has it: with the recipes and the cards' templates inside."""
    leave = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(oct_hf.__file__).parent, target, ignore=leave)
    for name in ("recipes", "model_card"):
        shutil.copytree(packaged(name), target / name, ignore=leave, dirs_exist_ok=True)
