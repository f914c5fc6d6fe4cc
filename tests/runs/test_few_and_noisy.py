import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from oct_hf.data.corrections import read_corrections
from oct_hf.data.splits import read_split_table
from oct_hf.errors import RunError
from oct_hf.evaluation.label_errors import plant_errors
from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.training.recipe_file import change_recipe, load_recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import few_and_noisy as script


@pytest.fixture
def quick(tiny):
    return dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, labels=("DME", "NORMAL"), patients=8),
        train=dataclasses.replace(tiny.train, epochs=2, freeze_epochs=0, ema=0.0),
        evaluation=dataclasses.replace(tiny.evaluation, explain=0),
    )


def test_the_same_errors_are_planted_from_the_same_seed_each_into_another_label():
    hashes, names = [f"h{i}" for i in range(50)], ["A", "B", "C"]
    labels = [names[i % 3] for i in range(50)]
    wrong = plant_errors(hashes, labels, names, 0.4, [3, 1])
    assert len(wrong) == 20 and wrong == plant_errors(hashes, labels, names, 0.4, [3, 1])
    assert wrong != plant_errors(hashes, labels, names, 0.4, [4, 1])
    true = dict(zip(hashes, labels, strict=True))
    assert all(true[h] == given != planted and planted in names for h, (given, planted) in wrong.items())
    assert {planted for _, planted in wrong.values()} == set(names)
    units = [f"p{i // 5}" for i in range(50)]
    whole = plant_errors(hashes, labels, names, 0.2, 0, units)
    assert len(whole) == 10 and len({units[hashes.index(h)] for h in whole}) == 2


def test_labels_are_made_wrong_on_the_training_side_alone(quick, tmp_path):
    data = assign_sides(load_data(quick.data)[0], quick)
    found = script.trainings(quick, data, tmp_path, [0.25], [3], [], [0, 1])
    planted = {c.content_hash: c for c in read_corrections(tmp_path / "wrong-25.csv")}
    training = {h for h, side in zip(data.hashes, data.sides, strict=True) if side == "train"}
    assert planted.keys() <= training and len(planted) == round(0.25 * len(training))
    noisy = found["25% wrong", "cross_entropy"]
    again = assign_sides(load_data(noisy.data)[0], noisy)
    held_out = [row for row, side in enumerate(data.sides) if side != "train"]
    assert [again.labels[row] for row in held_out] == [data.labels[row] for row in held_out]
    assert {h for h, a, b in zip(data.hashes, data.labels, again.labels, strict=True) if a != b} == planted.keys()
    assert found["25% wrong", "co_teaching"].co_teaching.forget_rate == 0.25
    assert found["25% wrong", "elr"].train.loss == "elr" and found["25% wrong", "elr"].data == noisy.data
    plain, fixmatch = found["3 a class", "cross_entropy"], found["3 a class", "fixmatch"]
    assert plain == change_recipe(fixmatch, {"semi.weight": 0.0}) and fixmatch.split.labelled_per_class == 3
    assert found["good labels", "cross_entropy"] == quick


def test_fewer_patients_take_as_many_steps(quick, tmp_path):
    data = assign_sides(load_data(quick.data)[0], quick)
    found = script.trainings(quick, data, tmp_path, [], [], [0.5], [0, 1])
    half = found["0.5 of the patients", "cross_entropy"]
    assert half.train.epochs == 2 * quick.train.epochs and half.split.path == str(tmp_path / "patients-500.csv")
    sides = read_split_table(half.split.path)
    kept = {p for p, side in zip(sides["patient_id"], sides["side"], strict=True) if side == "train"}
    whole = {p for p, side in zip(data.patients, data.sides, strict=True) if side == "train"}
    assert kept < whole and 0 < len(kept) <= len(whole) / 2 + 1


def test_the_fast_recipe_is_one():
    recipe = load_recipe("neh_2018", [f"{key}={json.dumps(value)}" for key, value in script.FAST.items()])
    assert recipe.model.image_size == 96 and recipe.train.class_weights is None


@pytest.mark.slow
def test_everything_is_trained_once_and_told_in_a_table(quick, tmp_path, monkeypatch):
    ask = lambda: script.compare_methods(quick, tmp_path, 2, [0], [0.4], [2], ["gce", "fixmatch"], [0.5])  # noqa: E731
    found = ask()
    assert {c: set(m) for c, m in found["won_back"].items()} == {
        "40% wrong": {"cross_entropy", "gce"},
        "2 a class": {"cross_entropy", "fixmatch"},
        "0.5 of the patients": {"cross_entropy"},
    }
    assert len(found["trainings"]) == 2 * 6
    half, whole = found["curve"]["patients"]
    assert 0 < half < whole
    few = [row for row in found["trainings"] if row["labels"] == "2 a class"]
    assert {row["images"] for row in few} == {4} and len({row["steps"] for row in few if row["fold"] == 0}) == 1
    own = found["won_back"]["40% wrong"]["cross_entropy"]["metrics"]["balanced_accuracy"]
    assert own["won"]["value"] == 0 and own["lost"]["value"] == pytest.approx(own["good"] - own["method"])
    parts = [Predictions.read(tmp_path / f"seed-0/fold-{k}/good-labels/cross_entropy.parquet") for k in range(2)]
    assert own["good"] == pytest.approx(Predictions.pool(parts).measure()["balanced_accuracy"])
    for number in range(2):
        with open(tmp_path / f"split-{number}.csv", newline="") as file:
            sides = {row["content_hash"]: row["side"] for row in csv.DictReader(file)}
        assert {sides[h] for h in parts[number].hashes} == {"test"}
        assert len(read_split_table(tmp_path / f"split-{number}.csv")["side"]) == 32
    table = script.markdown(found)
    assert "| 40% wrong | gce | " in table and np.isfinite(found["trainings"][0]["seconds"])
    assert f"| {whole:.0f} | " in table and "Each doubling of them brought " in table
    curve = found["curve"]["metrics"]["balanced_accuracy"]["values"]
    assert curve[1]["value"] == pytest.approx(own["good"])
    assert not list(tmp_path.rglob("*.safetensors"))
    monkeypatch.setattr(script, "train_and_predict", None)  # nothing is trained again
    assert ask() == found
    other = dataclasses.replace(quick, train=dataclasses.replace(quick.train, epochs=3))
    with pytest.raises(RunError, match=r"cross_entropy is of another recipe \(it differs in train.epochs\); choose"):
        script.compare_methods(other, tmp_path, 2, [0], [0.4], [], [])
