"""Runs averaged into one network: measured, published and taught from; and which runs may not be averaged."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from oct_hf import OCTForImageClassification, Preprocessing, finetune
from oct_hf.data.splits import learned_from, read_split_table, write_split
from oct_hf.errors import DataError, ModelError, RecipeError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.card import render_card
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.runs.ensemble import Member, check_held_out, ensemble_recipe
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.runs.teacher import prepare_teacher
from oct_hf.training.distillation import Teacher
from oct_hf.training.recipe_file import make_recipe
from tests.conftest import TINY

QUICK = TINY | {"evaluation": {"explain": 0}}


def quick(**train):
    settings = TINY["train"] | {"epochs": 2, "freeze_epochs": 0, "ema": 0.0}
    return make_recipe(QUICK | {"train": settings | train})


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    """Two runs on one split: of another seed, with a snapshot an epoch; and the tiny one."""
    folder = tmp_path_factory.mktemp("members") / "other"
    finetune(dataclasses.replace(quick(seed=3, snapshots=2), name="other"), folder)
    return [folder, finished_run]


@pytest.fixture(scope="module")
def mean(runs):
    """The folder of the finished ensemble."""
    folder = runs[0].parent / "mean"
    finetune(ensemble_recipe([str(run) for run in runs], "mean", ["evaluation.explain=0"]), folder)
    return folder


def test_its_answers_are_the_mean_of_its_members_before_calibration(mean, runs):
    found = Predictions.read(mean / "model/predictions.parquet")
    parts = [Predictions.read(run / "model/predictions.parquet") for run in runs]
    assert all(np.array_equal(part.hashes, found.hashes) for part in parts)
    run = json.loads((mean / "run.json").read_text())
    average = (parts[0].probabilities.astype(float) + parts[1].probabilities) / 2
    logits = np.log(average) / run["calibration"]["temperature"]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(expected - found.probabilities).max() < 1e-4
    assert not np.allclose(parts[0].probabilities, parts[1].probabilities, atol=1e-2)


def test_it_publishes_like_any_model_and_its_card_names_the_members(mean):
    checks = {check.name: check for check in verify(download(str(mean)))}
    assert [check.faults for check in checks.values()] == [()] * len(checks)
    assert "onnxruntime" in checks["loaders"].note
    model = OCTForImageClassification.from_pretrained(mean / "model")
    assert len(model.timm_model.members) == 2
    card = (mean / "model/README.md").read_text()
    run = json.loads((mean / "model/run.json").read_text())
    for member in run["ensemble"]["members"]:
        assert f"{member['name']}: test_efficientnet at {member['image_size']} pixels" in card
        assert f"alone on this test side: balanced accuracy {member['balanced_accuracy']:.3f}" in card
    assert "Start:" not in card and "epochs of at most" not in card and render_card(run) == card
    assert run["recipe"]["ensemble"]["members"] == ["other", "tiny"] and "members.csv" not in run["files"]


def test_snapshots_are_models_of_their_own_and_members(runs):
    places = [runs[0] / "snapshots" / name for name in "12"]
    first, last = (OCTForImageClassification.from_pretrained(place).state_dict() for place in places)
    assert not all(torch.equal(first[key], last[key]) for key in first)
    member = Member.at(str(places[0]))
    assert member.learned == learned_from(runs[0] / "model") and member.run["name"] == "other"
    rates = [row["learning_rate"] for row in json.loads((runs[0] / "run.json").read_text())["training"]["history"]]
    assert rates[0] == pytest.approx(rates[1])  # the second cosine begins where the first did


def test_a_member_that_learned_from_what_is_held_out_is_refused(runs):
    wanted = ensemble_recipe([str(run) for run in runs], "mean", [])
    other = dataclasses.replace(wanted, split=dataclasses.replace(wanted.split, seed=5))
    with pytest.raises(
        DataError, match=r"other learned from \d+ of the B-scans \(patients: \d+\) that this split holds"
    ):
        finetune(other, runs[0].parent / "refused")
    assert not (runs[0].parent / "refused").exists()


def test_another_picture_of_a_patient_who_is_held_out_counts_too(runs):
    wanted = ensemble_recipe([str(run) for run in runs], "mean", [])
    data = assign_sides(load_data(wanted.data)[0], wanted)
    member, held = Member.at(str(runs[0])), int(np.flatnonzero(data.sides == "test")[0])
    check_held_out(member, data, "phantom")
    seen = dataclasses.replace(member, learned={"f" * 64: (data.patients[held], data.labels[held])})
    with pytest.raises(DataError, match=r"from 0 of the B-scans \(patients: 1\)"):
        check_held_out(seen, data, "phantom")
    check_held_out(seen, data, "another set, whose ids are other people")


def test_what_members_learned_from_elsewhere_is_published_and_keeps_them_from_teaching_it(runs, tmp_path):
    place = tmp_path / "elsewhere"
    shutil.copytree(runs[0] / "model", place)
    split = read_split_table(place / "split.csv")
    strange = ["e" * 64, "f" * 64]
    columns = {"hashes": "content_hash", "patients": "patient_id", "labels": "label", "sides": "side"}
    more = {key: split[column] for key, column in columns.items()}
    new = {"hashes": strange, "patients": ["x", "y"], "labels": ["DME"] * 2, "sides": ["train"] * 2}
    write_split(place / "split.csv", **{key: [*more[key], *new[key]] for key in more})
    finetune(ensemble_recipe([str(runs[1]), str(place)], "mean", ["evaluation.explain=0"]), tmp_path / "mean")
    told = learned_from(tmp_path / "mean/model")
    assert set(strange) <= told.keys() and "`members.csv` lists them" in (tmp_path / "mean/model/README.md").read_text()
    assert read_split_table(tmp_path / "mean/model/members.csv")["content_hash"] == strange
    assert all(not check.faults for check in verify(download(str(tmp_path / "mean"))))


def test_it_teaches_one_network_its_logits_and_its_members_features(mean, tmp_path):
    teacher = {"base": str(mean / "model"), "epochs": 0, "phantoms": 8}
    wanted = make_recipe(QUICK | {"train": TINY["train"] | {"epochs": 1, "freeze_epochs": 0}, "teacher": teacher})
    found, _ = prepare_teacher(
        wanted, assign_sides(load_data(wanted.data)[0], wanted), tmp_path, Preprocessing(64, 64), None, None
    )
    features, logits = found(torch.randn(3, 3, 64, 64))
    assert features.shape == (3, found.features) and found.features == 2 * 256 and logits.shape == (3, 4)
    assert torch.allclose(features[:, :256].norm(dim=1), torch.ones(3), atol=1e-5)
    run = finetune(wanted, tmp_path / "student")
    assert run["teacher"]["architecture"] == "ensemble" and run["model"]["architecture"] == "test_efficientnet"
    assert all(not check.faults for check in verify(download(str(tmp_path / "student"))))


def test_a_teacher_of_one_network_gives_its_features_as_they_are(runs):
    model = OCTForImageClassification.from_pretrained(runs[1] / "model")
    features, _ = Teacher(model, Preprocessing(64, 64), Preprocessing(64, 64))(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 256) and not torch.allclose(features.norm(dim=1), torch.ones(2), atol=1e-2)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"epochs": 3, "snapshots": 2}, "3 epochs aren't divisible into 2 equal cycles"),
        ({"epochs": 2, "snapshots": 2, "ema": 0.9}, "neither ema, swa_epochs nor patience"),
        ({"epochs": 2, "snapshots": 2, "schedule": "one_cycle"}, "need the schedule cosine"),
    ],
)
def test_snapshots_that_can_not_be_taken_are_one_line(change, text):
    with pytest.raises(RecipeError, match=text):
        make_recipe({"train": change})


def test_a_member_that_is_no_finished_run_is_one_line(runs, tmp_path):
    shutil.copytree(runs[0] / "model", tmp_path / "bare")
    (tmp_path / "bare/run.json").unlink()
    with pytest.raises(ModelError, match="bare: no finished run"):
        Member.at(str(tmp_path / "bare"))


def test_the_command_line_averages_runs_and_prints_each(runs, run, tmp_path):
    snapshots = [runs[0] / "snapshots" / name for name in "12"]
    code, text, said = run("ensemble", *snapshots, "evaluation.explain=0", "--out", tmp_path / "snaps")
    assert code == 0, said
    assert "snaps on the test side" in text and "other, snapshot 1" in text and "other, snapshot 2" in text
    assert run("ensemble", runs[0])[2].strip() == "error: an ensemble has two members or more"
