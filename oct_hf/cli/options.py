"""What several verbs take, and what they do before their work."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.printing import say
from oct_hf.errors import OCTError


def complete_recipe(incomplete: str) -> list[str]:
    """The recipes that come along, for a shell that completes a word."""
    from oct_hf.packaged import packaged

    return sorted(path.stem for path in packaged("recipes").glob("*.yaml"))


def complete_key(incomplete: str) -> list[str]:
    """A recipe's keys, whole: `train.epochs=`."""
    from oct_hf.training.recipe_file import recipe_keys

    return [f"{key}=" for key in recipe_keys()]


Data = Annotated[Path | None, typer.Option("--data", "-d", help="Folder or zip with the images.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", autocompletion=complete_key)]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without the files that can't be used.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


def overrides_of(given: list[str] | None, data: Path | None, skip_bad: bool = False) -> list[str]:
    """What the command line changes in a recipe, its options as `key=value` too."""
    path = [f"data.path={json.dumps(str(data))}"] if data is not None else []
    return [*(given or []), *path, *(["data.skip_bad=true"] if skip_bad else [])]


def check_place(out: Path | None) -> None:
    """Refuses a folder that can't be written, before the work that would fill it.

    Raises:
        OCTError: something on the way to it is a file, or may not be written.
    """
    if out is None:
        return
    place = out.absolute()
    nearest = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        raise OCTError(f"{out}: {nearest if nearest != place else 'it'} is a file, where a folder is wanted")
    if not os.access(nearest, os.W_OK):
        raise OCTError(f"{out}: {nearest} can't be written to; choose another place")


def check_file_place(out: Path | None) -> None:
    """As `check_place`, of a file, whose folder must be there."""
    if out is None:
        return
    if not out.parent.is_dir():
        raise OCTError(f"{out}: no folder {out.parent}")
    if out.is_dir():
        raise OCTError(f"{out}: is a folder, where a file is wanted")
    check_place(out.parent)


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
