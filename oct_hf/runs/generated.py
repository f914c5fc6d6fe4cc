"""Generated B-scans: a generator learned from a recipe's training side, what it draws, and how that compares.

Two kinds: a diffusion generator, trained here, and the generator of a run with a section `adversarial`. Such a network
may have learned patients by heart, so each picture is compared with the training side, and what is a near-duplicate of
a B-scan there, turned left to right or not, is counted and not written. The folder stays at home.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import transformers
from PIL import Image
from safetensors.torch import load_file

from oct_hf.data import duplicates
from oct_hf.data.pixels import Pixels
from oct_hf.data.splits import fingerprint, write_split
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import ModelError, RunError
from oct_hf.evaluation.generated import compare_pictures
from oct_hf.images import Preprocessing
from oct_hf.inference.on_torch import best_device
from oct_hf.inference.predictor import Predictor
from oct_hf.runs.folder import plain_errors, read_run
from oct_hf.runs.labelled import LabelledSet, assign_sides, load_data
from oct_hf.runs.other_pictures import PICTURES, SPLIT
from oct_hf.runs.run import quiet_libraries
from oct_hf.runs.training import Stopped
from oct_hf.training.adversarial import GENERATOR_FILE, Generator
from oct_hf.training.callbacks import EpochLines, StopOnSignal
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.diffusion import DiffusionGenerator, DiffusionSettings, DiffusionTrainer, build_unet
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import make_recipe
from oct_hf.whole import write_json

FACTS, SHEET, GENERATOR = "generated.json", "sheet.png", "generator"
_SHOWN = 10  # pictures of a class on the sheet
_ROUNDS = 8  # times the pictures wanted that an unconditional generator draws at most
_COMPARED = 2000  # pictures of a set, at most, whose features are compared


class _Stop(StopOnSignal):
    """Saves wherever it is asked to stop: no epoch's end does."""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        control.should_save |= self.stopped is not None


def generate_by_diffusion(
    recipe: Recipe, out: str | Path, settings: DiffusionSettings, images: int, cache_dir: str | None = None
) -> dict:
    """Trains a diffusion generator on a recipe's training side, and writes so many pictures of each class.

    Args:
        recipe: its data and split count; validation and test side are never trained on.
        out: a new folder, or one where the same was stopped; `FACTS` has the facts, `PICTURES` a folder a class,
            `GENERATOR` the network, `SPLIT` the split, `SHEET` some of the pictures.
        settings: of the generator.
        images: of each class.
        cache_dir: for the prepared data.

    Returns:
        the content of `FACTS`.

    Raises:
        OCTError: something a user can mend.
        Stopped: Ctrl-C or SIGTERM; a checkpoint is saved.
    """
    out = Path(out)
    quiet_libraries()
    with plain_errors(out):
        data = assign_sides(load_data(recipe.data, cache_dir)[0], recipe)
        asked = {"kind": "diffusion", "images": images, "settings": dataclasses.asdict(settings)}
        facts = _open(out, recipe, data, asked)
        if facts["status"] == "done":
            return facts
        seen = _side(data, "train", settings.image_size, Augmentation(["flip"], settings.seed))
        if not (out / GENERATOR).is_dir():
            facts["training"] = _train(out, settings, seen, len(data.names))
            write_json(out / FACTS, facts)
        generator = DiffusionGenerator(out / GENERATOR, best_device())
        labels = [number for number in range(len(data.names)) for _ in range(images)]
        drawn = generator.pictures(labels, settings.steps, settings.guidance, settings.seed)
        return _write(out, facts, data, seen, drawn, np.array(labels))


def generate_from_run(run: str | Path, out: str | Path, images: int, seed: int = 0, cache_dir=None) -> dict:
    """Writes pictures of the generator that a run with a section `adversarial` left.

    It knows no classes: a picture's label is what the run's model says. Of a class that it draws too seldom there are
    fewer than `images`.

    Args:
        run: the run's folder.
        out, images, cache_dir: as `generate_by_diffusion` has them.
        seed: of the noise.

    Raises:
        OCTError: no such run, or something else that a user can mend.
    """
    run, out = Path(run), Path(out)
    known = read_run(run)
    if known is None or not known["recipe_given"].get("adversarial") or not (run / GENERATOR_FILE).is_file():
        raise RunError(f"{run} is no finished run with a section adversarial, so it has no generator")
    quiet_libraries()
    with plain_errors(out):
        recipe = make_recipe(known["recipe_given"])
        data = assign_sides(load_data(recipe.data, cache_dir)[0], recipe)
        if fingerprint(data.hashes, data.patients, data.labels) != known["data"]["fingerprint"]:
            raise RunError(f"{run} was trained on other images than {recipe.data.path or recipe.data.name} has now")
        facts = _open(out, recipe, data, {"kind": "adversarial", "images": images, "settings": {"seed": seed}})
        if facts["status"] == "done":
            return facts
        predictor = Predictor(run / "model", backend="torch")
        assert recipe.adversarial is not None  # `known` has the section
        generator = Generator.of(recipe.adversarial, predictor.preprocessing)
        generator.load_state_dict(load_file(run / GENERATOR_FILE))
        drawn = generator.to(best_device()).pictures(_ROUNDS * images * len(data.names), seed)
        answers = [predictor.labels.index(answer.predicted) for answer in predictor.predict(iter(drawn))]
        kept = [row for k in range(len(data.names)) for row in np.flatnonzero(np.array(answers) == k)[:images]]
        seen = _side(data, "train", predictor.preprocessing.height)
        return _write(out, facts, data, seen, drawn[kept], np.array(answers)[kept])


