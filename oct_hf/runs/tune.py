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
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from oct_hf.data.leakage import units
from oct_hf.data.splits import fingerprint, split_folds
from oct_hf.errors import OCTError, RunError, did_you_mean
from oct_hf.parallel import ray_cluster
from oct_hf.runs.folder import differing, plain_errors
from oct_hf.runs.folds import own_folds
from oct_hf.runs.labelled import LabelledSet, assign_sides, load_data, one_label_only
from oct_hf.runs.run import quiet_libraries
from oct_hf.runs.trial import Outcome, Proposal, Trials
from oct_hf.runs.trials_on_ray import OnRay
from oct_hf.training import processes
from oct_hf.training.callbacks import selection
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import change_recipe
from oct_hf.training.search import USUAL, check_space, suggest
from oct_hf.untrusted import cell, shown
from oct_hf.whole import write_json, written_beside

STUDY, BEST, TABLE = "study.json", "best.yaml", "trials.csv"
ENGINES = ("process", "ray")
_FAILED = 4  # trials, the first of a study, after which it isn't gone on with where all failed


def tune(
    recipe: Recipe,
    out: str | Path,
    trials: int = 20,
    folds: int = 3,
    space: dict | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
    engine: str = "process",
    workers: int | None = None,
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
        seed: of the proposals. The same seed proposes the same, whether the study was stopped between or not; on a
            cluster the later ones depend on which trials ended first.
        cache_dir: for the prepared data.
        engine: this `process`, or `ray`, trials at a time on the cluster that RAY_ADDRESS names; then every machine
            must see the data and `out`. A study may go on with the other one.
        workers: trials at a time on the cluster; where not given, as many as it has GPUs, or else machines.

    Returns:
        `name`, `folds`, `seed`, `space`, `data` (title, images, patients searched on); `trials`: `number`, `state`
        ("complete", "pruned", "diverged" or "failed"), `score` (None where not complete), `folds`, `params`, `seconds`,
        `error` (one line, where it failed); and `best`, one of them, or None.

    Raises:
        OCTError: optuna is missing, an unusable space or folder, a study of another space, recipe or set there; no
            cluster, or a machine of it that doesn't see the data.
        Stopped: Ctrl-C or SIGTERM; the checkpoints of the trials at work are saved.
    """
    if find_spec("optuna") is None:
        raise OCTError('a search needs optuna: pip install "oct-hf[tune]"')
    if engine not in ENGINES:
        raise OCTError(f"--engine: found {engine}{did_you_mean(engine, ENGINES)}, expected {' or '.join(ENGINES)}")
    if workers and engine != "ray":
        raise OCTError("--workers says how many trials a cluster works on at a time: --engine ray")
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
    with plain_errors(out), ray_cluster() if engine == "ray" else nullcontext() as cluster:
        data = assign_sides(load_data(recipe.data, cache_dir)[0], recipe)
        parts = tuning_folds(data, recipe, folds, cache_dir)
        settings["fingerprint"] = fingerprint(data.hashes, data.patients, data.labels)
        _check_study(out, settings)
        out.mkdir(parents=True, exist_ok=True)
        rows = np.sort(np.concatenate([scored for _, scored in parts]))
        parts = [tuple(np.searchsorted(rows, side) for side in part) for part in parts]
        epochs = space.get("train.epochs", [recipe.train.epochs])
        most_epochs = int(max(epochs) if isinstance(epochs, list) else epochs["high"])
        shared = Trials(recipe, out, data.dataset.select(rows), parts, most_epochs)
        work = OnRay(cluster, shared, rows, cache_dir, workers) if cluster else _Here(shared)
        try:
            with FileLock(out / "study.lock", timeout=0):
                write_json(out / STUDY, settings)
                patients = len({data.patients[row] for row in rows})
                return _Search(shared, space, seed, patients).run(trials, work)
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


class _Here:
    """One trial at a time, in this process."""

    slots = 1

    def __init__(self, trials: Trials):
        self._trials = trials
        self._given: Proposal | None = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def start(self, proposal: Proposal) -> None:
        self._given = proposal

    def ended(self) -> tuple[int, Outcome]:
        assert self._given is not None  # `start` comes first
        return self._given.number, self._trials.work(self._given)


class _Search:
    """The study: what is proposed, told and written."""

    def __init__(self, trials: Trials, space: dict, seed: int, patients: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.trials, self.space, self.seed, self.patients = trials, space, seed, patients
        self.recipe, self.out = trials.recipe, trials.out
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.out / 'study.db'}",
            study_name=self.recipe.name,
            direction="maximize",
            load_if_exists=True,
        )

    def run(self, wanted: int, workers) -> dict:
        """Has trials worked on until there are `wanted`; `workers` takes `slots` of them at a time."""
        cut, at_work = self._cut(), {}
        with workers:
            while len(self._finished()) + len(at_work) < wanted or at_work:
                while len(at_work) < workers.slots and len(self._finished()) + len(at_work) < wanted:
                    number, trial = cut.pop(0) if cut else self._asked()
                    values = suggest(trial, self.space, self.recipe)  # those that a trial which was cut has already
                    at_work[number] = trial
                    workers.start(Proposal(number, values, self._complete()))
                number, outcome = workers.ended()
                self._tell(at_work.pop(number), outcome)
                shutil.rmtree(self.trials.folder(number), ignore_errors=True)
                _say(self._write(), number, wanted)
                self._check_any()
        return self._write()

    def _check_any(self) -> None:
        """Raises RunError where the first trials all failed: that is no chance, and would cost all the others too."""
        ended = [trial.user_attrs for trial in self._finished().values()]
        if len(ended) == _FAILED and all(trial["state"] == "failed" for trial in ended):
            raise RunError(f"the first {_FAILED} trials all failed, the last by: {ended[-1]['error']}")

    def _asked(self) -> tuple:
        """A new trial: its number and optuna's handle on it."""
        import optuna

        before = len(self._counted())
        # A sampler of each trial's own: its proposal depends on the trials before it and on no random state that a
        # stopped process would have lost.
        seed = int(np.random.SeedSequence([self.seed, before]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        return before + 1, self.study.ask()

    def _cut(self) -> list[tuple]:
        """Trials that a stop or a kill left unfinished, to be gone on with."""
        import optuna
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if set(trial.params) != set(self.space):  # killed while it was proposed; asked again
                self.study.tell(trial.number, state=TrialState.FAIL)
        return [
            (number, optuna.Trial(self.study, trial._trial_id))
            for number, trial in self._counted().items()
            if trial.state == TrialState.RUNNING
        ]

    def _tell(self, trial, outcome: Outcome) -> None:
        from optuna.trial import TrialState

        for step, value in outcome.reports.items():
            trial.report(value, step)
        for key in ("scores", "state", "seconds", "error"):
            trial.set_user_attr(key, getattr(outcome, key))
        if outcome.state == "complete":
            self.study.tell(trial, float(np.mean([selection(score) for score in outcome.scores])))
        else:
            self.study.tell(trial, state=TrialState.PRUNED)

    def _counted(self) -> dict:
        """By number, from 1, all trials but those that were never proposed as a whole."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        return dict(enumerate((trial for trial in trials if trial.state != TrialState.FAIL), 1))

    def _finished(self) -> dict:
        return {number: trial for number, trial in self._counted().items() if trial.state.is_finished()}

    def _complete(self) -> list:
        return [trial for trial in self._finished().values() if trial.value is not None]

    def _write(self) -> dict:
        """What is known so far: the table and the best recipe, and the same as a dict."""
        finished = self._finished()
        rows = [
            {
                "number": number,
                "state": trial.user_attrs["state"],
                "score": _mean(trial) if trial.user_attrs["state"] == "complete" else None,
                "folds": trial.user_attrs["scores"],
                "params": trial.params,
                "seconds": trial.user_attrs["seconds"],
                "error": trial.user_attrs.get("error"),
            }
            for number, trial in finished.items()
        ]
        complete = [row for row in rows if row["score"] is not None]
        best = max(complete, key=lambda row: finished[row["number"]].value, default=None)
        if best is not None:
            recipe = change_recipe(self.recipe, best["params"])
            with written_beside(self.out / BEST) as beside:
                named = dataclasses.replace(recipe, name=f"{recipe.name}-tuned")
                beside.write_text(named.to_yaml(), encoding="utf-8")
        _write_table(self.out / TABLE, rows, list(self.space))
        return {
            "name": self.recipe.name,
            "folds": len(self.trials.parts),
            "seed": self.seed,
            "space": self.space,
            "data": {
                "title": self.recipe.data.title or self.recipe.data.name,
                "images": len(self.trials.dataset),
                "patients": self.patients,
            },
            "trials": rows,
            "best": best,
        }


def _mean(trial) -> float:
    return float(np.mean([score["balanced_accuracy"] for score in trial.user_attrs["scores"]]))


def _say(found: dict, number: int, wanted: int) -> None:
    row = next(row for row in found["trials"] if row["number"] == number)
    score = f"{row['score']:.3f}" if row["score"] is not None else row["state"]
    params = ", ".join(f"{key}={shown_value(value)}" for key, value in row["params"].items())
    why = f": {row['error']}" if row["error"] else ""
    print(shown(f"trial {number}/{wanted}  {score}  {params}  ({row['seconds']:.0f} s){why}"), file=sys.stderr)


def shown_value(value) -> str:
    """A setting with as many digits as one reads."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write_table(path: Path, rows: list[dict], keys: list[str]) -> None:
    with written_beside(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", "state", "score", *keys, "seconds"])
        for row in rows:
            params = (cell(row["params"].get(key)) for key in keys)
            writer.writerow([row["number"], row["state"], row["score"], *params, row["seconds"]])
