"""Hyperparameter search: optuna proposes, patient-grouped folds judge, and a search that was killed goes on.

`Trainer.hyperparameter_search` trains once a trial on one pair of sides: it has no folds, takes no training up from its
checkpoint, and a study that was killed there starts with a trial lost. So the trainings here are OCTTrainer's and the
study is asked and told. The test side of the recipe's split is never trained on, predicted or looked at; the score of
the best of many trials is too good all the same, and only a run of `best.yaml` on that side says how good it is.
"""

import csv
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import transformers
from filelock import FileLock, Timeout
from transformers import TrainerCallback

from oct_hf.data.leakage import units
from oct_hf.data.pixels import Pixels
from oct_hf.data.splits import fingerprint, split_folds
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import OCTError, RunError
from oct_hf.images import Preprocessing
from oct_hf.runs.folder import differing, plain_errors, write_json, written_beside
from oct_hf.runs.folds import own_folds
from oct_hf.runs.labelled import LabelledSet, assign_sides, load_data, one_label_only
from oct_hf.runs.run import quiet_libraries
from oct_hf.runs.training import Stopped, build_model, validation_score
from oct_hf.training import processes
from oct_hf.training.arguments import repeat_exactly
from oct_hf.training.callbacks import StopOnSignal, epoch_rows, selection
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import change_recipe
from oct_hf.training.search import USUAL, check_space, suggest
from oct_hf.training.trainer import OCTTrainer, last_checkpoint

STUDY, BEST, TABLE = "study.json", "best.yaml", "trials.csv"
_FIRST = 4  # trials that no pruning stops: a median needs something to be the middle of


def tune(
    recipe: Recipe,
    out: str | Path,
    trials: int = 20,
    folds: int = 3,
    space: dict | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
) -> dict:
    """Searches a recipe's settings; the same call goes on with a study that was stopped or killed, or is to be longer.

    A trial is trained on all but one fold of the patients that aren't on the test side and scored on that fold, once a
    fold; its score is the mean of the best epochs' balanced accuracies. A trial whose mean so far is below the median
    of the others at the same epoch of the same fold is given up (optuna's MedianPruner). `out` holds `best.yaml`, a
    recipe; `trials.csv`; `study.db`, optuna's study as SQLite; and what isn't finished.

    Args:
        recipe: what to train; its `split` says which patients stay out.
        out: the study's folder.
        trials: how many in all, those of earlier calls included.
        folds: 2 or more; where the recipe is split by folds of the set's own, these without the one that is held out.
        space: by key a range or a list; the recipe's `search`, else `search.USUAL`, where not given.
        seed: of the proposals. The same seed proposes the same, whether the study was stopped between or not.
        cache_dir: for the prepared data.

    Returns:
        `name`, `folds`, `seed`, `space`, `data` (title, images, patients searched on); `trials`: `number`, `state`
        ("complete", "pruned" or "diverged"), `score` (None where not complete), `folds`, `params`, `seconds`; and
        `best`, one of them, or None.

    Raises:
        OCTError: optuna is missing, an unusable space or folder, a study of another space, recipe or set there.
        Stopped: Ctrl-C or SIGTERM; the trial's checkpoint is saved.
    """
    if find_spec("optuna") is None:
        raise OCTError('a search needs optuna: pip install "oct-hf[tune]"')
    out, space = Path(out), check_space(space or recipe.search or USUAL, recipe)
    recipe = dataclasses.replace(recipe, search={}, push_to_hub=False)
    settings = {"recipe": recipe.to_dict(), "space": space, "folds": folds, "seed": seed}
    quiet_libraries()
    one_label_only(recipe.data, "a search")
    if recipe.head or recipe.ensemble:
        raise RunError("a search trains by gradients: set head=null ensemble=null")
    if recipe.pretrain or recipe.teacher or recipe.model.denoise or recipe.adversarial or recipe.data.generated:
        raise RunError(
            "a search trains no teacher, generator or pretraining, and an autoencoder or a generator has seen what its "
            "folds hold out: set pretrain=null teacher=null adversarial=null model.denoise=null data.generated=null"
        )
    if recipe.semi or recipe.co_teaching or recipe.split.labelled_per_class:
        raise RunError(
            "a search trains one network on all labels: set semi=null co_teaching=null split.labelled_per_class=null"
        )
    if processes.count() > 1:
        raise RunError("a search runs on one process; start it without torchrun")
    with plain_errors(out):
        _check_study(out, settings)
        data = assign_sides(load_data(recipe.data, cache_dir)[0], recipe)
        parts = tuning_folds(data, recipe, folds, cache_dir)
        settings["fingerprint"] = fingerprint(data.hashes, data.patients, data.labels)
        _check_study(out, settings)
        out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(out / "study.lock", timeout=0):
                write_json(out / STUDY, settings)
                return _Search(recipe, out, space, seed, data, parts).run(trials)
        except Timeout:
            raise RunError(f"{out}: another process works on this study") from None


