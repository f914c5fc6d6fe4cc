"""What a fine-tuning tells an experiment tracker after each epoch: figures, confusion matrix, answers to some B-scans.

Trackers are those that `report_to` names, whatever else is installed, and they write on this machine. What goes
further has to be asked for by the tracker's own setting (a Space of trackio, an account of wandb), and then the
pictures of a set that isn't public stay here. transformers' own callbacks aren't taken: what is sent is decided here.
"""

import io
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from transformers import TrainerCallback

from oct_hf.data.pixels import Pixels
from oct_hf.errors import RecipeError
from oct_hf.evaluation.report import can_draw, confusion_matrix_figure
from oct_hf.training.callbacks import epoch_rows, steps_an_epoch
from oct_hf.training.recipe import Recipe
from oct_hf.untrusted import shown

TOLD = ("loss", "learning_rate", "balanced_accuracy", "accuracy", "auroc", "log_loss")
SAMPLES = 8  # B-scans of the validation side, the same ones after each epoch
_TILE, _LINE = 224, 14  # pixels of a B-scan's width, and of a line of text over it


class Tracker(Protocol):
    """One place that keeps what it is told.

    Attributes:
        at_home: whether nothing of it leaves this machine.
    """

    at_home: bool

    def log(self, epoch: int, numbers: dict[str, float], pictures: dict[str, np.ndarray], rows: list[dict]) -> None:
        """After an epoch: numbers by name, pictures uint8 `(height, width, 3)`, and a row a sample B-scan."""

    def finish(self) -> None:
        """Whatever was told is kept now."""


class _TensorBoard:
    """Event files in the run's log/tensorboard."""

    at_home = True

    def __init__(self, folder: Path, recipe: Recipe, facts: dict[str, Any], done: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "log" / "tensorboard"), purge_step=done + 1)

    def log(self, epoch: int, numbers: dict[str, float], pictures: dict[str, np.ndarray], rows: list[dict]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, epoch)
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, epoch, dataformats="HWC")
        self.writer.add_text("samples", _markdown(rows), epoch)
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()


class _Trackio:
    """trackio's own folder on this machine (`trackio show` reads it), or what its environment variables name."""

    def __init__(self, folder: Path, recipe: Recipe, facts: dict[str, Any], done: int):
        import trackio

        elsewhere = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID")
        self.at_home, self.library = not any(map(os.environ.get, elsewhere)), trackio
        self.run = trackio.init(
            project=recipe.name,
            name=_name(folder),
            config=facts["recipe"],
            resume="allow" if done else "never",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, epoch: int, numbers: dict[str, float], pictures: dict[str, np.ndarray], rows: list[dict]) -> None:
        shown = {name: self.library.Image(picture) for name, picture in pictures.items()}
        self.run.log({**numbers, **shown, "samples/answers": self.library.Table(data=rows)}, step=epoch)

    def finish(self) -> None:
        self.library.finish()  # the run's own would be told again, on stdout, when the program ends


class _Wandb:
    """wandb's files in the run's log/wandb; they go to its servers where WANDB_MODE=online asks for it."""

    def __init__(self, folder: Path, recipe: Recipe, facts: dict[str, Any], done: int):
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.at_home, self.library = mode in ("offline", "disabled"), wandb
        known = folder / "log" / "wandb-id"  # a run that goes on is the same one to wandb
        if not done or not known.exists():
            known.write_text(secrets.token_hex(8))
        self.run = wandb.init(
            project=recipe.name,
            name=_name(folder),
            id=known.read_text(),
            dir=folder / "log",
            config=facts["recipe"],
            mode=mode,
            resume="allow",
            settings=wandb.Settings(x_disable_stats=True, x_disable_meta=True, disable_git=True, console="off"),
        )

    def log(self, epoch: int, numbers: dict[str, float], pictures: dict[str, np.ndarray], rows: list[dict]) -> None:
        shown = {name: self.library.Image(picture) for name, picture in pictures.items()}
        columns = list(rows[0]) if rows else []
        table = self.library.Table(columns=columns, data=[list(row.values()) for row in rows])
        self.run.log({**numbers, **shown, "samples/answers": table}, step=epoch)

    def finish(self) -> None:
        self.run.finish()


