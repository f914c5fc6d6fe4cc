"""`hub.checkpoints`: a training's checkpoints in a private repository of their own, for a machine that may disappear.

An optimiser's state is no model, so it never goes where the model is published. Each save is one commit: the
repository holds whole checkpoints, and on an empty machine the same command takes them up. What comes back is checked
against its checksums, and transformers reads the pickles among it as tensors and plain numbers alone.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from oct_hf.errors import OCTError, RunError
from oct_hf.hub.commit import commit, head_of, listing
from oct_hf.hub.patience import Patience
from oct_hf.hub.plain_errors import PublishError
from oct_hf.hub.talking import talking_to, usable_token
from oct_hf.training.checkpoints import UNFINISHED
from oct_hf.untrusted import shown

ABOUT_FILE = "training.json"  # whose checkpoints these are


class CheckpointRepository:
    """Making it creates the repository, so that faults show before hours of work.

    Args:
        repo: `you/name`, which is private and holds nothing else.
        patience: with the Hub.

    Raises:
        PublishError: no token, no access, a public repository, or one that holds something else.
    """

    def __init__(self, repo: str, patience: Patience | None = None):
        self.repo = repo
        self._api = HfApi(token=usable_token())
        self._patience = patience or Patience()
        with self._talking():
            self._patience(lambda: self._api.create_repo(repo, private=True, exist_ok=True))
            there = self._patience(lambda: self._api.model_info(repo))
            if not there.private:
                raise PublishError(
                    f"hub.checkpoints: {repo} is public, and checkpoints are for nobody else; choose another name"
                )
            files = self._patience(lambda: listing(self._api, repo, head_of(repo, there.sha)))
            if files and ABOUT_FILE not in files:
                raise PublishError(f"hub.checkpoints: {repo} holds something else; choose another name")

    def claim(self, training: str) -> None:
        """Makes sure that what is there belongs to a training, before its own checkpoints take the place.

        Args:
            training: a text that is another one for another training.

        Raises:
            PublishError: the Hub can't be reached.
            RunError: it holds another training's.
        """
        with tempfile.TemporaryDirectory() as scratch:
            if not self._download(Path(scratch), ABOUT_FILE):
                return
            about = (Path(scratch) / ABOUT_FILE).read_text(encoding="utf-8")
        if about != _about(training):
            raise RunError(
                f"hub.checkpoints: {self.repo} holds another training's (of other B-scans or settings); choose another"
            )

    def fetch(self, folder: Path) -> bool:
        """The checkpoints that are there into a folder that has none; whether there were any.

        Raises:
            PublishError: they can't be had.
        """
        scratch = folder / UNFINISHED
        shutil.rmtree(scratch, ignore_errors=True)
        if not self._download(scratch, "*.json", "checkpoint-*/*"):
            return False
        shutil.rmtree(scratch / ".cache", ignore_errors=True)  # huggingface_hub's notes on what it fetched
        (scratch / ABOUT_FILE).unlink()
        for path in sorted(scratch.iterdir(), key=_age):
            path.rename(folder / path.name)
        scratch.rmdir()
        return True

    def _download(self, folder: Path, *wanted: str) -> bool:
        """Files of the last commit; False where it has none."""
        with self._talking():
            head = head_of(self.repo, self._patience(lambda: self._api.model_info(self.repo)).sha)
            if not self._patience(lambda: listing(self._api, self.repo, head)):
                return False
            options = {"revision": head, "local_dir": folder, "allow_patterns": list(wanted), "token": self._api.token}
            self._patience(lambda: snapshot_download(self.repo, **options))
        return True

    def push(self, paths: list[Path], training: str) -> bool:
        """Makes checkpoints all that the repository holds; False, and a line that says why, where the Hub refuses.

        Args:
            paths: their folders, and files beside them.
            training: as for `claim`.
        """
        files: dict[str, Path | bytes] = {ABOUT_FILE: _about(training).encode()}
        for path in paths:
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
            files |= {file.relative_to(path.parent).as_posix(): file for file in inside}
        try:
            with self._talking():
                head = head_of(self.repo, self._patience(lambda: self._api.model_info(self.repo)).sha)
                commit(self._api, self.repo, files, "main", head, f"After step {_age(paths[0])}", self._patience)
        except OCTError as error:
            print(shown(f"a checkpoint wasn't pushed, training goes on: {error}"), file=sys.stderr)
            return False
        return True

    def _talking(self):
        return talking_to(self._api, self.repo, "give the same command again", self._patience)


def _about(training: str) -> str:
    return json.dumps({"training": training}) + "\n"


def _age(path: Path) -> int:
    """Steps of a checkpoint; files beside them come first."""
    step = path.name.rpartition("-")[2]
    return int(step) if step.isdigit() else -1
