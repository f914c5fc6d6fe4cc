"""A model of signs as a stranger meets it: its card, what verify finds, and a push from which others load it."""

import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from oct_hf import OCTForImageClassification, Predictor
from oct_hf.data.phantom import draw
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.signs import sign_facts
from oct_hf.hub.card import render_card, span
from oct_hf.hub.download import download
from oct_hf.hub.repository import checksums
from oct_hf.hub.verify import verify
from oct_hf.inference.recorded import recorded_gate
from oct_hf.labels import SIGNS
from oct_hf.runs.again import predict_again, search_again


@pytest.fixture
def repository(finished_signs_run, tmp_path) -> Path:
    """A copy of a repository, to be tampered with."""
    return shutil.copytree(finished_signs_run / "model", tmp_path / "repository")


@pytest.fixture
def run(finished_signs_run) -> dict:
    return json.loads((finished_signs_run / "model" / "run.json").read_text())


def faults(repository: Path, predict=None) -> dict[str, tuple[str, ...]]:
    return {check.name: check.faults for check in verify(download(str(repository)), predict) if check.faults}


def forge(repository: Path, **changed) -> None:
    """Gives run.json these contents and the checksums of the files as they are now, as whoever tampers would."""
    run = json.loads((repository / "run.json").read_text())
    (repository / "run.json").write_text(json.dumps(run | changed | {"files": checksums(repository)}))


def test_its_card_has_each_sign_with_intervals_and_the_disease_that_follows(run):
    header, body = render_card(run)[4:].split("\n---\n", 1)
    metrics = yaml.safe_load(header)["model-index"][0]["results"][0]["metrics"]
    values = {row["name"]: row["value"] for row in metrics}
    found, disease = run["signs"], run["signs"]["disease"]["test"]
    assert values["AUROC (mean over the signs)"] == round(found["mean"]["auroc"]["value"], 4)
    assert values["Balanced accuracy (of the disease that follows)"] == round(disease["balanced_accuracy"]["value"], 4)
    for name, one in found["signs"].items():
        test, cal, at = one["results"]["test"], one["calibration"], one["at_youden"]
        assert values[f"AUROC ({name})"] == round(test["auroc"]["value"], 4)
        areas = " | ".join(f"{test[key]['value']:.3f} ({span(test[key])})" for key in ("auroc", "auprc"))
        assert f"| {name} | {test['n']} | {test['positive']} | {test['groups']} | {areas} | " in body
        assert f"| {name} | {cal['temperature']:.3f} | {cal['n']} B-scans of {cal['patients']} patients | " in body
        shares = [
            f"{at['test'][key]:.3f} ({span(at['test']['intervals'][key])})" for key in ("sensitivity", "specificity")
        ]
        assert f"| {name}, largest sum of both (of the rule) | {at['threshold']:.3f} | {' | '.join(shares)} | " in body
    header = " | ".join(f"called {name}" for name in disease["labels"])
    assert (
        header.endswith("called undetermined") and f"| true disease (test) | B-scans | sensitivity | {header} |" in body
    )
    for name, counts in zip(disease["recall"], disease["confusion"], strict=False):
        row = " | ".join(map(str, counts))
        assert f"| {name} | {sum(counts)} | {disease['recall'][name]:.3f} | {row} |" in body
    assert found["rule"] in body


def test_a_card_of_drawings_says_that_they_say_nothing_of_eyes_and_another_does_not(run):
    assert "What was measured on drawn pictures says nothing yet of real eyes." in render_card(run)
    run["data"]["name"] = "folder"
    assert "drawn pictures" not in render_card(run) and "drawings" not in render_card(run)


def test_what_could_not_be_had_is_said_and_absent_from_the_metadata(finished_signs_run, run):
    answers = Predictions.read(finished_signs_run / "model" / "predictions.parquet")
    truth = answers.truth.copy()
    truth[answers.sides == "test", list(SIGNS).index("MNV")] = 0
    truth[answers.sides == "validation", list(SIGNS).index("IRF")] = 0
    found = sign_facts(dataclasses.replace(answers, truth=truth), run["recipe"]["evaluation"])
    header, body = render_card(run | found)[4:].split("\n---\n", 1)
    assert "AUROC (MNV)" not in header and "mean over the signs" not in header and "AUROC (SRF)" in header
    assert "| MNV | 36 | 0 | 12 | n/a (n/a: no positive case) | n/a (n/a: no positive case) | " in body
    assert "Not all thresholds of IRF could be chosen: " in body and "| IRF, " not in body
    assert "The probabilities were not calibrated after training." in body and "temperature |" not in body


