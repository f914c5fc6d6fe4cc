"""The folder of a site: its repositories, its large files, and who may read and write them."""

import errno
import re
import shutil
import tempfile
from pathlib import Path

from oct_hf.hub.local.accounts import Accounts, User
from oct_hf.hub.local.bare_git import Repository
from oct_hf.hub.local.large_files import LargeFiles
from oct_hf.hub.local.pointers import ATTRIBUTES
from oct_hf.hub.local.refusals import HubError

NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,94}[A-Za-z0-9]|[A-Za-z0-9]")


class Store:
    """The folder of a site: repositories, large files, tokens. One process at a time may have it."""

    def __init__(self, root: Path, tokens: dict[str, User]):
        self.root, self.unfinished = root, root / "unfinished"
        self._clear_after_a_kill()
        self.unfinished.mkdir(parents=True, exist_ok=True)
        self.accounts = Accounts(tokens)
        self.large = LargeFiles(root / "large", self.unfinished)

    def _clear_after_a_kill(self) -> None:
        """What was half-written by a process that is no more; a lock that it left would stop every later commit."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        for repository in self.root.glob("*s/*/*.git"):
            for lock in (*repository.glob("*.lock"), *(repository / "refs").rglob("*.lock")):
                lock.unlink(missing_ok=True)

    def path(self, kind: str, namespace: str, name: str) -> Path:
        """Where a repository lies.

        Raises:
            HubError: 400, a name that could leave the folder or that the Hub refuses.
        """
        for part in (namespace, name):
            if not NAME.fullmatch(part):
                raise HubError(400, f"Invalid repository name: {namespace}/{name}")
        return self.root / f"{kind}s" / namespace / f"{name}.git"

    def repository(self, authorization: str | None, kind: str, namespace: str, name: str) -> Repository:
        """A repository that the user may read; a private one is absent for everybody else, as on the Hub.

        Raises:
            HubError: 404, there is none for this user; 401, there is none for those without a token.
        """
        path = self.path(kind, namespace, name)
        repository = Repository(path)
        user = self.accounts.user(authorization)
        if not path.exists() or (repository.private and (user is None or user.name != namespace)):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, authorization: str | None, kind: str, namespace: str, name: str) -> tuple[User, Repository]:
        """The user and a repository that they may write to.

        Raises:
            HubError: 401 without a token, 404 for one whom it isn't there for, 403 for one who may only read it.
        """
        self.accounts.writer(authorization)
        repository = self.repository(authorization, kind, namespace, name)
        return self.accounts.writer(authorization, namespace), repository

    def create(self, kind: str, user: User, name: str, private: bool) -> None:
        """A new repository with one commit; it appears under its name only when it is whole.

        Raises:
            HubError: 409, there is one of this name.
        """
        path = self.path(kind, user.name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.unfinished) as scratch:
            new = Repository(Path(scratch) / "new.git")
            new.path.mkdir()
            new.git("init", "--bare", "-q", "-b", "main")
            new.commit("main", user, "initial commit", {".gitattributes": ATTRIBUTES}, [])
            new.set_up(private=private)
            try:
                new.path.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise HubError(409, "You already created this repo") from None

    def delete(self, authorization: str | None, kind: str, namespace: str, name: str) -> None:
        """Removes a repository; large files stay, since others may hold them too."""
        shutil.rmtree(self.repository(authorization, kind, namespace, name).path)
