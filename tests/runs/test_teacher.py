import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from oct_hf import Preprocessing, finetune
from oct_hf.data.phantom import draw
from oct_hf.errors import DataError, ModelError, RecipeError, RunError
from oct_hf.hub.card import model_licence, render_card
from oct_hf.runs import run, training
from oct_hf.runs.facts import public_recipe
from oct_hf.runs.labelled import LabelledSet, assign_sides, load_data
from oct_hf.runs.teacher import check_student, other_pictures, prepare_teacher
from oct_hf.runs.training import Stopped
from oct_hf.training.callbacks import StopOnSignal
from oct_hf.training.recipe_file import load_recipe, make_recipe
from tests.conftest import TINY

TEACHER = {"base": "test_efficientnet", "weights": "random", "epochs": 2, "batch_size": 8, "phantoms": 8, "maps": 0.5}
QUICK = TINY | {"train": TINY["train"] | {"epochs": 2, "freeze_epochs": 0}, "evaluation": {"explain": 0}}


def recipe(**teacher):
    return make_recipe(QUICK | {"teacher": TEACHER | teacher})


class Killed(Exception):
    """As a machine that goes down: nothing is saved any more."""


def killed(*_):
    raise Killed


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The folder of a finished run with a teacher."""
    folder = tmp_path_factory.mktemp("runs") / "taught"
    finetune(recipe(), folder)
    return folder


def labelled(wanted) -> LabelledSet:
    return assign_sides(load_data(wanted.data)[0], wanted)


def ask(wanted, folder):
    return prepare_teacher(wanted, labelled(wanted), folder, Preprocessing(64, 64), training.build_model, None)


def test_a_run_with_a_teacher_records_it_and_says_so_on_the_card(taught):
    run = json.loads((taught / "model" / "run.json").read_text())
    teacher = run["teacher"]
    assert teacher["architecture"] == "test_efficientnet" and teacher["training"]["epochs"] == 2
    assert teacher["others"]["phantoms"] == 8 and teacher["image_size"] == 64
    assert {"teacher", "phantoms"} <= run["seconds"].keys()
    card = (taught / "model" / "README.md").read_text()
    assert "Teacher: test_efficientnet (test\\_efficientnet), first fine-tuned on the training side for 2 ep" in card
    assert "its logits and features and feature maps" in card and "8 phantoms" in card and render_card(run) == card
    assert run["training"]["images"] == run["split"]["sides"]["train"]["images"]
    assert (taught / "teacher" / "model" / "model.safetensors").is_file()
    assert not (taught / "teacher" / "checkpoints").exists()
    keys = load_file(taught / "model" / "model.safetensors").keys()
    assert not any("projection" in key or "hints" in key for key in keys)


def test_a_run_stopped_at_its_teacher_and_killed_at_its_student_goes_on_to_the_same_weights(
    taught, tmp_path, monkeypatch
):
    steps = []

    class StopAtStep(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            self.stopped = 2 if state.global_step == 4 else None  # of the teacher's 6
            super().on_step_end(args, state, control, **kwargs)

    class KillAtStep(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7 and "teacher" not in args.output_dir:
                raise Killed

    class Watch(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append("teacher" in args.output_dir)

    monkeypatch.setattr(training, "StopOnSignal", StopAtStep)
    with pytest.raises(Stopped):
        finetune(recipe(), tmp_path / "cut")
    assert (tmp_path / "cut/teacher/checkpoints/checkpoint-4").is_dir()
    monkeypatch.setattr(training, "StopOnSignal", KillAtStep)
    with pytest.raises(Killed):
        finetune(recipe(), tmp_path / "cut")
    assert json.loads((tmp_path / "cut/teacher/teacher.json").read_text())["training"]["resumed"]
    monkeypatch.setattr(training, "StopOnSignal", Watch)
    monkeypatch.setattr(run, "_measure_and_write", killed)  # what comes after training is the same for all runs
    for _ in range(2):  # also when all but the measuring is done
        with pytest.raises(Killed):
            finetune(recipe(), tmp_path / "cut")
    assert steps and not any(steps)  # the teacher isn't trained again
    place = "checkpoints/checkpoint-12/ema.safetensors"
    for file in ("teacher/model/model.safetensors", place):
        assert (tmp_path / "cut" / file).read_bytes() == (taught / file).read_bytes(), file


def test_a_finished_model_teaches_without_fine_tuning_if_it_never_saw_what_is_held_out(taught, tmp_path):
    ready = recipe(base=str(taught / "model"), weights="hub", epochs=0)
    teacher, facts = ask(ready, tmp_path)
    assert facts["training"]["epochs"] == 0 and not any(tmp_path.iterdir())
    assert not hasattr(teacher.model.config, "calibration_temperature")  # its own logits, not the calibrated ones
    other = dataclasses.replace(ready, split=dataclasses.replace(ready.split, seed=5))
    with pytest.raises(DataError, match=r"was trained on \d+ of the B-scans that this split holds out"):
        ask(other, tmp_path)


def test_a_teacher_with_other_labels_is_one_line(taught, tmp_path):
    ready = recipe(base=str(taught / "model"), weights="hub", epochs=0)
    two = dataclasses.replace(ready, data=dataclasses.replace(ready.data, labels=("DME", "NORMAL")))
    with pytest.raises(ModelError, match="knows CNV, DME, DRUSEN, NORMAL, and the data has DME, NORMAL; take"):
        ask(two, tmp_path)


def test_a_teacher_that_has_learned_no_labels_needs_epochs(tmp_path):
    with pytest.raises(ModelError, match=r"teacher.base: test_efficientnet has not learned CNV, .*teacher.epochs"):
        ask(recipe(epochs=0), tmp_path)


def test_a_teacher_that_is_not_there_is_named_under_its_own_key(tmp_path):
    with pytest.raises(ModelError, match=r"teacher.base: timm knows no model test_efficientnett \(did you mean"):
        ask(recipe(base="test_efficientnett"), tmp_path)


def test_what_can_not_be_taught_is_refused_before_anything_slow():
    model = training.build_model(recipe(), ["A", "B"])
    check_student(recipe(), model)
    streamed = dataclasses.replace(recipe(), data=dataclasses.replace(recipe().data, stream=True))
    small = recipe(share=0.01)
    for wanted, text in ((streamed, r"data\.stream=false"), (small, r"teacher\.share: 0\.01 of a batch of 8")):
        with pytest.raises(RecipeError, match=text):
            check_student(wanted, model)
    check_student(recipe(share=0.01, phantoms=0), model)
    model.timm_model.classifier = torch.nn.Sequential(model.timm_model.classifier)
    with pytest.raises(ModelError, match="linear classifier, and this network's is a Sequential"):
        check_student(recipe(), model)


def test_another_teacher_is_another_run(taught):
    with pytest.raises(RunError, match=r"differs in teacher\.temperature"):
        finetune(recipe(temperature=4.0), taught)


def test_unlabelled_pictures_are_counted_and_their_place_stays_at_home(tmp_path):
    loose = tmp_path / "loose"
    loose.mkdir()
    for i in range(4):
        Image.fromarray(draw("DME", 8, 50 + i, 0, 96, 96).image).save(loose / f"{i}.png")
    wanted = recipe(unlabelled=str(loose))
    data = labelled(wanted)
    held_out = data.dataset[int(np.flatnonzero(data.sides == "test")[0])]["image"]
    held_out.save(loose / "held_out.png")
    parts, facts = other_pictures(wanted, data, Preprocessing(64, 64))
    assert [len(part) for part in parts] == [8, 4]
    assert facts["unlabelled"] == 4 and facts["unlabelled_left_out"] == 1 and facts["phantoms"] == 8
    public = public_recipe(wanted)
    assert public.teacher.unlabelled == "loose" and str(tmp_path) not in public.to_yaml()
    with pytest.raises(DataError, match="loose: no such folder"):  # and not a training without them
        other_pictures(public, data, Preprocessing(64, 64))


def test_the_teachers_licence_counts_as_the_bases():
    run = {"recipe": {"card": {"license": None}}, "data": {"license": "cc0-1.0"}, "model": {"weights": "random"}}
    assert model_licence(run) == "apache-2.0"
    for licence, expected in (("cc-by-nc-4.0", "cc-by-nc-4.0"), (None, None), ("apache-2.0", "apache-2.0")):
        teacher = {"weights": "hub", "license": licence}
        assert model_licence(run | {"teacher": teacher}) == expected
    assert model_licence(run | {"teacher": {"weights": "random", "license": None}}) == "apache-2.0"


def test_the_sections_keys_are_always_written_whole():
    given = load_recipe("efficientnetv2_b0_offline", ["teacher.epochs=3", "epochs=4"])
    assert given.teacher.epochs == 3 and given.train.epochs == 4
    assert load_recipe("efficientnetv2_b0_offline", ["teacher=null"]).teacher is None
    assert load_recipe("demo", ["teacher.base=pip:efficientnet_lite0"]).teacher.base == "pip:efficientnet_lite0"
    with pytest.raises(RecipeError, match=r"teacher.base: .*"):
        load_recipe("demo", ["teacher.epochs=3"])
    with pytest.raises(RecipeError, match=r'"teacher.temprature" \(did you mean "teacher.temperature"'):
        load_recipe("demo", ["teacher.temprature=3"])
