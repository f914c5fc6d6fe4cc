"""A run pushed again and again through a proxy that does harm, and what a push must leave behind."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from faults import Proxy

from oct_hf.hub.local.bare_git import Repository
from oct_hf.hub.local.pointers import LARGE
from oct_hf.hub.publish import contents, with_code

TOKEN = "hf_ThisTokenMustNeverBeSeen"


class Bench:
    """A Hub, a proxy before it, and a process that publishes one run through them.

    Attributes:
        names: of repositories that aren't there yet.
        stall_s: silence that tells a stalled Hub from a busy machine, in seconds; `push_anew` finds it out.
    """

    def __init__(self, root: Path, run: Path, proxy: Proxy):
        self.root, self.run, self.proxy = root, run, proxy
        self.log = root / "client.log"
        self.names = (f"r{number}" for number in itertools.count())
        self.stall_s = 0.5
        self._before = self._fingerprint()
        self.environment = {
            **os.environ,
            "HF_HOME": str(root / "home"),
            "HF_ENDPOINT": f"http://127.0.0.1:{proxy.port}",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
        }
        self._process = self._card = None

    def _make_ready(self) -> None:
        if self._process:
            return
        with self.log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("pushing.py"))],
                env=self.environment | {"HF_DEBUG": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.push("unharmed")  # what a client asks only once belongs to no other push

    def close(self) -> None:
        if self._process:
            self._process.stdin.close()
            self._process.wait()
            said = self.log.read_text()
            # huggingface_hub has written its requests down, without the token
            assert TOKEN not in said and "<TOKEN>" in said

    def push(self, name: str, plan=lambda number, method, path: None, **options) -> dict:
        """What a push says; `plan` as the proxy's, counted from this push's first request."""
        self._make_ready()
        self.proxy.seen.clear()
        self.proxy.given_up.clear()
        self.proxy.plan = plan
        self._process.stdin.write(json.dumps({"run": str(self.run), "repo": f"clinic/{name}", **options}) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        assert "defect" not in said, said["defect"]
        assert "\n" not in said.get("refused", "") and TOKEN not in json.dumps(said), said
        return said

    def push_anew(self, plan=lambda number, method, path: None, stalls: bool = False, **options) -> tuple[str, dict]:
        """A push of everything to a new repository: its name, and what the push says.

        Where the plan has stalls, the client has little patience, which makes them short, but on a busy machine it may
        take slowness for one. The proxy sees when it leaves a request that nobody harmed: such a push tells nothing, so
        another one is made, with twice the patience from then on.
        """
        self._make_ready()
        while True:
            self.empty_large()
            name = next(self.names)
            said = self.push(name, plan, **options, **({"stall_s": self.stall_s} if stalls else {}))
            if stalls:
                self.proxy.settle()
            if not stalls or not self.proxy.given_up:
                return name, said
            self.stall_s *= 2
            assert self.stall_s < 60, self.proxy.given_up

    def empty_large(self) -> None:
        """The next push is one with large files to send."""
        for path in (self.root / "hub" / "large").iterdir():
            path.unlink()

    def requests_of_a_push(self) -> list[str]:
        """The kinds of requests that an unharmed push makes, in order."""
        name, said = self.push_anew()
        assert said["tag"] == "v1"
        self.check_finished(name)
        return [kind(*request) for request in self.proxy.seen]

    def command(self, name: str, *options: str) -> list[str]:
        run = str(self.run)
        return [sys.executable, "-m", "oct_hf.cli", "publish", run, "--repo", f"clinic/{name}", *options]

    def repository(self, name: str) -> Repository:
        return Repository(self.root / "hub" / "models" / "clinic" / f"{name}.git")

    def held(self, name: str, ref: str) -> dict[str, str] | None:
        """Files of a branch with the hash of their content; None where there is no such branch."""
        repository = self.repository(name)
        if not repository.path.exists() or repository.tried("rev-parse", "-q", "--verify", ref) is None:
            return None
        files = {entry["path"]: (entry.get("lfs") or entry)["oid"] for entry in repository.files(ref)}
        assert files.pop(".gitattributes")
        return files

    def wanted(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """What main and remote-code hold once a push is through."""
        if self._card is None:  # rendered once: that takes as long as the other checks of a push together
            main = contents(self.run / "model", "clinic/NAME")
            self._card, self._rest = main["README.md"], (_hashes(main), _hashes(with_code(main)))
        card = _hashes({"README.md": self._card.replace(b"clinic/NAME", f"clinic/{name}".encode())})
        main, code = self._rest
        return main | card, code | card

    def check_whole(self, name: str) -> None:
        """Every branch is where it was or where it should be, and the run is as it was."""
        main, code = self.wanted(name)
        assert self.held(name, "refs/heads/main") in (None, {}, main)
        assert self.held(name, "refs/heads/remote-code") in (None, main, code)
        assert self._fingerprint() == self._before

    def check_finished(self, name: str) -> None:
        """Everything is there, once: two commits of ours, one tag; and the run is as it was."""
        assert self._fingerprint() == self._before
        assert (self.held(name, "refs/heads/main"), self.held(name, "refs/heads/remote-code")) == self.wanted(name)
        repository = self.repository(name)
        assert len(repository.history("main")) == 2 and len(repository.history("remote-code")) == 3
        refs = dict(repository.refs())
        assert refs == {
            "refs/heads/main": refs["refs/heads/main"],
            "refs/heads/remote-code": refs["refs/heads/remote-code"],
            "refs/tags/v1": refs["refs/heads/main"],
        }
        assert repository.git("fsck", "--strict", "--no-dangling") is not None
        said = repository.git("log", "--all", "--format=%B %an %ae")
        assert TOKEN.encode() not in said and TOKEN.encode() not in repository.git("show", "main:README.md")

    def arrived(self) -> set[str]:
        return {path.name for path in (self.root / "hub" / "large").iterdir()}

    def sent(self) -> set[str]:
        """Large files that the last push sent or tried to send."""
        return {path.rpartition("/")[2] for method, path in self.proxy.seen if method == "PUT"}

    def _fingerprint(self) -> dict:
        files = (path for path in sorted(self.run.rglob("*")) if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def kind(method: str, path: str) -> str:
    """A request without what differs from one repository and file to the next."""
    return f"{method} {re.sub('/large/.*', '/large', re.sub('clinic/[^/.]+', 'REPO', path))}"


def _hashes(files: dict[str, Path | bytes]) -> dict[str, str]:
    hashes = {}
    for path, source in files.items():
        content = source if isinstance(source, bytes) else source.read_bytes()
        large = path.endswith(LARGE)
        hashes[path] = (
            hashlib.sha256(content).hexdigest()
            if large
            else hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        )
    return hashes
