"""A model of signs, several a picture: from phantoms whose signs are known to the disease that follows."""

import io
import json
import shutil
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForImageClassification, pipeline

from oct_hf import OCTForImageClassification, Predictor, finetune, serving
from oct_hf.data.oct import prepare
from oct_hf.data.phantom import draw
from oct_hf.data.pixels import multi_hot
from oct_hf.errors import DataError, ModelError, RecipeError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.inference.recorded import recorded_gate
from oct_hf.inference.server import create_app
from oct_hf.labels import SIGNS, disease_of
from oct_hf.runs.folds import cross_validate
from oct_hf.runs.other_data import evaluate_model
from oct_hf.runs.signs import measure_signs
from oct_hf.training.recipe import DataRecipe
from oct_hf.training.recipe_file import load_recipe, make_recipe


@pytest.fixture(scope="module")
def signs_run(finished_signs_run):
    return finished_signs_run, json.loads((finished_signs_run / "run.json").read_text())


def test_phantoms_know_their_signs_and_the_rule_gives_their_disease():
    dataset, _ = prepare("phantom", patients=4, scans=1, height=128, width=128, signs=True)
    names, truth = dataset.features["signs"].feature.names, multi_hot(dataset)
    assert names == list(SIGNS) and truth.shape == (16, len(SIGNS))
    for row, source in enumerate(dataset["source"]):
        label, patient = source.split("/")[0], int(source.split("/P")[1][:5])
        drawn = draw(label, 0, patient, 0, 128, 128)
        assert {SIGNS[name] for name, there in zip(names, truth[row], strict=True) if there} == set(drawn.lesions)
        assert disease_of([name for name, there in zip(names, truth[row], strict=True) if there]) == label
    assert "signs" not in prepare("phantom", patients=1, scans=1, height=64, width=64)[0].column_names


def test_the_rule_puts_vessels_first_and_leaves_fluid_alone_open():
    assert disease_of(["MNV", "IRF", "SRF", "drusen"]) == "CNV"
    assert disease_of(["exudates", "drusen"]) == "DME"
    assert disease_of(["SRF", "drusen"]) == "undetermined"
    assert disease_of(["drusen"]) == "DRUSEN" and disease_of([]) == "NORMAL"


