"""The labelled B-scans of a run: loaded as a recipe names them, split, and with patient ids that may be published."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from tqdm import tqdm

from oct_hf.data.corrections import correct_labels
from oct_hf.data.encoded import Encoded
from oct_hf.data.fewer import choose_labelled
from oct_hf.data.leakage import Links, search, stand_in_patients, units
from oct_hf.data.oct import prepare
from oct_hf.data.pixels import multi_hot
from oct_hf.data.quality import left_out
from oct_hf.data.splits import (
    HELD_OUT,
    UNUSED,
    check_disjoint,
    pseudonyms,
    read_split,
    split_by_fold,
    split_by_image,
    split_by_patient,
    split_folds,
)
from oct_hf.errors import DataError, RecipeError
from oct_hf.evaluation.per_eye import ONE_EYE
from oct_hf.evaluation.predictions import Predictions
from oct_hf.images import picture_size
from oct_hf.inference.predictor import Predictor
from oct_hf.model.stated import label_fault
from oct_hf.training.recipe import DataRecipe, Recipe, SplitRecipe


@dataclass(frozen=True)
class LabelledSet:
    """All images of one data set, each with its label, publishable patient id and side.

    Attributes:
        dataset: `n` rows with the builder's columns; its `patient_id` is the raw one and stays at home.
        hashes, labels, patients: `n` strings; patients as they may be published.
        names: the classes.
        sides: `n` strings: train, validation, test or unused.
        links: near-duplicates across patients; None where none were searched for.
        grouped_by: what `patients` really tells apart, as the recipe has it.
        signs: 0 and 1, `(n, k)`, which of `sign_names` each shows, where those are what is learned; else None.
        sign_names: `k` names.
    """

    dataset: datasets.Dataset
    hashes: list[str]
    labels: list[str]
    names: list[str]
    patients: list[str]
    sides: np.ndarray
    links: Links | None = None
    grouped_by: str = "patient"
    signs: np.ndarray | None = None
    sign_names: tuple[str, ...] = ()

    @property
    def outputs(self) -> list[str]:
        """What a model of these B-scans answers: the classes, or the signs."""
        return self.names if self.signs is None else list(self.sign_names)

    def split(self) -> dict:
        """What `write_split` writes of them."""
        columns = {"hashes": self.hashes, "patients": self.patients, "labels": self.labels}
        return columns | {"sides": self.sides.tolist()}


def one_label_only(data: DataRecipe, verb: str) -> None:
    """Raises RecipeError where a recipe learns signs, several a picture, and `verb` can't do that."""
    if data.signs:
        raise RecipeError(f"data.signs: {verb} takes one label a picture, and signs are several (data.signs=false)")


def load_data(
    data: DataRecipe, cache_dir: str | None = None, workers: int | None = None
) -> tuple[datasets.Dataset, list[dict]]:
    """The B-scans that a recipe names, and the files left out.

    Raises:
        DataError: also of a label that no published model could have.
    """
    dataset, skipped = prepare(data.name, data.path, cache_dir, workers, **builder_options(data))
    if fault := next(filter(None, map(label_fault, dataset.features["label"].names)), None):
        raise DataError(f"{fault}; rename its folder, or what the CSV calls it")
    if data.min_quality is not None or data.require_oct:
        dataset, skipped = _good_enough(dataset, skipped, data)
    if data.corrections is None:
        return dataset, skipped
    return correct_labels(dataset, skipped, data.corrections, data.skip_bad)


def _good_enough(
    dataset: datasets.Dataset, skipped: list[dict], data: DataRecipe
) -> tuple[datasets.Dataset, list[dict]]:
    """Without the pictures that a recipe's `min_quality` and `require_oct` leave out, which are noted.

    Raises:
        DataError: nothing of a class is left.
    """
    likeness, quality, fault = (dataset[name][:] for name in ("oct_likeness", "quality", "fault"))
    reasons = left_out(likeness, quality, fault, data.min_quality, data.require_oct)
    kept = dataset.select([row for row in range(len(dataset)) if row not in reasons])
    names, left = dataset.features["label"].names, set(kept["label"][:])
    if gone := [name for number, name in enumerate(names) if number not in left]:
        raise DataError(
            f"data.min_quality={data.min_quality}, data.require_oct={data.require_oct}: no B-scan of "
            f"{', '.join(gone)} is left; oct-hf data show has each picture's quality"
        )
    sources = dataset["source"]
    return kept, skipped + [{"file": sources[row], "reason": reason} for row, reason in reasons.items()]


