"""What several verbs take, and what they do before their work."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path | None, typer.Option("--data", "-d", help="Folder or zip with the images.")]


def overrides_of(given: list[str] | None, data: Path | None, skip_bad: bool = False) -> list[str]:
    """What the command line changes in a recipe, its options as `key=value` too."""
    path = [f"data.path={json.dumps(str(data))}"] if data is not None else []
    return [*(given or []), *path, *(["data.skip_bad=true"] if skip_bad else [])]


def prepare_for_other_hubs() -> None:
    """A Hub without Xet storage refuses uploads unless huggingface_hub is told before it is imported."""
    if "huggingface.co" not in os.environ.get("HF_ENDPOINT", "huggingface.co"):
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
