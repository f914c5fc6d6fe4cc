"""A run whose last layer is a machine on chosen features: what it records, publishes and refuses."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from oct_hf import OCTForImageClassification, Predictor, finetune
from oct_hf.data.pixels import Pixels
from oct_hf.errors import ModelError, RecipeError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.card import render_card
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.runs import head as module
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.runs.training import build_model
from oct_hf.training.feature_selection import nearest_machine
from oct_hf.training.recipe_file import load_recipe, make_recipe
from tests.conftest import TINY

HEAD = {"ants": 3, "rounds": 2, "folds": 2, "neighbours": 3}
QUICK = TINY | {
    "data": TINY["data"] | {"labels": ["DME", "NORMAL"], "patients": 8},
    "model": TINY["model"] | {"base": "test_efficientnet+test_resnet"},
    "evaluation": {"explain": 0},
}


def recipe(**head):
    return make_recipe(QUICK | {"head": HEAD | head})


@pytest.fixture(scope="module", params=["svm", "knn"])
def machine(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def done(machine, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("head") / machine
    finetune(recipe(machine=machine), folder)
    return folder


def sides_of(wanted):
    """Features and labels of the training and validation sides, read anew, and all of the data."""
    data = assign_sides(load_data(wanted.data)[0], wanted)
    torch.manual_seed(wanted.train.seed)
    return data


def test_a_run_records_how_many_features_and_what_the_choice_was_worth(done, machine):
    run = json.loads((done / "model" / "run.json").read_text())
    head = run["head"]
    assert head["machine"] == machine and 0 < head["chosen"] < head["features"] == 352
    assert head["left_out"]["folds"] == 2 and head["left_out"]["images"] == run["training"]["images"]
    assert all(0 <= head["left_out"][key] <= 1 for key in ("chosen", "all")) and 0 <= head["validation_with_all"] <= 1
    assert run["training"]["epochs"] == 0 and run["training"]["history"] == []
    card = (done / "model" / "README.md").read_text()
    assert f"on {head['chosen']} of its 352 features is its last layer; an ant colony chose them" in card
    assert "with the chosen features" in card and "epochs of at most" not in card and render_card(run) == card
    assert ("The weights hold the features of" in card) == (machine == "knn")


def test_what_it_wrote_loads_holds_and_answers_as_the_machine_does(done, machine):
    checks = {check.name: check for check in verify(download(str(done)))}
    assert [check.faults for check in checks.values()] == [()] * len(checks)
    assert "onnxruntime" in checks["loaders"].note
    model = OCTForImageClassification.from_pretrained(done / "model")
    data = assign_sides(load_data(recipe().data)[0], recipe())
    rows = {side: np.flatnonzero(data.sides == side) for side in ("train", "test")}
    predictor = Predictor(done / "model", device="cpu")
    network = model.timm_model.eval()
    read = {}
    for side, chosen in rows.items():
        pixels = Pixels.from_dataset(data.dataset.select(chosen), predictor.preprocessing)
        maps = torch.from_numpy(np.stack([predictor.preprocessing(pixels.images[i]) for i in range(len(pixels))]))
        with torch.inference_mode():
            read[side] = network.forward_features(maps).mean((2, 3)).numpy(), pixels.labels
    if machine == "knn":
        choice = network.neighbours.chosen.numpy()
        fitted = nearest_machine(3, 0.07).fit(read["train"][0][:, choice], read["train"][1])
    else:
        choice = np.flatnonzero((network.fc.weight != 0).any(0).numpy())
        fitted = module.linear_machine().fit(read["train"][0][:, choice], read["train"][1])
    said = Predictions.read(done / "model" / "predictions.parquet").of("test")
    order = [list(said.hashes).index(data.hashes[row]) for row in rows["test"]]
    assert np.array_equal(said.probabilities[order].argmax(1), fitted.predict(read["test"][0][:, choice]))


def test_the_colonys_choice_is_kept_by_a_run_that_goes_on(done, machine, tmp_path, monkeypatch):
    kept = json.loads((done / module.CHOICE).read_text())
    (tmp_path / module.CHOICE).write_text(json.dumps(kept))
    monkeypatch.setattr(module, "choose_features", None)
    choice, found = module._choice(recipe(machine=machine).head, tmp_path, np.zeros((4, 352)), None, None, 0)
    assert np.flatnonzero(choice).tolist() == kept["choice"] and found == kept["found"]


def test_whole_patients_are_drawn_for_the_colony():
    patients = np.array(["a", "b", "b", "c", "c", "c"], dtype=object)
    some = module._some_patients(patients, 3, 0)
    assert 3 <= len(some) <= 5 and set(patients[some]) & set(np.delete(patients, some)) == set()
    assert len(module._some_patients(patients, 100, 0)) == 6


def test_too_few_patients_a_class_are_refused(tmp_path):
    labels, patients = np.array([0, 0, 1, 1]), np.array(list("abcc"), dtype=object)
    with pytest.raises(RecipeError, match=r"head\.folds: 2, and a class has 1 patients among the 4 B-scans"):
        module._choice(recipe().head, tmp_path, np.zeros((4, 3)), labels, patients, 0)


def test_a_network_that_ends_otherwise_is_refused():
    model = build_model(make_recipe(QUICK), ["A", "B"])
    model.timm_model.fc = torch.nn.Sequential(model.timm_model.fc)
    with pytest.raises(ModelError, match="takes the place of one linear layer, and joined ends in a Sequential"):
        module.check_head(model)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"teacher": {"base": "x"}}, "head: nothing is trained by gradients, so leave out teacher"),
        ({"data": {"name": "parquet", "stream": True}}, r"head: takes no streamed data; data\.stream=false"),
        ({"ensemble": {"members": ["a", "a"]}}, "ensemble.members: a stands there twice"),
    ],
)
def test_what_does_not_go_with_a_head_is_one_line(change, text):
    with pytest.raises(RecipeError, match=text):
        make_recipe({"head": {}} | change)


def test_bases_that_can_not_be_joined_are_one_line():
    for base, text in (
        ("pip:efficientnet_lite0+resnet50", "joins pip packages with others; take either alone"),
        ("test_efficientnett+resnet50", r'timm knows no model test_efficientnett \(did you mean "test_efficientnet"'),
    ):
        wanted = dataclasses.replace(recipe(), model=dataclasses.replace(recipe().model, base=base))
        with pytest.raises(ModelError, match=text):
            build_model(wanted, ["A", "B"])


def test_the_offline_recipe_joins_the_weights_that_pip_installs():
    wanted = load_recipe("hybrid_aco_offline", ["image_size=32"])
    network = build_model(wanted, ["A", "B"]).timm_model
    assert network.num_features == 2560
    from oct_hf.model.pip_bases import BASES

    for backbone, name in zip(network.backbones, ("efficientnet_lite0", "efficientnet_lite2"), strict=True):
        given = BASES[name].state_dict()
        assert all(torch.equal(value, given[key]) for key, value in backbone.state_dict().items())