def builder_options(data: DataRecipe) -> dict:
    """What the builder is asked for beside name and path.

    Raises:
        RecipeError: files for phantoms, which are drawn: somebody means another data set.
    """
    if data.name == "phantom" and data.path:
        raise RecipeError(f"data.path: {data.path}, where phantoms are drawn; the recipe folder trains on a folder")
    options: dict[str, Any] = {"skip_bad": data.skip_bad}
    if data.labels:
        options["labels"] = data.labels
    if data.name == "phantom":
        options |= {key: getattr(data, key) for key in ("patients", "scans", "seed", "height", "width")}
    if data.signs:
        options["signs"] = True
    if data.name == "folder":
        options |= {"csv": data.csv, "columns": dict(data.columns), "pattern": data.pattern}
        options["without_patients"] = data.without_patients
    if data.name == "octmnist":
        options["size"] = data.size
    if data.name == "parquet":
        options |= {"stream": data.stream, "without_patients": data.without_patients}
    elif data.stream:
        options["stream"] = True
    if data.label_by != "image":
        options["label_by"] = data.label_by
    return options


def assign_sides(dataset: datasets.Dataset, recipe: Recipe) -> LabelledSet:
    """Splits as the recipe says, with near-duplicates on one side, and makes the patient ids publishable.

    Raises:
        DataError: the split can't be made, would put a patient on two sides, or leaves too few images to be labelled.
    """
    names = dataset.features["label"].names
    labels = [names[i] for i in dataset["label"][:]]
    patients, hashes = dataset["patient_id"][:], dataset["content_hash"][:]
    volumes, nameless, split = dataset["volume"][:], not any(patients), recipe.split
    if nameless and not split.near_duplicates and not all(volumes):
        raise DataError("the set names no patient, so near-duplicates must stand in: split.near_duplicates=true")
    # Neighbours of one volume belong to one patient; they are searched for where that isn't known.
    whole = recipe.data.grouped_by == "patient" and not nameless
    links = search(dataset, whole, split.mirrored) if split.near_duplicates else None
    if nameless:
        patients = stand_in_patients(hashes, links, volumes)
    together = units(hashes, patients, links, volumes)
    sides = _sides(split, labels, together, hashes, dataset["side" if split.by == "published" else "fold"][:])
    if split.by != "image":
        check_disjoint(patients, sides, hashes, volumes)
    published = public_ids(patients, recipe.data)
    links = links.across(hashes, published) if links else None
    signs = signs_of(dataset, recipe.data)
    data = LabelledSet(dataset, hashes, labels, names, published, sides, links, recipe.data.grouped_by, **signs)
    training_rows(data, split)  # raises where a class has too few images
    return data


def signs_of(dataset: datasets.Dataset, data: DataRecipe) -> dict:
    """`signs` and `sign_names` of a `LabelledSet`; nothing where the recipe learns labels."""
    if not data.signs:
        return {}
    return {"signs": multi_hot(dataset), "sign_names": tuple(dataset.features["signs"].feature.names)}


