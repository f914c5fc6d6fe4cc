import csv
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from oct_hf import OCTForImageClassification, Predictor, evaluate_model, finetune
from oct_hf.errors import DataError, ModelError, RunError, TrainingError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.allowed import ALLOWED
from oct_hf.runs.training import Stopped
from oct_hf.training.recipe_file import load_recipe, make_recipe


def change(recipe, **sections):
    return dataclasses.replace(
        recipe, **{name: dataclasses.replace(getattr(recipe, name), **values) for name, values in sections.items()}
    )


def clinic_recipe(clinic):
    return make_recipe(
        {
            "data": {"name": "folder", "path": str(clinic)},
            "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64},
            "train": {"epochs": 1, "batch_size": 8, "workers": 0},
            "evaluation": {"explain": 0},
        }
    )


def same_weights(one, other) -> bool:
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_holds_what_it_says(finished_run):
    assert sorted(p.name for p in finished_run.iterdir()) == ["checkpoints", "log", "model", "report.html", "run.json"]
    model = finished_run / "model"
    published = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "predictions.parquet",
        "preprocessor_config.json",
        "recipe.yaml",
        "run.json",
        "split.csv",
        "figures/confusion_matrix.png",
        "figures/training.png",
        "examples/CNV.png",
    } <= published
    assert all(os.path.splitext(name)[1] in ALLOWED for name in published)
    run = json.loads((finished_run / "run.json").read_text())
    assert run["status"] == "done" and run["training"]["epochs"] == 3
    assert len((finished_run / "log" / "epochs.csv").read_text().splitlines()) == 4
    assert json.loads((finished_run / "log" / "augmentation.json").read_text())["seed"] == 0


def test_every_number_comes_from_the_predictions_that_lie_beside_it(finished_run):
    run = json.loads((finished_run / "model" / "run.json").read_text())
    predictions = Predictions.read(finished_run / "model" / "predictions.parquet")
    for side in ("validation", "test"):
        assert run["results"][side] == predictions.of(side).measure()
    assert evaluate_model(finished_run)["results"] == run["results"]["test"]
    card = (finished_run / "model" / "README.md").read_text()
    assert f"balanced accuracy **{run['results']['test']['balanced_accuracy']:.3f}**" in card


def test_the_predictions_are_those_of_the_written_model(finished_run, tiny):
    from oct_hf.runs.labelled import assign_sides, load_data, predict_sides

    dataset, _ = load_data(tiny.data)
    again = predict_sides(Predictor(finished_run / "model", backend="torch"), assign_sides(dataset, tiny))
    stored = Predictions.read(finished_run / "model" / "predictions.parquet")
    assert again.hashes.tolist() == stored.hashes.tolist()
    assert np.abs(again.probabilities - stored.probabilities).max() <= 1e-6


def test_no_patient_of_the_test_side_was_trained_on(finished_run):
    rows = list(csv.DictReader((finished_run / "model" / "split.csv").read_text().splitlines()))
    by_side = {side: {r["patient_id"] for r in rows if r["side"] == side} for side in ("train", "validation", "test")}
    assert not by_side["train"] & by_side["test"] and not by_side["train"] & by_side["validation"]
    tested = Predictions.read(finished_run / "model" / "predictions.parquet").of("test")
    assert set(tested.groups) == by_side["test"]


def test_the_card_is_valid_and_complete(finished_run):
    card = ModelCard.load(finished_run / "model" / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "image-classification" and data["library_name"] == "transformers"
    assert data["model-index"][0]["results"][0]["metrics"]
    assert [w["src"] for w in data["widget"]] == [f"examples/{n}.png" for n in ("CNV", "DME", "DRUSEN", "NORMAL")]
    assert "base_model" not in data  # random weights have none
    for word in (" None", "{{", "TODO", "nan", "undefined"):
        assert word not in card.text, word
    assert "not for diagnosis" in card.text and "drawn phantoms alone" in card.text


def test_the_stored_recipe_trains_the_same_model_again(finished_run, tmp_path):
    recipe = load_recipe(finished_run / "model" / "recipe.yaml")
    finetune(recipe, tmp_path / "again")
    assert same_weights(finished_run, tmp_path / "again")


def test_a_stopped_run_goes_on_and_ends_with_the_same_model(finished_run, tiny, tmp_path, interrupt_when_saved):
    folder = tmp_path / "stopped"
    interrupt_when_saved(folder)
    with pytest.raises(Stopped) as caught:
        finetune(tiny, folder)
    assert caught.value.exit_code == 130 and not (folder / "model").exists()
    finetune(tiny, folder)
    assert same_weights(finished_run, folder)


def test_a_run_killed_after_training_only_measures(finished_run, tiny, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(finished_run, folder)
    shutil.rmtree(folder / "model")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"status": "trained"}))
    finetune(tiny, folder)
    assert same_weights(finished_run, folder)
    assert json.loads((folder / "run.json").read_text())["training"] == run["training"]


def test_a_finished_run_is_not_trained_again(finished_run, tiny):
    before = (finished_run / "model" / "model.safetensors").stat().st_mtime_ns
    assert finetune(tiny, finished_run)["status"] == "done"
    assert (finished_run / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_something_else_is_refused_and_left_alone(finished_run, tiny, tmp_path):
    other = change(tiny, train={"epochs": 5, "learning_rate": 1e-4})
    with pytest.raises(RunError, match=r"another run \(it differs in train.epochs, train.learning_rate\)"):
        finetune(other, finished_run)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="is no run"):
            finetune(tiny, tmp_path / "letters", overwrite=overwrite)
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["a.txt"]