def _open(out: Path, recipe: Recipe, data: LabelledSet, asked: dict) -> dict:
    """Makes the folder, or takes up the one there; its facts."""
    mine = asked | {"labels": data.names, "fingerprint": fingerprint(data.hashes, data.patients, data.labels)}
    rows = data.sides == "train"
    mine["trained_on"] = {"images": int(rows.sum()), "groups": len(set(np.array(data.patients)[rows]))}
    mine["split"] = {key: value for key, value in recipe.to_dict()["split"].items() if key != "path"}
    mine = json.loads(json.dumps(mine))
    if (out / FACTS).is_file():
        known = json.loads((out / FACTS).read_text(encoding="utf-8"))
        if different := sorted(key for key, value in mine.items() if known.get(key) != value):
            raise RunError(f"{out} holds other pictures (they differ in {', '.join(different)}); choose --out")
        return known
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} holds something else; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    facts = mine | {"status": "training", "training": None}
    write_split(out / SPLIT, **data.split())
    write_json(out / FACTS, facts)
    return facts


def _side(data: LabelledSet, side: str, size: int, augmentation: Augmentation | None = None) -> Pixels:
    """B-scans of one side as the generator is shown them: squashed to a square."""
    rows = data.dataset.select(np.flatnonzero(data.sides == side))
    return Pixels.from_dataset(rows, Preprocessing(size, size), augmentation)


def _train(out: Path, settings: DiffusionSettings, seen: Pixels, classes: int) -> dict:
    began, stop = time.monotonic(), _Stop()
    transformers.set_seed(settings.seed)
    print(f"a generator learns from {len(seen)} B-scans, {settings.epochs} epochs", file=sys.stderr)
    unet = build_unet(settings, classes)
    checkpoints = out / "checkpoints"
    bar = EpochLines(out / "epochs.csv", "training the generator")
    trainer = DiffusionTrainer(unet, settings, seen, checkpoints, [bar, stop])
    checkpoint = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped is not None:
        raise Stopped(stop.stopped, out)
    beside = out / f"{GENERATOR}.new"
    trainer.save_generator(beside)
    beside.replace(out / GENERATOR)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "steps": trainer.state.global_step,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "loss": {"first_epoch": losses[0], "last_epoch": losses[-1]},
        "seconds": round(time.monotonic() - began, 1),
        "resumed": checkpoint is not None,
    }


# --- what was drawn --------------------------------------------------------------------------------------------------


def learned_by_heart(drawn: np.ndarray, seen) -> np.ndarray:
    """Which generated pictures are near-duplicates of training pictures, also turned left to right.

    Args:
        drawn, seen: uint8 `(n, height, width)` and `(m, height, width)`, both as the generator has them.

    Returns:
        int `(n,)`: the row of a training picture, or -1.
    """
    known, new = (_thumbnails(images) for images in (seen, drawn))
    rows = np.full(len(drawn), -1)
    for training in (known[:, :, ::-1], known):
        found = duplicates.find_across(training, new)
        rows[found.second] = found.first
    return rows


def _thumbnails(images) -> np.ndarray:
    looks = b"".join(duplicates.thumbnail(images[row]) for row in range(len(images)))
    return np.frombuffer(looks, np.uint8).reshape(-1, duplicates.SIDE, duplicates.SIDE)


def _write(out: Path, facts: dict, data: LabelledSet, seen: Pixels, drawn: np.ndarray, labels: np.ndarray) -> dict:
    """Writes pictures, sheet and facts; near-duplicates of training pictures are left out."""
    near = learned_by_heart(drawn, seen.images)
    new = near < 0
    counts = {
        name: {"drawn": int((labels == k).sum()), "near_duplicates": int((~new & (labels == k)).sum())}
        for k, name in enumerate(data.names)
    }
    if len(new) and (copies := int((~new).sum())):
        print(
            f"warning: {copies} of {len(new)} generated pictures are near-duplicates of training B-scans and were left "
            "out: the generator has learned patients by heart, so keep it and its pictures where the data may be",
            file=sys.stderr,
        )
    _write_pictures(out, data.names, drawn, labels, new)
    rng = np.random.default_rng(0)
    held_out = _side(data, "validation", drawn.shape[1])
    sets = {"generated": drawn[new], "training side": seen.images, "validation side": held_out.images}
    facts |= {
        "status": "done",
        "image_size": drawn.shape[1],
        "classes": counts,
        "compared": _compared({name: _some(images, rng) for name, images in sets.items()}),
    }
    write_json(out / FACTS, facts)
    return facts


def _write_pictures(out: Path, names: list[str], drawn: np.ndarray, labels: np.ndarray, new: np.ndarray) -> None:
    numbers = [np.flatnonzero(new & (labels == k)) for k in range(len(names))]
    for name, rows in zip(names, numbers, strict=True):
        place = out / PICTURES / name
        place.mkdir(parents=True, exist_ok=True)
        for row in rows:
            Image.fromarray(drawn[row]).save(place / f"{row:05d}.png")
    size = drawn.shape[1] + 2
    sheet = np.zeros((len(names) * size, _SHOWN * size), np.uint8)
    for line, rows in enumerate(numbers):
        for column, row in enumerate(rows[:_SHOWN]):
            sheet[line * size : (line + 1) * size - 2, column * size : (column + 1) * size - 2] = drawn[row]
    Image.fromarray(sheet).save(out / SHEET)


def _some(images, rng: np.random.Generator) -> np.ndarray:
    """At most so many of a side's pictures as are compared."""
    count = len(images)
    rows = np.sort(rng.permutation(count)[:_COMPARED])
    return np.stack([images[row] for row in rows]) if count else np.empty((0, 1, 1), np.uint8)


def _compared(sets: dict[str, np.ndarray]) -> dict:
    try:
        return compare_pictures(sets, best_device())
    except ModelError as error:
        return {"why": str(error)}  # without the weights there are no features
