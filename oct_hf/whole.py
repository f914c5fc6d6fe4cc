"""What is there whole or not at all: written beside its place and renamed, so that nobody ever reads half of it."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BESIDE = ".new"  # ends the name of a file that isn't whole yet
OLD = ".oct-hf-replaced"  # ends the name of a folder whose place another is taking; nobody's own copy has it


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
    replace_folder(target, partial)


def replace_folder(target: Path, new: Path) -> None:
    """`new` takes the place of `target`. A kill in between leaves the old one whole, for `taken_up` to give back."""
    old = target.with_name(target.name + OLD)
    taken_up(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        taken_up(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def taken_up(folder: Path) -> Path:
    """The folder, which a program that was killed while it replaced it may have left under another name."""
    old = folder.with_name(folder.name + OLD) if folder.name else folder
    if not folder.exists() and old.is_dir():
        with contextlib.suppress(OSError):  # not ours to rename: then it isn't there
            old.rename(folder)
    return folder


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
