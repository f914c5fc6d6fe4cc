"""A network that timm lacks, from recipe to Hub: nothing claims a loader that doesn't work, and those named work."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, dynamic_module_utils

from oct_hf import OCTForImageClassification, Predictor, finetune
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.card import render_card, render_interim_card
from oct_hf.hub.download import download
from oct_hf.hub.files import file_faults
from oct_hf.hub.publish import contents, with_code
from oct_hf.hub.verify import verify
from oct_hf.images import read_image
from oct_hf.runs import run as module

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def own_run(tiny, tmp_path_factory) -> Path:
    """A finished run of the small CNN."""
    model = dataclasses.replace(tiny.model, base="custom_cnn")
    evaluation = dataclasses.replace(tiny.evaluation, explain=0)
    folder = tmp_path_factory.mktemp("own") / "run"
    finetune(dataclasses.replace(tiny, name="own", model=model, evaluation=evaluation), folder)
    return folder


@pytest.fixture(scope="module")
def repository(own_run) -> Path:
    return own_run / "model"


def test_its_repository_holds_and_the_loaders_are_those_that_can_read_it(repository):
    checks = {check.name: check for check in verify(download(str(repository)))}
    assert [check.faults for check in checks.values()] == [()] * len(checks)
    assert "onnxruntime" in checks["loaders"].note and "transformers" not in checks["loaders"].note


def test_its_card_names_no_loader_that_fails(repository):
    run = json.loads((repository / "run.json").read_text())
    local, card = render_card(run), render_card(run, "clinic/own")
    for text in (local, card):
        assert "custom_cnn is a network that timm and transformers lack" in text
        assert "timm.create_model" not in text and "library_name: oct-hf" in text and "custom_cnn (of oct-hf)" in text
    assert "remote-code" not in local and 'revision="remote-code", trust_remote_code=True' in card
    without = run | {"files": {name: value for name, value in run["files"].items() if "onnx" not in name}}
    assert "only oct-hf loads it from here" in render_card(without) and "InferenceSession" not in render_card(without)
    assert "library_name: oct-hf" in render_interim_card("own", 1, 2, {"balanced_accuracy": 0.5}, own=True)


def test_the_cards_example_for_onnx_runtime_gives_its_answers(repository, real_files, monkeypatch, tmp_path, capsys):
    code = next(
        c for c in re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S) if "onnx" in c
    )
    monkeypatch.chdir(repository)
    exec(code.replace('"bscan.png"', repr(str(real_files[0]))), {})
    said = re.findall(r"'(\w+)': \w*\.?\w*\(?([\d.e-]+)", capsys.readouterr().out)
    expected = next(Predictor(repository).predict([real_files[0]])).probabilities
    assert {name for name, _ in said} == set(expected)
    assert max(abs(float(value) - expected[name]) for name, value in said) <= 2e-3


def test_one_that_says_it_loads_natively_is_caught(repository, tmp_path):
    run = json.loads((repository / "run.json").read_text())
    del run["model"]["code"]
    for path in repository.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(repository)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(repository)).write_bytes(path.read_bytes())
    (tmp_path / "run.json").write_text(json.dumps(run))
    faults = {check.name: check.faults for check in verify(download(str(tmp_path))) if check.faults}
    assert any("model.code" in fault for fault in faults["numbers"]) and "card" not in faults


@pytest.fixture(scope="module")
def published(own_run, repository, site, real_files, tmp_path_factory):
    """`clinic/own` on the loopback Hub: a call of one of its readers, and the package's answers to the same pixels."""
    publish = [sys.executable, "-m", "oct_hf.cli", "publish", own_run, "--repo", "clinic/own"]
    subprocess.run(publish, env=site.environment, check=True, capture_output=True)
    folder, predictor = tmp_path_factory.mktemp("published"), Predictor(repository, backend="torch")
    pixels = np.stack([predictor.preprocessing(read_image(file)) for file in real_files[:2]])
    np.save(folder / "pixels.npy", pixels)
    (folder / "pixels.json").write_text(json.dumps({"shape": pixels.shape, "values": pixels.ravel().tolist()}))

    def ask(loader: str) -> subprocess.CompletedProcess:
        command = [sys.executable, HERE / "load_by_id.py", loader, "clinic/own", folder / "pixels.npy", real_files[0]]
        if loader == "transformers.js":
            script = HERE.parent / "node" / "load_by_id.mjs"
            command = ["node", script, site.address, folder, "clinic/own", folder / "pixels.json", real_files[0]]
        return subprocess.run([*map(str, command)], env=site.environment, capture_output=True, text=True)

    return ask, predictor.probabilities(pixels)


