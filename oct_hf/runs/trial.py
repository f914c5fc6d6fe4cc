"""One trial of a search: a recipe trained and scored on each fold, and given up where it falls behind.

It is a function of its settings and of the trials that had ended before it, so it may be worked on anywhere the files
can be seen, and is told to the study when it is over. The median that it is judged by is optuna's own, in a study in
memory: SQLite isn't for many machines.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import transformers
from transformers import TrainerCallback

from oct_hf.data.pixels import PixelFile, Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import TrainingError
from oct_hf.images import Preprocessing
from oct_hf.runs.training import Stopped, build_model, validation_score
from oct_hf.training.arguments import repeat_exactly
from oct_hf.training.callbacks import StopOnSignal, epoch_rows, selection
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import change_recipe
from oct_hf.training.trainer import OCTTrainer
from oct_hf.whole import write_json

_FIRST = 4  # trials that no pruning stops: a median needs something to be the middle of


@dataclass(frozen=True)
class Proposal:
    """What a trial is to be.

    Attributes:
        number: from 1.
        values: by recipe key.
        before: optuna's finished trials that it is judged by.
    """

    number: int
    values: dict
    before: Sequence = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        state: "complete", "pruned", "diverged" or "failed".
        scores: of its folds, the best epoch's.
        reports: by optuna's step the mean over the folds so far.
        seconds: that it took.
        error: one line, where it failed.
    """

    state: str
    scores: Sequence[dict] = ()
    reports: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


class _Diverged(Exception):
    """The network's answers are no numbers any more."""


class Trials:
    """What all trials of a search share, and how one is worked on.

    Args:
        recipe: that the values are put into.
        out: the study's folder; an unfinished trial lies in one of its own there.
        dataset: the rows that are searched on alone: those of the test side aren't even decoded.
        parts: row numbers of it to train and to score on, once a fold.
        most_epochs: that any trial may have.
    """

    def __init__(self, recipe: Recipe, out: Path, dataset: datasets.Dataset, parts: list, most_epochs: int):
        self.recipe, self.out, self.dataset, self.parts = recipe, out, dataset, parts
        self.names = dataset.features["label"].names
        self.most_epochs = most_epochs
        self._decoded: dict[tuple[int, int], Pixels] = {}

    def folder(self, number: int) -> Path:
        """Of a trial that isn't finished."""
        return self.out / f"trial-{number:03}"

    def work(self, proposal: Proposal) -> Outcome:
        """Trains a trial, or what is left of it.

        Raises:
            Stopped: Ctrl-C or SIGTERM; its checkpoint is saved.
        """
        began, state, error = time.monotonic(), "complete", None
        recipe, scores = change_recipe(self.recipe, proposal.values), []
        folder, judged = self.folder(proposal.number), _judged(proposal.before)
        self._claim(folder, proposal.values)
        try:
            for fold in range(len(self.parts)):
                found, given_up = self._fold(judged, recipe, fold, folder / f"fold-{fold}", scores)
                scores.append(found)
                if given_up:
                    state = "pruned"
                    break
        except _Diverged:
            state = "diverged"
        except TrainingError as fault:
            state, error = "failed", str(fault)
        reports = judged.study.trials[-1].intermediate_values
        return Outcome(state, scores, reports, round(time.monotonic() - began, 1), error)

    def close(self) -> None:
        """Takes the decoded pictures off the disk."""
        for pixels in self._decoded.values():
            if isinstance(pixels.images, PixelFile):
                pixels.images.remove()
        self._decoded.clear()

    def _claim(self, folder: Path, values: dict) -> None:
        """Makes a trial's folder, or takes up the one there where it has the same settings."""
        try:
            known = json.loads((folder / "values.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        if known != values:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_json(folder / "values.json", values)

    def _fold(self, trial, recipe: Recipe, fold: int, folder: Path, before: list[dict]) -> tuple[dict, bool]:
        """The best epoch's scores on one fold, and whether the trial is given up. A fold trained before is read."""
        report = _Report(trial, fold * self.most_epochs, [selection(score) for score in before])
        try:
            known = json.loads((folder / "epochs.json").read_text(encoding="utf-8"))
            rows = known["epochs"]
            report.all(rows)
            report.given_up = known["given_up"]  # other trials may have ended since
        except (OSError, ValueError):
            rows = self._train(recipe, fold, folder, report)
            write_json(folder / "epochs.json", {"epochs": rows, "given_up": report.given_up})
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        best = max(rows, key=selection)
        kept = {key: best[key] for key in ("epoch", "balanced_accuracy", "auroc", "log_loss")}
        whole = fold == len(self.parts) - 1 and len(rows) == recipe.train.epochs  # there is nothing left to give up
        return kept | {"epoch": round(kept["epoch"])}, report.given_up and not whole

    def _train(self, recipe: Recipe, fold: int, folder: Path, report: "_Report") -> list[dict]:
        folder.mkdir(exist_ok=True)
        transformers.set_seed(recipe.train.seed)
        repeat_exactly()
        model = build_model(recipe, self.names)
        preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
        pixels, (train, scored) = self._pixels(preprocessing), self.parts[fold]
        stop, checkpoints = StopOnSignal(), folder / "checkpoints"
        trainer = OCTTrainer(
            model,
            recipe.train,
            preprocessing,
            pixels.rows(train, Augmentation(recipe.augment, recipe.train.seed)),
            pixels.rows(scored),
            checkpoints,
            _finite(validation_score(self.names)),
            [stop, report],
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        if stop.stopped is not None:
            raise Stopped(stop.stopped, self.out)
        return epoch_rows(trainer.state.log_history)

    def _pixels(self, preprocessing: Preprocessing) -> Pixels:
        """The rows that are searched on, decoded once for each image size."""
        size = (preprocessing.height, preprocessing.width)
        if size not in self._decoded:
            self._decoded[size] = Pixels.from_dataset(self.dataset, preprocessing)
        return self._decoded[size]


def _judged(before: Sequence):
    """A trial of optuna's that is given up by the median of those before."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=_FIRST))
    study.add_trials(before)
    return study.ask()


class _Report(TrainerCallback):
    """Tells optuna each epoch's mean over the folds so far, and stops the training where the trial is given up."""

    def __init__(self, trial, first_step: int, before: list[float]):
        self.trial, self.first_step, self.before = trial, first_step, before
        self.best, self.given_up, self._told = -np.inf, False, 0

    def all(self, rows: list[dict]) -> None:
        """Tells what isn't told yet."""
        for row in rows[self._told :]:
            self._told += 1
            self.best = max(self.best, selection(row))
            self.trial.report(float(np.mean([*self.before, self.best])), self.first_step + self._told)
            self.given_up = self.given_up or self.trial.should_prune()

    def on_train_begin(self, args, state, control, **kwargs):
        self.all(epoch_rows(state.log_history))  # of a training that is taken up again

    def on_evaluate(self, args, state, control, **kwargs):
        self.all(epoch_rows(state.log_history))
        if self.given_up:
            control.should_training_stop = True


def _finite(score: Callable) -> Callable:
    def checked(probabilities: np.ndarray, labels: np.ndarray) -> dict:
        if not np.isfinite(probabilities).all():
            raise _Diverged
        return score(probabilities, labels)

    return checked
