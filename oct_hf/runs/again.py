"""What a published repository promises, done again: its data predicted anew, or the whole training.

The data must be the published one, image by image; a rerun on other images would compare nothing.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from oct_hf.data.corrections import NAME as CORRECTIONS
from oct_hf.data.leakage import LINKS_FILE, Links, differences, search
from oct_hf.data.splits import HELD_OUT, UNUSED, read_split_table
from oct_hf.errors import DataError, ModelError, OCTError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.download import Downloaded
from oct_hf.hub.kinds import kind_of
from oct_hf.inference.predictor import Predictor
from oct_hf.runs.autoencoder import autoencoder_facts
from oct_hf.runs.explained import measure_explanations
from oct_hf.runs.labelled import LabelledSet, load_data, predict_sides, public_ids, signs_of
from oct_hf.runs.run import finetune
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import load_recipe
from oct_hf.whole import file_sha256

WEIGHTS = "model.safetensors"


def predict_again(data: str | Path | None, cache_dir: str | None = None) -> Callable[[Path], Predictions]:
    """A function that predicts a repository's validation and test sides anew from the files at hand.

    Args:
        data: the data set's folder or zip; None for phantoms, which are drawn again.
        cache_dir: for the prepared data.
    """

    return lambda folder: predict_sides(Predictor(folder, backend="torch"), labelled(folder, data, cache_dir))


def explain_again(data: str | Path | None, cache_dir: str | None = None) -> Callable[[Path, int], dict | None]:
    """A function that measures a repository's heat maps again, on so many B-scans; None without the libraries.

    Args:
        data, cache_dir: as for `predict_again`.
    """
    return lambda folder, count: measure_explanations(
        Predictor(folder, backend="torch"), labelled(folder, data, cache_dir), count
    )


def search_again(data: str | Path | None, cache_dir: str | None = None) -> Callable[[Path, Links], list[str]]:
    """A function that says where a repository's near-duplicates are not those of the files at hand, in words.

    Args:
        data, cache_dir: as for `predict_again`.
    """

    def again(folder: Path, published: Links) -> list[str]:
        dataset, recipe = _data_of(folder, data, cache_dir)
        split = read_split_table(folder / "split.csv")
        found = search(dataset, published.copies_only, recipe.split.mirrored).across(
            split["content_hash"], split["patient_id"]
        )
        whole = set(dataset["content_hash"][:]) == set(split["content_hash"])
        side = dict(zip(split["content_hash"], split["side"], strict=True))
        return [f"{LINKS_FILE}: {fault}" for fault in differences(published, found, side, whole)]

    return again


def labelled(folder: Path, data: str | Path | None, cache_dir: str | None) -> LabelledSet:
    """The B-scans at hand on the sides that a repository's split.csv gives them."""
    dataset, recipe = _data_of(folder, data, cache_dir)
    names, hashes = dataset.features["label"].names, dataset["content_hash"][:]
    labels = [names[i] for i in dataset["label"][:]]
    split = read_split_table(folder / "split.csv")
    known = dict(zip(split["content_hash"], split["side"], strict=True))
    sides = np.array([known.get(value, UNUSED) for value in hashes])
    if not np.isin(sides, HELD_OUT).any():
        raise DataError(f"{data or 'the phantoms'}: none of the {len(hashes)} images is one that was predicted")
    patients = public_ids(dataset["patient_id"][:], recipe.data)
    return LabelledSet(dataset, hashes, labels, names, patients, sides, **signs_of(dataset, recipe.data))


def _data_of(folder: Path, data: str | Path | None, cache_dir: str | None) -> tuple[datasets.Dataset, Recipe]:
    """The B-scans at hand as a repository's recipe reads them, and that recipe."""
    recipe = load_recipe(folder / "recipe.yaml", [f"data.path={json.dumps(str(data))}"] if data else [])
    recipe = _with_its_corrections(recipe, folder)
    return load_data(recipe.data, cache_dir)[0], recipe


