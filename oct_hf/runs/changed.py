"""A finished model's folder changed as a whole: its new files, run.json, checksums and card, or nothing of them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oct_hf.hub.card import render_card
from oct_hf.hub.repository import checksums
from oct_hf.whole import replace_folder, write_json


@contextmanager
def changed(folder: Path) -> Iterator[tuple[Path, dict]]:
    """A copy of a model's folder, and the content of its run.json, for the block to change.

    At its end the copy gets new checksums and a new card, and takes the folder's place; an error leaves all as it was.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial)
    try:
        run = json.loads((partial / "run.json").read_text(encoding="utf-8"))
        yield partial, run
        run["files"] = checksums(partial)
        write_json(partial / "run.json", run)
        (partial / "README.md").write_text(render_card(run), encoding="utf-8")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(folder, partial)
