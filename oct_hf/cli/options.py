"""What several verbs take, and what they do before their work."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.printing import say

Data = Annotated[Path | None, typer.Option("--data", "-d", help="Folder or zip with the images.")]


def overrides_of(given: list[str] | None, data: Path | None, skip_bad: bool = False) -> list[str]:
    """What the command line changes in a recipe, its options as `key=value` too."""
    path = [f"data.path={json.dumps(str(data))}"] if data is not None else []
    return [*(given or []), *path, *(["data.skip_bad=true"] if skip_bad else [])]


def prepare_for_other_hubs() -> None:
    """A Hub without Xet storage refuses uploads unless huggingface_hub is told before it is imported."""
    if "huggingface.co" not in os.environ.get("HF_ENDPOINT", "huggingface.co"):
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")


def quiet_libraries() -> None:
    """Keeps transformers' advice and the bars of its loading off the screen, should it be imported after this."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def exit_when_stopped() -> Iterator[None]:
    """Ends the program with the signal's exit code where a training in the block was stopped by one."""
    from oct_hf.runs.training import Stopped
    from oct_hf.training import processes

    try:
        yield
    except Stopped as stopped:
        if processes.is_main():
            say(str(stopped))
        raise typer.Exit(stopped.exit_code) from None
