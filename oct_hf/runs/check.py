"""Is a data set fit to be split: its published sides as they are, the recipe's split, and what of it leaks.

Names of patients and files are given as they are: what is found is for the screen of whoever has the data.
"""

import dataclasses
from pathlib import Path

import datasets
import numpy as np

from oct_hf.data.catalog import CATALOG
from oct_hf.data.leakage import Links, certificate, leaks, search, stand_in_patients
from oct_hf.data.quality import is_oct
from oct_hf.data.splits import SIDES, UNUSED, Strings, count_sides, on_two_sides, read_split_table
from oct_hf.errors import DataError
from oct_hf.model.folder import model_folder
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Split:
    """One way to divide the set, and what it leaks.

    Attributes:
        name: which way.
        sides: `n` strings.
        counts: images, patients and classes on each side.
        certificate: what was counted.
        leaks: what an honest split doesn't have, in words; empty where it is clean.
        offenders: rows of what it is, which, and on which sides.
        error: why it couldn't be made, where it couldn't.
    """

    name: str
    sides: tuple[str, ...] = ()
    counts: dict = dataclasses.field(default_factory=dict)
    certificate: dict = dataclasses.field(default_factory=dict)
    leaks: tuple[str, ...] = ()
    offenders: tuple[tuple[str, str, str], ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
    """What was found out of a set.

    Attributes:
        title: its name for people.
        dataset: its rows; patients are the raw ids.
        patients: `n` ids; of groups of near-duplicates where the set names none.
        links: all near-duplicates, also within a patient.
        splits: the published sides where there are any, a split.csv where one was given, else the recipe's split.
        quality: `not_oct`, files that don't look like a B-scan with their likeness, the least first; and `by_class`,
            the 10 %, 50 % and 90 % quantiles of the quality of each class.
        notes: what a person should know, each a line.
        skipped: files left out, each with its reason.
    """

    title: str
    dataset: datasets.Dataset
    patients: list[str]
    links: Links
    splits: tuple[Split, ...]
    quality: dict
    notes: tuple[str, ...]
    skipped: list[dict]

    @property
    def clean(self) -> bool:
        """Whether no split leaks, and each could be made."""
        return not any(split.leaks or split.error for split in self.splits)

    def to_dict(self) -> dict:
        """Plain types, without the rows."""
        return {
            "title": self.title,
            "images": len(self.dataset),
            "patients": len(set(self.patients)),
            "labels": self.dataset.features["label"].names,
            "clean": self.clean,
            "splits": [{k: v for k, v in dataclasses.asdict(s).items() if k != "sides"} for s in self.splits],
            "quality": self.quality,
            "notes": list(self.notes),
            "skipped": self.skipped,
        }


def check(recipe: Recipe, split_file: str | Path | None = None, cache_dir: str | None = None) -> Checked:
    """Counts what leaks between the sides of a set.

    Args:
        recipe: its `data` and `split`.
        split_file: a split.csv, or a run or model folder that has one, to look at instead of the recipe's split.
        cache_dir: for the prepared data.

    Raises:
        DataError: the set can't be read.
    """
    dataset, skipped = load_data(recipe.data, cache_dir)
    names = dataset.features["label"].names
    labels = [names[i] for i in dataset["label"][:]]
    hashes, patients, published = dataset["content_hash"][:], dataset["patient_id"][:], dataset["side"][:]
    volumes, nameless = dataset["volume"][:], not any(patients)
    copies_only = recipe.data.grouped_by == "patient" and not nameless
    links = search(dataset, copies_only, recipe.split.mirrored)
    quality = _quality(dataset, labels, names)
    notes = _notes(recipe, dataset, labels, nameless)
    if strange := len(quality["not_oct"]):
        notes.append(f"{strange:,} pictures don't look like OCT B-scans; data.require_oct=true leaves them out")
    if nameless:
        patients = stand_in_patients(hashes, links, volumes)

    def looked_at(name: str, sides: Strings) -> Split:
        counted = certificate(hashes, patients, sides, links, volumes)
        return Split(
            name,
            tuple(map(str, sides)),
            count_sides(labels, patients, sides, names),
            counted,
            tuple(leaks(counted)),
            tuple(_offenders(dataset["source"][:], hashes, patients, volumes, sides, links)),
        )

    splits = []
    if len(set(published) & set(SIDES)) > 1:
        splits.append(looked_at("the published sides", published))
    if split_file is not None:
        table = read_split_table(_split_csv(split_file))
        known = dict(zip(table["content_hash"], table["side"], strict=True))
        sides = [known.get(value, UNUSED) for value in hashes]
        if all(side == UNUSED for side in sides):
            raise DataError(f"{split_file}: it knows none of these {len(hashes)} images")
        splits.append(looked_at(str(split_file), sides))
    else:
        name = f"the recipe's split (by {recipe.split.by})"
        try:
            splits.append(looked_at(name, assign_sides(dataset, recipe).sides))
        except DataError as error:
            splits.append(Split(name, error=str(error)))
    title = recipe.data.title or Path(recipe.data.path or recipe.data.name).name
    return Checked(title, dataset, patients, links, tuple(splits), quality, tuple(notes), skipped)


def _split_csv(given: str | Path) -> Path:
    path = Path(given)
    return path if path.suffix == ".csv" else model_folder(path) / "split.csv"


def _quality(dataset: datasets.Dataset, labels: list[str], names: list[str]) -> dict:
    likeness, quality = (np.array(dataset[column][:]) for column in ("oct_likeness", "quality"))
    strange = np.flatnonzero(~is_oct(likeness))
    strange = strange[np.argsort(likeness[strange], kind="stable")]
    sources, own = dataset["source"], np.array(labels)
    quantiles = {name: np.quantile(quality[own == name], (0.1, 0.5, 0.9)) for name in names if name in labels}
    return {
        "not_oct": [{"file": sources[int(n)], "oct_likeness": round(float(likeness[n]), 4)} for n in strange],
        "by_class": {name: [round(float(value), 3) for value in values] for name, values in quantiles.items()},
    }


def _notes(recipe: Recipe, dataset: datasets.Dataset, labels: list[str], nameless: bool) -> list[str]:
    notes, row = [], CATALOG.get(recipe.data.name)
    if row and row.images and recipe.data.label_by == "image" and len(dataset) != row.images:
        notes.append(f"{len(dataset):,} images; its owner counts {row.images:,}")
    if row and row.note:
        notes.append(row.note)
    if nameless:
        whole = "volumes and groups" if any(dataset["volume"][:]) else "groups"
        notes.append(f"no patient is named: {whole} of near-duplicates stand in")
    eyes: dict[tuple[str, str], set[str]] = {}
    for patient, eye, label in zip(dataset["patient_id"][:], dataset["eye"][:], labels, strict=True):
        if patient and eye:
            eyes.setdefault((patient, eye), set()).add(label)
    mixed = sorted(key for key, found in eyes.items() if len(found) > 1)
    if mixed:
        patient, eye = mixed[0]
        found = ", ".join(sorted(eyes[mixed[0]]))
        notes.append(
            f"{len(mixed)} of {len(eyes)} eyes have B-scans of several classes, such as {patient} {eye}: {found}"
        )
    return notes


def _offenders(files, hashes, patients, volumes, sides, links: Links) -> list[tuple[str, str, str]]:
    """Patients, volumes, files and pairs on two sides: what, which, where."""
    found = [("patient", value, " and ".join(where)) for value, where in on_two_sides(patients, sides).items()]
    found += [("volume", value, " and ".join(where)) for value, where in on_two_sides(volumes, sides).items()]
    source = dict(zip(hashes, files, strict=True))
    found += [("file", source[value], " and ".join(where)) for value, where in on_two_sides(hashes, sides).items()]
    side = dict(zip(hashes, map(str, sides), strict=True))
    pairs = [p for p in links.across(hashes, patients).pairs if UNUSED not in (side[p[0]], side[p[1]])]
    pairs = sorted((p for p in pairs if side[p[0]] != side[p[1]]), key=lambda p: -p[2])
    return found + [
        ("near-duplicates", f"{source[a]} and {source[b]}", f"{side[a]} and {side[b]}") for a, b, *_ in pairs
    ]


def offending_pairs(checked: Checked, split: Split, limit: int) -> list[tuple[int, int, float]]:
    """Row numbers and correlation of near-duplicates, those on two sides of a split first, then the most alike."""
    row = {value: index for index, value in enumerate(checked.dataset["content_hash"][:])}
    sides = np.array(split.sides or [UNUSED] * len(row))
    pairs = [(row[a], row[b], coarse) for a, b, coarse, _ in checked.links.pairs]
    crossing = lambda p: sides[p[0]] != sides[p[1]] and UNUSED not in (sides[p[0]], sides[p[1]])  # noqa: E731
    return sorted(pairs, key=lambda p: (not crossing(p), -p[2]))[:limit]
