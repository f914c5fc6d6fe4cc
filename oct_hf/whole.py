"""What is there whole or not at all: written beside its place and renamed, so that nobody ever reads half of it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BESIDE = ".new"  # ends the name of a file that isn't whole yet


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `target` at the end; nothing is left of one that failed."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A place to write to; what is there at the end is renamed to `path`."""
    beside = path.with_name(path.name + BESIDE)
    yield beside
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes a whole file or none."""
    with written_beside(path) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
