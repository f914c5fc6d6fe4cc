"""What watches a training: one line an epoch, a record of them, and a clean stop when asked."""

import csv
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from oct_hf.images import Preprocessing
from oct_hf.training import processes

SNAPSHOTS = "snapshots"  # a run's folder of them


class EpochLines(TrainerCallback):
    """A progress bar on a terminal, one line an epoch anywhere, and `epochs.csv` for whoever plots it.

    Args:
        file: the CSV; it is rewritten from the Trainer's own history after each epoch that is measured.
        what: is being done, for the bar.
    """

    def __init__(self, file: Path, what: str = "fine-tuning"):
        self.file, self.what = file, what
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = time.monotonic(), state.global_step
        if sys.stderr.isatty() and state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.what, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not state.is_world_process_zero or not metrics:
            return
        rows = epoch_rows(state.log_history)
        with open(self.file, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[-1]), extrasaction="ignore", restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        row = rows[-1]
        spent = time.monotonic() - self.started
        left = spent / max(1, state.global_step - self.first_step) * (state.max_steps - state.global_step)
        line = f"epoch {round(row['epoch'])}/{round(state.num_train_epochs)}"
        line += f"  loss {row['loss']:.3f}" if row.get("loss") is not None else ""
        if "mse" in row:
            line += f"  held out: mean square {row['mse']:.5f} from clean, with noise {row['mse_noisy']:.5f}"
        else:
            line += f"  validation: balanced accuracy {row['balanced_accuracy']:.3f}, log loss {row['log_loss']:.3f}"
        tqdm.write(f"{line}  ({spent:.0f} s, {left:.0f} s left)", file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


class OnSave(TrainerCallback):
    """Hands the Trainer's state to a function after each checkpoint, or each that is the best so far."""

    def __init__(self, act: Callable[[TrainerState], None], best_alone: bool = False):
        self.act, self.best_alone = act, best_alone

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero and (not self.best_alone or state.best_global_step == state.global_step):
            self.act(state)


class Snapshots(TrainerCallback):
    """Keeps the weights at the end of each cycle of the learning rate as a model, in folders named 1, 2, …

    Huang et al., "Snapshot ensembles: train 1, get M for free" (ICLR 2017).

    Args:
        folder: for them.
        cycles: equally long, of the whole training.
        preprocessing: of the model's input.
    """

    def __init__(self, folder: Path, cycles: int, preprocessing: Preprocessing):
        self.folder, self.cycles, self.preprocessing = folder, cycles, preprocessing

    def on_step_end(self, args, state, control, model: Any = None, **kwargs):
        length = state.max_steps // self.cycles
        if state.is_world_process_zero and state.global_step % length == 0:
            place = self.folder / str(state.global_step // length)
            model.save_pretrained(place)
            self.preprocessing.save(place)


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM ends the running step, saves a checkpoint and stops; a second one stops at once.

    Attributes:
        stopped: the signal's number, or None.
    """

    def __init__(self):
        self.stopped: int | None = None
        self._before: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.listen()

    def listen(self) -> None:
        """From here on a signal is noted, until `listen_no_more`."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set signal handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)

    def _heard(self, number, frame):
        self.stopped = number
        signal.signal(number, self._before[number])
        if processes.is_main():
            print("stopping after this step …", file=sys.stderr)

    def on_step_end(self, args, state, control, **kwargs):
        # The processes of torchrun stop after the same step, or those that go on would wait for ever.
        self.stopped = processes.largest(self.stopped or 0) or None
        if self.stopped is not None:
            control.should_training_stop = True
            control.should_save = state.global_step % steps_an_epoch(state) != 0  # else the epoch's end saves

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped is not None and state.global_step % steps_an_epoch(state):
            # The Trainer would measure half an epoch and save again, after random numbers that a whole run never drew.
            control.should_evaluate = control.should_save = control.should_log = False

    def on_train_end(self, args, state, control, **kwargs):
        self.listen_no_more()

    def listen_no_more(self) -> None:
        """Signals do again what they did before."""
        for number, before in self._before.items():
            signal.signal(number, before)


def steps_an_epoch(state: TrainerState) -> int:
    """Optimiser's steps of one epoch."""
    return round(state.max_steps / state.num_train_epochs)


def epoch_rows(history: list[dict]) -> list[dict]:
    """One row an epoch out of the Trainer's log: loss, learning rate and the validation metrics, without prefixes."""
    rows: dict[float, dict] = {}
    for entry in history:
        if "eval_loss" in entry or "loss" in entry:
            row = rows.setdefault(entry["epoch"], {"epoch": entry["epoch"], "loss": None, "learning_rate": None})
            row.update({key.removeprefix("eval_"): v for key, v in entry.items() if key != "eval_loss"})
    return [row for _, row in sorted(rows.items()) if "balanced_accuracy" in row or "mse" in row]


def selection(measured: dict) -> float:
    """What the best epoch is chosen by: balanced accuracy; where it is equal, as often on few images, log loss."""
    return measured["balanced_accuracy"] - 1e-6 * measured["log_loss"]
