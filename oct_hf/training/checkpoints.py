"""Checkpoints that are there whole or not at all, and that tell whether they still are what was written.

transformers writes into a checkpoint's own folder, so a run that is killed leaves half of one there. Here it writes
into a folder beside; the SHA-256 of every file joins them, and the checkpoint is renamed to its place. Two are kept,
each with the best one that it names: where the newest is damaged, the one before is all that a training needs to go on.
"""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from oct_hf.training import processes
from oct_hf.untrusted import shown
from oct_hf.whole import file_sha256, write_json

CHECKPOINTS = "checkpoints"  # a run's folder of them
CHECKSUMS = "checksums.json"  # of a checkpoint's files, in it
UNFINISHED = "unfinished"  # beside the checkpoints: the one that is being written
_KEPT = 2


class WholeCheckpoints(Trainer):
    """A Trainer that may be killed at any moment."""

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        assert self.args.output_dir is not None  # `training_arguments` names one
        return Path(self.args.output_dir)

    def _get_output_dir(self, trial=None) -> str:
        return str(self.folder / UNFINISHED)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle with this machine's paths, which nothing reads.
        ((Path(output_dir) if output_dir else self.folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model, trial) -> None:
        folder, main = self.folder, self.args.should_save
        if main:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        processes.wait()
        try:
            super()._save_checkpoint(model, trial)
            processes.wait()
            if main:
                self._finish(folder)
        except BaseException as error:
            if main:
                shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
            if "inline_container" in str(error):
                # torch's writer says that less was written than it gave, and not why: there was no room for more.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise
        processes.wait()

    def _finish(self, folder: Path) -> None:
        """The checkpoint that was written beside takes its place, and older ones go."""
        written = checkpoint_of(folder / UNFINISHED, self.state.global_step)
        self.state.best_model_checkpoint = None  # a path, where the step says it all
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        write_json(written / CHECKSUMS, {path.name: file_sha256(path) for path in sorted(written.iterdir())})
        target = folder / written.name
        shutil.rmtree(target, ignore_errors=True)
        written.rename(target)
        _remove_old(folder)

    def _finalize_training(self, *args, **kwargs):
        if self.args.should_save:
            _remove_old(self.folder)  # what a kill has left after the last checkpoint
        # transformers knows the best checkpoint by its path, and without a word keeps the last weights where the
        # training goes on in another place.
        best = self.state.best_global_step
        self.state.best_model_checkpoint = str(checkpoint_of(self.folder, best)) if best else None
        return super()._finalize_training(*args, **kwargs)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint from which a training can go on; damaged ones are named on stderr and removed.

    Args:
        folder: of the checkpoints.

    Returns:
        one that is whole, and so is the best one that it names; None where there is none.
    """
    for checkpoint in _found(Path(folder)):
        fault = damage(checkpoint) or damage(best_of(checkpoint))
        if fault is None:
            return checkpoint
        print(shown(f"{checkpoint} is left out: {fault}"), file=sys.stderr)
        shutil.rmtree(checkpoint)
    return None


def damage(checkpoint: Path) -> str | None:
    """What of a checkpoint isn't as it was written; None where all of it is."""
    try:
        known = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return f"{checkpoint.name} was not written to its end"
    for name, digest in known.items():
        try:
            if file_sha256(checkpoint / name) != digest:
                return f"{checkpoint.name}/{name} is not what was written"
        except FileNotFoundError:
            return f"{checkpoint.name}/{name} is missing"
    return None


def checkpoint_of(folder: str | Path, step: int) -> Path:
    """Where the checkpoint after so many of the optimiser's steps lies."""
    return Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """The optimiser's steps that were done."""
    return int(checkpoint.name.rpartition("-")[2])


def best_of(checkpoint: Path) -> Path:
    """The best checkpoint as one knew it; itself where none was measured yet, or where it can't be read."""
    try:
        step = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["best_global_step"]
    except (OSError, ValueError, KeyError):
        step = None
    return checkpoint_of(checkpoint.parent, step) if step else checkpoint


def _remove_old(folder: Path) -> None:
    """Leaves the newest checkpoints, and the best ones that they name."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    newest = _found(folder)[:_KEPT]
    for old in set(_found(folder)) - {*newest, *map(best_of, newest)}:
        shutil.rmtree(old)


def _found(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of, reverse=True)