def _with_its_corrections(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the corrections that lie beside it; one given by hand stays."""
    if recipe.data.corrections != CORRECTIONS:
        return recipe
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, corrections=str(folder / CORRECTIONS)))


def drawn_data(model: Downloaded) -> bool:
    """Whether a repository's data are phantoms, which anyone can draw again."""
    try:
        return load_recipe(model.folder / "recipe.yaml").data.name == "phantom"
    except OCTError:
        return False


@dataclass(frozen=True)
class Rerun:
    """How a training done again differs from the published one.

    Attributes:
        identical: the weights are the same to the last bit.
        furthest: largest difference of a test probability.
        metrics: rows of name, published value, value now, and the published one's 95 % interval over patients
            (None where it has none).
        changed: what is not as it was then: processor, versions, by name, as (then, now).
    """

    identical: bool
    furthest: float
    metrics: tuple[tuple[str, float | None, float | None, tuple[float, float] | None], ...]
    changed: dict[str, tuple]

    @property
    def agrees(self) -> bool:
        """Identical, or every metric that has an interval lies in it."""
        return self.identical or all(
            now is not None and span[0] <= now <= span[1] for _, _, now, span in self.metrics if span
        )


def rerun_recipe(model: Downloaded, overrides: list[str]) -> Recipe:
    """The recipe of a published repository, ready to be run here.

    Args:
        model: what `download` gave.
        overrides: where the data and the base weights lie here (`data.path=…`, `model.weights=…`).

    Raises:
        ModelError: no recipe in it, or the base weights are a file that isn't given.
    """
    if not (model.folder / "recipe.yaml").is_file() or not (model.folder / "split.csv").is_file():
        raise ModelError(f"{model.name}: no recipe.yaml and split.csv in it, so it can't be trained again")
    recipe = _with_its_corrections(load_recipe(model.folder / "recipe.yaml", overrides), model.folder)
    split = recipe.split
    unsaid = (split.by == "file" and not split.path) or (split.by == "fold" and not split.test_fold)
    if unsaid:
        split = dataclasses.replace(split, by="file", path=str(model.folder / "split.csv"))
        recipe = dataclasses.replace(recipe, split=split)
    if recipe.model.denoise:
        said = json.loads((model.folder / "run.json").read_text(encoding="utf-8"))["model"]["denoise"]
        if autoencoder_facts(Path(recipe.model.denoise).expanduser())["weights_sha256"] != said["weights_sha256"]:
            raise ModelError(f"model.denoise: {recipe.model.denoise} holds another autoencoder than {model.name} has")
    weights = recipe.model.weights
    if weights not in ("hub", "random"):
        expected = json.loads((model.folder / "run.json").read_text(encoding="utf-8"))["model"]["weights_sha256"]
        path = Path(weights).expanduser()
        if not path.is_file() or file_sha256(path) != expected:
            found = "is another file" if path.is_file() else "is not here"
            raise ModelError(
                f"{weights} {found}; {model.name} started from the one with SHA-256 {expected}: model.weights=FILE"
            )
    return recipe


def rerun(model: Downloaded, recipe: Recipe, out: str | Path, overwrite: bool = False) -> tuple[dict, Rerun]:
    """Trains a published model again and compares.

    Args:
        model: what `download` gave.
        recipe: from `rerun_recipe`.
        out: the new run's folder.
        overwrite: replace another run there.

    Returns:
        the new run's facts, and how it differs.

    Raises:
        DataError: the images at hand are not the published ones, or are split otherwise.
        OCTError, Stopped: as `finetune`.
    """
    run = finetune(recipe, out, overwrite, check=lambda data: check_same_data(model, data))
    return run, compare(model.folder, Path(out) / "model")


def check_same_data(model: Downloaded, data: LabelledSet) -> None:
    """Raises DataError where images, labels or sides are not those of the repository's split.csv."""
    split = read_split_table(model.folder / "split.csv")
    published = {h: (label, side) for h, label, side in zip(*(split[c] for c in _COMPARED), strict=True)}
    here = {h: (label, side) for h, label, side in zip(data.hashes, data.labels, data.sides.tolist(), strict=True)}
    missing, new = published.keys() - here.keys(), here.keys() - published.keys()
    if missing or new:
        raise DataError(
            f"these are not the images of {model.name}: {len(missing)} of its {len(published)} are missing here, "
            f"and {len(new)} are new"
        )
    relabelled = sum(published[value][0] != here[value][0] for value in here)
    if relabelled:
        raise DataError(f"{relabelled} of the {len(here)} images have another label than in {model.name}")
    moved = sum(published[value][1] != here[value][1] for value in here)
    if moved:
        raise DataError(
            f"{moved} of the {len(here)} images are on another side than in {model.name}; "
            f"take its split: split.by=file split.path={model.folder / 'split.csv'}"
        )


_COMPARED = ("content_hash", "label", "side")


def compare(published: Path, again: Path) -> Rerun:
    """How one repository folder differs from another that was trained by the same recipe on the same data."""
    runs = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in (published, again)]
    then, now = (Predictions.read(folder / "predictions.parquet").of("test") for folder in (published, again))
    row = {value: index for index, value in enumerate(now.hashes)}
    order = [row[value] for value in then.hashes]
    rows = zip(*(kind_of(run).compared(run) for run in runs), strict=True)
    facts = [{**run["hardware"], **run["versions"], "oct-hf": run["package"]} for run in runs]
    return Rerun(
        identical=runs[0]["files"][WEIGHTS] == runs[1]["files"][WEIGHTS],
        furthest=float(np.abs(then.probabilities - now.probabilities[order]).max()),
        metrics=tuple(
            (name, before, after, (span["low"], span["high"]) if "low" in span else None)
            for (name, before, span), (_, after, _) in rows
        ),
        changed={
            key: (facts[0].get(key), facts[1].get(key))
            for key in sorted(facts[0].keys() | facts[1].keys())
            if facts[0].get(key) != facts[1].get(key)
        },
    )
