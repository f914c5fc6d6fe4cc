"""The loopback Hub itself: what it keeps stays whole, whatever its clients and its disk do."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

import pytest
from faults import free_port, start_hub

from oct_hf.hub.local import running
from oct_hf.hub.local.accounts import User
from oct_hf.hub.local.bare_git import Repository
from oct_hf.hub.local.large_files import PART_SECONDS
from oct_hf.hub.local.store import Store

TOKENS = {"hf_writer": User("clinic"), "hf_other": User("other")}
PART = 2**20


class Hub:
    """A Hub on this process, and plain requests to it."""

    def __init__(self, root, port: int):
        self.root, self.address = root, f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, body=None, token: str | None = "hf_writer", raw: bytes | None = None):
        """Status and answer."""
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        where = path if path.startswith("http") else self.address + path
        request = urllib.request.Request(where, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def create(self, name: str) -> Repository:
        assert self.ask("POST", "/api/repos/create", {"name": name})[0] == 200
        return Repository(self.root / "models" / "clinic" / f"{name}.git")

    def commit(self, name: str, parent: str, content: str) -> int:
        lines = [
            {"key": "header", "value": {"summary": content, "parentCommit": parent}},
            {"key": "file", "value": {"path": "notes.md", "content": "eA==", "encoding": "base64"}},
        ]
        raw = "\n".join(json.dumps(line) for line in lines).encode()
        return self.ask("POST", f"/api/models/clinic/{name}/commit/main", raw=raw)[0]

    def offer(self, name: str, content: bytes) -> dict:
        """Where to send a large file."""
        wanted = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
        body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": [wanted]}
        status, answer = self.ask("POST", f"/clinic/{name}.git/info/lfs/objects/batch", body)
        assert status == 200
        return answer["objects"][0]["actions"]["upload"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root, port = tmp_path_factory.mktemp("hub"), free_port()
    with running(root, TOKENS, port, part_bytes=PART):
        yield Hub(root, port)


def client(hub: Hub, code: str, *arguments) -> str:
    """What a client's process prints."""
    home = {"HF_HOME": str(hub.root / "home"), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **home, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_writer"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_larger_than_a_part_arrives_in_parts_and_is_whole(hub, tmp_path):
    content = os.urandom(3 * PART + PART // 2)
    (tmp_path / "model.safetensors").write_bytes(content)
    code = """
import sys
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
api.create_repo("clinic/large")
api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo="model.safetensors", repo_id="clinic/large")
print(hf_hub_download("clinic/large", "model.safetensors"))
"""
    received = client(hub, code, tmp_path / "model.safetensors").split()[-1]
    with open(received, "rb") as file:
        assert file.read() == content
    assert list((hub.root / "unfinished").iterdir()) == []


def send_parts(hub: Hub, upload: dict, parts: list[bytes]) -> tuple[int, dict]:
    for number, part in enumerate(parts, 1):
        assert hub.ask("PUT", upload["header"][f"{number:05d}"], raw=part)[0] == 200
    return hub.ask("POST", upload["href"], {})


def test_a_damaged_or_missing_part_is_refused_and_leaves_nothing(hub):
    hub.create("damaged")
    content = os.urandom(2 * PART + 5)
    parts = [content[:PART], content[PART : 2 * PART], content[2 * PART :]]
    upload = hub.offer("damaged", content)
    for sent in ([parts[0], b"x" * PART, parts[2]], parts[:2]):
        status, answer = send_parts(hub, upload, sent)
        assert status == 422 and ("another SHA-256" in answer["error"] or "was not uploaded" in answer["error"])
        assert list((hub.root / "unfinished").iterdir()) == []
    assert send_parts(hub, upload, parts)[0] == 200
    assert (hub.root / "large" / hashlib.sha256(content).hexdigest()).read_bytes() == content


def test_parts_that_nobody_came_back_for_are_removed(hub):
    hub.create("abandoned")
    first, second = os.urandom(PART + 1), os.urandom(PART + 1)
    assert hub.ask("PUT", hub.offer("abandoned", first)["header"]["00001"], raw=first[:PART])[0] == 200
    (left,) = (hub.root / "unfinished").iterdir()
    os.utime(left, (time.time() - PART_SECONDS - 60,) * 2)
    assert send_parts(hub, hub.offer("abandoned", second), [second[:PART], second[PART:]])[0] == 200
    assert list((hub.root / "unfinished").iterdir()) == []


def test_a_link_of_this_hub_takes_no_other_content_than_it_was_given_for(hub):
    hub.create("swapped")
    upload = hub.offer("swapped", b"right")
    assert hub.ask("PUT", upload["href"], raw=b"wrong")[0] == 422
    assert hub.ask("PUT", upload["href"].partition("?")[0], raw=b"right")[0] == 403
    assert hub.ask("PUT", upload["href"], raw=b"right")[0] == 200


def test_of_commits_at_the_same_moment_one_wins_and_the_repository_stays_whole(hub):
    repository = hub.create("raced")
    parent = repository.resolve("main")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: hub.commit("raced", parent, f"push {number}"), range(8)))
    assert sorted(answers) == [200] + 7 * [412]
    assert len(repository.history("main")) == 2
    assert repository.git("fsck", "--strict", "--no-dangling") is not None


def test_of_two_creations_at_the_same_moment_one_wins(hub):
    with ThreadPoolExecutor(4) as pool:
        ask = lambda _: hub.ask("POST", "/api/repos/create", {"name": "twice"})  # noqa: E731
        answers = list(pool.map(ask, range(4)))
    assert sorted(status for status, _ in answers) == [200, 409, 409, 409]
    assert all(answer["url"].endswith("/clinic/twice") for _, answer in answers)


