"""Runs that learn from few labels or from wrong ones: FixMatch, co-teaching, and labels that are taken away."""

import dataclasses
import json

import numpy as np
import pytest

from oct_hf import Preprocessing, finetune
from oct_hf.data.splits import read_split_table
from oct_hf.errors import OCTError, RecipeError, RunError
from oct_hf.hub.claims import read_claims
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.runs import run, training
from oct_hf.runs.facts import public_recipe
from oct_hf.runs.labelled import assign_sides, load_data, training_rows
from oct_hf.runs.other_pictures import semi_pictures
from oct_hf.runs.teacher import other_pictures, prepare_teacher
from oct_hf.runs.training import Stopped
from oct_hf.runs.tune import tune
from oct_hf.training import processes
from oct_hf.training.callbacks import StopOnSignal
from oct_hf.training.recipe_file import load_recipe, make_recipe
from oct_hf.training.unlabelled import NO_LABEL
from tests.conftest import TINY

QUICK = TINY | {
    "split": TINY["split"] | {"labelled_per_class": 2},
    "train": TINY["train"] | {"epochs": 2, "freeze_epochs": 0, "ema": 0.0},
    "evaluation": {"explain": 0},
}
KINDS = {
    "semi": {"semi": {"ratio": 3, "threshold": 0.3}},
    "co_teaching": {"co_teaching": {"forget_rate": 0.25, "gradual": 1}},
}


class Killed(Exception):
    """As a machine that goes down: nothing is saved any more."""


