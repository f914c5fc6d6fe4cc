"""One bare git repository as the loopback Hub shows it.

git gives what a Hub must promise: a commit is whole or absent, and a branch moves by compare-and-swap.
"""

import json
import os
import signal
import subprocess
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from oct_hf.hub.front_matter import yaml_block
from oct_hf.hub.local.accounts import User
from oct_hf.hub.local.pointers import POINTER_BYTES, pointed_at
from oct_hf.hub.local.refusals import FULL, HubError, full_disk

NOWHERE = "0" * 40  # git's hash for what isn't there


class Repository:
    """One bare git repository, with the Hub's view of it: files, pointers to large files, commits."""

    def __init__(self, path: Path):
        self.path = path

    def git(self, *arguments: str, data: bytes | None = None, environment: Mapping[str, str] | None = None) -> bytes:
        """Output of a git command.

        Raises:
            HubError: 507, there is no room for what git writes; 500, it failed otherwise.
        """
        done = self._ran(arguments, data, environment)
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.decode(errors="replace").strip()
        raise HubError(500, f"git {arguments[0]} failed: {said.splitlines()[0] if said else '?'}")

    def tried(self, *arguments: str) -> bytes | None:
        """Output of a git command that may fail, and is None then; raises HubError 507 as `git` does."""
        done = self._ran(arguments)
        return done.stdout if done.returncode == 0 else None

    def _ran(
        self, arguments: Sequence[str], data: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        done = subprocess.run(
            ["git", "-C", str(self.path), *arguments],
            input=data,
            capture_output=True,
            env={**own, "GIT_CONFIG_GLOBAL": os.devnull, **(environment or {})},
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace")
            if any(os.strerror(number) in said for number in FULL) or done.returncode == -getattr(signal, "SIGXFSZ", 0):
                raise full_disk()
        return done

    @property
    def private(self) -> bool:
        return (self.path / "private").exists()

    @property
    def gated(self) -> str | bool:
        """`auto` or `manual` where downloads must be asked for, else False."""
        mark = self.path / "gated"
        return mark.read_text() if mark.exists() else False

    def set_up(self, private: bool | None = None, gated: str | bool | None = None) -> None:
        """Changes the settings that are given."""
        for name, value in (("private", private), ("gated", gated)):
            if value:
                (self.path / name).write_text("" if value is True else str(value))
            elif value is not None:
                (self.path / name).unlink(missing_ok=True)

    def resolve(self, revision: str) -> str:
        """The commit of a branch, tag or hash.

        Raises:
            HubError: 404, no such revision.
        """
        commit = None if revision.startswith("-") else self._at(f"{revision}^{{commit}}")
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _at(self, ref: str) -> str | None:
        """What a ref points to; None where there is no such ref."""
        found = self.tried("rev-parse", "--verify", "-q", ref)
        return found.decode().strip() if found else None

    def entries(self, commit: str) -> list[dict]:
        """Every file and folder of a commit as the tree endpoint lists it; large files with their own size and hash."""
        found, small = [], {}
        for line in self.git("ls-tree", "-r", "-t", "-l", "-z", commit).decode().split("\0")[:-1]:
            about, path = line.split("\t", 1)
            _, kind, oid, size = about.split()
            if kind == "tree":
                found.append({"type": "directory", "path": path, "oid": oid, "size": 0})
                continue
            found.append({"type": "file", "path": path, "oid": oid, "size": int(size)})
            if int(size) < POINTER_BYTES:
                small[oid] = int(size)
        pointers = self._pointers(small)
        for entry in found:
            if entry["oid"] in pointers:
                entry |= {"size": pointers[entry["oid"]]["size"], "lfs": pointers[entry["oid"]]}
        return found

    def _pointers(self, sizes: dict[str, int]) -> dict[str, dict]:
        """Which of these blobs stand for a large file; one git process reads them all."""
        found, output, start = {}, self.git("cat-file", "--batch", data="\n".join(sizes).encode()), 0
        for oid, size in sizes.items():  # answers come in order: "OID blob SIZE\n", the content, "\n"
            start = output.index(b"\n", start) + 1
            if large := pointed_at(output[start : start + size]):
                found[oid] = large
            start += size + 1
        return found

    def files(self, commit: str) -> list[dict]:
        """The `entries` that are files."""
        return [entry for entry in self.entries(commit) if entry["type"] == "file"]

    def commit(
        self,
        branch: str,
        user: User,
        message: str,
        files: dict[str, bytes],
        deleted: list[str],
        expected: str | None = None,
        as_pull_request: bool = False,
    ) -> tuple[str, int | None]:
        """One new commit on a branch, which moves only if nobody else has moved it meanwhile.

        Args:
            branch: its name, or `refs/pr/N` for a pull request.
            user: author and committer.
            message: title and text.
            files: content by path; of large files, their pointer.
            deleted: paths.
            expected: the commit that the branch must be at.
            as_pull_request: leave the branch, and let a new `refs/pr/N` hold the commit.

        Returns:
            the commit, and N.

        Raises:
            HubError: 412, the branch is elsewhere.
        """
        ref = branch if branch.startswith("refs/pr/") else f"refs/heads/{branch}"
        parent = self._at(ref)
        if expected and parent != expected:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        who = {"NAME": user.name, "EMAIL": f"{user.name}@localhost"}
        names = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        tree, above = self._tree(parent, files, deleted), ["-p", parent] if parent else []
        commit = self.git("commit-tree", tree, *above, data=message.encode(), environment=names).decode().strip()
        if as_pull_request:
            number = 1
            while self.tried("update-ref", f"refs/pr/{number}", commit, NOWHERE) is None:
                number += 1
            return commit, number
        if self.tried("update-ref", ref, commit, parent or NOWHERE) is None:
            if self._at(ref) == parent:
                raise HubError(503, f"{branch} can't be moved now; try again")
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        return commit, None

    def _tree(self, parent: str | None, files: dict[str, bytes], deleted: list[str]) -> str:
        """The tree of a commit with changes made to it, in an index of its own."""
        with tempfile.TemporaryDirectory() as scratch:
            index = {"GIT_INDEX_FILE": f"{scratch}/index"}
            if parent:
                self.git("read-tree", parent, environment=index)
            changes = [f"0 {NOWHERE}\t{path}" for path in deleted]
            for path, content in files.items():
                oid = self.git("hash-object", "-w", "--stdin", data=content).decode().strip()
                changes.append(f"100644 {oid}\t{path}")
            said = "".join(f"{change}\0" for change in changes).encode()
            self.git("update-index", "-z", "--index-info", data=said, environment=index)
            return self.git("write-tree", environment=index).decode().strip()

    def resolve_with_path(self, rest: str) -> tuple[str, str]:
        """Commit and path of `REVISION/PATH`, where the revision may be written with %2F, or be `refs/pr/N`."""
        parts = rest.split("/")
        ends = 3 if parts[0] == "refs" else 1
        return self.resolve(urllib.parse.unquote("/".join(parts[:ends]))), "/".join(parts[ends:])

    def refs(self) -> list[tuple[str, str]]:
        """Every branch and tag with its commit."""
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)").decode().splitlines()
        return [(name, oid) for name, oid in (line.split(" ") for line in lines)]

    def add_ref(self, kind: str, name: str, commit: str) -> None:
        """A new branch (`heads`) or tag (`tags`).

        Raises:
            HubError: 409, there is one of this name; 400, git allows no such name.
        """
        ref = f"refs/{kind}/{name}"
        if self.tried("check-ref-format", ref) is None:
            raise HubError(400, f"Invalid name: {name}")
        if self.tried("update-ref", ref, commit, NOWHERE) is None:
            raise HubError(409, "Reference already exists")

    def delete_ref(self, kind: str, name: str) -> None:
        """Removes a branch or tag.

        Raises:
            HubError: 404, there is none.
        """
        ref = f"refs/{kind}/{name}"
        if name.startswith("-") or self._at(ref) is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        self.git("update-ref", "-d", ref)

    def time(self, commit: str) -> int:
        """When a commit was made, in seconds since 1970."""
        return int(self.git("show", "-s", "--format=%ct", commit))

    def history(self, commit: str) -> list[tuple[str, int, str, str]]:
        """Commits from the newest on: id, seconds since 1970, title, author."""
        lines = self.git("log", "--format=%H%x00%ct%x00%s%x00%an", commit).decode().splitlines()
        return [(c, int(when), title, author) for c, when, title, author in (line.split("\0") for line in lines)]

    def config(self, commit: str) -> dict:
        """The content of config.json, where there is one."""
        try:
            found = json.loads(self.tried("show", f"{commit}:config.json") or b"{}")
            return found if isinstance(found, dict) else {}
        except ValueError:
            return {}

    def card(self, commit: str) -> dict:
        """The YAML block of README.md."""
        text = (self.tried("show", f"{commit}:README.md") or b"").decode(errors="replace")
        try:
            return yaml_block(text) or {}
        except yaml.YAMLError:
            return {}
