"""What of each B-scan goes out in a published data set: the picture, and its row.

Of a public set, everything as it was published. Of any other: pictures without metadata, patients as pseudonyms, folds
and volumes by number, and no name of a file, because each of them may name a patient. `content_hash` stays that of the
original file, also where metadata was removed: a model's split.csv and a later run know the B-scan by it. (Who can
guess all that was removed, to the byte, can therefore check the guess.)
"""

import hashlib
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePosixPath

import datasets
from PIL import Image
from tqdm import tqdm

from oct_hf.data.deidentify import without_metadata
from oct_hf.data.encoded import Encoded
from oct_hf.data.layout import PUBLISHED_SIDES
from oct_hf.data.splits import SIDES
from oct_hf.parallel import in_order
from oct_hf.runs.labelled import LabelledSet, is_public
from oct_hf.training.recipe import DataRecipe


class Pictures:
    """The pictures as they may be published, and what was counted of them on the way.

    Attributes:
        seen: counters `formats`, `sizes`, and `original`: pictures that are the original file byte for byte.
    """

    def __init__(self, data: LabelledSet, recipe: DataRecipe):
        self.encoded = Encoded(data.dataset)
        self.hashes, self.as_it_is = data.hashes, is_public(recipe)
        self.seen = {"formats": Counter(), "sizes": Counter(), "original": 0}

    def __call__(self, rows: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        for row, (data, original, kind, size) in in_order(self._one, rows):
            self.seen["formats"][kind] += 1
            self.seen["sizes"][size] += 1
            self.seen["original"] += original
            yield row, data

    def _one(self, row: int) -> tuple[bytes, bool, str, str]:
        data = self.encoded[row]
        if not self.as_it_is:
            data = without_metadata(data)
        with Image.open(io.BytesIO(data)) as image:
            kind, size = image.format or "?", f"{image.width}×{image.height}"
        return data, hashlib.sha256(data).hexdigest() == self.hashes[row], kind, size


def published_rows(rows: Collection[int], columns: dict[str, list], pictures: Pictures, side: str) -> Iterator[dict]:
    """The rows with these numbers, whole, with a progress bar named for their side."""
    work = tqdm(pictures(rows), total=len(rows), desc=side, unit="image", disable=None, leave=False)
    for row, data in work:
        yield {"image": {"bytes": data, "path": None}, **{name: values[row] for name, values in columns.items()}}


def published_columns(data: LabelledSet, recipe: DataRecipe) -> dict[str, list]:
    """What is said of each picture. Names of files and folds may name patients: they go out for public sets alone."""
    columns = {
        "label": data.dataset["label"][:],
        "patient_id": data.patients,
        "eye": data.dataset["eye"][:],
        "content_hash": data.hashes,
    }
    for name in ("volume", "device"):
        if any(values := data.dataset[name][:]):
            columns[name] = values if name == "device" or is_public(recipe) else _numbered(values, data.hashes)
    folds = data.dataset["fold"][:]
    if any(folds):
        names = fold_names(folds, data.hashes, recipe)
        columns["fold"] = [names[fold] for fold in folds]
    if is_public(recipe):
        pairs = zip(data.dataset["source"][:], data.labels, strict=True)
        columns["source"] = [_published_name(source, label) for source, label in pairs]
    return columns


def _numbered(names: list[str], hashes: list[str]) -> list[str]:
    """Numbers in place of names, in the order of the content hashes, which says nothing of them."""
    numbers = {"": ""}
    for _, name in sorted(zip(hashes, names, strict=True)):
        numbers.setdefault(name, str(len(numbers) - 1))
    return [numbers[name] for name in names]


def fold_names(folds: list[str], hashes: list[str], recipe: DataRecipe) -> dict[str, str]:
    """The folds' names; of a set that isn't public their numbers, since a fold may be named after its one patient."""
    known = dict.fromkeys(("", "guard", *SIDES))
    own = list(dict.fromkeys(fold for _, fold in sorted(zip(hashes, folds, strict=True)) if fold not in known))
    if is_public(recipe):
        return {fold: fold for fold in (*known, *own)}
    return {fold: fold for fold in known} | {fold: str(number) for number, fold in enumerate(own)}


def _published_name(source: str, label: str) -> str:
    """The path from the published side or the class folder on; what lies above is this machine's."""
    parts = PurePosixPath(source).parts
    at = parts.index(label) if label in parts else len(parts) - 1
    if at and parts[at - 1].lower() in PUBLISHED_SIDES:
        at -= 1
    return "/".join(parts[at:])


def features_of(labels: list[str], columns: dict[str, list]) -> datasets.Features:
    """The types of the published columns; all but picture and label are text."""
    text = {name: datasets.Value("string") for name in columns if name != "label"}
    return datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=labels), **text})
