import dataclasses
import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss

from oct_hf.errors import RunError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.folds import add_points, cross_validate, fold_recipes
from oct_hf.runs.other_data import evaluate_model
from oct_hf.training.recipe_file import make_recipe


@pytest.fixture(scope="module")
def quick(tiny):
    return dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, labels=("DME", "NORMAL"), patients=4),
        train=dataclasses.replace(tiny.train, epochs=1, freeze_epochs=0),
        evaluation=dataclasses.replace(tiny.evaluation, explain=0),
    )


@pytest.fixture(scope="module")
def two_folds(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds") / "run"
    return cross_validate(quick, folder, 2), folder


def fold_predictions(folder) -> list[Predictions]:
    return [Predictions.read(folder / f"fold-{number}" / "model" / "predictions.parquet") for number in range(2)]


def test_pooled_scores_are_those_of_every_test_side_together(two_folds):
    facts, folder = two_folds
    parts = [part.of("test") for part in fold_predictions(folder)]
    labels = np.concatenate([part.indices() for part in parts])
    answers = np.concatenate([part.probabilities for part in parts]).astype(float)
    found = facts["by_seed"]["0"]
    assert found["results"]["n"] == len(labels) == 16 and found["results"]["groups"] == 8
    assert found["results"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers.argmax(1)))
    assert found["results"]["log_loss"] == pytest.approx(log_loss(labels, answers / answers.sum(1, keepdims=True)))
    assert found["intervals"]["patients"] == 8 and "low" in found["intervals"]["metrics"]["balanced_accuracy"]
    values = [balanced_accuracy_score(part.indices(), part.probabilities.argmax(1)) for part in parts]
    spread = found["spread"]["balanced_accuracy"]
    assert spread["values"] == pytest.approx(values) and spread["mean"] == pytest.approx(np.mean(values))
    assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
    assert json.loads((folder / "folds.json").read_text()) == facts
    stored = Predictions.read(folder / "predictions.parquet")
    assert set(stored.sides) == {"test"} and np.array_equal(stored.probabilities, answers.astype(np.float32))
    assert stored.eyes is not None and "likeness" in stored.traits


def test_what_a_fold_chose_on_its_own_validation_side_stays_with_it(two_folds):
    facts, folder = two_folds
    runs = [json.loads((folder / f"fold-{number}" / "run.json").read_text()) for number in range(2)]
    rows = facts["by_seed"]["0"]["by_fold"]
    assert [row["temperature"] for row in rows] == [run["calibration"]["temperature"] for run in runs]
    (row,) = (
        row
        for row in facts["by_seed"]["0"]["operating_points"]
        if row["question"] == "DME" and row["target"].startswith("sensitivity")
    )
    hit = total = 0
    for run, part in zip(runs, fold_predictions(folder), strict=True):
        test = part.of("test")
        cut = run["operating_points"]["diseases"]["DME"]["at_sensitivity"]["threshold"]
        ill = test.labels == "DME"
        hit, total = hit + int((test.probabilities[ill, 0].astype(float) >= cut).sum()), total + int(ill.sum())
    assert (row["tp"], row["tp"] + row["fn"]) == (hit, total) and row["sensitivity"] == hit / total


def test_thresholds_that_one_fold_lacks_are_counted():
    point = {"test": {"tp": 3, "fp": 1, "tn": 4, "fn": 0}}
    view = {"at_specificity": point, "at_sensitivity": None}
    lacking = {"at_specificity": None, "at_sensitivity": None}
    whole = {"targets": {"specificity": 0.95, "sensitivity": 0.95}, "urgent": lacking, "any_disease": lacking}
    rows = add_points([whole | {"diseases": {"A": view}}, whole | {"diseases": {"A": lacking}}])
    assert rows == [
        {"question": "A", "target": "specificity 0.95", "folds": 1, **point["test"], "sensitivity": 1.0}
        | {"specificity": 0.8}
    ]


