import contextlib
import csv
import dataclasses
import json
import threading
import time

import numpy as np
import pytest
from filelock import FileLock
from searching import SPACE, of_two_epochs

from oct_hf.errors import RecipeError, RunError
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.runs.training import Stopped
from oct_hf.runs.tune import tune, tuning_folds
from oct_hf.training.recipe_file import load_recipe, make_recipe
from oct_hf.training.search import check_space, read_space

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def quick(tiny):
    return of_two_epochs(tiny)


@pytest.fixture(scope="module")
def study(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "study"
    return tune(quick, folder, trials=3, folds=2, space=SPACE), folder


def proposed(found: dict) -> list:
    return [(row["params"], row["score"], row["folds"]) for row in found["trials"]]


def test_the_best_recipe_is_that_of_the_best_mean_over_the_folds(study, quick):
    found, folder = study
    assert [row["state"] for row in found["trials"]] == ["complete"] * 3  # too few for a median to prune
    for row in found["trials"]:
        assert len(row["folds"]) == 2 and all(1 <= score["epoch"] <= 2 for score in row["folds"])
        assert row["score"] == pytest.approx(np.mean([score["balanced_accuracy"] for score in row["folds"]]))
        assert 1e-4 <= row["params"]["train.learning_rate"] <= 3e-2
    assert found["best"]["score"] == max(row["score"] for row in found["trials"])
    best = load_recipe(folder / "best.yaml")
    assert best.train.learning_rate == found["best"]["params"]["train.learning_rate"]
    assert best.train.class_weights == found["best"]["params"]["train.class_weights"]
    assert (best.name, best.search, best.split, best.data) == ("tiny-tuned", {}, quick.split, quick.data)
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert [float(row["score"]) for row in rows] == [row["score"] for row in found["trials"]]
    assert not list(folder.glob("trial-*"))  # checkpoints of finished trials are of no more use


def test_no_patient_of_the_test_side_is_searched_on_nor_one_both_trained_and_scored_on(quick):
    recipe = dataclasses.replace(quick, data=dataclasses.replace(quick.data, scans=2))
    data = assign_sides(load_data(recipe.data)[0], recipe)
    patients, searched = np.array(data.patients), []
    held_out = set(patients[data.sides == "test"])
    for train, scored in tuning_folds(data, recipe, 3):
        assert not set(patients[train]) & set(patients[scored])
        assert not (set(patients[train]) | set(patients[scored])) & held_out
        searched += scored.tolist()
    assert held_out and sorted(searched) == np.flatnonzero(data.sides != "test").tolist()


def test_the_sets_own_folds_are_searched_on_without_guards_and_without_the_one_held_out(samples):
    recipe = make_recipe(
        {
            "data": {"name": "neh_2018", "path": str(samples / "neh_sample")},
            "split": {"by": "fold", "test_fold": "4", "near_duplicates": False},
        }
    )
    data = assign_sides(load_data(recipe.data)[0], recipe)
    folds = np.array(data.dataset["fold"][:])
    parts = tuning_folds(data, recipe, 4)
    assert [set(folds[scored]) for _, scored in parts] == [{"0"}, {"1"}, {"2"}, {"3"}]
    assert all("4" not in folds[train] and "guard" not in folds[train] for train, _ in parts)
    with pytest.raises(RunError, match="take --folds 4"):
        tuning_folds(data, recipe, 3)


def test_a_stopped_study_goes_on_and_ends_with_the_same_trials(study, quick, tmp_path, interrupt_when_saved):
    found, folder = study[0], tmp_path / "stopped"
    interrupt_when_saved(folder / "trial-002" / "fold-1")
    with pytest.raises(Stopped):
        tune(quick, folder, trials=3, folds=2, space=SPACE)
    kept = (folder / "trial-002" / "fold-0" / "epochs.json").stat().st_mtime_ns
    assert len((folder / "trials.csv").read_text().splitlines()) == 2
    seen = []
    watch = threading.Thread(target=lambda: seen.append(_time_of_the_first_fold(folder)), daemon=True)
    watch.start()
    assert proposed(tune(quick, folder, trials=3, folds=2, space=SPACE)) == proposed(found)
    watch.join(1)
    assert seen == [kept]  # what was trained of the trial isn't trained again


def _time_of_the_first_fold(folder) -> int | None:
    """When the first fold of the second trial was written, as it is while the second fold goes on."""
    first, last = folder / "trial-002" / "fold-0" / "epochs.json", None
    while not (folder / "trial-003").exists():
        with contextlib.suppress(OSError):
            last = first.stat().st_mtime_ns
        time.sleep(0.002)
    return last


def test_a_finished_study_asks_for_nothing_and_a_longer_one_for_the_rest(study, quick, monkeypatch):
    found, folder = study
    monkeypatch.setattr("oct_hf.runs.trial.build_model", None)  # no training can begin
    assert proposed(tune(quick, folder, trials=2, folds=2, space=SPACE)) == proposed(found)
    with pytest.raises(TypeError):
        tune(quick, folder, trials=4, folds=2, space=SPACE)


def test_a_search_whose_first_trials_all_fail_stops(quick, tmp_path, capsys):
    space = {"learning_rate": [1e30, 1e31]}
    with pytest.raises(RunError, match=r"first 4 trials all failed, the last by: .*loss is no number"):
        tune(quick, tmp_path / "study", trials=6, folds=2, space=space)
    rows = list(csv.DictReader((tmp_path / "study" / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["failed"] * 4
    assert capsys.readouterr().err.count("loss is no number") == 4


def test_another_study_is_refused_in_one_line(study, quick, tmp_path):
    _, folder = study
    other = {**SPACE, "learning_rate": {"low": 1e-5, "high": 3e-2, "log": True}}
    for arguments, text in (
        ({"space": other}, r"of another search space \(it differs in space.train.learning_rate.low\)"),
        ({"space": {"learning_rate": SPACE["learning_rate"]}}, "another search space .*space.train.class_weights"),
        ({"folds": 3}, "another kind .*folds"),
        ({"seed": 1}, "another kind .*seed"),
    ):
        with pytest.raises(RunError, match=text) as caught:
            tune(quick, folder, **{"trials": 3, "folds": 2, "space": SPACE} | arguments)
        assert "\n" not in str(caught.value)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("x")
    with pytest.raises(RunError, match="is no study"):
        tune(quick, tmp_path / "letters", space=SPACE)
    pretrained = make_recipe({**quick.to_dict(), "pretrain": {}})
    with pytest.raises(RunError, match="pretrain=null"):
        tune(pretrained, tmp_path / "pretrained", space=SPACE)
    with FileLock(folder / "study.lock"), pytest.raises(RunError, match="another process"):
        tune(quick, folder, trials=3, folds=2, space=SPACE)


@pytest.mark.parametrize(
    "space, text",
    [
        ({"lerning_rate": [1e-3, 1e-2]}, 'no recipe key "lerning_rate".*learning_rate'),
        ({"split.seed": [0, 1]}, "split.seed can't be searched"),
        ({"train.seed": [0, 1]}, "train.seed can't be searched"),
        ({"learning_rate": {"low": 1e-2, "high": 1e-3}}, "low must be below high"),
        ({"learning_rate": {"low": 0, "high": 1e-3, "log": True}}, "above 0 with log"),
        ({"learning_rate": {"low": 1e-4, "hihg": 1e-3}}, 'unknown "hihg".*"high"'),
        ({"learning_rate": 1e-3}, "or a list"),
        ({"dropout": {"low": 0, "high": 1.5}}, "model.dropout"),
        ({"train.epochs": {"low": 1.5, "high": 3}}, "whole number, found 1.5"),
        ({"train.class_weights": ["auto"]}, "two or more"),
        ({"train.class_weights": ["auto", "atuo"]}, "train.class_weights.*atuo"),
    ],
)
def test_an_unusable_space_is_refused_with_its_key(tiny, space, text):
    with pytest.raises(RecipeError, match=text) as caught:
        check_space(space, tiny)
    assert "\n" not in str(caught.value)


def test_a_space_stands_in_the_recipe_or_in_a_file_of_its_own(tiny, tmp_path):
    file = tmp_path / "space.yaml"
    for text in ("dropout: {low: 0, high: 0.3}\n", "search:\n  model.dropout: {low: 0, high: 0.3}\n"):
        file.write_text(text)
        assert check_space(read_space(file), tiny) == {"model.dropout": {"low": 0.0, "high": 0.3, "log": False}}
    file.write_text("- dropout\n")
    with pytest.raises(RecipeError, match="mapping"):
        read_space(file)
    given = make_recipe({**tiny.to_dict(), "search": {"dropout": [0.0, 0.1]}})
    assert load_recipe(_written(given, tmp_path)).search == {"dropout": [0.0, 0.1]}


def _written(recipe, folder):
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    return folder / "recipe.yaml"


def test_the_command_shows_the_trials_best_first(study, quick, run, tmp_path):
    found, folder = study
    recipe, space = _written(quick, tmp_path), tmp_path / "space.json"
    space.write_text(json.dumps(SPACE))  # JSON is YAML
    arguments = ("tune", recipe, "--trials", "3", "--folds", "2", "--space", space, "--out", folder)
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "mean of 2 folds" in out and f"{found['best']['score']:.3f}" in out and "best.yaml" in out
    code, out, _ = run(*arguments, "--json")
    assert code == 0 and proposed(json.loads(out)) == proposed(found)
    code, _, err = run(*arguments, "--seed", "5")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
