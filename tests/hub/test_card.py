import copy
import json
from typing import get_args

import pytest
import yaml

from oct_hf.hub.card import model_licence, render_card, span
from oct_hf.training.recipe import TrainRecipe


@pytest.fixture
def run(finished_run) -> dict:
    return json.loads((finished_run / "model" / "run.json").read_text())


def rendered(run: dict) -> tuple[dict, str]:
    text = render_card(run)
    assert text.startswith("---\n")
    header, body = text[4:].split("\n---\n", 1)
    return yaml.safe_load(header), body


def test_every_measured_score_stands_in_table_and_metadata(run):
    header, body = rendered(run)
    scores = {m["type"]: m["value"] for m in header["model-index"][0]["results"][0]["metrics"]}
    test = run["results"]["test"]
    assert scores["balanced_accuracy"] == round(test["balanced_accuracy"], 4)
    assert scores["roc_auc"] == round(test["auroc"], 4)
    for label, row in test["per_class"].items():
        spans = run["intervals"]["per_class"][label]
        assert f"| {label} | {row['n']} | {row['recall']:.3f} ({span(spans['recall'])}) | " in body
        assert f" | {row['specificity']:.3f} ({span(spans['specificity'])}) | " in body
    for side, row in run["split"]["sides"].items():
        assert f"| {side} | {row['images']} | {row['groups']} |" in body


def test_a_score_that_could_not_be_computed_is_absent_from_the_metadata_and_said_in_the_table(run):
    run["results"]["test"]["auroc"] = None
    run["results"]["test"]["per_class"]["CNV"]["precision"] = None
    header, body = rendered(run)
    assert "roc_auc" not in {m["type"] for m in header["model-index"][0]["results"][0]["metrics"]}
    assert "| AUROC (macro, one-vs-rest) | n/a |" in body and "AUROC **" not in body


def test_a_fact_that_is_missing_is_an_error_and_not_a_blank(run):
    del run["training"]["best_epoch"]
    with pytest.raises(Exception, match="best_epoch"):
        rendered(run)


@pytest.mark.parametrize("setting", ["optimizer", "loss"])
def test_every_optimiser_and_loss_has_a_name_on_the_card(run, setting):
    said = set()
    choices = get_args(TrainRecipe.__annotations__[setting])
    for choice in choices:
        run["recipe"]["train"][setting] = choice
        said.add(rendered(run)[1])  # one without a name is an error
    assert len(said) == len(choices)


def test_hub_weights_are_named_as_the_base_model(run):
    run["model"] |= {"weights": "hub", "hub_id": "timm/tf_efficientnetv2_b0.in1k"}
    header, body = rendered(run)
    assert header["base_model"] == "timm/tf_efficientnetv2_b0.in1k" and "Start: timm/tf_efficientnetv2_b0.in1k" in body


@pytest.mark.parametrize(
    "data, weights, base, said, expected",
    [
        ("cc-by-4.0", "random", None, None, "cc-by-4.0"),
        ("apache-2.0", "hub", "apache-2.0", None, "apache-2.0"),
        ("cc-by-4.0", "hub", "cc-by-nc-4.0", None, "cc-by-nc-4.0"),
        (None, "random", None, None, None),
        ("apache-2.0", "hub", None, None, None),
        (None, "hub", None, "mit", "mit"),
    ],
)
def test_the_licence_is_what_base_and_data_allow(run, data, weights, base, said, expected):
    run = copy.deepcopy(run)
    run["data"]["license"] = data
    run["model"] |= {"weights": weights, "license": base}
    run["recipe"]["card"]["license"] = said
    assert model_licence(run) == expected
    header, body = rendered(run)
    assert header.get("license") == expected
    assert ("No licence is stated" in body) == (expected is None)


@pytest.mark.promise("Labels and file names are text wherever they are shown; nothing obeys them.")
def test_text_from_outside_can_not_break_the_card(run):
    run["data"]["title"] = "Clinic | <script>alert(1)</script>\n---\nlicense: mit"
    run["data"]["license"] = "apache-2.0"
    header, body = rendered(run)
    assert header["model-index"][0]["results"][0]["dataset"]["name"].startswith("Clinic |")
    assert header["license"] == "apache-2.0" and "<script>" not in body and "Clinic \\|" in body


def test_what_has_no_interval_says_why():
    assert span({"low": 0.25, "high": 0.5, "method": "Wilson"}) == "0.250–0.500"
    assert span({"why": "one patient"}) == "n/a: one patient" and span(None) == "n/a"


def test_a_set_that_the_model_never_saw_has_its_own_heading(run):
    assert "On other data" not in rendered(run)[1].replace("*On other data*", "")
    found = {key: run[key] for key in ("intervals", "subgroups")} | {"results": run["results"]["test"]}
    found |= {"title": "Another | clinic", "homepage": None, "grouped_by": "patient", "file": "external/x.parquet"}
    run["external"] = [found | {"label_map": {"CNV": "CNV"}, "shift": None, "sets": None, "refused": None}]
    body = rendered(run)[1]
    assert "## On other data: Another \\| clinic" in body and "CNV → CNV" in body