def test_each_seed_has_its_folds_and_the_first_leads(two_folds, quick, tmp_path):
    facts, folder = two_folds
    shutil.copytree(folder, tmp_path / "run" / "seed-0")  # what is finished is taken as it is
    both = cross_validate(quick, tmp_path / "run", 2, seeds=(0, 1))
    assert both["seeds"] == [0, 1] and both["by_seed"]["0"] == facts["by_seed"]["0"]
    values = [both["by_seed"][seed]["results"]["log_loss"] for seed in "01"]
    assert values[0] != values[1] and both["over_seeds"]["log_loss"]["mean"] == pytest.approx(np.mean(values))
    one, other = ((tmp_path / "run" / f"seed-{seed}" / "fold-0/model/split.csv").read_text() for seed in (0, 1))
    assert one == other  # the same folds: only the training's chance differs
    leading = Predictions.read(tmp_path / "run" / "predictions.parquet")
    assert np.array_equal(leading.probabilities, Predictions.read(folder / "predictions.parquet").probabilities)


def test_pooled_folders_are_compared_and_measured_again(two_folds, run, tmp_path):
    facts, folder = two_folds
    other = tmp_path / "other"
    other.mkdir()
    pooled = Predictions.read(folder / "predictions.parquet")
    pooled.with_probabilities(1 - pooled.probabilities).write(other / "predictions.parquet")
    code, out, _ = run("compare", folder, other, "--json", "--permutations", "200")
    compared = json.loads(out)["runs"][str(other)]
    accuracy = facts["by_seed"]["0"]["results"]["accuracy"]
    assert code == 0 and compared["rows"] == 16 and compared["metrics"]["accuracy"]["first"] == pytest.approx(accuracy)
    assert evaluate_model(folder)["results"] == facts["by_seed"]["0"]["results"]


def test_the_command_trains_what_is_missing_and_shows_folds_and_intervals(two_folds, quick, run, tmp_path):
    facts, folder = two_folds
    (tmp_path / "quick.yaml").write_text(quick.to_yaml())
    before = (folder / "fold-1/model/model.safetensors").stat().st_mtime_ns
    code, out, err = run("finetune", tmp_path / "quick.yaml", "--folds", "2", "--out", folder)
    assert code == 0, err
    assert "16 B-scans, 8 patients" in out and "95 % interval" in out and "fold 1" in out and "sd" in out
    joined, perfect = facts["by_seed"]["0"]["per_patient"], facts["by_seed"]["0"]["calibration"]["ece_if_perfect"]
    assert f"joined by patient ({', '.join(dict.fromkeys(joined['rules']))}): 8 patients, balanced accuracy " in out
    assert f"{joined['results']['balanced_accuracy']:.3f} (" in out and f"AUROC {joined['results']['auroc']:.3f}" in out
    assert perfect is None or f"{perfect['mean']:.3f}  if calibrated perfectly" in out
    assert (folder / "fold-1/model/model.safetensors").stat().st_mtime_ns == before
    for arguments, text in (
        (("--folds", "3", "--out", folder), "already holds another run (it differs in split.folds"),
        (("--folds", "2", "--seeds", "1,x", "--out", tmp_path / "a"), "--seeds 1,x: whole numbers"),
        (("--folds", "2", "--seeds", "1,1", "--out", tmp_path / "a"), "a seed is given twice"),
        (("--seeds", "1", "--out", tmp_path / "a"), "--seeds belongs to --folds"),
        (("--folds", "2", "--out", folder / "fold-0"), "holds a single run"),
        (("--folds", "5", "--out", tmp_path / "a"), "patient"),
    ):
        code, _, err = run("finetune", tmp_path / "quick.yaml", *arguments)
        assert code == 2 and text in err and err.count("\n") == 1, err
    assert not (tmp_path / "a").exists()


def test_a_sets_own_folds_are_held_out_one_by_one_without_its_guards(samples):
    recipe = make_recipe(
        {"data": {"name": "neh_2018", "path": str(samples / "neh_sample")}, "split": {"by": "fold", "test_fold": "4"}}
    )
    splits = [one.split for one in fold_recipes(recipe, 5)]
    assert [(s.by, s.test_fold, s.folds) for s in splits] == [("fold", str(number), None) for number in range(5)]
    with pytest.raises(RunError, match=r"has 5 folds of its own.*--folds 5"):
        fold_recipes(recipe, 3)
    assert {one.split.by for one in fold_recipes(recipe, 3, own=False)} == {"patient"}
