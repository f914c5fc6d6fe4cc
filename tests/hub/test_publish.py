"""Publishing and loading by repository id: the real clients, in processes of their own, against the loopback Hub."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np

LOAD = """
import json, os, sys
sys.modules["oct_hf"] = None
import huggingface_hub, timm, torch
from transformers import AutoModelForImageClassification, TimmWrapperForImageClassification, pipeline
repo, image = sys.argv[1:]
pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
def ask(model):
    with torch.inference_mode():
        answer = model.eval()(pixels)
    return getattr(answer, "logits", answer).softmax(-1).tolist()
remote = AutoModelForImageClassification.from_pretrained(repo, revision="remote-code", trust_remote_code=True)
print(json.dumps({
    "auto": ask(AutoModelForImageClassification.from_pretrained(repo)),
    "tag": ask(AutoModelForImageClassification.from_pretrained(repo, revision="v1")),
    "native": ask(TimmWrapperForImageClassification.from_pretrained(repo)),
    "timm": ask(timm.create_model("hf_hub:" + repo, pretrained=True)),
    "remote": ask(remote),
    "remote_class": type(remote).__module__,
    "pipeline": pipeline("image-classification", model=repo)(image),
    "files": sorted(
        os.path.relpath(os.path.join(top, name), snapshot)
        for snapshot in [huggingface_hub.snapshot_download(repo)]
        for top, _, names in os.walk(snapshot)
        for name in names
    ),
    "card": huggingface_hub.ModelCard.load(repo).data.pipeline_tag,
}))
"""

REFUSED = """
import json, sys
from huggingface_hub import HfApi
from oct_hf.hub import publish as module
from oct_hf.hub.patience import Patience
run, endpoint, dead = sys.argv[1:]
said = {}
def attempt(name, repo="clinic/refused", token="hf_writer", endpoint=endpoint, **options):
    try:
        module.publish(run, repo, token=token, endpoint=endpoint, **options)
        said[name] = "published"
    except module.PublishError as error:
        said[name] = str(error)
attempt("read only", token="hf_reader")
attempt("nobody's token", token="hf_stolen_secret")
attempt("another's name", token="hf_other")
attempt("illegal name", repo="clinic/no spaces")
api = HfApi(endpoint=endpoint, token="hf_writer")
api.create_repo("clinic/thesis")
api.upload_file(path_or_fileobj=b"x", path_in_repo="chapter.md", repo_id="clinic/thesis")
attempt("something else", repo="clinic/thesis")
commit = module.commit
def moved(api, repo, files, revision, *rest, **options):
    api.upload_file(path_or_fileobj=b"x", path_in_repo="notes.md", repo_id=repo, revision=revision)
    return commit(api, repo, files, revision, *rest, **options)
module.commit = moved
attempt("moved meanwhile", repo="clinic/moved")
module.commit = commit
attempt("no network", endpoint=dead, patience=Patience(tries=2, first_wait_s=0.01))
attempt("a broken token", token="hf_stolen_secret" + chr(10))
attempt("no account", repo="refused")
attempt("no such gate", gated="maybe")
said["left"] = {name: api.list_repo_files("clinic/" + name) for name in ("thesis", "moved")}
print(json.dumps(said))
"""


def call(environment, *command) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)


def test_one_push_is_one_commit_that_every_loader_reads(site, finished_run):
    log, environment = site.log, site.environment
    command = [sys.executable, "-m", "oct_hf.cli", "publish", finished_run, "--repo", "clinic/tiny"]
    first = call(environment, *command)
    assert first.returncode == 0 and "in one commit, tagged v1" in first.stderr, first.stderr
    commits = [path for method, path, _ in log if method == "POST" and "/commit/" in path]
    assert commits == ["/api/models/clinic/tiny/commit/main", "/api/models/clinic/tiny/commit/remote-code"]
    assert [entry for entry in log if entry[0] == "PUT"]
    log.clear()
    second = call(environment, *command)
    assert second.returncode == 0 and "nothing had changed" in second.stderr
    assert not [entry for entry in log if entry[0] == "PUT" or "/commit/" in entry[1]]

    image = finished_run / "model" / "examples" / "DME.png"
    loaded = call(environment, sys.executable, "-c", LOAD, "clinic/tiny", image)
    assert loaded.returncode == 0, loaded.stderr
    answers = json.loads(loaded.stdout.splitlines()[-1])
    for name in ("tag", "native", "timm", "remote"):
        assert np.abs(np.subtract(answers[name], answers["auto"])).max() <= 1e-6, name
    assert answers["remote_class"].startswith("transformers_modules.")
    assert {a["label"] for a in answers["pipeline"]} == {"CNV", "DME", "DRUSEN", "NORMAL"}
    written = {p.relative_to(finished_run / "model").as_posix() for p in (finished_run / "model").rglob("*.*")}
    assert set(answers["files"]) == written | {".gitattributes"} and answers["card"] == "image-classification"


def test_what_is_refused_is_one_line_without_the_token_and_changes_nothing(site, finished_run):
    address, environment = site.address, site.environment
    before = {p: p.read_bytes() for p in (finished_run / "model").rglob("*") if p.is_file()}
    done = call(environment, sys.executable, "-c", REFUSED, finished_run, address, "http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for name, text in {
        "read only": "needs write access",
        "nobody's token": "valid token",
        "another's name": "needs write access",
        "illegal name": "is no repository id",
        "something else": "holds something else (chapter.md",
        "moved meanwhile": "somebody else committed meanwhile",
        "no network": "can't be reached",
        "a broken token": "copy it again",
        "no account": "is no repository id (you/name)",
        "no such gate": "expected auto or manual",
    }.items():
        assert text in said[name] and "\n" not in said[name] and "secret" not in said[name], (name, said[name])
    assert said["left"] == {"thesis": [".gitattributes", "chapter.md"], "moved": [".gitattributes", "notes.md"]}
    assert before == {p: p.read_bytes() for p in (finished_run / "model").rglob("*") if p.is_file()}


def test_a_private_repository_is_absent_for_everybody_else(site, finished_run):
    environment = site.environment
    code = """
