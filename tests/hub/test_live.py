"""Publishing to huggingface.co itself, for whoever has a token: `make test-live`. No other test needs a network.

It makes one private repository of the name in OCT_HF_LIVE_REPO and deletes it at the end; one that exists is refused.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from oct_hf.hub.allowed import CODE

pytestmark = pytest.mark.live

LOAD = """
import json, sys, torch
from transformers import AutoModelForImageClassification
import timm
repo = sys.argv[1]
pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
def ask(model):
    with torch.inference_mode():
        answer = model.eval()(pixels)
    return getattr(answer, "logits", answer).softmax(-1).tolist()
load = AutoModelForImageClassification.from_pretrained
remote = load(repo, revision="remote-code", trust_remote_code=True)
print(json.dumps({
    "main": ask(load(repo)),
    "tag": ask(load(repo, revision="v1")),
    "timm": ask(timm.create_model("hf_hub:" + repo, pretrained=True)),
    "remote": ask(remote),
    "remote_class": type(remote).__module__,
}))
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """The repository's id, and the environment for clients of the Hub; the repository is gone afterwards."""
    token, repo = os.environ.get("HF_TOKEN"), os.environ.get("OCT_HF_LIVE_REPO")
    if not token or not repo:
        pytest.fail("make test-live needs HF_TOKEN (may write) and OCT_HF_LIVE_REPO=you/name", pytrace=False)
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}
    # In a process of its own, since this one has been told that it is offline.
    exists = "import sys; from huggingface_hub import HfApi; sys.exit(HfApi().repo_exists(sys.argv[1]))"
    if subprocess.run([sys.executable, "-c", exists, repo], env=environment).returncode:
        pytest.fail(f"{repo} exists, or can't be asked for; give a name that is free", pytrace=False)
    yield repo, environment
    delete = "import sys; from huggingface_hub import HfApi; HfApi().delete_repo(sys.argv[1], missing_ok=True)"
    subprocess.run([sys.executable, "-c", delete, repo], env=environment, check=True)


def publish(live, run, *options) -> subprocess.CompletedProcess:
    repo, environment = live
    command = [sys.executable, "-m", "oct_hf.cli", "publish", str(run), "--repo", repo, "--private", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert environment["HF_TOKEN"] not in done.stdout + done.stderr
    return done


def ask(live, code: str) -> dict:
    repo, environment = live
    done = subprocess.run([sys.executable, "-c", code, repo], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_push_a_second_push_and_what_they_leave(live, finished_run):
    first = publish(live, finished_run)
    assert first.returncode == 0 and re.search(r"files in one commit, tagged v1", first.stderr), first.stderr
    second = publish(live, finished_run)
    assert second.returncode == 0 and "nothing had changed" in second.stderr, second.stderr
    seen = ask(
        live,
        """
import json, sys
from huggingface_hub import HfApi
api, repo = HfApi(), sys.argv[1]
refs, about = api.list_repo_refs(repo), api.model_info(repo)
print(json.dumps({
    "private": about.private, "sha": about.sha, "pipeline_tag": about.pipeline_tag,
    "branches": sorted(b.name for b in refs.branches), "tags": {t.name: t.target_commit for t in refs.tags},
    "commits": len(api.list_repo_commits(repo)), "files": api.list_repo_files(repo),
    "code": api.list_repo_files(repo, revision="remote-code"),
}))
""",
    )
    assert seen["private"] and seen["pipeline_tag"] == "image-classification" and seen["commits"] == 2
    assert seen["branches"] == ["main", "remote-code"] and seen["tags"] == {"v1": seen["sha"]}
    written = {p.relative_to(finished_run / "model").as_posix() for p in (finished_run / "model").rglob("*.*")}
    assert set(seen["files"]) == written | {".gitattributes"}
    assert set(seen["code"]) == set(seen["files"]) | set(CODE)


def test_every_loader_reads_it_and_gives_the_same(live, finished_run):
    publish(live, finished_run)
    answers = ask(live, LOAD)
    for name in ("tag", "timm", "remote"):
        assert np.abs(np.subtract(answers[name], answers["main"])).max() <= 1e-6, name
    assert answers["remote_class"].startswith("transformers_modules.")


def test_everything_that_it_says_of_itself_holds(live, finished_run):
    publish(live, finished_run)
    repo, environment = live
    command = [sys.executable, "-m", "oct_hf.cli", "verify", repo]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "everything that was checked holds" in done.stdout, done.stdout + done.stderr


def test_what_is_refused_is_one_line(live, finished_run):
    repo, environment = live
    stolen = publish((repo, environment | {"HF_TOKEN": "hf_nobody_has_this_token"}), finished_run)
    assert stolen.returncode == 2 and len(stolen.stderr.splitlines()) == 1, stolen.stderr
    illegal = publish((f"{repo}--x", environment), finished_run)
    assert illegal.returncode == 2 and "is no repository id" in illegal.stderr, illegal.stderr


def test_a_gate_is_set(live, finished_run):
    done = publish(live, finished_run, "--gated", "manual")
    assert done.returncode == 0, done.stderr
    code = "import sys; from huggingface_hub import HfApi; print(f'\"{HfApi().model_info(sys.argv[1]).gated}\"')"
    assert ask(live, code) == "manual"
