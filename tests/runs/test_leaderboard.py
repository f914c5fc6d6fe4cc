import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from oct_hf.errors import RecipeError
from oct_hf.evaluation.comparison import compare_all
from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.other_data import evaluate_model
from oct_hf.training.recipe_file import load_recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from benchmarks.systems import benchmark_systems, changes, markdown, systems

# six patients of each label
ELSEWHERE = ["data.name=phantom", "data.title=Another hospital", "data.patients=6", "data.scans=2", "data.seed=8"]


def written(recipe, folder, name, **train):
    recipe = dataclasses.replace(recipe, name=name, train=dataclasses.replace(recipe.train, **train))
    (folder / f"{name}.yaml").write_text(recipe.to_yaml())
    return str(folder / f"{name}.yaml")


@pytest.fixture(scope="module")
def leaderboard(finished_run, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    names = [written(tiny, folder, "tiny"), written(tiny, folder, "short", epochs=1, freeze_epochs=0)]
    other = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, base="no_such_network"))
    names.append(written(other, folder, "broken"))
    published = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, weights="hub"))
    names.append(written(published, folder, "frozen", freeze_epochs=3))
    shutil.copytree(finished_run, folder / "out" / "tiny")
    patch = pytest.MonkeyPatch()
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.setenv("HF_HUB_CACHE", str(folder))
    own = ["short:train.batch_size=6"]
    found = benchmark_systems(names, None, folder / "out", 1, own, ["tiny", "short"], ELSEWHERE, "again")
    patch.undo()
    return found, folder / "out"


def test_each_system_has_its_scores_costs_and_test_against_the_main_one(leaderboard, finished_run):
    found, folder = leaderboard
    rows = {row["name"]: row for row in found["systems"]}
    assert (
        set(rows) == {"tiny", "short", "frozen", "ensemble"}
        and found["main"] == "tiny"
        and rows["tiny"]["against_main"] is None
    )
    run = json.loads((finished_run / "run.json").read_text())
    assert rows["tiny"]["balanced_accuracy"]["value"] == run["results"]["test"]["balanced_accuracy"]
    assert rows["tiny"]["ece"]["low"] == run["intervals"]["metrics"]["ece"]["low"]
    assert rows["tiny"]["train_s"] == run["training"]["seconds"]  # it was finished: not trained again
    places = {name: folder / name for name in ("tiny", "short", "ensemble")} | {"frozen": folder / "frozen-random"}
    named = {name: Predictions.read(place / "model" / "predictions.parquet") for name, place in places.items()}
    expected = compare_all(named)["runs"]["short"]["metrics"]["balanced_accuracy"]
    assert rows["short"]["against_main"] == expected
    assert all(row["images_per_s"] > 0 and row["mb"] > 0 for row in rows.values())
    assert "no_such_network" in found["failed"]["broken"]


def test_a_system_without_its_weights_starts_from_random_ones_and_learns_in_all_layers(leaderboard):
    found, folder = leaderboard
    rows = {row["name"]: row for row in found["systems"]}
    recipe = json.loads((folder / "frozen-random" / "run.json").read_text())["recipe"]
    assert recipe["model"]["weights"] == "random" and recipe["train"]["freeze_epochs"] == 0
    assert rows["frozen"]["random"] and not (folder / "frozen").exists()


def test_settings_of_one_system_are_its_own(leaderboard):
    batches = {
        name: json.loads((leaderboard[1] / name / "run.json").read_text())["recipe"]["train"]["batch_size"]
        for name in ("tiny", "short")
    }
    assert batches["short"] == 6 != batches["tiny"]
    changed = load_recipe("vgg16", ["train.epochs=2", "model.weights=random", "data.name=phantom"])
    assert changes(changed) == ["model.weights=random", "train.epochs=2"]
    assert changes(dataclasses.replace(changed, name="of my own")) == []


