import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from oct_hf.errors import RecipeError
from oct_hf.evaluation.comparison import compare_all
from oct_hf.evaluation.predictions import Predictions

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from benchmarks.systems import benchmark_systems, markdown, systems


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
    shutil.copytree(finished_run, folder / "out" / "tiny")
    return benchmark_systems(names, None, folder / "out"), folder / "out"


def test_each_system_has_its_scores_costs_and_test_against_the_main_one(leaderboard, finished_run):
    found, folder = leaderboard
    rows = {row["name"]: row for row in found["systems"]}
    assert set(rows) == {"tiny", "short"} and found["main"] == "tiny" and rows["tiny"]["against_main"] is None
    run = json.loads((finished_run / "run.json").read_text())
    assert rows["tiny"]["balanced_accuracy"]["value"] == run["results"]["test"]["balanced_accuracy"]
    assert rows["tiny"]["ece"]["low"] == run["intervals"]["metrics"]["ece"]["low"]
    assert rows["tiny"]["train_s"] == run["training"]["seconds"]  # it was finished: not trained again
    named = {name: Predictions.read(folder / name / "model" / "predictions.parquet") for name in ("tiny", "short")}
    expected = compare_all(named)["runs"]["short"]["metrics"]["balanced_accuracy"]
    assert rows["short"]["against_main"] == expected
    assert all(row["images_per_s"] > 0 and row["mb"] > 0 for row in rows.values())
    assert "no_such_network" in found["failed"]["broken"]


def test_the_leaderboard_is_written_for_readers_and_for_programs(leaderboard):
    found, folder = leaderboard
    text = (folder / "leaderboard.md").read_text()
    assert text == markdown(found) and "| main |" in text and "broken could not be run" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
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