def test_each_sign_is_measured_on_its_own_from_the_predictions_file(signs_run):
    folder, facts = signs_run
    predictions = Predictions.read(folder / "model" / "predictions.parquet")
    assert predictions.names == tuple(SIGNS) == tuple(facts["labels"])
    test, found = predictions.of("test"), facts["signs"]
    assert set(test.labels) == {"CNV", "DME", "DRUSEN", "NORMAL"}
    for column, name in enumerate(SIGNS):
        one, p, there = found["signs"][name], test.probabilities[:, column], test.truth[:, column] == 1
        area = one["results"]["test"]["auroc"]
        assert area["value"] == pytest.approx(roc_auc_score(there, p)) and area["low"] < area["value"] <= area["high"]
        cut = one["at_youden"]["threshold"]
        validation = predictions.of("validation")
        assert cut in validation.probabilities[:, column]  # chosen on the validation side
        at = one["at_youden"]["test"]
        assert at["sensitivity"] == pytest.approx((p >= cut)[there].mean())
        assert at["specificity"] == pytest.approx((p < cut)[~there].mean())
        assert at["intervals"]["specificity"]["low"] < at["specificity"]
        assert {"before", "after", "temperature"} <= one["calibration"].keys()
    cuts = np.array(list(found["thresholds"].values()))
    said = [disease_of([n for n, high in zip(SIGNS, row, strict=True) if high]) for row in test.probabilities >= cuts]
    disease = found["disease"]["test"]
    recalls = [
        np.mean([s == t for s, t in zip(said, test.labels, strict=True) if t == name]) for name in disease["recall"]
    ]
    assert disease["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))
    assert evaluate_model(folder)["disease"] == found["disease"]
    assert json.loads((folder / "run.json").read_text())["status"] == "done"


def test_every_loader_gives_the_same_sigmoids_and_the_temperatures_lie_in_the_weights(signs_run, tmp_path):
    folder, facts = signs_run
    phantom = draw("CNV", 5, height=96, width=96).image
    file = tmp_path / "bscan.png"
    Image.fromarray(phantom).save(file)
    predictor = Predictor(folder / "model", device="cpu")
    own = next(predictor.predict([file])).probabilities
    assert abs(sum(own.values()) - 1) > 1e-3  # no softmax
    classify = pipeline("image-classification", model=str(folder / "model"), device="cpu")
    theirs = {row["label"]: row["score"] for row in classify(str(file), top_k=5)}
    assert theirs == pytest.approx(own, abs=2e-3)  # from a file: the libraries' resizers differ
    model = OCTForImageClassification.from_pretrained(folder / "model")
    native = AutoModelForImageClassification.from_pretrained(folder / "model")
    assert native.config.problem_type == "multi_label_classification"
    temperatures = [facts["signs"]["signs"][name]["calibration"]["temperature"] for name in SIGNS]
    assert model.config.calibration_temperature == pytest.approx(temperatures)
    pixels = torch.from_numpy(predictor.read(file))[None]
    calibrated = model(pixel_values=pixels).logits[0]
    assert torch.equal(calibrated, native(pixel_values=pixels).logits[0])
    assert max(abs(np.log(temperatures))) > 0.01, "temperatures of 1 would hide one that got lost"
    model.unfold_temperature()
    raw = model(pixel_values=pixels).logits[0].detach().numpy()
    assert list(own.values()) == pytest.approx(expit(raw / np.array(temperatures)), abs=1e-5)


def test_predict_names_the_disease_and_its_signs_by_the_recorded_thresholds(signs_run, run, tmp_path):
    folder, facts = signs_run
    predictor = Predictor(folder / "model", device="cpu")
    assert str(predictor.gate.decide([0.6, 0.4, 0.5, 0.1, 0.1])) == "undetermined: drusen, SRF"
    gate = recorded_gate(folder / "model", predictor.labels)
    cuts = list(facts["signs"]["thresholds"].values())
    assert list(gate.thresholds) == cuts
    assert str(gate.decide(cuts)) == "CNV: drusen, MNV, SRF, IRF, exudates"
    assert str(gate.decide([cut - 1e-6 for cut in cuts])) == "NORMAL: no sign"
    assert gate.decide(cuts, likeness=0.0).refused
    Image.fromarray(draw("DME", 5, height=96, width=96).image).save(tmp_path / "a.png")
    code, _, _ = run("predict", tmp_path / "a.png", "--model", folder, "--out", tmp_path / "t.json", "--always-answer")
    row = json.loads((tmp_path / "t.json").read_text())[0]
    expected = gate.decide([row[f"p_{name}"] for name in SIGNS])
    assert code == 0 and row["predicted"] == expected.predicted and row["answer"] == str(expected)


def test_a_server_gives_each_sign_its_own_score(signs_run):
    predictor = Predictor(signs_run[0] / "model", device="cpu")
    image = io.BytesIO()
    Image.fromarray(draw("CNV", 5, height=96, width=96).image).save(image, "PNG")
    taken = serving.take_port(0)
    with serving.running(create_app(predictor, "signs"), taken):
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        with urllib.request.urlopen(urllib.request.Request(address, image.getvalue(), method="POST")) as answer:
            rows = json.load(answer)
    expected = next(predictor.predict([image.getvalue()])).probabilities
    assert {row["label"]: pytest.approx(row["score"], abs=1e-6) for row in rows} == expected


def test_other_data_are_read_by_what_their_labels_say_of_a_sign(signs_run, samples):
    folder, facts = signs_run
    data = DataRecipe(name="folder", path=str(samples / "srf_sample"), without_patients=True)
    found = evaluate_model(folder, data)
    assert list(found["signs"]) == ["SRF"] and found["grouped_by"] == "B-scan"
    results = found["signs"]["SRF"]["results"]
    assert (results["n"], results["positive"], results["groups"]) == (30, 15, 30)
    assert results["auroc"]["low"] <= results["auroc"]["value"] <= results["auroc"]["high"]
    at = found["signs"]["SRF"]["at_youden"]
    assert at["threshold"] == facts["signs"]["thresholds"]["SRF"] and at["test"]["tp"] + at["test"]["fn"] == 15


def test_labels_that_tell_of_no_sign_are_refused(signs_run, clinic):
    with pytest.raises(DataError, match="DME, NORMAL tell of no sign; known are SRF, NoSRF"):
        evaluate_model(signs_run[0], DataRecipe(name="folder", path=str(clinic)))


def test_what_takes_one_label_is_refused(signs_run, signs_recipe, tmp_path):
    folder, _ = signs_run
    with pytest.raises(ModelError, match="what other data show of signs can't be recorded yet"):
        evaluate_model(folder, DataRecipe(), record=True)
    with pytest.raises(RecipeError, match="training on folds takes one label a picture"):
        cross_validate(signs_recipe, tmp_path / "folds")
    with pytest.raises(DataError, match="these are answers on signs"):
        Predictions.read(folder / "model" / "predictions.parquet").measure()


def test_a_network_that_takes_no_temperature_says_why_of_each_sign(signs_run):
    predictions = Predictions.read(signs_run[0] / "model" / "predictions.parquet")

    class Stubborn:
        def fold_temperature(self, temperatures):
            raise ValueError("no temperature fits it")

    kept, found = measure_signs(Stubborn(), predictions, signs_run[1]["recipe"]["evaluation"])
    assert kept is predictions
    for one in found["signs"]["signs"].values():
        assert one["calibration"]["why"] == "no temperature fits it" and "before" not in one["calibration"]


def test_a_run_that_was_killed_after_its_training_is_measured_alike(signs_run, signs_recipe, tmp_path):
    folder, facts = signs_run
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "model")
    run = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps(run | {"status": "trained"}))
    assert finetune(signs_recipe, again)["signs"] == facts["signs"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"data": {"name": "folder", "signs": True}}, "folder doesn't say which signs"),
        ({"train": {"loss": "gce"}}, "gce is for one label"),
        ({"train": {"mixup": 0.2}}, "neither mixup nor cutmix"),
        ({"teacher": {"base": "resnet18"}}, "teacher=null"),
    ],
)
def test_what_does_not_go_with_signs_is_one_line(change, said):
    with pytest.raises(RecipeError, match=said):
        make_recipe({"data": {"name": "phantom", "signs": True}} | change)


def test_the_recipe_learns_signs_by_asymmetric_loss():
    recipe = load_recipe("key_signs")
    assert recipe.data.signs and recipe.train.loss == "asymmetric"
    assert make_recipe({"data": {"name": "phantom", "signs": True}, "push_to_hub": True}).push_to_hub
