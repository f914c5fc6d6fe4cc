"""The B-scans without labels that a run learns from: a folder or archive, and what is left of the training side."""

import hashlib
import time

import numpy as np

from oct_hf.data.leakage import Thumbnails
from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import RecipeError
from oct_hf.images import Preprocessing
from oct_hf.runs.labelled import LabelledSet, training_rows
from oct_hf.training.recipe import PretrainRecipe, Recipe
from oct_hf.training.trainer import images_a_pass
from oct_hf.training.unlabelled import NO_LABEL, Together, others_a_batch, read_unlabelled

HELD_OUT = ("validation", "test")


def without_labels(
    path: str | None, recipe: Recipe, data: LabelledSet, preprocessing: Preprocessing, augmentation: Augmentation
) -> tuple[list[Pixels], dict]:
    """Pictures without labels, as the model's pixels, and their facts.

    Args:
        path: folder or archive; what is held out there, or near it, is left out.
        recipe: its split may leave B-scans of the training side without a label.
        data: the run's B-scans.
        preprocessing, augmentation: of the model's input.

    Returns:
        the pictures, all labelled `NO_LABEL`; `unlabelled`, how many, and where they come from a folder
        `unlabelled_left_out` and `unlabelled_fingerprint`.

    Raises:
        DataError: as `read_unlabelled`.
    """
    parts, facts = [], {}
    rest = training_rows(data, recipe.split)[1]
    if len(rest):
        known = Pixels.from_dataset(data.dataset.select(rest), preprocessing)
        parts.append(Pixels(known.images, [NO_LABEL] * len(rest), known.hashes, augmentation, known.sources))
    if path:
        pictures, facts = _from_elsewhere(path, data, preprocessing, augmentation)
        parts.append(pictures)
    return parts, {"unlabelled": sum(len(part) for part in parts)} | facts


def pictures_to_denoise(settings: PretrainRecipe, data: LabelledSet, preprocessing: Preprocessing) -> tuple:
    """What `pretrain` asks for: B-scans to learn from (the training side, and what lies in `unlabelled`), those of the
    validation side to be measured on, content hashes of the former, and facts."""
    augmentation = Augmentation(settings.augment, settings.seed)
    train, held_out = (
        Pixels.from_dataset(data.dataset.select((data.sides == side).nonzero()[0]), preprocessing, augmented)
        for side, augmented in (("train", augmentation), ("validation", None))
    )
    seen, facts = list(train.hashes), {"training_side": len(train), "unlabelled": 0}
    if settings.unlabelled:
        more, found = _from_elsewhere(settings.unlabelled, data, preprocessing, augmentation)
        seen, facts = seen + list(more.hashes), facts | {"unlabelled": len(more)} | found
        train = Together(train, more)
    return train, held_out, seen, facts


def _from_elsewhere(path: str, data: LabelledSet, preprocessing: Preprocessing, augmentation) -> tuple[Pixels, dict]:
    """Pictures of a folder or archive, none of them held out or near one that is; and facts."""
    rows = np.flatnonzero(np.isin(data.sides, HELD_OUT))
    held_out = {data.hashes[row] for row in rows}, Thumbnails(data.dataset, rows)[:]
    pictures, left_out = read_unlabelled(path, preprocessing, *held_out, augmentation)
    fingerprint = hashlib.sha256("\n".join(sorted(pictures.hashes)).encode()).hexdigest()
    return pictures, {"unlabelled_left_out": left_out, "unlabelled_fingerprint": fingerprint}


def check_semi(recipe: Recipe, classes: int) -> None:
    """Refuses before anything slow what FixMatch can't learn from.

    Raises:
        RecipeError: no B-scans without labels, an unknown augmentation, a batch without room for both kinds, or a
            threshold that no answer will reach.
    """
    wanted = recipe.semi
    if not wanted.unlabelled and not recipe.split.labelled_per_class:
        raise RecipeError("semi has no B-scans without labels: semi.unlabelled=FOLDER, or split.labelled_per_class=N")
    for steps in (wanted.weak, wanted.strong):
        Augmentation(steps)
    share = wanted.ratio / (1 + wanted.ratio)
    others_a_batch(share, images_a_pass(recipe.train)[0], f"semi.ratio: {wanted.ratio}")
    smoothing = recipe.train.label_smoothing
    reached = 1 - smoothing + smoothing / classes
    if wanted.weight and reached <= wanted.threshold:
        raise RecipeError(
            f"semi.threshold: train.label_smoothing={smoothing} teaches answers of {reached:.3f}, so none would be "
            f"sure at {wanted.threshold}; lower one of them"
        )


def semi_pictures(recipe: Recipe, data: LabelledSet, preprocessing: Preprocessing) -> tuple[list[Pixels], dict]:
    """What `FixMatchTrainer` looks at beside the labelled B-scans, weakly augmented, and its facts.

    Raises:
        DataError: as `read_unlabelled`.
    """
    began, wanted = time.monotonic(), recipe.semi
    weak = Augmentation(wanted.weak, recipe.train.seed)
    parts, facts = without_labels(wanted.unlabelled, recipe, data, preprocessing, weak)
    return parts, facts | {"seconds": round(time.monotonic() - began, 1)}
