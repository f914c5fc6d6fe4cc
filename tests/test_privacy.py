"""Every verb on files that name patients, with the network watched: what comes out, to whom, and what is sent.

The verbs run once (all_verbs.py), in a network of their own (watched.py), on a clinic whose files name a patient
wherever a file can (planted.py), with a token in the environment; then all that they wrote and said is searched. With
`--every-case` the verbs that train once more are run too, and each verb is a process of its own.
"""

import base64
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import planted
import pyarrow as arrow
import pytest
import typer
from pyarrow import parquet
from watched import needs_a_network_of_its_own, watch

from oct_hf.cli import app

TOP = Path(__file__).parents[1]
NAMELESS = pytest.mark.promise(
    "No name, id or birth date inside a clinic's files comes out of a verb, save in its own copies of these files."
)
UNPUBLISHED = pytest.mark.promise(
    "Nothing that is published names a patient, a file or folder of the clinic, or a place on its machine."
)
TOKEN_KEPT = pytest.mark.promise("The Hub's token is neither printed nor written by any verb.")
SILENT = pytest.mark.promise(
    "No verb talks to anybody but the Hub that it is told, and no library beneath sends telemetry."
)

TOKEN = "hf_ThisTokenMustNeverBeSeen"
MACHINE = "PathOfThisMachine"  # the folder in which all of it happens
TINY = ["base=test_efficientnet", "weights=random", "image_size=64", "epochs=1", "batch_size=8", "workers=0"]
TINY += ["freeze_epochs=0", "split.validation=0.3", "split.test=0.3", "evaluation.explain=1"]
DATA = ["--data", "SecretClinic"]
PICTURE = "SecretClinic/DME/Zitterbacke_19330102_0/PID0815_0.jpg"
WEB_RUNTIME = TOP / "tests/node/node_modules/onnxruntime-web"
FREE = "data.license=cc-by-4.0"
TRACKERS = "report_to=[trackio,tensorboard,wandb]"  # on this machine, where nobody has asked for more
SMALL = ["--images", "2", "--epochs", "1", "--image-size", "32", "--width", "8", "--steps", "2"]

STEPS = {
    "info": ["info"],
    "list": ["data", "list"],
    "prepare": ["data", "prepare", "SecretClinic"],
    "shards": ["data", "prepare", "SecretClinic", "--out", "shards"],
    "check": ["data", "check", "SecretClinic"],
    "check spoilt": ["data", "check", "spoilt"],
    "show": ["data", "show", "SecretClinic", "--out", "show.html"],
    "finetune": ["finetune", "folder", *DATA, *TINY, FREE, "--out", "run"],
    "evaluate": ["evaluate", "run", *DATA, "data.title=Other", "--record", "--out", "evaluated.parquet"],
    "adapt": ["adapt", "run", *DATA, "--out", "adapted"],
    "predict": ["predict", "SecretClinic", "spoilt", "-m", "run", "--out", "answers.csv", "--en-face", "fundus"],
    "predict on torch": ["predict", "SecretClinic", "spoilt", "-m", "run", "--backend", "torch"],
    "explain": ["explain", PICTURE, "spoilt", "-m", "run", "--out", "heat"],
    "export": ["export", "run", "--to", "openvino"],
    "export int8": ["export", "run", "--to", "onnx-int8", *DATA, "--out", "int8"],
    "predict on openvino": ["predict", PICTURE, "-m", "run", "--backend", "openvino"],
    "page": ["page", "run", "--out", "page", "--runtime", str(WEB_RUNTIME)],
    "publish": ["publish", "run", "--repo", "clinic/oct"],
    "publish-data": ["publish-data", "folder", *DATA, *TINY, FREE, "--repo", "clinic/data"],
    "verify": ["verify", "clinic/oct", *DATA],
    "space": ["app", "clinic/oct", "--space", "space"],
    "serve": ["serve", "run", "--port", "0"],
    "app": ["app", "run", "--port", "0"],
}
# Those that train again, which takes its time.
MORE = {
    "finetune another": ["finetune", "folder", *DATA, *TINY, "train.seed=5", TRACKERS, "--out", "run2"],
    "predict on ray": ["predict", "SecretClinic", "-m", "run", "--engine", "ray", "--out", "answers.parquet"],
    "compare": ["compare", "run", "run2", "--figure", "figure.png", "--permutations", "100"],
    "ensemble": ["ensemble", "run", "run2", *DATA, "--out", "mean"],
    "folds": ["finetune", "folder", *DATA, *TINY, "--folds", "2", "--out", "folds"],
    "labels": ["data", "labels", "SecretClinic", *TINY, "--folds", "2", "--out", "labels"],
    "tune": ["tune", "folder", *DATA, *TINY, "--trials", "1", "--folds", "2", "--out", "tuned"],
    "rerun": ["finetune", "--rerun", "clinic/oct", *DATA, "--out", "again"],
    "generate": ["generate", "folder", *DATA, *TINY, *SMALL, "--out", "drawn"],
}
SERVERS = ("serve", "app")
# Exit codes that aren't 0: a folder of nothing but broken files is refused; servers end by a signal.
ENDS = {"check spoilt": 2, "serve": 130, "app": 130, "hub": 130}