def killed(*_):
    raise Killed


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory):
    """Kind and folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    finetune(make_recipe(QUICK | KINDS[request.param]), folder)
    return request.param, folder


def test_a_run_says_what_it_learned_from_and_holds_what_it_says(finished):
    kind, folder = finished
    facts = json.loads((folder / "model" / "run.json").read_text())
    card = (folder / "model" / "README.md").read_text()
    side = facts["split"]["sides"]["train"]["images"]
    assert facts["training"]["images"] == 8 and side > 8
    assert "- Labels: of 8 B-scans of the training side, 2 of each class; its others had none in training." in card
    if kind == "semi":
        assert facts["semi"]["unlabelled"] == side - 8
        assert f"it saw {side - 8} without labels, 3.0 for each labelled one" in card
        assert "sure" in (folder / "log" / "epochs.csv").read_text().splitlines()[0]
    else:
        assert (
            "Co-teaching: two networks learned side by side" in card and "all but 25 % of it (after 1 epochs)" in card
        )
    assert [check for check in verify(download(str(folder / "model"))) if check.faults] == []


def test_a_wrong_count_of_labels_is_found(finished):
    claims = read_claims(download(str(finished[1] / "model")))
    claims.said["training"]["images"] = 9
    assert claims.found["training"]["images"] == 8


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(finished, tmp_path, monkeypatch):
    kind, whole = finished

    class StopAtStep(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            self.stopped = 2 if state.global_step == last - 1 else None
            super().on_step_end(args, state, control, **kwargs)

    last = json.loads((whole / "run.json").read_text())["training"]["steps"]
    recipe = make_recipe(QUICK | KINDS[kind])
    with monkeypatch.context() as patch:
        patch.setattr(training, "StopOnSignal", StopAtStep)
        with pytest.raises(Stopped):
            finetune(recipe, tmp_path / "cut")
    monkeypatch.setattr(run, "_measure_and_write", killed)  # what comes after training is the same for all runs
    for _ in range(2):  # also when all but the measuring is done
        with pytest.raises(Killed):
            finetune(recipe, tmp_path / "cut")
    files = [f"checkpoints/checkpoint-{last}/model.safetensors"]
    files += [f"checkpoints/checkpoint-{last}/peer.safetensors"] if kind == "co_teaching" else []
    for file in files:
        assert (tmp_path / "cut" / file).read_bytes() == (whole / file).read_bytes(), file


def labelled(recipe):
    return assign_sides(load_data(recipe.data)[0], recipe)


def test_labels_are_kept_by_the_published_split_and_the_rest_never_has_one(finished):
    recipe = make_recipe(QUICK | KINDS["semi"])
    data = labelled(recipe)
    chosen, rest = training_rows(data, recipe.split)
    assert len(set(chosen) | set(rest)) == (data.sides == "train").sum() == len(chosen) + len(rest)
    assert sorted(np.array(data.labels)[chosen]) == sorted(2 * data.names)
    published = read_split_table(finished[1] / "model" / "split.csv")
    again = dataclasses.replace(
        data,
        hashes=published["content_hash"],
        labels=published["label"],
        patients=[f"other name of {p}" for p in published["patient_id"]],
        sides=np.array(published["side"]),
    )
    rows = training_rows(again, recipe.split)[0]
    assert {again.hashes[row] for row in rows} == {data.hashes[row] for row in chosen}
    (pictures,), facts = semi_pictures(recipe, data, Preprocessing(64, 64))
    assert set(pictures.labels.tolist()) == {NO_LABEL} and facts["unlabelled"] == len(rest)
    assert {pictures.hashes[i] for i in range(len(pictures))} == {data.hashes[row] for row in rest}


def test_a_teacher_too_learns_from_the_labels_that_are_left(tmp_path):
    teacher = {"base": "test_efficientnet", "weights": "random", "epochs": 1, "batch_size": 2}
    recipe = make_recipe(QUICK | {"teacher": teacher})
    data, small = labelled(recipe), Preprocessing(64, 64)
    score = training.validation_score(data.names)
    _, facts = prepare_teacher(recipe, data, tmp_path, small, training.build_model, score)
    assert facts["training"]["steps"] == 4  # of the 8 labelled ones, 2 a step
    (rest,), told = other_pictures(recipe, data, small)
    assert len(rest) == told["unlabelled"] == (data.sides == "train").sum() - 8


def test_a_folder_of_b_scans_without_labels_stays_at_home(clinic, tmp_path):
    recipe = make_recipe(QUICK | {"semi": {"unlabelled": str(clinic), "ratio": 3}})
    public = public_recipe(recipe)
    assert public.semi.unlabelled == "clinic" and str(tmp_path) not in public.to_yaml()
    parts, facts = semi_pictures(recipe, labelled(recipe), Preprocessing(64, 64))
    assert len(parts) == 2 and facts["unlabelled"] == sum(len(part) for part in parts)
    assert facts["unlabelled_left_out"] == 24 - len(parts[1])


@pytest.mark.parametrize(
    "sections, text",
    [
        ({"semi": {}, "teacher": {"base": "x"}}, r"teacher and semi are different ways to train.*semi=null"),
        ({"semi": {}, "co_teaching": {}}, r"semi and co_teaching are different ways to train"),
        ({"semi": {}, "train": {"mixup": 0.2}}, r"semi needs each image's own label: train.mixup=0"),
        ({"co_teaching": {}, "train": {"cutmix": 1.0}}, r"co_teaching needs each image's own label"),
        ({"semi": {}, "data": {"stream": True}}, r"semi takes no streamed data: data.stream=false"),
        ({"co_teaching": {}, "pretrain": {}}, r"co_teaching starts both networks from model.base: pretrain=null"),
        ({"co_teaching": {}, "train": {"loss": "elr"}}, r"two networks can't share what the loss elr remembers"),
        ({"co_teaching": {}, "train": {"learning_rate": "find"}}, r"the range test is for one network"),
        (
            {"co_teaching": {"gradual": 5}, "train": {"epochs": 5}},
            r"gradual: 5 of 5 epochs never reach the forget rate",
        ),
        ({"semi": {"treshold": 0.9}}, r'unknown key "semi.treshold" \(did you mean "threshold"'),
    ],
)
def test_sections_that_do_not_go_together_are_refused_in_one_line(sections, text):
    with pytest.raises(RecipeError, match=text) as caught:
        make_recipe(sections)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sections, text",
    [
        ({"semi": {}, "split": TINY["split"]}, r"semi has no B-scans without labels: semi.unlabelled=FOLDER, or split"),
        ({"semi": {"ratio": 99}}, r"semi.ratio: 99.0 of a batch of 8 leaves no picture of one kind"),
        ({"semi": {}, "train": {"label_smoothing": 0.1}}, r"answers of 0\.925, so none would be sure at 0\.95; lower"),
        ({"semi": {"strong": "srong"}}, r'no pipeline "srong" \(did you mean "strong"'),
        ({"split": TINY["split"] | {"labelled_per_class": 500}}, r"labelled_per_class: 500, and CNV has \d+ images"),
    ],
)
def test_what_can_not_be_learned_from_is_refused_in_one_line(sections, text, tmp_path):
    with pytest.raises(OCTError, match=text):
        finetune(make_recipe(QUICK | sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_processes_and_a_search_are_refused(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="set semi=null co_teaching=null split"):
        tune(make_recipe(QUICK), tmp_path / "search", trials=1)
    monkeypatch.setattr(processes, "join", lambda: None)
    monkeypatch.setattr(processes, "count", lambda: 2)
    for kind in KINDS.values():
        with pytest.raises(RecipeError, match="learns on one process; start it without torchrun"):
            finetune(make_recipe(QUICK | kind), tmp_path / "run")


def test_the_recipe_takes_its_food_from_either_place():
    assert load_recipe("fixmatch", ["semi.unlabelled=archive"]).semi.unlabelled == "archive"
    given = load_recipe("fixmatch", ["labelled_per_class=25", "semi.weight=0.5"])
    assert given.split.labelled_per_class == 25 and given.semi.ratio == 3 and given.semi.weight == 0.5
    assert load_recipe("folder", ["co_teaching.forget_rate=0.3"]).co_teaching.forget_rate == 0.3
