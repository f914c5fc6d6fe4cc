"""Trials of a search as tasks on a Ray cluster: each machine reads the data where it lies for all of them.

Ray Tune would keep a record of its own beside optuna's study, so that no study could go on with another number of
machines or with none; and what it adds, a scheduler and checkpoints, the trials and the study have. So the study is
asked and told here as it is without a cluster. A trial that loses its machine goes on from its checkpoint on another.
"""

import hashlib
import os
import platform
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch

from oct_hf.errors import OCTError, RunError
from oct_hf.parallel import shares
from oct_hf.runs.folder import plain_errors
from oct_hf.runs.labelled import load_data
from oct_hf.runs.run import quiet_libraries
from oct_hf.runs.training import Stopped
from oct_hf.runs.trial import Outcome, Proposal, Trials
from oct_hf.training.callbacks import StopOnSignal
from oct_hf.training.recipe import Recipe

_TRIES = 3  # of a trial that loses its machine: by then it is likelier the trial's own fault, as where memory is short
_SHOWN = 300  # characters of an error
_LISTEN = 0.5  # seconds between two looks at whether Ctrl-C was pressed
_PATIENCE = 120  # seconds that trials have to save a checkpoint when the search is stopped


@dataclass(frozen=True)
class _Shared:
    """What a machine needs to open the search."""

    recipe: Recipe
    out: Path
    started_in: Path  # relative paths in the recipe are from there
    cache_dir: str | None
    rows: np.ndarray
    content: str  # of these rows
    parts: list
    most_epochs: int


class OnRay:
    """Works on trials of a search at machines of a Ray cluster; a context.

    Args:
        ray: the module, connected (`parallel.ray_cluster`).
        trials: as they would be worked on here.
        rows: of the whole set, those that are searched on.
        cache_dir: for the prepared data, on each machine.
        workers: trials at a time; where not given, as many as there are GPUs, or else machines.

    Attributes:
        slots: trials at a time.
    """

    def __init__(self, ray, trials: Trials, rows: np.ndarray, cache_dir: str | None = None, workers: int | None = None):
        self._ray, self._out, self._workers = ray, trials.out.resolve(), workers
        self._task, self._at_work, self._stop = ray.remote(_work), {}, StopOnSignal()
        self.slots = shares(ray, workers)[0]
        content, here = _content(trials.dataset), Path.cwd()
        shared = _Shared(trials.recipe, self._out, here, cache_dir, rows, content, trials.parts, trials.most_epochs)
        self._shared = ray.put(shared)

    def __enter__(self):
        self._stop.listen()
        return self

    def __exit__(self, *error):
        """Trials at work are asked to save a checkpoint and stop, as by Ctrl-C."""
        try:
            for task in self._at_work:
                self._ray.cancel(task)
            if self._at_work:
                self._ray.wait(list(self._at_work), num_returns=len(self._at_work), timeout=_PATIENCE)
        finally:
            self._stop.listen_no_more()

    def start(self, proposal: Proposal, tries: int = 1) -> None:
        """Has a trial worked on as soon as a machine is free."""
        _, cpus, gpus = shares(self._ray, self._workers)  # machines may have come or gone
        task = self._task.options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._at_work[task.remote(self._shared, proposal, cpus)] = proposal, tries

    def ended(self) -> tuple[int, Outcome]:
        """Waits for a trial; its number and what became of it.

        Raises:
            OCTError: a machine doesn't see the data or the study's folder, or can't have the weights.
            Stopped: Ctrl-C or SIGTERM.
        """
        gone = self._ray.exceptions
        while True:
            done, _ = self._ray.wait(list(self._at_work), timeout=_LISTEN)
            if self._stop.stopped is not None:
                raise Stopped(self._stop.stopped, self._out)
            if not done:
                continue
            proposal, tries = self._at_work.pop(done[0])
            try:
                outcome, why = self._ray.get(done[0]), "it was told to stop"
            except gone.RayTaskError as error:
                if isinstance(error.cause, OCTError):
                    raise error.cause from None
                raise RunError(
                    f"a machine of the Ray cluster can't work on trials ({_one_line(error.cause)}); all need the same "
                    f"oct-hf with its extras tune and ray"
                ) from None
            except (gone.WorkerCrashedError, gone.NodeDiedError, gone.OutOfMemoryError, gone.ObjectLostError) as error:
                outcome, why = None, _one_line(error)
            except gone.RayError as error:
                raise RunError(f"the Ray cluster: {_one_line(error)}") from None
            if outcome is not None:
                return proposal.number, outcome
            if tries == _TRIES:
                return proposal.number, Outcome("failed", error=f"its process was lost {tries} times ({why})")
            self.start(proposal, tries + 1)


def _work(shared: _Shared, proposal: Proposal, threads: int) -> Outcome | None:
    """A trial, on the machine that this is; None where the process was told to stop."""
    quiet_libraries()
    torch.set_num_threads(threads)
    try:
        # Not kept for the next trial: Ray ends its processes without a last word, and the pictures would stay on disk.
        with plain_errors(shared.out), closing(_opened(shared)) as trials:
            return trials.work(proposal)
    except Stopped:
        return None
    except OCTError as error:  # data, weights, a disk: what the machine lacks is no trial's fault
        raise RunError(f"{platform.node()}, a machine of the Ray cluster: {error}") from None
    except Exception as fault:
        return Outcome("failed", error=_one_line(fault))


def _opened(shared: _Shared) -> Trials:
    """The search as this machine sees it.

    Raises:
        OCTError: it doesn't see the study's folder, or not the same data.
    """
    with suppress(OSError):  # where all paths are whole it isn't needed
        os.chdir(shared.started_in)
    if not (shared.out / "study.db").is_file():
        raise RunError(f"{shared.out} isn't there; all must see the study's folder under one path (--out)")
    try:
        dataset = load_data(shared.recipe.data, shared.cache_dir)[0]
    except OCTError as error:
        raise RunError(f"{error}; all must see the data under one path (--data)") from None
    if len(dataset) <= shared.rows.max() or _content(dataset := dataset.select(shared.rows)) != shared.content:
        raise RunError(f"{shared.recipe.data.path} holds other B-scans there; all must see the same data (--data)")
    return Trials(shared.recipe, shared.out, dataset, shared.parts, shared.most_epochs)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]


def _content(dataset: datasets.Dataset) -> str:
    """SHA-256 over the pictures and labels of all rows, in order."""
    rows = zip(dataset["content_hash"][:], dataset["label"][:], strict=True)
    return hashlib.sha256("\n".join(f"{picture} {label}" for picture, label in rows).encode()).hexdigest()