def test_overwrite_replaces_a_run(tiny, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "log" / "old").write_text("x")
    finetune(change(tiny, train={"epochs": 1, "freeze_epochs": 0}), tmp_path / "run", overwrite=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["training"]["epochs"] == 1
    assert not (tmp_path / "run" / "log" / "old").exists()


def test_moved_images_are_the_same_run_and_other_images_are_noticed(clinic, tmp_path):
    recipe = clinic_recipe(clinic)
    finetune(recipe, tmp_path / "run")
    shutil.copytree(clinic, tmp_path / "moved")
    assert finetune(clinic_recipe(tmp_path / "moved"), tmp_path / "run")["status"] == "done"
    (clinic / "DME" / "D0" / "0.png").unlink()
    with pytest.raises(RunError, match="other images"):
        finetune(recipe, tmp_path / "run")


def test_private_patients_and_paths_stay_at_home(clinic, tmp_path):
    recipe = clinic_recipe(clinic)
    finetune(recipe, tmp_path / "run")
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file() and "checkpoints" not in file.parts and file.name != "run.json":
            content = file.read_bytes()
            assert str(clinic).encode() not in content and b"D3" + b"," not in content, file
    published = (tmp_path / "run" / "model" / "run.json").read_bytes()
    assert str(tmp_path).encode() not in published
    groups = set(Predictions.read(tmp_path / "run/model/predictions.parquet").groups)
    assert all(len(g) == 16 for g in groups)


@pytest.mark.parametrize(
    "change_of, error, text",
    [
        ({"model": {"base": "efficientnetv2_bo"}}, ModelError, "model.base: timm knows no model"),
        ({"model": {"weights": "gone.safetensors"}}, ModelError, "model.weights: no weights file gone"),
        ({"model": {"weights": "hub", "base": "resnet18"}}, ModelError, "can't be downloaded.*model.weights=FILE"),
        ({"split": {"by": "fold"}}, DataError, "test_fold names none"),
        ({"split": {"by": "fold", "test_fold": "3"}}, DataError, 'no fold "3"'),
        ({"split": {"test": 0.6, "validation": 0.5}}, DataError, "leave nothing to train on"),
        ({"data": {"patients": 2}}, DataError, r"class CNV has 2 patient\(s\)"),
        ({"data": {"name": "folder", "path": "gone"}}, DataError, "no such folder"),
    ],
)
def test_what_can_not_work_is_said_in_one_line_and_leaves_nothing(tiny, tmp_path, change_of, error, text):
    with pytest.raises(error, match=text) as caught:
        finetune(change(tiny, **change_of), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.skipif(not os.path.ismount("/dev/shm") or os.geteuid() != 0, reason="needs a small file system of its own")
def test_a_full_disk_is_one_line_and_the_run_goes_on_with_room(tiny, finished_run, tmp_path):
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]).returncode:
        pytest.skip("this machine doesn't let tests mount a file system")
    try:
        with pytest.raises(RunError, match="No space left on device; make room"):
            finetune(tiny, disk / "run")
        assert not (disk / "run" / "model").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        finetune(tiny, disk / "run")
        assert same_weights(finished_run, disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_published_folder_warm_starts_another_run(finished_run, tiny, tmp_path):
    base = str(finished_run / "model")
    recipe = change(tiny, model={"base": base, "image_size": 64}, train={"epochs": 1, "freeze_epochs": 0})
    run = finetune(recipe, tmp_path / "warm")
    assert run["model"]["base"] == "model" and str(finished_run) not in (tmp_path / "warm/model/run.json").read_text()


def test_the_package_class_loads_the_repository(finished_run):
    model = OCTForImageClassification.from_pretrained(finished_run / "model")
    assert list(model.config.id2label.values()) == ["CNV", "DME", "DRUSEN", "NORMAL"]
    recipe = yaml.safe_load((finished_run / "model" / "recipe.yaml").read_text())
    assert recipe["data"]["path"] is None


def test_a_classifier_of_one_class_is_refused(clinic, tmp_path):
    with pytest.raises(DataError, match=r"data\.labels: a classifier needs two classes or more, found DME alone"):
        finetune(change(clinic_recipe(clinic), data={"labels": ("DME",)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_the_set_does_not_have_are_refused(clinic, tmp_path):
    with pytest.raises(DataError, match="no usable image of class ABNORMAL; other folders there: DME"):
        finetune(change(clinic_recipe(clinic), data={"labels": ("ABNORMAL", "NORMAL")}), tmp_path / "run")


def test_the_rate_that_was_found_is_recorded_and_a_lost_loss_names_the_files(tiny, clinic, tmp_path):
    recipe = change(
        clinic_recipe(clinic),
        train={"learning_rate": "find", "loss": "focal", "mixup": 0.2, "optimizer": "lamb", "swa_epochs": 1},
    )
    run = finetune(recipe, tmp_path / "run")
    found = run["training"]["range_test"]["learning_rate"]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"LAMB, learning rate {found} by a range test" in card and "focal loss" in card and "mixup 0.2" in card
    assert yaml.safe_load((tmp_path / "run" / "model" / "recipe.yaml").read_text())["train"]["learning_rate"] == "find"
    lost = change(recipe, train={"learning_rate": 1e30, "optimizer": "sgd", "batch_size": 2, "swa_epochs": 0})
    with pytest.raises(TrainingError, match=r"the loss is no number; its batch is .*/.*/.*\.png") as caught:
        finetune(lost, tmp_path / "lost")
    assert "\n" not in str(caught.value) and not (tmp_path / "lost" / "model").exists()