def _sides(split: SplitRecipe, labels: list[str], patients: list[str], hashes: list[str], folds: list[str]):
    shares = {"train": 1 - split.validation - split.test, "validation": split.validation, "test": split.test}
    if split.by == "file":
        if not split.path:
            raise DataError("split.by is file, but split.path names none")
        return read_split(split.path, hashes)
    if split.by == "patient" and split.folds:
        if split.test_fold is None:
            raise DataError(f"split.folds is {split.folds}, but split.test_fold names none: 0 to {split.folds - 1}")
        folds = split_folds(labels, patients, split.folds, split.seed).tolist()
    elif split.by == "published":
        if not {"train", "test"} <= set(folds):
            raise DataError(
                "split.by is published, but the set has no sides train and test of its own; give split.by=patient"
            )
        validation = "validation" if "validation" in folds else split.validation
        folds = ["guard" if side == UNUSED else side for side in folds]
        return split_by_fold(labels, patients, folds, "test", validation, split.seed)
    if split.by == "fold" or (split.by == "patient" and split.folds):
        if split.test_fold is None:
            raise DataError(f"split.by is {split.by}, but split.test_fold names none")
        validation = split.validation_fold or split.validation
        return split_by_fold(labels, patients, folds, split.test_fold, validation, split.seed)
    if shares["train"] <= 0:
        raise DataError(f"split: validation {split.validation} and test {split.test} leave nothing to train on")
    if split.by == "image":
        return split_by_image(labels, shares, split.seed)
    return split_by_patient(labels, patients, shares, split.seed)


def training_rows(data: LabelledSet, split: SplitRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training side: those whose label counts, and those that have none for any training.

    Raises:
        DataError: a class has fewer images there than `split.labelled_per_class`.
    """
    rows = np.flatnonzero(data.sides == "train")
    if split.labelled_per_class is None:
        return rows, rows[:0]
    hashes, patients, labels = ([column[row] for row in rows] for column in (data.hashes, data.patients, data.labels))
    chosen = choose_labelled(hashes, patients, labels, split.labelled_per_class, split.seed)
    return rows[chosen], rows[~chosen]


def predict_sides(predictor: Predictor, data: LabelledSet) -> Predictions:
    """Predicts the validation and test sides from their files' bytes, as a user of the published model would.

    Raises:
        DataError: a picture can't be read, though it could when the set was prepared.
    """
    rows = np.flatnonzero(np.isin(data.sides, HELD_OUT))
    encoded = Encoded(data.dataset)
    work = predictor.predict(encoded[row] for row in rows.tolist())
    eyes = np.array(data.dataset["eye"][:], dtype=object)[rows]
    if data.grouped_by == "eye":
        eyes[eyes == ""] = ONE_EYE
    traits = _traits(data.dataset.select(rows), encoded, rows)
    answers = list(tqdm(work, total=len(rows), desc="predicting", unit="image", disable=None, leave=False))
    probabilities = [list(answer.probabilities.values()) for answer in answers if answer.probabilities is not None]
    if len(probabilities) < len(answers):
        why = next(answer.error for answer in answers if answer.probabilities is None)
        raise DataError(f"a picture of the prepared set can't be read any more ({why}); prepare it again")
    return Predictions(
        names=predictor.labels,
        hashes=np.array(data.hashes, dtype=object)[rows],
        groups=np.array(data.patients, dtype=object)[rows],
        labels=np.array(data.labels, dtype=object)[rows],
        sides=data.sides[rows].astype(object),
        probabilities=np.array(probabilities, dtype=np.float32),
        eyes=eyes if any(eyes) else None,
        traits=traits,
        truth=None if data.signs is None else data.signs[rows].astype(np.float32),
    )


def _traits(dataset: datasets.Dataset, encoded: Encoded, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What B-scans may be told apart by, as `predictions.TRAITS` has it, without decoding them again."""
    widths, heights = zip(*(picture_size(encoded[row]) for row in rows), strict=True)
    thumbnails, devices = dataset["thumbnail"][:], dataset["device"][:]
    return {
        **({"device": np.array(devices, dtype=object)} if any(devices) else {}),
        "width": np.array(widths, np.int32),
        "height": np.array(heights, np.int32),
        "quality": np.array(dataset["quality"][:], np.float32),
        "likeness": np.array(dataset["oct_likeness"][:], np.float32),
        "intensity": np.array([np.frombuffer(t, np.uint8).mean() for t in thumbnails], np.float32),
    }


def public_ids(patients: list[str], data: DataRecipe) -> list[str]:
    """Published ids stay where the data set is public, or strangers couldn't verify; all others become pseudonyms."""
    return patients if is_public(data) else pseudonyms(patients)


def is_public(data: DataRecipe) -> bool:
    """Whether the set is public with its patient ids, file names and folds; drawn phantoms are."""
    return data.public or data.name == "phantom"
