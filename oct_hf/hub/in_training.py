"""`push_to_hub`: the best weights so far on the branch `in-training`, the finished and tested model on `main`.

A reader of `main` never meets a model that wasn't tested. A push that fails while training costs a line and no epoch;
the next best checkpoint is pushed again.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from oct_hf.errors import OCTError
from oct_hf.hub.allowed import check_allowed
from oct_hf.hub.card import render_interim_card
from oct_hf.hub.commit import commit, head_of, listing
from oct_hf.hub.patience import Patience
from oct_hf.hub.publish import Published, publish, refuse_foreign
from oct_hf.hub.talking import talking_to, usable_token
from oct_hf.untrusted import shown

BRANCH = "in-training"


class TrainingBranch:
    """A repository on the Hub that follows a training. Making it creates the repository, so faults show before hours.

    Args:
        repo: `you/name`, or None for the token's account and `name`.
        name: of the recipe.
        private, gated: of a new repository, as in `publish`.
        patience: with the Hub.

    Raises:
        PublishError: no token, no access, or the repository holds something else.

    Attributes:
        repo: its id.
    """

    def __init__(
        self,
        repo: str | None,
        name: str,
        private: bool = False,
        gated: str | None = None,
        patience: Patience | None = None,
    ):
        self._api = HfApi(token=usable_token())
        self._patience = patience or Patience()
        self._private, self._gated = private, gated
        with self._talking(repo or f"you/{name}"):
            self.repo = repo or f"{self._patience(self._api.whoami)['name']}/{name}"
            self._patience(lambda: self._api.create_repo(self.repo, private=private, exist_ok=True))
            head = head_of(self.repo, self._patience(lambda: self._api.model_info(self.repo)).sha)
            refuse_foreign(self.repo, self._patience(lambda: listing(self._api, self.repo, head)))

    def push(self, save: Callable[[Path], None], name: str, epoch: int, epochs: int, validation: dict) -> bool:
        """Commits weights to the branch; False, and a line that says why, where the Hub doesn't take them.

        Args:
            save: writes config.json, model.safetensors and preprocessor_config.json into a folder.
            name: of the run.
            epoch, epochs: which, and of how many.
            validation: `balanced_accuracy` at least.
        """
        try:
            with tempfile.TemporaryDirectory() as scratch, self._talking(self.repo):
                folder = Path(scratch)
                save(folder)
                own = json.loads((folder / "config.json").read_text()).get("needs_code", False)
                (folder / "README.md").write_text(render_interim_card(name, epoch, epochs, validation, own))
                check_allowed(folder)
                files = {path.name: path for path in sorted(folder.iterdir())}
                self._patience(lambda: self._api.create_branch(self.repo, branch=BRANCH, exist_ok=True))
                about = self._patience(lambda: self._api.model_info(self.repo, revision=BRANCH))
                head = head_of(self.repo, about.sha)
                title = f"Epoch {epoch} of {epochs}: validation balanced accuracy {validation['balanced_accuracy']:.3f}"
                commit(self._api, self.repo, files, BRANCH, head, title, self._patience)
        except OCTError as error:
            print(shown(f"epoch {epoch} wasn't pushed, training goes on: {error}"), file=sys.stderr)
            return False
        return True

    def finish(self, run: Path) -> Published:
        """Publishes the finished run to `main` and takes the branch away.

        Raises:
            PublishError: refused or unreachable; the line says how to publish the run later.
        """
        done = publish(run, self.repo, private=self._private, gated=self._gated, patience=self._patience)
        with self._talking(self.repo):
            refs = self._patience(lambda: self._api.list_repo_refs(self.repo))
            if BRANCH in {branch.name for branch in refs.branches}:
                self._patience(lambda: self._api.delete_branch(self.repo, branch=BRANCH))
        return done

    def _talking(self, repo: str):
        return talking_to(self._api, repo, "give the same command again", self._patience)
