"""Each request of a push meets each fault: the real client and the real Hub, with harm done on the way between them."""

import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from pathlib import Path

import pytest
from faults import FAULTS, Proxy, free_port, start_hub

from oct_hf.hub.local import running
from oct_hf.hub.local.accounts import User
from oct_hf.hub.local.bare_git import Repository
from oct_hf.hub.local.pointers import LARGE
from oct_hf.hub.publish import contents, with_code

TOKEN = "hf_ThisTokenMustNeverBeSeen"


@pytest.fixture(scope="module")
def small_run(finished_run, tmp_path_factory) -> Path:
    """A finished run without its pictures, so that a push has few requests: three large files, the rest small ones."""
    folder = tmp_path_factory.mktemp("faults") / "run" / "model"
    shutil.copytree(finished_run / "model", folder)
    for picture in folder.rglob("*.png"):
        picture.unlink()
    return folder.parent


class Bench:
    """A Hub, a proxy before it, and a process that publishes one run through them."""

    def __init__(self, root: Path, run: Path, proxy: Proxy):
        self.root, self.run, self.proxy = root, run, proxy
        self.log = root / "client.log"
        self.names = (f"r{number}" for number in itertools.count())
        self._before = self._fingerprint()
        self.environment = {
            **os.environ,
            "HF_HOME": str(root / "home"),
            "HF_ENDPOINT": f"http://127.0.0.1:{proxy.port}",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
        }
        self._errors = self.log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("pushing.py"))],
            env=self.environment | {"HF_DEBUG": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def push(self, name: str, plan=lambda number, method, path: None, **options) -> dict:
        """What a push says; `plan` as the proxy's, counted from this push's first request."""
        self.proxy.seen.clear()
        self.proxy.plan = plan
        self._process.stdin.write(json.dumps({"run": str(self.run), "repo": f"clinic/{name}", **options}) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        assert "defect" not in said, said["defect"]
        assert "\n" not in said.get("refused", "") and TOKEN not in json.dumps(said), said
        return said

    def command(self, name: str, *options: str) -> list[str]:
        run = str(self.run)
        return [sys.executable, "-m", "oct_hf.cli", "publish", run, "--repo", f"clinic/{name}", *options]

    def repository(self, name: str) -> Repository:
        return Repository(self.root / "hub" / "models" / "clinic" / f"{name}.git")

    def held(self, name: str, ref: str) -> dict[str, str] | None:
        """Files of a branch with the hash of their content; None where there is no such branch."""
        repository = self.repository(name)
        if not repository.path.exists() or repository.git("rev-parse", "-q", "--verify", ref, check=False) is None:
            return None
        files = {entry["path"]: (entry.get("lfs") or entry)["oid"] for entry in repository.files(ref)}
        assert files.pop(".gitattributes")
        return files

    def wanted(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """What main and remote-code hold once a push is through."""
        main = contents(self.run / "model", f"clinic/{name}")
        return _hashes(main), _hashes(with_code(main))

    def check_whole(self, name: str) -> None:
        """Every branch is where it was or where it should be, and the run is as it was."""
        main, code = self.wanted(name)
        assert self.held(name, "refs/heads/main") in (None, {}, main)
        assert self.held(name, "refs/heads/remote-code") in (None, main, code)
        assert self._fingerprint() == self._before

    def check_finished(self, name: str) -> None:
        """Everything is there, once: two commits of ours, one tag."""
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


@pytest.fixture(scope="module")
def bench(small_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    hub_port, port = free_port(), free_port()
    with (
        Proxy(port, hub_port) as proxy,
        running(root / "hub", {TOKEN: User("clinic")}, hub_port, address=f"http://127.0.0.1:{port}"),
    ):
        bench = Bench(root, small_run, proxy)
        bench.push("unharmed")
        yield bench
        bench.close()
        said = bench.log.read_text()
        assert TOKEN not in said and "<TOKEN>" in said  # huggingface_hub has written its requests down, without it


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


def empty_large(bench: Bench) -> None:
    """The next push is one with large files to send."""
    for file in (bench.root / "hub" / "large").iterdir():
        file.unlink()


def requests_of_a_push(bench: Bench) -> list[str]:
    empty_large(bench)
    name = next(bench.names)
    assert bench.push(name)["tag"] == "v1"
    bench.check_finished(name)
    return [kind(*request) for request in bench.proxy.seen]


def one_case(bench: Bench, index: int, fault: str, every_time: bool) -> str:
    """A push whose request number `index` meets a fault, once or at every try; says how it ended."""
    name = next(bench.names)
    empty_large(bench)
    target = None

    def plan(number: int, method: str, path: str):
        nonlocal target
        if number == index:
            target = (method, path)
        harmed = number >= index and (method, path) == target if every_time else number == index
        return fault if harmed else None

    said = bench.push(name, plan)
    case = f"{fault} at {target}{' every time' if every_time else ''}: {said}"
    assert target, case
    bench.check_whole(name)
    if "refused" not in said:
        bench.check_finished(name)
        assert said["tag"] == "v1", case
        return "finished"
    assert every_time, case
    assert f"oct-hf publish {bench.run} --repo clinic/{name}" in said["refused"], case
    arrived = bench.arrived()
    assert "refused" not in bench.push(name), case
    bench.check_finished(name)
    assert not bench.sent() & arrived, case
    return "refused, then finished"


def harmful(request: str, fault: str) -> bool:
    return fault != "cut upload" or not request.startswith("GET")


def first_of_each_kind(requests: list[str]) -> list[int]:
    kinds = [re.sub("(main|remote-code|%2F|[0-9a-f]{40})$", "REVISION", request) for request in requests]
    return [number for number, name in enumerate(kinds) if name not in kinds[:number]]


def run_matrix(bench: Bench, indices, faults, every_time: bool, requests: list[str]) -> Counter:
    cases = [(i, fault) for i in indices for fault in faults if harmful(requests[i], fault)]
    return Counter(one_case(bench, i, fault, every_time) for i, fault in cases)


def test_a_push_goes_through_when_any_kind_of_request_meets_any_fault_once(bench):
    requests = requests_of_a_push(bench)
    kinds = first_of_each_kind(requests)
    ended = run_matrix(bench, kinds, FAULTS, False, requests)
    assert set(ended) == {"finished"} and ended.total() >= 90, ended


def test_a_push_that_meets_a_fault_at_every_try_ends_in_one_line_and_the_next_one_completes_it(bench):
    requests = requests_of_a_push(bench)
    ended = run_matrix(bench, first_of_each_kind(requests), ("500", "cut after"), True, requests)
    # Where the Hub acts and only its answer is lost, a push may find that it was heard: at the commit, for one.
    assert ended["refused, then finished"] >= 18 and ended["finished"] >= 2, ended


@pytest.mark.slow
def test_every_request_meets_every_fault_once_and_at_every_try(bench):
    requests = requests_of_a_push(bench)
    once = run_matrix(bench, range(len(requests)), FAULTS, False, requests)
    every_time = run_matrix(bench, range(len(requests)), FAULTS, True, requests)
    print(f"{len(requests)} requests: {requests}; once: {once}; at every try: {every_time}")
    assert set(once) == {"finished"} and once.total() + every_time.total() >= 300


def at_first(wanted: str, fault):
    """A plan that harms the first request whose kind begins so."""
    met = []

    def plan(number: int, method: str, path: str):
        if kind(method, path).startswith(wanted) and not met:
            met.append(number)
            return fault
        return None

    return plan


def move(bench: Bench, name: str, branch: str) -> None:
    """Somebody else commits."""
    bench.repository(name).commit(branch, User("clinic"), "somebody's", {"notes.md": b"x"}, [])


def test_a_commit_of_somebody_else_between_two_tries_is_not_overwritten(bench):
    for name, fault in (("moved-before", "cut"), ("moved-after", "cut after")):
        name = f"{next(bench.names)}-{name}"
        harmed = at_first("POST /api/models/REPO/commit/main", fault)

        def plan(number, method, path, name=name, harmed=harmed):
            # The next request after the harmed commit asks where the branch is.
            if bench.proxy.seen and "/commit/main" in bench.proxy.seen[-1][1]:
                move(bench, name, "main")
            return harmed(number, method, path)

        said = bench.push(name, plan)
        assert "somebody else committed meanwhile (412)" in said["refused"], said
        assert "notes.md" in bench.held(name, "refs/heads/main")


def test_a_pull_request_whose_answer_was_lost_is_opened_once(bench):
    for fault in ("cut", "cut after", "cut answer", "500 after", "stall after"):
        name = next(bench.names)
        said = bench.push(name, at_first("POST /api/models/REPO/commit/main", fault), create_pr=True)
        assert said["url"].endswith("/discussions/1"), said
        assert [ref for ref, _ in bench.repository(name).refs()] == ["refs/heads/main", "refs/pr/1"]
        assert bench.held(name, "refs/pr/1") == bench.wanted(name)[0] and bench.held(name, "refs/heads/main") == {}


def test_a_wait_that_the_hub_asks_for_is_kept_and_one_too_long_is_a_reason_to_stop(bench):
    try:
        bench.proxy.retry_after = "1"
        name = next(bench.names)
        began = time.monotonic()
        assert bench.push(name, at_first("POST /api/models/REPO/commit/main", "429"))["tag"] == "v1"
        assert time.monotonic() - began >= 1
        bench.proxy.retry_after = "86400"
        said = bench.push(next(bench.names), at_first("POST /api/models/REPO/commit/main", "429"))
    finally:
        bench.proxy.retry_after = "0"
    assert "answered 429 and asks to wait 86400 s; run it again" in said["refused"]


def test_a_gate_stands_before_there_is_anything_to_download(bench):
    name = next(bench.names)
    said = bench.push(name, at_first("POST /api/models/REPO/commit/main", "cut"), gated="manual", tries=1)
    assert "--gated manual" in said["refused"]
    assert bench.repository(name).gated == "manual" and bench.held(name, "refs/heads/main") == {}
    assert bench.push(name, gated="manual")["tag"] == "v1"
    assert not [path for _, path in bench.proxy.seen if path.endswith("/settings")]  # it is as it should be


def test_a_second_push_asks_little_and_sends_nothing(bench):
    name = next(bench.names)
    bench.push(name)
    assert bench.push(name) == {"done": None, "tag": None, "url": bench.push(name)["url"]}
    assert len(bench.proxy.seen) == 5 and {method for method, _ in bench.proxy.seen[1:]} == {"GET"}


def test_ctrl_c_ends_a_push_that_hangs_at_once_and_the_next_one_completes_it(bench):
    empty_large(bench)
    name = next(bench.names)
    bench.proxy.seen.clear()
    bench.proxy.plan = lambda number, method, path: "stall" if method == "PUT" else None
    push = subprocess.Popen(bench.command(name), env=bench.environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(bench.sent()) == 3)
    push.send_signal(signal.SIGINT)
    _, said = push.communicate(timeout=20)  # the client would wait 60 seconds for each upload
    assert push.returncode == 130 and said.splitlines() == ["stopped; the same command goes on where it was"], said
    bench.check_whole(name)
    bench.proxy.plan = lambda number, method, path: None
    done = subprocess.run(bench.command(name), env=bench.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bench.check_finished(name)


def wait_for(happened) -> None:
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_push_writes_nothing_on_this_machine(bench):
    def nothing() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    empty_large(bench)
    bench.proxy.plan = lambda number, method, path: None
    name = next(bench.names)
    environment = bench.environment | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(bench.command(name), env=environment, capture_output=True, text=True, preexec_fn=nothing)
    assert done.returncode == 0, done.stderr
    bench.check_finished(name)


def test_bars_are_for_terminals_and_a_log_gets_one_line(bench):
    empty_large(bench)
    bench.proxy.plan = lambda number, method, path: None
    name = next(bench.names)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    push = subprocess.Popen(bench.command(name), env=bench.environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = read_all(ours)
    push.communicate()
    assert push.returncode == 0 and "Ctrl-C stops it" in shown and "model.safetensors: 100%" in shown, shown
    empty_large(bench)
    name = next(bench.names)
    done = subprocess.run(bench.command(name), env=bench.environment, capture_output=True, text=True)
    assert re.fullmatch(r"\d+ files in one commit, tagged v1\n", done.stderr), done.stderr


def read_all(terminal: int) -> str:
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # Linux says that the other side is closed in this way
        pass
    os.close(terminal)
    return shown.decode()


def test_what_a_user_can_mend_is_one_line_and_exit_code_2(bench, tmp_path):
    bench.proxy.plan = lambda number, method, path: None
    own = bench.environment
    none = {key: value for key, value in own.items() if key != "HF_TOKEN"} | {"HF_HOME": str(tmp_path)}
    bench.push("taken")
    bench.repository("taken").commit("main", User("clinic"), "x", {"thesis.md": b"x"}, list(bench.wanted("taken")[0]))
    dead = own | {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    cases = (
        ("no token: run `hf auth login`", none, bench.command("none")),
        ("not allowed (401)", own | {"HF_TOKEN": "hf_stolen"}, bench.command("stolen")),
        ("holds something else (thesis.md", own, bench.command("taken")),
        ("is no repository id (you/name)", own, bench.command("no spaces")),
        ("can't be reached", dead, bench.command("dead", "--tries", "1")),
        ("offline mode is enabled", own | {"HF_HUB_OFFLINE": "1"}, bench.command("offline")),
        ("expected auto or manual", own, bench.command("gate", "--gated", "perhaps")),
    )
    for text, environment, command in cases:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert text in done.stderr and done.stderr.startswith("error: "), done.stderr
        assert TOKEN not in done.stderr and "hf_stolen" not in done.stderr and not done.stdout


@pytest.fixture
def killable(small_run, tmp_path):
    """A bench whose Hub is a process, and what kills it and starts it again on the same folder."""
    hub_port, port = free_port(), free_port()
    root = tmp_path / "hub"
    root.mkdir()
    (root / "tokens.json").write_text(json.dumps({TOKEN: {"name": "clinic"}}))
    hubs = [start_hub(root, hub_port, "--address", f"http://127.0.0.1:{port}")]

    def kill_and_restart() -> None:
        hubs[-1].kill()
        hubs[-1].communicate()
        hubs.append(start_hub(root, hub_port, "--address", f"http://127.0.0.1:{port}"))

    with Proxy(port, hub_port) as proxy:
        bench = Bench(tmp_path, small_run, proxy)
        yield bench, kill_and_restart
        bench.close()
    hubs[-1].kill()
    hubs[-1].communicate()


def check_killed_at(bench: Bench, kill_and_restart, index: int, wait: float) -> None:
    def killed() -> None:
        time.sleep(wait)
        kill_and_restart()

    empty_large(bench)
    name = next(bench.names)
    # The connection is cut when the Hub is back, and a start takes a second.
    said = bench.push(name, lambda number, method, path: killed if number == index else None, stall_s=30)
    assert said.get("tag") == "v1", (index, said)
    bench.check_whole(name)
    bench.check_finished(name)


def test_a_push_outlives_a_hub_that_is_killed_and_restarted(killable):
    bench, kill_and_restart = killable
    requests = requests_of_a_push(bench)
    for wanted in ("PUT", "POST /api/models/REPO/commit/main", "POST /api/models/REPO/tag"):
        index = next(number for number, request in enumerate(requests) if request.startswith(wanted))
        check_killed_at(bench, kill_and_restart, index, wait=0.01)


@pytest.mark.slow
def test_a_hub_may_be_killed_at_any_request_and_serves_whole_repositories_when_it_is_back(killable):
    bench, kill_and_restart = killable
    for index in range(len(requests_of_a_push(bench))):
        for wait in (0, 0.02):
            check_killed_at(bench, kill_and_restart, index, wait)
