"""A run: data, split, fine-tuning, measurement and repository joined, and the folder that holds them.

`runs/NAME/` has `model/` (the repository as it will be published), `checkpoints/`, `log/` and `run.json`. The folder
appears only when data, split and network are known to be good; a run that was stopped goes on when started again.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers

from oct_hf.data.corrections import read_corrections
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import DataError, RecipeError
from oct_hf.evaluation.assessment import assess, calibrate
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.repository import write_repository
from oct_hf.images import Preprocessing
from oct_hf.inference.on_torch import quiet_transformers
from oct_hf.inference.predictor import Predictor
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.runs.autoencoder import check_unseen
from oct_hf.runs.ensemble import build_ensemble
from oct_hf.runs.explained import measure_explanations, worst_errors
from oct_hf.runs.facts import HOME_FACTS, public_recipe, run_facts, training_id
from oct_hf.runs.folder import check_free, open_folder, plain_errors
from oct_hf.runs.head import check_head, fit_head, untrained
from oct_hf.runs.labelled import LabelledSet, assign_sides, load_data, predict_sides
from oct_hf.runs.other_pictures import check_semi
from oct_hf.runs.report_page import write_report
from oct_hf.runs.signs import measure_signs
from oct_hf.runs.teacher import check_student
from oct_hf.runs.tracking import check_trackers
from oct_hf.runs.training import build_model, check_adversary, train
from oct_hf.training import processes
from oct_hf.training.arguments import repeat_exactly
from oct_hf.training.callbacks import epoch_rows
from oct_hf.training.checkpoints import CHECKPOINTS, best_of, last_checkpoint
from oct_hf.training.recipe import Recipe
from oct_hf.training.trainer import RATE_FILE
from oct_hf.whole import write_json

ALONE = ("pretrain", "teacher", "semi", "co_teaching", "adversarial", "head", "ensemble")  # one process learns by these


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
        _check_start(recipe, folder, overwrite)
        hub, kept = (_hub(recipe), _kept(recipe)) if processes.is_main() else (None, None)
        started = time.monotonic()
        ready = _prepare(recipe, cache_dir, check)
        facts = run_facts(recipe, ready.data, ready.skipped, ready.model)
        if not processes.from_main(lambda: open_folder(folder, facts, overwrite)):
            _publish(hub, folder)
            return json.loads((folder / "run.json").read_text())
        facts["seconds"] = {"data": round(time.monotonic() - started, 1)}
        pushing = {"on_best": partial(_push_best, hub, recipe, ready.preprocessing)} if hub else {}
        if kept:
            training = training_id(recipe, ready.data)
            _fetch_checkpoints(kept, folder / CHECKPOINTS, training)
            pushing["on_checkpoint"] = partial(_push_checkpoint, kept, training)
        model = _learn(recipe, folder, ready, facts, **pushing)
        if processes.is_main():
            _measure_and_write(recipe, folder, ready.data, model, ready.preprocessing, facts, ready.elsewhere)
            facts["seconds"]["total"] = round(time.monotonic() - started, 1)
            facts["status"] = "done"
            write_json(folder / "run.json", facts)
            _publish(hub, folder)
        processes.wait()
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def train_and_predict(recipe: Recipe, out: str | Path, cache_dir: str | None = None) -> tuple[Predictions, dict]:
    """Trains a recipe for its answers alone: neither heat maps nor a repository; a call that was stopped goes on.

    Args:
        recipe: what to do; one label a picture.
        out: folder for the checkpoints; what is in it is of no use afterwards.
        cache_dir: as `finetune` has it.

    Returns:
        predictions of the held-out sides, calibrated where the recipe says so, and what `run.json` says of the
        training.

    Raises:
        OCTError, Stopped: as `finetune`.
    """
    folder = Path(out)
    quiet_libraries()
    with plain_errors(folder):
        _check_start(recipe, folder, False)
        ready = _prepare(recipe, cache_dir)
        facts = run_facts(recipe, ready.data, ready.skipped, ready.model)
        open_folder(folder, facts, False)
        facts["seconds"] = {}
        model = _learn(recipe, folder, ready, facts).to(memory_format=torch.contiguous_format)
        predictions = predict_sides(Predictor(model, ready.preprocessing), ready.data)
        if recipe.evaluation.calibrate:
            predictions, _ = calibrate(predictions)
        return predictions, facts


@dataclass(frozen=True)
class _Ready:
    """What a run learns from and with, known to be good."""

    data: LabelledSet
    skipped: list[dict]
    model: OCTForImageClassification
    augmentation: Augmentation
    members: dict | None = None  # of an ensemble, as facts
    elsewhere: dict | None = None  # what they learned from that isn't in `data`

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_pretrained_cfg(self.model.config.pretrained_cfg)


def _check_start(recipe: Recipe, folder: Path, overwrite: bool) -> None:
    processes.join()
    if processes.count() > 1 and (alone := [name for name in ALONE if getattr(recipe, name)]):
        raise RecipeError(f"{' and '.join(alone)}: learns on one process; start it without torchrun")
    check_trackers(recipe.report_to)
    check_free(folder, recipe, overwrite)


def _prepare(recipe: Recipe, cache_dir: str | None, check: Callable[[LabelledSet], None] | None = None) -> _Ready:
    """Data, split and network; raises what a user can mend before anything is written."""
    # The global generators decide a random network's start.
    transformers.set_seed(recipe.train.seed)
    repeat_exactly()
    with processes.main_first():
        dataset, skipped = load_data(recipe.data, cache_dir)
        if len(names := dataset.features["label"].names) < 2:
            raise DataError(f"data.labels: a classifier needs two classes or more, found {', '.join(names)} alone")
        data = assign_sides(dataset, recipe)
        if recipe.model.denoise:
            check_unseen(Path(recipe.model.denoise).expanduser(), data)
        if check:
            check(data)
        augmentation = Augmentation(recipe.augment, recipe.train.seed)
        members, elsewhere = None, None
        if recipe.ensemble:
            model, members, elsewhere = build_ensemble(recipe, data)
        else:
            model = build_model(recipe, data.outputs)
        if recipe.teacher:
            check_student(recipe, model)
        if recipe.semi:
            check_semi(recipe, len(data.names))
        if recipe.adversarial:
            check_adversary(recipe, model)
        if recipe.head:
            check_head(model)
    return _Ready(data, skipped, model, augmentation, members, elsewhere)


def _learn(recipe, folder, ready, facts, **pushing) -> OCTForImageClassification:
    """The model that has learned what the recipe says, by training, a head's fit or its members' averages."""
    if processes.is_main():
        (folder / "log").mkdir(exist_ok=True)
        write_json(folder / "log" / "augmentation.json", ready.augmentation.to_dict())
    if recipe.head:
        return fit_head(recipe, folder, ready.data, ready.model, ready.preprocessing, facts)
    if recipe.ensemble:
        images = int((ready.data.sides == "train").sum())
        facts |= {"ensemble": ready.members, "training": untrained(images, 0.0)}
        return ready.model
    trainer = train(recipe, folder, ready.data, ready.model, ready.preprocessing, ready.augmentation, facts, **pushing)
    # Unwrapped: the Trainer's autocast would make the published model's own probabilities unreachable.
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def quiet_libraries() -> None:
    """Keeps the libraries' advice off the screen, and their bars where nobody watches; errors still come through."""
    quiet_transformers()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _hub(recipe: Recipe):
    """Where `push_to_hub` publishes to, made before anything slow; None without it."""
    if not recipe.push_to_hub:
        return None
    if recipe.split.by == "image":
        raise RecipeError("push_to_hub: what is measured on a split by image can't be published")
    from oct_hf.hub.in_training import TrainingBranch

    return TrainingBranch(recipe.hub.repo, recipe.name, recipe.hub.private, recipe.hub.gated)


