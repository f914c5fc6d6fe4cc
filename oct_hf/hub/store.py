"""What a loopback Hub keeps: bare git repositories, large files by their SHA-256, and who may write.

git gives what a Hub must promise: a commit is whole or absent, and a branch moves by compare-and-swap.
"""

import contextlib
import errno
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import AsyncIterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from oct_hf.errors import OCTError

LARGE = (".safetensors", ".onnx", ".bin", ".parquet", ".png", ".jpg", ".jpeg")
REGULAR_BYTES = 10 * 2**20  # larger files go to the store of large files whatever their kind
NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,94}[A-Za-z0-9]|[A-Za-z0-9]")
PATH = re.compile(r"(?!.*(^|/)(\.\.?|\.git)(/|$))[^\x00-\x1f/\\][^\x00-\x1f\\]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
POINTER = re.compile(rb"version https://git-lfs[^\n]*\noid sha256:([0-9a-f]{64})\nsize (\d+)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PART_SECONDS = 24 * 3600  # after which a part of an upload that nobody finished is removed
POINTER_BYTES = 400  # a pointer is smaller
ATTRIBUTES = "".join(f"*{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in LARGE).encode()


class HubError(Exception):
    """An answer other than success, in the form that huggingface_hub turns into its typed errors."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def disk_error(error: OSError) -> HubError:
    """What a Hub says when it can't write: 507 where its disk is full."""
    full = error.errno in FULL
    return HubError(507 if full else 500, "This Hub's disk is full" if full else f"This Hub failed: {error.strerror}")


@dataclass(frozen=True)
class User:
    """Who a token belongs to; `write` is false for a read-only token."""

    name: str
    write: bool = True


class Repository:
    """One bare git repository, with the Hub's view of it: files, pointers to large files, commits."""

    def __init__(self, path: Path):
        self.path = path

    def git(self, *arguments: str, data: bytes | None = None, check: bool = True, **environment: str) -> bytes | None:
        """Output of a git command; None where it failed and `check` is off.

        Raises:
            HubError: 507, there is no room for what git writes; 500, it failed otherwise.
        """
        own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        done = subprocess.run(
            ["git", "-C", str(self.path), *arguments],
            input=data,
            capture_output=True,
            env={**own, "GIT_CONFIG_GLOBAL": os.devnull, **environment},
        )
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.decode(errors="replace")
        if any(os.strerror(number) in said for number in FULL) or done.returncode == -getattr(signal, "SIGXFSZ", 0):
            raise HubError(507, "This Hub's disk is full")
        if check:
            raise HubError(500, f"git {arguments[0]} failed: {said.strip().splitlines()[0] if said.strip() else '?'}")
        return None

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
        found = None
        if not revision.startswith("-"):
            found = self.git("rev-parse", "--verify", "-q", f"{revision}^{{commit}}", check=False)
        if not found:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found.decode().strip()

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
            if match := POINTER.match(output, start, start + size):
                found[oid] = {"oid": match[1].decode(), "size": int(match[2]), "pointerSize": size}
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
        head = self.git("rev-parse", "--verify", "-q", ref, check=False)
        parent = head.decode().strip() if head else None
        if expected and parent != expected:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        with tempfile.TemporaryDirectory() as scratch:
            who = {"NAME": user.name, "EMAIL": f"{user.name}@localhost"}
            names = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
            names["GIT_INDEX_FILE"] = f"{scratch}/index"
            if parent:
                self.git("read-tree", parent, **names)
            changes = [f"0 {'0' * 40}\t{path}" for path in deleted]
            for path, content in files.items():
                oid = self.git("hash-object", "-w", "--stdin", data=content).decode().strip()
                changes.append(f"100644 {oid}\t{path}")
            self.git("update-index", "-z", "--index-info", data="".join(f"{c}\0" for c in changes).encode(), **names)
            tree = self.git("write-tree", **names).decode().strip()
            above = ["-p", parent] if parent else []
            commit = self.git("commit-tree", tree, *above, data=message.encode(), **names).decode().strip()
        if as_pull_request:
            number = 1
            while self.git("update-ref", f"refs/pr/{number}", commit, "0" * 40, check=False) is None:
                number += 1
            return commit, number
        if self.git("update-ref", ref, commit, parent or "0" * 40, check=False) is None:
            now = self.git("rev-parse", "--verify", "-q", ref, check=False)
            if (now.decode().strip() if now else None) == parent:
                raise HubError(503, f"{branch} can't be moved now; try again")
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        return commit, None

    def resolve_with_path(self, rest: str) -> tuple[str, str]:
        """Commit and path of `REVISION/PATH`, where the revision may be written with %2F, or be `refs/pr/N`."""
        parts = rest.split("/")
        ends = 3 if parts[0] == "refs" else 1
        return self.resolve(urllib.parse.unquote("/".join(parts[:ends]))), "/".join(parts[ends:])

    def refs(self) -> list[tuple[str, str]]:
        """Every branch and tag with its commit."""
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)").decode().splitlines()
        return [tuple(line.split(" ")) for line in lines]

    def add_ref(self, kind: str, name: str, commit: str) -> None:
        """A new branch (`heads`) or tag (`tags`).

        Raises:
            HubError: 409, there is one of this name; 400, git allows no such name.
        """
        ref = f"refs/{kind}/{name}"
        if self.git("check-ref-format", ref, check=False) is None:
            raise HubError(400, f"Invalid name: {name}")
        if self.git("update-ref", ref, commit, "0" * 40, check=False) is None:
            raise HubError(409, "Reference already exists")

    def delete_ref(self, kind: str, name: str) -> None:
        """Removes a branch or tag.

        Raises:
            HubError: 404, there is none.
        """
        ref = f"refs/{kind}/{name}"
        if name.startswith("-") or self.git("rev-parse", "--verify", "-q", ref, check=False) is None:
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
            found = json.loads(self.git("show", f"{commit}:config.json", check=False) or b"{}")
            return found if isinstance(found, dict) else {}
        except ValueError:
            return {}

    def card(self, commit: str) -> dict:
        """The YAML block of README.md."""
        text = (self.git("show", f"{commit}:README.md", check=False) or b"").decode(errors="replace")
        try:
            return yaml_block(text) or {}
        except yaml.YAMLError:
            return {}


class Store:
    """The folder of a site: repositories, large files, tokens. One process at a time may have it."""

    def __init__(self, root: Path, tokens: dict[str, User]):
        self.root, self.tokens = root, tokens
        self.large, self.unfinished = root / "large", root / "unfinished"
        self._clear_after_a_kill()
        self.large.mkdir(parents=True, exist_ok=True)
        self.unfinished.mkdir(exist_ok=True)
        self.secret = secrets.token_bytes(32)  # of the links to large files; they needn't outlive the process

    def _clear_after_a_kill(self) -> None:
        """What was half-written by a process that is no more; a lock that it left would stop every later commit."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        for repository in self.root.glob("*s/*/*.git"):
            for lock in (*repository.glob("*.lock"), *(repository / "refs").rglob("*.lock")):
                lock.unlink(missing_ok=True)

    def user(self, authorization: str | None) -> User | None:
        """Whom an Authorization header names; None without one.

        Raises:
            HubError: 401, a token that nobody has.
        """
        if not authorization:
            return None
        user = self.tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, authorization: str | None, namespace: str | None = None) -> User:
        """The user, who must be allowed to write (to `namespace`).

        Raises:
            HubError: 401 without a token, 403 with one that may not.
        """
        user = self.user(authorization)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not user.write or namespace not in (None, user.name):
            raise HubError(403, f"Forbidden: this token may not write to {namespace or 'this Hub'}.")
        return user

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
        """A repository that the user may read; a private one is absent for everybody else, as on the Hub."""
        path = self.path(kind, namespace, name)
        repository = Repository(path)
        user = self.user(authorization)
        if not path.exists() or (repository.private and (user is None or user.name != namespace)):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repository

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

    # --- large files ---

    def file(self, oid: str) -> Path:
        """Where a large file lies.

        Raises:
            HubError: 404, it was never uploaded.
        """
        path = self.large / oid
        if not SHA256.fullmatch(oid) or not path.exists():
            raise HubError(404, "Large file not found", "EntryNotFound")
        return path

    def has(self, oid: str) -> bool:
        """Whether a large file is here already."""
        return bool(SHA256.fullmatch(oid)) and (self.large / oid).exists()

    def pointer(self, oid: str) -> bytes:
        """What git holds in a large file's place.

        Raises:
            HubError: 400, it was never uploaded.
        """
        if not self.has(oid):
            raise HubError(400, f"Large file {oid} was not uploaded")
        size = (self.large / oid).stat().st_size
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()

    async def receive(self, oid: str, content: AsyncIterable[bytes]) -> None:
        """Keeps an upload; it takes its place only if its content is what its name says.

        Raises:
            HubError: 422, the content has another hash; 400, the name is no hash.
        """
        with self._incoming(oid) as write:
            async for chunk in content:
                write(chunk)

    def _part(self, oid: str, number: int) -> Path:
        """Where one part of an upload waits for the others."""
        if not SHA256.fullmatch(oid):
            raise HubError(400, f"Not a SHA-256: {oid}")
        return self.unfinished / f"{oid}.part{number}"

    async def receive_part(self, oid: str, number: int, content: AsyncIterable[bytes]) -> str:
        """Keeps one part of an upload and gives its MD5; parts that nobody came back for are removed."""
        for old in self.unfinished.glob("*.part*"):
            if old.stat().st_mtime < time.time() - PART_SECONDS:
                old.unlink(missing_ok=True)
        path, digest = self._part(oid, number), hashlib.md5(usedforsecurity=False)
        handle, name = tempfile.mkstemp(dir=self.unfinished)
        try:
            with open(handle, "wb") as file:
                async for chunk in content:
                    digest.update(chunk)
                    file.write(chunk)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
        return digest.hexdigest()

    def join_parts(self, oid: str, count: int) -> None:
        """Makes an upload of its parts, which are gone afterwards, whatever came of it.

        Raises:
            HubError: 422, a part is missing, or the content has another hash.
        """
        parts = [self._part(oid, number) for number in range(1, count + 1)]
        try:
            with self._incoming(oid) as write:
                for part in parts:
                    if not part.exists():
                        raise HubError(422, f"{part.name} was not uploaded")
                    with part.open("rb") as file:
                        while chunk := file.read(2**20):
                            write(chunk)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _incoming(self, oid: str):
        """A function to write an upload with, which is hashed on its way."""
        if not SHA256.fullmatch(oid):
            raise HubError(400, f"Not a SHA-256: {oid}")
        digest = hashlib.sha256()
        handle, name = tempfile.mkstemp(dir=self.unfinished)
        try:
            with open(handle, "wb") as file:

                def write(chunk: bytes) -> None:
                    digest.update(chunk)
                    file.write(chunk)

                yield write
            if digest.hexdigest() != oid:
                raise HubError(422, "The content has another SHA-256 than its name")
            os.replace(name, self.large / oid)
        finally:
            Path(name).unlink(missing_ok=True)

    def signature(self, act: str, oid: str) -> str:
        """What a link to a large file carries, so that only whom this Hub gave the link may follow it."""
        return hmac.new(self.secret, f"{act} {oid}".encode(), hashlib.sha256).hexdigest()

    def check(self, act: str, oid: str, signature: str) -> None:
        """Raises HubError, 403, where a link to a large file is not one that this Hub gave."""
        if not hmac.compare_digest(self.signature(act, oid), signature):
            raise HubError(403, "This link was not given by this Hub")


def yaml_block(text: str) -> dict | None:
    """The metadata at the head of a README.md; None where there is none.

    Raises:
        yaml.YAMLError: it isn't YAML.
    """
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def read_tokens(path: Path) -> dict[str, User]:
    """Who may do what, from a JSON file `{token: {"name": …, "write": true}}`; a new one has one writer, "local".

    Raises:
        OCTError: the file is not of that form.
    """
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(json.dumps({f"hf_{secrets.token_hex(16)}": {"name": "local", "write": True}}, indent=1))
    try:
        return {token: User(**about) for token, about in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        raise OCTError(f'{path}: expected {{token: {{"name": "someone", "write": true}}}}') from None