def test_others_are_answered_while_a_commit_waits(hub):
    repository = hub.create("slow")
    hook, gate = repository.path / "hooks" / "reference-transaction", repository.path / "gate"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f'#!/bin/sh\nwhile [ ! -e "{gate}" ]; do sleep 0.05; done\n')
    hook.chmod(0o755)
    answers = []
    commit = threading.Thread(
        target=lambda: answers.append(hub.commit("slow", repository.resolve("main"), "slow")), daemon=True
    )
    commit.start()
    try:
        assert hub.ask("GET", "/api/whoami-v2")[1]["name"] == "clinic"
        assert answers == []  # git still waits in its hook
    finally:
        gate.touch()
    commit.join()
    assert answers == [200]


def test_a_gated_repository_shows_its_files_and_gives_them_to_its_owner_alone(hub):
    code = """
import json
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("clinic/gated")
api.upload_file(path_or_fileobj=b"x", path_in_repo="a.md", repo_id="clinic/gated")
api.update_repo_settings("clinic/gated", gated="manual")
said = {"gated": api.model_info("clinic/gated").gated}
def fetch(name, token):
    try:
        HfApi(token=token).hf_hub_download("clinic/gated", "a.md")
        said[name] = HfApi(token=token).list_repo_files("clinic/gated")
    except Exception as error:
        said[name] = type(error).__name__
for name, token in (("other", "hf_other"), ("nobody", False), ("owner", "hf_writer")):
    fetch(name, token)
said["files"] = HfApi(token="hf_other").list_repo_files("clinic/gated")
api.update_repo_settings("clinic/gated", gated=False, private=False)
fetch("opened", False)
print(json.dumps(said))
"""
    files = [".gitattributes", "a.md"]
    assert json.loads(client(hub, code).splitlines()[-1]) == {
        "gated": "manual",
        "owner": files,
        "other": "GatedRepoError",
        "nobody": "GatedRepoError",
        "files": files,
        "opened": files,
    }
    assert hub.ask("PUT", "/api/models/clinic/gated/settings", {"gated": "maybe"})[0] == 400
    assert hub.ask("PUT", "/api/models/clinic/gated/settings", {"gated": False}, token="hf_other")[0] == 403


def test_what_a_killed_hub_left_half_written_stops_nobody(tmp_path):
    store = Store(tmp_path, TOKENS)
    store.create("model", TOKENS["hf_writer"], "left", private=False)
    path = tmp_path / "models" / "clinic" / "left.git"
    for lock in ("refs/heads/main.lock", "HEAD.lock", "packed-refs.lock"):
        (path / lock).touch()
    (tmp_path / "unfinished" / "tmpabc").write_bytes(b"half")
    repository = Repository(path)
    with pytest.raises(Exception, match="can't be moved now"):
        repository.commit("main", TOKENS["hf_writer"], "one", {"a.md": b"x"}, [])
    Store(tmp_path, TOKENS)
    repository.commit("main", TOKENS["hf_writer"], "one", {"a.md": b"x"}, [])
    assert list((tmp_path / "unfinished").iterdir()) == [] and not list(path.rglob("*.lock"))


def test_a_large_repository_is_listed_with_three_processes(tmp_path, monkeypatch):
    Store(tmp_path, TOKENS).create("model", TOKENS["hf_writer"], "many", private=False)
    repository = Repository(tmp_path / "models" / "clinic" / "many.git")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 7\n".encode()
    files = {f"folder/{number}.md": b"x" * number for number in range(50)} | {"deep/er/w.bin": pointer}
    commit, _ = repository.commit("main", TOKENS["hf_writer"], "many", files, [])
    calls, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: calls.append(args) or run(*args, **options))
    listed = {entry["path"]: entry for entry in repository.entries(commit)}
    assert len(calls) <= 3
    assert listed["deep/er/w.bin"]["size"] == 7 and listed["deep/er/w.bin"]["lfs"]["oid"] == "a" * 64
    assert listed["folder/49.md"]["size"] == 49 and "lfs" not in listed["folder/49.md"]
    assert [path for path, entry in listed.items() if entry["type"] == "directory"] == ["deep", "deep/er", "folder"]


def test_a_hub_with_a_full_disk_says_so_and_goes_on_once_there_is_room(finished_run, tmp_path):
    root, port = tmp_path / "hub", free_port()
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HUB_OFFLINE": "0",
    }
    push = [sys.executable, "-m", "oct_hf.cli", "publish", str(finished_run), "--repo", "local/tiny"]
    run = lambda: subprocess.run(push, env=environment, capture_output=True, text=True)  # noqa: E731
    # 20 kB: no room for weights; 2 kB: none for what git writes either
    for room in (20_000, 2_000):
        process = start_hub(root, port, file_bytes=room)
        try:
            environment["HF_TOKEN"] = next(iter(json.loads((root / "tokens.json").read_text())))
            done = run()
        finally:
            process.kill()
            process.communicate()
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "disk is full (507); publish again when there is room" in done.stderr
        for repository in (root / "models" / "local").glob("*.git"):
            assert Repository(repository).git("fsck", "--strict") is not None
        if room == 20_000:
            for file in (finished_run / "model").glob("*.safetensors"):
                (root / "large" / hashlib.sha256(file.read_bytes()).hexdigest()).write_bytes(file.read_bytes())
    process = start_hub(root, port, "--log")
    try:
        done = run()
        assert done.returncode == 0 and "tagged v1" in done.stderr, done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=20)
    lines = [line for line in log.splitlines() if re.match(r"(GET|POST|PUT) /", line)]
    assert len(lines) > 10 and environment["HF_TOKEN"] not in log and "key=" not in log and "?" not in "".join(lines)