def tuning_folds(
    data: LabelledSet, recipe: Recipe, folds: int, cache_dir: str | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers to train and to score on, once a fold; rows of the test side and unused ones are in none.

    Raises:
        OCTError: fewer than two folds, too few patients, or another number than the set's own folds.
    """
    if folds < 2:
        raise RunError(f"{folds} fold(s) leave nothing to train on; take 2 or more")
    searched = np.flatnonzero(np.isin(data.sides, ("train", "validation")))
    if own := own_folds(recipe, cache_dir):
        own = [name for name in own if name != recipe.split.test_fold]
        if len(own) != folds:
            raise RunError(f"without the test fold the set has {len(own)} folds of its own: take --folds {len(own)}")
        place = np.array(data.dataset["fold"][:])[searched]
    else:
        # Near-duplicates of several patients stay in one fold.
        together = units(data.hashes, data.patients, data.links, data.dataset["volume"][:])
        labels, patients = ([column[row] for row in searched] for column in (data.labels, together))
        place, own = split_folds(labels, patients, folds, recipe.split.seed), [str(number) for number in range(folds)]
    return [(searched[place != name], searched[place == name]) for name in own]


def _check_study(out: Path, settings: dict) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        known = json.loads((out / STUDY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"{out} is no study of this program; choose another folder with --out") from None
    if "fingerprint" not in settings:
        known = {key: value for key, value in known.items() if key != "fingerprint"}
    different = [key for key in differing(known, settings) if key != "recipe.data.path"]
    if different:
        raise RunError(
            f"{out} holds a study of another {'search space' if different[0].startswith('space') else 'kind'} "
            f"(it differs in {', '.join(different[:5])}); choose another folder with --out"
        )


class _Diverged(Exception):
    """The network's answers are no numbers any more."""


class _Search:
    """One study at work: what all its trials share."""

    def __init__(self, recipe: Recipe, out: Path, space: dict, seed: int, data: LabelledSet, parts: list):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.recipe, self.out, self.space, self.seed = recipe, out, space, seed
        # The rows that are searched on alone: those of the test side aren't even decoded.
        rows = np.sort(np.concatenate([scored for _, scored in parts]))
        self.names, self.dataset = data.names, data.dataset.select(rows)
        self.patients = len({data.patients[row] for row in rows})
        self.parts = [tuple(np.searchsorted(rows, side) for side in part) for part in parts]
        self.study = optuna.create_study(
            storage=f"sqlite:///{out / 'study.db'}",
            study_name=recipe.name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_FIRST),
        )
        self._decoded: dict[tuple[int, int], Pixels] = {}
        epochs = space.get("train.epochs", [recipe.train.epochs])
        self._most_epochs = int(max(epochs) if isinstance(epochs, list) else epochs["high"])

    def run(self, trials: int) -> dict:
        import optuna
        from optuna.trial import TrialState

        for cut in self.study.get_trials(states=(TrialState.RUNNING,)):  # by a kill; asked again below
            self.study.tell(cut.number, state=TrialState.FAIL)
        while (done := len(self._finished())) < trials:
            # A sampler of each trial's own: its proposal depends on the trials before it and on no random state that a
            # stopped process would have lost.
            number = int(np.random.SeedSequence([self.seed, done]).generate_state(1)[0])
            self.study.sampler = optuna.samplers.TPESampler(seed=number)
            trial = self.study.ask()
            values = suggest(trial, self.space, self.recipe)
            began = time.monotonic()
            scores, state = self._trial(trial, self._folder(done + 1), values)
            trial.set_user_attr("scores", scores)
            trial.set_user_attr("state", state)
            trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
            if state == "complete":
                self.study.tell(trial, float(np.mean([selection(score) for score in scores])))
            else:
                self.study.tell(trial, state=TrialState.PRUNED)
            shutil.rmtree(self._folder(done + 1), ignore_errors=True)
            found = self._write()
            _say(found, trials)
        return self._write()

    def _finished(self) -> list:
        from optuna.trial import TrialState

        return self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED), deepcopy=False)

    def _folder(self, number: int) -> Path:
        return self.out / f"trial-{number:03}"

    def _trial(self, trial, folder: Path, values: dict) -> tuple[list[dict], str]:
        """Scores of its folds, and "complete", "pruned" or "diverged"."""
        recipe, scores = change_recipe(self.recipe, values), []
        try:
            known = json.loads((folder / "values.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        if known != values:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_json(folder / "values.json", values)
        state = "complete"
        for fold in range(len(self.parts)):
            try:
                found, pruned = self._fold(trial, recipe, fold, folder / f"fold-{fold}", scores)
            except _Diverged:
                state = "diverged"
                break
            scores.append(found)
            if pruned:
                state = "pruned"
                break
        return scores, state

    def _fold(self, trial, recipe: Recipe, fold: int, folder: Path, before: list[dict]) -> tuple[dict, bool]:
        """The best epoch's scores on one fold, and whether the trial is given up. A fold trained before is read."""
        report = _Report(trial, fold * self._most_epochs, [selection(score) for score in before])
        try:
            rows = json.loads((folder / "epochs.json").read_text(encoding="utf-8"))["epochs"]
            report.all(rows)
        except (OSError, ValueError):
            rows = self._train(recipe, fold, folder, report)
            write_json(folder / "epochs.json", {"epochs": rows})
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

    def _write(self) -> dict:
        """What is known so far: the table and the best recipe, and the same as a dict."""
        rows = [
            {
                "number": number,
                "state": trial.user_attrs["state"],
                "score": _mean(trial) if trial.user_attrs["state"] == "complete" else None,
                "folds": trial.user_attrs["scores"],
                "params": trial.params,
                "seconds": trial.user_attrs["seconds"],
            }
            for number, trial in enumerate(self._finished(), 1)
        ]
        values = {
            place: trial.value for place, trial in enumerate(self._finished()) if rows[place]["score"] is not None
        }
        best = max(values, key=values.get, default=None)
        if best is not None:
            recipe = change_recipe(self.recipe, rows[best]["params"])
            with written_beside(self.out / BEST) as beside:
                named = dataclasses.replace(recipe, name=f"{recipe.name}-tuned")
                beside.write_text(named.to_yaml(), encoding="utf-8")
        _write_table(self.out / TABLE, rows, list(self.space))
        return {
            "name": self.recipe.name,
            "folds": len(self.parts),
            "seed": self.seed,
            "space": self.space,
            "data": {
                "title": self.recipe.data.title or self.recipe.data.name,
                "images": len(self.dataset),
                "patients": self.patients,
            },
            "trials": rows,
            "best": None if best is None else rows[best],
        }


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


def _mean(trial) -> float:
    return float(np.mean([score["balanced_accuracy"] for score in trial.user_attrs["scores"]]))


def _say(found: dict, trials: int) -> None:
    row = found["trials"][-1]
    score = f"{row['score']:.3f}" if row["score"] is not None else row["state"]
    params = ", ".join(f"{key}={shown_value(value)}" for key, value in row["params"].items())
    print(f"trial {row['number']}/{trials}  {score}  {params}  ({row['seconds']:.0f} s)", file=sys.stderr)


def shown_value(value) -> str:
    """A setting with as many digits as one reads."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write_table(path: Path, rows: list[dict], keys: list[str]) -> None:
    with written_beside(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", "state", "score", *keys, "seconds"])
        for row in rows:
            writer.writerow(
                [row["number"], row["state"], row["score"], *(row["params"].get(key) for key in keys), row["seconds"]]
            )