def test_its_python_snippets_run_and_give_each_sign_its_own_sigmoid(repository, monkeypatch, capsys):
    Image.fromarray(draw("CNV", 5, height=96, width=96).image).save(repository / "bscan.png")
    expected = next(Predictor(repository, device="cpu").predict([repository / "bscan.png"])).probabilities
    blocks = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(repository)
    said = []
    for block in blocks:
        capsys.readouterr()
        exec(block, {})
        said.append(capsys.readouterr().out)
    by_pipeline = {row["label"]: row["score"] for row in ast.literal_eval(said[0])}
    assert by_pipeline == pytest.approx(expected, abs=2e-3)  # from a file: the libraries' resizers differ
    assert list(map(float, re.findall(r"0\.\d+", said[1]))) == pytest.approx(list(expected.values()), abs=2e-3)
    gate = recorded_gate(repository, tuple(SIGNS))
    assert str(gate.decide(list(expected.values()), gate.look(np.asarray(Image.open("bscan.png"))))) in said[2]


def test_as_it_was_written_it_holds_and_only_heat_maps_are_skipped(repository):
    checks = verify(download(str(repository)), predict_again(None), search_again(None))
    assert [check.faults for check in checks] == [()] * len(checks)
    assert [check.name for check in checks if check.skipped] == ["heat maps"]


def test_a_card_and_run_json_that_were_changed_together_are_caught(repository, run):
    run["signs"]["signs"]["SRF"]["results"]["test"]["auroc"]["value"] = 0.987
    (repository / "README.md").write_text(render_card(run))
    forge(repository, signs=run["signs"])
    found = faults(repository)
    assert any("signs.signs.SRF.results.test.auroc.value is 0.987" in fault for fault in found["numbers"])
    assert any("Results, SRF, AUROC says 0.987" in fault for fault in found["card"])
    assert any("metadata, AUROC (SRF).value says 0.987" in fault for fault in found["card"])


def test_answers_that_were_changed_are_caught_even_with_their_checksum_forged(repository):
    path = repository / "predictions.parquet"
    answers = Predictions.read(path)
    answers.with_probabilities(answers.probabilities[:, ::-1]).write(path)
    forge(repository)
    assert {"numbers", "card", "figures", "images"} <= faults(repository, predict_again(None)).keys()


def test_signs_that_are_not_there_are_caught_with_the_data_at_hand(repository, run):
    path = repository / "predictions.parquet"
    answers = Predictions.read(path)
    flipped = int(np.flatnonzero(answers.labels == "NORMAL")[0])
    answers.truth[flipped, list(SIGNS).index("MNV")] = 1
    answers.write(path)
    notes = {name: one["calibration"] for name, one in run["signs"]["signs"].items()}
    notes = {name: {key: note[key] for key in ("temperature", "why", "n", "patients")} for name, note in notes.items()}
    forge(repository, **sign_facts(answers, run["recipe"]["evaluation"], notes))
    image = answers.hashes[flipped][:12]
    assert faults(repository, predict_again(None))["images"] == (
        f"image {image}…: its published signs are untrue, it shows none",
    )


def test_weights_or_temperatures_that_were_changed_are_caught_even_with_their_checksum_forged(repository):
    config = repository / "config.json"
    true = json.loads(config.read_text())
    config.write_text(json.dumps(true | {"calibration_temperature": [2.5, *true["calibration_temperature"][1:]]}))
    forge(repository)
    assert any("drusen.calibration.temperature" in fault for fault in faults(repository)["numbers"])
    config.write_text(json.dumps(true))
    model = OCTForImageClassification.from_pretrained(repository)
    model.timm_model.get_classifier().weight.data.mul_(30)
    model.save_pretrained(repository)
    forge(repository)
    assert faults(repository, predict_again(None)).keys() == {"reference answers", "loaders", "fast files", "images"}


def test_a_config_that_makes_a_softmax_of_signs_is_caught(repository):
    config = repository / "config.json"
    told = json.loads(config.read_text())
    assert told.pop("problem_type") == "multi_label_classification"
    config.write_text(json.dumps(told))
    forge(repository)
    assert {"reference answers"} <= faults(repository).keys()