# Copies of the clinic's files for work at home, as they are (docs/data.md): they hold what the files hold.
COPIES = ("shards", ".home/.cache/huggingface/datasets")
# What goes out, or is made to be put up by hand. A Hub's own list of tokens is its owner's.
PUBLISHED = (
    "hub",
    "page",
    "space",
    "int8",
    "adapted",
    "run/model",
    "run2/model",
    "mean/model",
    "again/model",
    "tuned/best/model",
)
OWNERS = ("hub/tokens.json", "said/hub.out")
# What names the user's files because that is what it is for, or repeats the command: all of it stays at home, as does
# where wandb keeps on this machine what the user may send later.
FOR_THE_USER = (
    "answers.csv", "answers.parquet", "heat", "show.html", "drawn", "tuned", "folds", "labels", ".home", "said",
    "run/run.json", "run2/run.json", "mean/run.json", "again/run.json", "run2/log/wandb",
)  # fmt: skip


@dataclass
class Done:
    """Where the verbs ran, how each ended, and what left the machine."""

    folder: Path
    codes: dict[str, int]
    left: list[str]

    def found(self, secrets: tuple[str, ...], places: tuple[str, ...] = (), but: tuple[str, ...] = ()) -> list[str]:
        """Where a secret stands in what came out: in those places, or everywhere but in some."""
        given = ("SecretClinic", "spoilt", "plan.json", "codes.json", "left.json")
        paths = [self.folder / name for name in places] or [
            one for one in self.folder.iterdir() if one.name not in given
        ]
        return [hit for path in paths if path.exists() for hit in planted.found(secrets, path, self.folder, but)]


@pytest.fixture(scope="module")
def done(tmp_path_factory, request) -> Done:
    needs_a_network_of_its_own()
    every = request.config.getoption("--every-case")
    folder = tmp_path_factory.mktemp("privacy") / MACHINE
    folder.mkdir()
    planted.clinic(folder), planted.spoilt(folder / "spoilt")
    (folder / "hub").mkdir()
    (folder / "hub/tokens.json").write_text(json.dumps({TOKEN: {"name": "clinic", "write": True}}))
    steps = [{"name": name, "words": words} for name, words in (STEPS | (MORE if every else {})).items()]
    steps = [one | ({"ask": PICTURE} if one["name"] in SERVERS else {}) for one in steps if possible(one["name"])]
    hub = ["hub", "--root", "hub", "--port", "0", "--log"]
    (folder / "plan.json").write_text(json.dumps({"hub": hub, "steps": steps, "anew": every}))
    # As on a user's machine: nothing that this one's owner, or these tests, have turned off beforehand.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OCT_", "NO_ALB", "GRADIO", "RAY_"))}
    own |= {"HOME": str(folder / ".home"), "HF_TOKEN": TOKEN, "HF_DEBUG": "1"}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TOP), own.get("PYTHONPATH"))))
    command = [sys.executable, TOP / "tests/all_verbs.py", "plan.json"]
    ended, left = watch(command, folder / "left.json", own, cwd=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Done(folder, json.loads((folder / "codes.json").read_text()), left)


def possible(name: str) -> bool:
    """Whether what a step needs beside Python's packages is there."""
    return name != "page" or WEB_RUNTIME.is_dir()


def test_every_verb_is_among_them():
    program = typer.main.get_command(app)
    verbs = {name for name in program.commands if name != "data"} | {
        f"data {one}" for one in program.commands["data"].commands
    }
    lines = [*(STEPS | MORE).values(), ["hub"]]
    assert verbs == {" ".join(words[:2]) if words[0] == "data" else words[0] for words in lines}


def test_the_search_finds_a_name_wherever_it_is_hidden(tmp_path):
    secret, picture, zipped = b"x Mustermann x", tmp_path / "a.png", io.BytesIO()
    planted._picture(picture, np.zeros((8, 8), np.uint8))
    shown = picture.read_bytes()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(secret))
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(picture, "picture.png")
    parquet.write_table(arrow.table({"image": [{"bytes": shown}]}), tmp_path / "c.parquet")
    (tmp_path / "d.zip").write_bytes(zipped.getvalue())
    (tmp_path / "e.html").write_bytes(b"<img src=data:image/png;base64," + base64.b64encode(shown) + b">")
    (tmp_path / "f.csv").write_text("muSTERMANN")
    (tmp_path / "g.bin").write_bytes("Mustermann".encode("utf-16-le"))
    git = ["git", "--git-dir", tmp_path / "h.git"]
    subprocess.run([*git, "init", "-q", "--bare"], check=True)
    subprocess.run([*git, "hash-object", "-w", "--stdin"], input=secret, check=True, capture_output=True)
    found = planted.found(("Mustermann",), tmp_path, tmp_path)
    assert {hit.removeprefix("Mustermann in ")[0] for hit in found} == set("abcdefgh")