def test_the_ensemble_averages_the_systems_that_are_named(leaderboard):
    found, folder = leaderboard
    row = next(row for row in found["systems"] if row["name"] == "ensemble")
    sides = [
        Predictions.read(folder / name / "model" / "predictions.parquet").of("test")
        for name in ("tiny", "short", "ensemble")
    ]
    one, other, both = (side.rows(np.argsort(side.hashes.astype(str))).probabilities for side in sides)
    mean = np.log((one + other) / 2)
    # Its own temperature comes on top.
    apart = np.log(both) - np.log(both).mean(1, keepdims=True)
    of_mean = mean - mean.mean(1, keepdims=True)
    factors = (apart * of_mean).sum(1) / (of_mean**2).sum(1)
    assert row["base"] == "mean of 2" and np.allclose(apart, factors.mean() * of_mean, atol=2e-3)


def test_every_system_is_asked_about_another_set(leaderboard):
    found, folder = leaderboard
    assert found["elsewhere"] == {"title": "Another hospital", "n": 48, "groups": 24, "grouped_by": "patient"}
    other = load_recipe("folder", ELSEWHERE).data
    for row in found["systems"]:
        place = folder / ("frozen-random" if row["name"] == "frozen" else row["name"]) / "model"
        expected = evaluate_model(place, other)
        for key in ("balanced_accuracy", "auroc"):
            assert row["elsewhere"][key]["value"] == expected["results"][key]
            assert row["elsewhere"][key]["low"] == expected["intervals"]["metrics"][key].get("low")
    best, text = found["systems"][0], (folder / "leaderboard.md").read_text()
    assert "48 B-scans of 24 patients of Another hospital" in text
    assert (
        f"{best['elsewhere']['balanced_accuracy']['value']:.3f}" in text.split(f"| {best['name']} |")[1].split("\n")[0]
    )
    rows = csv.DictReader((folder / "leaderboard.csv").read_text().splitlines())
    assert float(next(rows)["elsewhere_auroc"]) == best["elsewhere"]["auroc"]["value"]


def test_the_leaderboard_is_written_for_readers_and_for_programs(leaderboard):
    found, folder = leaderboard
    text = (folder / "leaderboard.md").read_text()
    assert text == markdown(found) and "| main |" in text and "broken could not be run" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 6
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [row["name"] for row in found["systems"]]
    assert float(rows[0]["balanced_accuracy"]) >= float(rows[1]["balanced_accuracy"])
    assert json.loads((folder / "leaderboard.json").read_text()) == found
    assert (folder / "leaderboard.png").stat().st_size > 1000


def test_all_systems_have_the_data_and_split_of_the_first_and_equal_ones_run_once(tiny, tmp_path):
    split = dataclasses.replace(tiny, split=dataclasses.replace(tiny.split, seed=7))
    names = [written(tiny, tmp_path, "one"), written(split, tmp_path, "same")]
    names.append(written(split, tmp_path, "longer", epochs=9))
    found = systems(names, None, ["train.batch_size=4"])
    assert list(found) == ["one", "longer"] and found["longer"].split == tiny.split
    assert [one.train.epochs for one in found.values()] == [3, 9]
    assert {one.train.batch_size for one in found.values()} == {4}
    (tmp_path / "again").mkdir()
    with pytest.raises(RecipeError, match="another recipe is named one"):
        systems([names[0], written(tiny, tmp_path / "again", "one", epochs=2)], None)
    with pytest.raises(RecipeError, match="no recipe"):
        systems(["demmo"], None)
    with pytest.raises(RecipeError, match="settings for two, which is none of the recipes"):
        systems(names[:1], None, ["two:train.epochs=1"])
    with pytest.raises(RecipeError, match="two: to be averaged, but none of the recipes"):
        benchmark_systems(names[:1], None, tmp_path / "out", members=["one", "two"])
    with pytest.raises(RecipeError, match="for one split"):
        benchmark_systems(names[:1], None, tmp_path / "out", folds=2, members=["one"])
    with pytest.raises(RecipeError, match="another set, are for one split"):
        benchmark_systems(names[:1], None, tmp_path / "out", folds=2, elsewhere=ELSEWHERE)
