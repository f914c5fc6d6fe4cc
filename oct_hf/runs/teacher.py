"""The teacher of a run: had from its base, fine-tuned once on the run's training side, and kept in the run's folder.

Beside it, the pictures without labels that its student or a pretraining looks at. A teacher is trained by the same
Trainer as its student, so a stopped run goes on in the middle of it; what a finished one was and took is in
`teacher/teacher.json`.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import DataError, ModelError, RecipeError
from oct_hf.images import Preprocessing
from oct_hf.model.folder import model_folder
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.runs.facts import base_facts
from oct_hf.runs.labelled import LabelledSet, training_rows
from oct_hf.runs.other_pictures import held_out_seen, without_labels
from oct_hf.training.callbacks import steps_an_epoch
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.distillation import Teacher, draw_phantoms, width
from oct_hf.training.recipe import ModelRecipe, Recipe, TeacherRecipe
from oct_hf.training.trainer import OCTTrainer
from oct_hf.training.unlabelled import others_a_batch
from oct_hf.whole import write_json

FACTS = "teacher.json"


def check_student(recipe: Recipe, model: OCTForImageClassification) -> None:
    """Refuses what a recipe's teacher can't teach before anything slow.

    Raises:
        ModelError: the student's classifier isn't a linear layer.
        RecipeError: streamed data, a share of other pictures that no batch can have, or settings of the fine-tuning
            that need each picture's own label.
    """
    width(model.timm_model)
    if recipe.data.stream:
        raise RecipeError("teacher: distillation takes no streamed data; data.stream=false")
    train = recipe.train
    if train.mixup or train.cutmix or train.loss == "elr":
        raise RecipeError("teacher: distillation goes with neither mixup, cutmix nor the loss elr")
    wanted = recipe.teacher
    assert wanted is not None
    share = wanted.share
    if wanted.phantoms or wanted.unlabelled or recipe.split.labelled_per_class:
        others_a_batch(share, train.batch_size, f"teacher.share: {share}")


def prepare_teacher(
    recipe: Recipe,
    data: LabelledSet,
    folder: Path,
    student: Preprocessing,
    build: Callable[[Recipe, list[str], str], OCTForImageClassification],
    score: Callable,
    callbacks: Sequence = (),
) -> tuple[Teacher, dict] | None:
    """The recipe's teacher, ready to be asked, and its facts; None where the training was stopped.

    Args:
        recipe: with a section `teacher`.
        data: the run's B-scans.
        folder: of the teacher, in the run's.
        student: preprocessing of the student's input.
        build: `build_model` of the run.
        score: metrics of the Trainer.
        callbacks: of the Trainer; one with an attribute `stopped` tells of a stop.

    Raises:
        ModelError: no such network, weights that can't be had, or a ready teacher with other labels.
        DataError: a ready teacher was trained on what this run holds out.
    """
    wanted = recipe.teacher
    assert wanted is not None
    if wanted.epochs == 0:
        model, facts = _ready(wanted, data), {"seconds": 0.0, "epochs": 0}
    elif (folder / FACTS).exists():
        model = OCTForImageClassification.from_pretrained(folder / "model")
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))["training"]
    else:
        trained = _fine_tuned(recipe, data, folder, student, build, score, callbacks)
        if trained is None:
            return None
        model, facts = trained
    cfg = model.config.pretrained_cfg
    preprocessing = Preprocessing.from_pretrained_cfg(cfg)
    about = {
        "architecture": model.config.architecture,
        **base_facts(wanted.base, wanted.weights, cfg),
        "parameters": sum(p.numel() for p in model.parameters()),
        "image_size": preprocessing.height,
        "training": facts,
    }
    if wanted.epochs:
        if not (folder / FACTS).exists():
            write_json(folder / FACTS, about)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # also what a kill left of them
    return Teacher(model, preprocessing, student, with_maps=wanted.maps > 0), about


def _fine_tuned(recipe, data, folder, student, build, score, callbacks):
    """The teacher after its fine-tuning, and what that took; a stop in the middle gives None."""
    began, wanted = time.monotonic(), recipe.teacher
    size = wanted.image_size or recipe.model.image_size
    network = ModelRecipe(base=wanted.base, weights=wanted.weights, image_size=size, dropout=recipe.model.dropout)
    model = build(dataclasses.replace(recipe, model=network), data.names, "teacher")
    preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
    augmentation = Augmentation(recipe.augment, recipe.train.seed)
    rows = training_rows(data, recipe.split)[0], (data.sides == "validation").nonzero()[0]
    train, validation = (
        Pixels.from_dataset(data.dataset.select(chosen), preprocessing, augmented)
        for chosen, augmented in zip(rows, (augmentation, None), strict=True)
    )
    own = {key: getattr(wanted, key) for key in ("epochs", "batch_size", "learning_rate", "mixup", "bf16")}
    settings = dataclasses.replace(recipe.train, start_size=None, **own)
    checkpoints = folder / "checkpoints"
    trainer = OCTTrainer(model, settings, preprocessing, train, validation, checkpoints, score, callbacks)
    checkpoint = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=checkpoint)
    if any(getattr(callback, "stopped", None) for callback in callbacks):
        return None
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).save_pretrained(folder / "model")
    state = trainer.state
    steps = steps_an_epoch(state)
    assert state.best_global_step is not None  # each epoch was measured
    facts = {
        "epochs": round(state.global_step / steps),
        "best_epoch": round(state.best_global_step / steps),
        "steps": state.global_step,
        "validation_balanced_accuracy": _best(state)["eval_balanced_accuracy"],
        "seconds": round(time.monotonic() - began, 1),
        "resumed": checkpoint is not None,
    }
    # As it lies in the folder, so that a run that goes on later asks the very same network.
    return OCTForImageClassification.from_pretrained(folder / "model"), facts


def _best(state) -> dict:
    return next(row for row in state.log_history if row["step"] == state.best_global_step and "eval_loss" in row)


def _ready(wanted: TeacherRecipe, data: LabelledSet) -> OCTForImageClassification:
    """A teacher that was trained before, if it may be one of these B-scans."""
    folder = model_folder(wanted.base)
    if not folder.is_dir() and "/" not in wanted.base:
        raise ModelError(
            f"teacher.base: {wanted.base} has not learned {', '.join(data.names)}; give it teacher.epochs, or a model "
            "folder or repository that knows these labels"
        )
    try:
        model = OCTForImageClassification.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"teacher.base: {wanted.base} can't be loaded ({str(error).splitlines()[0]})") from None
    known = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if known != data.names:
        raise ModelError(
            f"teacher.base: {wanted.base} knows {', '.join(known)}, and the data has {', '.join(data.names)}; take "
            "another teacher, or fine-tune this one on the data (teacher.epochs=12)"
        )
    split = folder / "split.csv"
    if split.is_file() and (shared := held_out_seen(folder, data)):
        raise DataError(
            f"teacher.base: {wanted.base} was trained on {shared} of the B-scans that this split holds out; take "
            f"its split (split.by=file split.path={split}), or fine-tune a teacher here (teacher.epochs=12)"
        )
    model.unfold_temperature()
    return model


def other_pictures(recipe: Recipe, data: LabelledSet, preprocessing: Preprocessing) -> tuple[list[Pixels], dict]:
    """What the student looks at beside the labelled B-scans: phantoms and unlabelled B-scans; and their facts."""
    began, wanted = time.monotonic(), recipe.teacher
    assert wanted is not None
    augmentation = Augmentation(recipe.augment, recipe.train.seed)
    parts, facts = [], {"phantoms": wanted.phantoms}
    if wanted.phantoms:
        names = data.names if wanted.phantom_labels else None
        parts.append(draw_phantoms(wanted.phantoms, preprocessing, names, recipe.train.seed, augmentation))
    found, told = without_labels(wanted.unlabelled, "teacher", recipe, data, preprocessing, augmentation)
    return parts + found, facts | told | {"seconds": round(time.monotonic() - began, 1)}
