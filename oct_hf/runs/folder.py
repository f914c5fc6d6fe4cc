"""A run's folder: refused where it holds something else, taken up where it was stopped, and never half-written."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

from oct_hf.errors import OCTError, RunError
from oct_hf.training.recipe import Recipe
from oct_hf.whole import BESIDE, write_json

RUN = "run.json"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def check_free(folder: Path, recipe: Recipe, overwrite: bool) -> None:
    """Refuses a folder that holds something else before any work is done."""
    if not folder.exists() or overwrite or _is_new(folder):
        return
    known = read_run(folder)
    if known is None:
        raise RunError(f"{folder} is no run of this program; choose another folder with --out")
    different = set(differing(recipe.to_dict(), known["recipe_given"]))
    # The same images may have moved, as their fingerprint tells; who is told of the epochs, and
    # where its checkpoints go, changes nothing.
    different -= {"data.path", "report_to", "hub.checkpoints"}
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
        if known is None and not _is_new(folder):
            raise RunError(f"{folder} is no run of this program, so --overwrite doesn't touch it")
        _empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, facts)
    return True


def _is_new(folder: Path) -> bool:
    """Whether nothing is in a folder, or only what a run leaves that was killed while it made its folder."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {RUN + BESIDE}


def _empty(folder: Path) -> None:
    """Removes what a run holds; last what says that it is one, or the same command would refuse what is left."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RUN):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def read_run(folder: Path) -> dict | None:
    """The content of a run's run.json; None where there is none."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        return run if "recipe_given" in run and "status" in run else None
    except (OSError, ValueError):
        return None


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
        why = os.strerror(getattr(cause, "errno", None) or errno.ENOSPC)
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
