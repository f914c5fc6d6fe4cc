"""A run's folder: refused where it holds something else, taken up where it was stopped, and never half-written."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from oct_hf.errors import OCTError, RunError
from oct_hf.training.recipe import Recipe

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def check_free(folder: Path, recipe: Recipe, overwrite: bool) -> None:
    """Refuses a folder that holds something else before any work is done."""
    if not folder.exists() or overwrite or (folder.is_dir() and not any(folder.iterdir())):
        return
    known = read_run(folder)
    if known is None:
        raise RunError(f"{folder} is no run of this program; choose another folder with --out")
    different = set(differing(recipe.to_dict(), known["recipe_given"]))
    # The same images may have moved, as their fingerprint tells; who is told of the epochs changes nothing.
    different -= {"data.path", "report_to"}
    if different:
        keys = ", ".join(sorted(different)[:5])
        raise RunError(
            f"{folder} already holds another run (it differs in {keys}); choose another folder with --out, "
            f"or replace it with --overwrite"
        )


def open_folder(folder: Path, facts: dict, overwrite: bool) -> bool:
    """Makes the run's folder, or takes up the one there. False where that run is already done."""
    known = read_run(folder)
    if known is not None and not overwrite:
        if known["data"]["fingerprint"] != facts["data"]["fingerprint"]:
            raise RunError(f"{folder} holds a run on other images; choose another folder with --out, or --overwrite")
        return known["status"] != "done"
    if folder.exists() and overwrite:
        if known is None and any(folder.iterdir()):
            raise RunError(f"{folder} is no run of this program, so --overwrite doesn't touch it")
        shutil.rmtree(folder)
    (folder / "log").mkdir(parents=True)
    write_json(folder / "run.json", facts)
    return True


def read_run(folder: Path) -> dict | None:
    """The content of a run's run.json; None where there is none."""
    try:
        run = json.loads((folder / "run.json").read_text())
        return run if "recipe_given" in run and "status" in run else None
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A place to write to; what is there at the end is renamed to `path`, so that a reader never sees half of it."""
    beside = path.with_name(path.name + ".new")
    yield beside
    beside.replace(path)


def write_json(path: Path, content: dict) -> None:
    """Writes a whole file or none."""
    with written_beside(path) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def plain_errors(folder: Path):
    """A full disk or a folder without permission is the user's to mend, so it is one line."""
    try:
        yield
    except OCTError:
        raise
    except Exception as error:
        cause = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno in _DISK):
            cause = cause.__cause__ or cause.__context__
        full = "No space left" in str(error) or "os error 28" in str(error)
        if cause is None and not full:
            raise
        why = os.strerror(cause.errno) if cause is not None else os.strerror(errno.ENOSPC)
        where = getattr(cause, "filename", None) or folder
        raise RunError(f"{where}: {why}; make room or choose another place, then run the same command again") from None


def differing(one: dict, other: dict) -> list[str]:
    """The dotted keys whose values are not the same in two nested mappings."""
    return sorted({key for key, _ in _flat(one).items() ^ _flat(other).items()})


def _flat(content: dict, above: str = "") -> dict:
    flat = {}
    for key, value in content.items():
        name = f"{above}.{key}" if above else key
        if isinstance(value, dict) and value:
            flat |= _flat(value, name)
        else:
            flat[name] = json.dumps(value)
    return flat