import json, sys
from huggingface_hub import HfApi
from oct_hf.hub.publish import publish
publish(sys.argv[1], "clinic/secret", token="hf_writer", private=True)
seen = {}
for name, token in (("owner", "hf_writer"), ("other", "hf_other"), ("nobody", False)):
    try:
        seen[name] = HfApi(token=token).model_info("clinic/secret").private
    except Exception as error:
        seen[name] = type(error).__name__
print(json.dumps(seen))
"""
    done = call(environment, sys.executable, "-c", code, finished_run)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen == {"owner": True, "other": "RepositoryNotFoundError", "nobody": "RepositoryNotFoundError"}


def test_a_push_that_stopped_before_its_tag_gets_it_from_the_next_one(site, finished_run):
    code = """
import sys
from huggingface_hub import HfApi
from oct_hf.hub.publish import publish
first = publish(sys.argv[1], "clinic/cut")
HfApi().delete_tag("clinic/cut", tag=first.tag)
second = publish(sys.argv[1], "clinic/cut")
assert (first.tag, second.tag, second.commit) == ("v1", "v1", None), (first, second)
assert publish(sys.argv[1], "clinic/cut").tag is None
"""
    done = call(site.environment, sys.executable, "-c", code, finished_run)
    assert done.returncode == 0, done.stderr


def test_a_pull_request_leaves_main_as_it_was_and_says_what_it_can_not_carry(site, finished_run):
    environment = site.environment
    command = [sys.executable, "-m", "oct_hf.cli", "publish", finished_run, "--repo", "clinic/asked", "--create-pr"]
    done = call(environment, *command)
    assert done.returncode == 0 and "/clinic/asked/discussions/1" in done.stdout, done.stderr
    assert "tag and remote-code branch come when" in done.stderr
    code = """
import json
from huggingface_hub import HfApi
api = HfApi()
refs = api.list_repo_refs("clinic/asked")
files = {r: api.list_repo_files("clinic/asked", revision=r) for r in ("main", "refs/pr/1")}
print(json.dumps([files, [b.name for b in refs.branches], refs.tags]))
"""
    files, branches, tags = json.loads(call(environment, sys.executable, "-c", code).stdout)
    assert files["main"] == [".gitattributes"] and "model.safetensors" in files["refs/pr/1"]
    assert branches == ["main"] and tags == []


def test_an_unfinished_run_is_not_published(site, tmp_path):
    done = call(site.environment, sys.executable, "-m", "oct_hf.cli", "publish", tmp_path, "--repo", "clinic/none")
    assert done.returncode == 2 and "is no finished run" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_pickle_is_not_published_whatever_it_is_called(site, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    publish = [sys.executable, "-m", "oct_hf.cli", "publish", run, "--repo", "clinic/pickled"]
    site.log.clear()
    for name in ("training_args.bin", "extra.json"):
        (run / "model" / name).write_bytes(pickle.dumps({"lr": 1}))
        done = call(site.environment, *publish)
        assert done.returncode == 2 and name in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        (run / "model" / name).unlink()
    assert site.log == []
    # Weights of another runtime, and what only begins like a pickle, are no pickles.
    (run / "model" / "openvino.bin").write_bytes(b"." + bytes(range(256)))
    assert call(site.environment, *publish).returncode == 0


def test_a_dry_run_lists_files_and_sends_nothing(site, finished_run):
    log, environment = site.log, site.environment
    log.clear()
    command = [sys.executable, "-m", "oct_hf.cli", "publish", finished_run, "--repo", "clinic/dry", "--dry-run"]
    done = call(environment, *command)
    assert done.returncode == 0 and "model.safetensors" in done.stdout and log == []