STRANGER = """
import json, sys
sys.modules["oct_hf"] = None
import numpy as np, onnxruntime, timm, torch
from huggingface_hub import ModelCard, hf_hub_download
from transformers import AutoModelForImageClassification, pipeline
repo, image = sys.argv[1:]
pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
def ask(model):
    with torch.inference_mode():
        answer = model.eval()(pixels)
    return getattr(answer, "logits", answer).sigmoid().tolist()
remote = AutoModelForImageClassification.from_pretrained(repo, revision="remote-code", trust_remote_code=True)
session = onnxruntime.InferenceSession(hf_hub_download(repo, "onnx/model.onnx"), providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {"pixel_values": pixels.numpy()})[0]
print(json.dumps({
    "auto": ask(AutoModelForImageClassification.from_pretrained(repo)),
    "tag": ask(AutoModelForImageClassification.from_pretrained(repo, revision="v1")),
    "timm": ask(timm.create_model("hf_hub:" + repo, pretrained=True)),
    "remote": ask(remote),
    "onnx": (1 / (1 + np.exp(-logits))).tolist(),
    "pipeline": pipeline("image-classification", model=repo)(image, top_k=5),
    "plain": pipeline("image-classification", model=repo)(image, function_to_apply="sigmoid", top_k=5),
    "card": ModelCard.load(repo).data.to_dict(),
}))
"""

PUBLISHER = """
import dataclasses, json, sys
from huggingface_hub import HfApi
from oct_hf import Predictor
from oct_hf.hub.download import download
from oct_hf.hub.publish import publish
from oct_hf.hub.verify import verify
from oct_hf.inference.recorded import recorded_gate
from oct_hf.runs.check import check
from oct_hf.runs.other_data import evaluate_model
from oct_hf.training.recipe_file import load_recipe
run, image = sys.argv[1:]
done, again = publish(run, "clinic/signs"), publish(run, "clinic/signs")
predictor = Predictor("clinic/signs", device="cpu")
predictor.gate = recorded_gate("clinic/signs", predictor.labels)
there = download("clinic/signs")
print(json.dumps({
    "done": vars(done), "again": again.commit, "title": HfApi().list_repo_commits("clinic/signs")[0].title,
    "faults": [one.faults for one in verify(there) if one.faults],
    "answer": vars(next(predictor.predict([image]))) | {"decision": None},
    "thresholds": predictor.gate.thresholds,
    "clean": check(load_recipe(there.folder / "recipe.yaml"), there.folder).clean,
    "evaluated": evaluate_model("clinic/signs")["disease"],
}))
"""


def test_published_it_loads_by_id_everywhere_with_a_probability_a_sign(site, finished_signs_run, run):
    def call(*command) -> dict:
        done = subprocess.run(
            [sys.executable, "-c", *map(str, command)], env=site.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    image = finished_signs_run / "model" / "examples" / "CNV.png"
    said = call(PUBLISHER, finished_signs_run, image)
    assert said["done"]["tag"] == "v1" and said["again"] is None and said["faults"] == []
    value = run["signs"]["disease"]["test"]["balanced_accuracy"]["value"]
    assert (
        said["title"]
        == f"signs: balanced accuracy {value:.3f} of the disease that follows from the signs on the test side"
    )
    assert said["answer"]["probabilities"] == pytest.approx(run["examples"]["examples/CNV.png"], abs=1e-5)
    assert said["thresholds"] == list(run["signs"]["thresholds"].values())
    assert said["clean"] and said["evaluated"] == run["signs"]["disease"]
    heard = call(STRANGER, "clinic/signs", image)
    for name in ("tag", "timm", "remote", "onnx"):
        assert np.abs(np.subtract(heard[name], heard["auto"])).max() <= 1e-5, name
    assert abs(np.sum(heard["auto"], axis=1) - 1).min() > 1e-2  # no softmax
    for name in ("pipeline", "plain"):
        scores = {row["label"]: row["score"] for row in heard[name]}
        assert scores == pytest.approx(run["examples"]["examples/CNV.png"], abs=2e-3), name
    assert heard["card"]["pipeline_tag"] == "image-classification" and heard["card"]["library_name"] == "transformers"


def test_its_snippet_for_transformers_js_gives_the_same_sigmoids(site, finished_signs_run, run, node, tmp_path):
    publish = [sys.executable, "-m", "oct_hf.cli", "publish", finished_signs_run, "--repo", "clinic/js"]
    subprocess.run([*map(str, publish)], env=site.environment, check=True, capture_output=True)
    script = re.search(r"```js\n(.*?)```", render_card(run, "clinic/js"), re.DOTALL)[1]
    (tmp_path / "node_modules").symlink_to(Path(__file__).parents[1] / "node" / "node_modules")
    shutil.copy(finished_signs_run / "model" / "examples" / "CNV.png", tmp_path / "bscan.png")
    here = f'import {{ env }} from "@huggingface/transformers";\nenv.remoteHost = "{site.address}";\n'
    (tmp_path / "card.mjs").write_text(f'{here}env.cacheDir = "{tmp_path / "cache"}";\n{script}')
    done = subprocess.run([node, "card.mjs"], cwd=tmp_path, env=site.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = list(map(float, re.findall(r"0\.\d+", done.stdout)))
    assert scores == pytest.approx(list(run["examples"]["examples/CNV.png"].values()), abs=2e-2)