# Of a run's folder, its recipe, its facts, and how many epochs are done already.
TRACKERS: dict[str, Callable[[Path, Recipe, dict[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuses a tracker whose library is missing, before any work.

    Raises:
        RecipeError: it says how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            raise RecipeError(f'report_to: {name} isn\'t installed: pip install "oct-hf[{name}]"')


class Tracking(TrainerCallback):
    """Tells trackers of each epoch; one that fails is left out with a line, and the training goes on.

    Args:
        folder: the run's.
        recipe: of which `report_to` and `data.public` count; what the trackers keep of it is `facts`'.
        facts: of the run.
        names: the labels.
        validation: the side that is measured after each epoch.
        answers: gives the last measured probabilities `(n, labels)` of it, and its labels.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        facts: dict[str, Any],
        names: Sequence[str],
        validation: Pixels,
        answers: Callable[[], tuple[np.ndarray, np.ndarray] | None],
    ):
        self.begin = lambda name, done: TRACKERS[name](folder, recipe, facts, done)
        self.wanted, self.public, self.names = recipe.report_to, recipe.data.public, list(names)
        self.validation, self.answers = validation, answers
        self.samples = samples(validation.labels)
        self.trackers: dict[str, Tracker] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            done = state.global_step // steps_an_epoch(state)
            for name in self.wanted:
                self._act(name, lambda name=name: self.trackers.update({name: self.begin(name, done)}))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        answers, rows = self.answers(), epoch_rows(state.log_history)
        if not self.trackers or not rows or answers is None:
            return
        row = rows[-1]
        numbers = {
            f"{'train' if name in ('loss', 'learning_rate') else 'validation'}/{name}": float(value)
            for name, value in row.items()
            if name in TOLD and isinstance(value, int | float) and np.isfinite(value)
        }
        probabilities, labels = answers
        told = self._told(probabilities, labels)
        drawn = {"validation/confusion": self._confusion(probabilities, labels)} if labels.ndim == 1 else {}
        drawn = {name: picture for name, picture in drawn.items() if picture is not None}
        for name, tracker in list(self.trackers.items()):
            may_go = tracker.at_home or self.public
            pictures = drawn | ({"samples": self._sheet(told)} if may_go else {})
            self._act(name, lambda t=tracker, p=pictures: t.log(round(row["epoch"]), numbers, p, told))

    def on_train_end(self, args, state, control, **kwargs):
        for name, tracker in list(self.trackers.items()):
            self._act(name, tracker.finish)

    def _act(self, name: str, act: Callable[[], Any]) -> None:
        try:
            with redirect_stdout(io.StringIO()):  # where the run's own result goes
                act()
        except Exception as error:  # theirs are of any kind
            self.trackers.pop(name, None)
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            print(shown(f"report_to: {name} is left out from here on ({why}); the training goes on"), file=sys.stderr)

    def _told(self, probabilities: np.ndarray, labels: np.ndarray) -> list[dict]:
        """A row a sample: its place on the validation side, its label, and each label's probability."""
        rows = []
        for place in self.samples:
            values = probabilities[place]
            true = [self.names[labels[place]]] if labels.ndim == 1 else _names_of(labels[place] > 0, self.names)
            said = [self.names[values.argmax()]] if labels.ndim == 1 else _names_of(values >= 0.5, self.names)
            answer = {"B-scan": int(place), "true": ", ".join(true), "predicted": ", ".join(said)}
            rows.append(answer | {f"p {n}": round(float(v), 4) for n, v in zip(self.names, values, strict=True)})
        return rows

    def _confusion(self, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        if not can_draw():
            return None
        counts = np.zeros((len(self.names),) * 2, int)
        np.add.at(counts, (labels, probabilities.argmax(-1)), 1)
        file = io.BytesIO()
        confusion_matrix_figure(counts.tolist(), self.names, file, f"validation, {len(labels)} B-scans")
        return np.asarray(Image.open(file).convert("RGB"))

    def _sheet(self, told: list[dict]) -> np.ndarray:
        """The samples beside each other, each under what it is and what was said."""
        tiles = []
        for row in told:
            bscan = Image.fromarray(np.asarray(self.validation.images[row["B-scan"]]))
            bscan = ImageOps.contain(bscan.convert("RGB"), (_TILE, _TILE))
            tile = Image.new("RGB", (_TILE, _TILE + 2 * _LINE), "white")
            tile.paste(bscan, ((_TILE - bscan.width) // 2, 2 * _LINE))
            surest = max(value for name, value in row.items() if name.startswith("p "))
            pen = ImageDraw.Draw(tile)
            pen.text((2, 1), f"is: {row['true'] or 'none'}", fill="black")
            pen.text((2, 1 + _LINE), f"said: {row['predicted'] or 'none'} ({surest:.2f})", fill="black")
            tiles.append(np.asarray(tile))
        columns = min(4, len(tiles))
        tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
        return np.vstack([np.hstack(tiles[place : place + columns]) for place in range(0, len(tiles), columns)])


def samples(labels: np.ndarray, count: int = SAMPLES) -> list[int]:
    """Places of at most `count` rows, in turn of each label (of several labels: of each set of them), the first ones.

    Args:
        labels: `(n,)`, or 0 and 1, `(n, labels)`.
    """
    kinds = [tuple(np.atleast_1d(row)) for row in labels]
    turns: dict[tuple, int] = {}
    order = []
    for place, kind in enumerate(kinds):
        turns[kind] = turns.get(kind, 0) + 1
        order.append((turns[kind], kind, place))
    return sorted(place for _, _, place in sorted(order)[:count])


def _names_of(chosen: np.ndarray, names: list[str]) -> list[str]:
    return [name for name, there in zip(names, chosen, strict=True) if there]


def _name(folder: Path) -> str:
    """What the run is called: its folder, and of a fold also whose."""
    name = folder.absolute().name
    return f"{folder.absolute().parent.name}-{name}" if name.startswith("fold-") else name


def _markdown(rows: list[dict]) -> str:
    if not rows:
        return ""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