def test_what_leaves_is_seen_whoever_sends_it(tmp_path):
    needs_a_network_of_its_own()
    native = "import ctypes, socket, struct; c = ctypes.CDLL(None); s = c.socket(2, 1, 0)\n"
    native += "c.connect(s, struct.pack('HH4s8x', 2, socket.htons(443), bytes((93, 184, 216, 34))), 16)"
    name = "import socket\ntry: socket.getaddrinfo('telemetry.example', 443)\nexcept OSError: pass"
    home = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {native!r}])"
    expected = {native: ["tcp 93.184.216.34 port 443"], name: ["name telemetry.example"], home: []}
    expected[child] = expected[native]
    # A library that calls home unless it is told not to: by it the watch is seen to see.
    expected["import albumentations"] = ["name pypi.org"]
    own = {k: v for k, v in os.environ.items() if not k.startswith("NO_ALB")}
    for code, wanted in expected.items():
        _, left = watch([sys.executable, "-c", code], tmp_path / "left.json", own)
        assert left == wanted, code


def test_every_verb_did_its_work(done):
    wrong = {name: code for name, code in done.codes.items() if code != ENDS.get(name, 0)}
    assert not wrong, {name: (done.folder / "said" / name).read_text()[-2000:] for name in wrong}
    assert (done.folder / "hub/models/clinic/oct.git").is_dir() and (
        done.folder / "hub/datasets/clinic/data.git"
    ).is_dir()


@SILENT
def test_no_verb_talks_to_anybody_else(done, cases):
    cases.tried += len(done.codes)
    asked = (done.folder / "said/hub").read_text()
    assert done.left == [] and "POST /api/" in asked and "telemetry" not in asked


@SILENT
def test_a_cluster_of_this_machine_talks_to_nobody_else(tmp_path):
    """Apart, since it takes Ray's processes some seconds to ask, and a verb may be done before."""
    pytest.importorskip("ray")
    needs_a_network_of_its_own()
    code = "import time\nfrom oct_hf.parallel import ray_cluster\nwith ray_cluster(1): time.sleep(4)"
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    ended, left = watch([sys.executable, "-c", code], tmp_path / "left.json", own)
    assert (ended.returncode, left) == (0, []), ended.stderr


@NAMELESS
def test_what_stands_inside_the_files_stays_there(done, cases):
    cases.tried += len(done.codes) * len(planted.INSIDE)
    assert all(done.found(planted.INSIDE, (copy,)) for copy in COPIES)  # so they would be found
    assert not done.found(planted.INSIDE, but=COPIES)


@UNPUBLISHED
def test_what_is_published_names_no_file_and_no_folder(done, cases):
    secrets = (*planted.OUTSIDE, *planted.INSIDE, MACHINE)
    cases.tried += len(secrets) * sum((done.folder / name).exists() for name in PUBLISHED)
    assert not done.found(secrets, PUBLISHED)


def test_at_home_only_what_is_for_the_user_names_their_files(done):
    secrets = (*planted.OUTSIDE, MACHINE)
    assert done.found(secrets, ("answers.csv",))  # a table of answers names the files: that is what it is for
    assert not done.found(secrets, but=(*COPIES, *FOR_THE_USER))


@TOKEN_KEPT
def test_the_token_is_nowhere(done, cases):
    cases.tried += len(done.codes)
    assert done.found((TOKEN,), ("hub",)) and "<TOKEN>" in (done.folder / "said/publish").read_text()
    assert not done.found((TOKEN,), but=OWNERS)