@pytest.mark.slow
def test_by_id_its_code_loads_it_where_trusted_and_nothing_else_does(published):
    ask, expected = published
    trusted = ask("remote-code, code trusted")
    assert trusted.returncode == 0, trusted.stderr
    said = json.loads(trusted.stdout.splitlines()[-1])
    assert np.abs(np.subtract(said["pixels"], expected)).max() <= 1e-6
    assert said["class"].startswith("transformers_modules.") and "of type" not in trusted.stderr
    native = ask("main")
    assert native.returncode != 0 and "oct_network" in native.stderr


@pytest.mark.slow
def test_by_id_transformers_js_reads_its_onnx_file(published, node):
    ask, expected = published
    called = ask("transformers.js")
    assert called.returncode == 0, called.stderr
    assert np.abs(np.subtract(json.loads(called.stdout.splitlines()[-1])["pixels"], expected)).max() <= 1e-5


def test_the_code_branch_carries_the_networks_code_and_it_loads_where_trusted(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "code"
    for name, content in with_code(contents(repository, "clinic/own")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    pixels, predictor = torch.randn(2, 3, 64, 64), Predictor(repository, device="cpu")
    with torch.inference_mode():
        assert np.abs(model(pixels).logits.numpy() - predictor.logits(pixels.numpy())).max() <= 1e-6
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert "architectures.py" in names and file_faults(folder, names, "remote-code") == []
    (folder / "architectures.py").write_text("import os")
    assert any("architectures.py" in fault for fault in file_faults(folder, names, "remote-code"))


def test_a_network_whose_logits_take_no_temperature_says_why_on_its_card(repository):
    run = json.loads((repository / "run.json").read_text())
    predictions = overconfident(tuple(run["labels"]))
    model = OCTForImageClassification.from_pretrained(repository)
    straight = model.timm_model.fc.forward
    model.timm_model.fc.forward = lambda x: torch.tanh(straight(x))
    kept, found = module._measure(model, predictions, run["recipe"]["evaluation"])
    assert found["calibration"]["temperature"] is None and "no temperature fits it" in found["calibration"]["why"]
    assert np.array_equal(kept.probabilities, predictions.probabilities)
    assert "before" not in found["calibration"]
    text = render_card(run | found)
    assert "were not calibrated after training: fc: the logits don't scale with this classifier" in text


def overconfident(names: tuple[str, ...]) -> Predictions:
    """120 patients on each held-out side, a third of the sure answers wrong."""
    rng = np.random.default_rng(0)
    truth = np.tile(np.arange(len(names)), 60)
    answer = np.where(rng.random(len(truth)) < 0.33, rng.integers(0, len(names), len(truth)), truth)
    probabilities = np.full((len(truth), len(names)), 0.01, np.float32)
    probabilities[np.arange(len(truth)), answer] = 1 - 0.01 * (len(names) - 1)
    ids = np.array([f"{i:064x}" for i in range(len(truth))])
    sides = np.where(np.arange(len(truth)) < len(truth) // 2, "validation", "test")
    return Predictions(names, ids, ids, np.array(names)[truth], sides, probabilities)