def _push_best(hub, recipe, preprocessing, trainer, state) -> None:
    """The weights that were just measured, to the branch `in-training`."""

    def save(target: Path) -> None:
        with trainer.averaged():
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(target)
        preprocessing.save(target)

    row = epoch_rows(state.log_history)[-1]
    hub.push(save, recipe.name, round(row["epoch"]), round(state.num_train_epochs), row)


def _kept(recipe: Recipe):
    """Where `hub.checkpoints` keeps them, made before anything slow; None without it."""
    if not recipe.hub.checkpoints:
        return None
    from oct_hf.hub.checkpoints import CheckpointRepository

    return CheckpointRepository(recipe.hub.checkpoints)


def _fetch_checkpoints(kept, folder: Path, training: str) -> None:
    """Takes up what another machine has kept, where this one has nothing."""
    kept.claim(training)
    folder.mkdir(exist_ok=True)
    if last_checkpoint(folder) is None and kept.fetch(folder):
        print(f"going on from the checkpoints in {kept.repo}", file=sys.stderr)


def _push_checkpoint(kept, training: str, checkpoint: Path) -> None:
    """A checkpoint, the best one that it names, and the learning rate that a range test found."""
    paths = [checkpoint, best_of(checkpoint), checkpoint.with_name(RATE_FILE)]
    kept.push([path for path in dict.fromkeys(paths) if path.exists()], training)


def _publish(hub, folder: Path) -> None:
    if hub:
        print(f"published: {hub.finish(folder).url}", file=sys.stderr)


def _measure_and_write(recipe, folder, data, model, preprocessing, facts, elsewhere=None) -> None:
    """Predicts the held-out sides once, calibrates, measures, and writes the repository and the report."""
    began = time.monotonic()
    model = model.to(memory_format=torch.contiguous_format)
    predictor = Predictor(model, preprocessing)
    measure = measure_signs if recipe.data.signs else _measure
    predictions, found = measure(model, predict_sides(predictor, data), facts["recipe"]["evaluation"])
    facts |= found
    facts["seconds"]["evaluation"] = round(time.monotonic() - began, 1)
    began = time.monotonic()
    # Neither heat maps nor the page know of several labels a picture.
    count = 0 if recipe.data.signs else recipe.evaluation.explain
    facts["explanations"] = measure_explanations(predictor, data, count)
    facts["seconds"]["explanations"] = round(time.monotonic() - began, 1)
    published = {key: value for key, value in facts.items() if key not in HOME_FACTS}
    written = write_repository(
        folder / "model",
        model.to("cpu"),
        preprocessing,
        predictions,
        data.split(),
        published,
        public_recipe(recipe).to_yaml(),
        data.links,
        read_corrections(recipe.data.corrections) if recipe.data.corrections else (),
        elsewhere,
    )
    facts |= {key: written[key] for key in written.keys() - published.keys()}
    if not recipe.data.signs:
        write_report(folder / "report.html", written, predictions, worst_errors(predictor, data, predictions, facts))


def _measure(model, predictions: Predictions, settings: dict) -> tuple[Predictions, dict]:
    """Calibrates, in the weights and in the predictions, and measures; a network that no temperature fits stays."""
    note = None
    if settings["calibrate"]:
        calibrated, note = calibrate(predictions)
        try:
            model.fold_temperature(note["temperature"])
            predictions = calibrated
        except ValueError as error:
            note = {"temperature": None, "why": str(error)}
    return predictions, assess(predictions, settings, note)
