"""What must stay on one side of a split, and the certificate that it did.

A patient stays whole, and so do volumes and near-duplicates, also those of different patients (a person filed under two
numbers). Where a set names no patient, volumes and groups of near-duplicates stand in for one. Everything in a run's
certificate can be counted again from split.csv and near_duplicates.csv.
"""

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import datasets
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from oct_hf.data import duplicates
from oct_hf.data.splits import UNUSED, Strings, on_two_sides
from oct_hf.errors import DataError

LINKS_FILE = "near_duplicates.csv"
_COLUMNS = ("content_hash_a", "content_hash_b", "coarse", "fine")


@dataclass(frozen=True)
class Links:
    """Near-duplicates by content hash, and how they were searched for.

    Attributes:
        pairs: content hashes `a < b` with their correlations in the coarse and the fine band, sorted.
        copies_only: neighbours of one volume were not searched for, since patients keep them together.
        mirrored: copies turned left to right were searched for too.
    """

    pairs: tuple[tuple[str, str, float, float], ...]
    copies_only: bool
    mirrored: bool = False

    def across(self, hashes: Sequence[str], patients: Sequence[str]) -> "Links":
        """The pairs that join two patients; those within one tell nothing."""
        of = dict(zip(hashes, patients, strict=True))
        kept = (p for p in self.pairs if p[0] in of and p[1] in of and of[p[0]] != of[p[1]])
        return Links(tuple(kept), self.copies_only, self.mirrored)


def search(dataset: datasets.Dataset, copies_only: bool, mirrored: bool = False) -> Links:
    """Near-duplicates of a prepared set, by its column `thumbnail`. Found once and kept beside the prepared set.

    Args:
        dataset: rows of the builder.
        copies_only: look for copies, and not for neighbours of one volume.
        mirrored: look for copies turned left to right too, which takes three times as long.
    """
    hashes = np.array(dataset["content_hash"][:])
    order = np.argsort(hashes, kind="stable")  # the result doesn't depend on the order of the files
    kept = _kept_beside(dataset, hashes[order], f"{copies_only}{' mirrored' * mirrored}")
    found = _found_before(kept)
    if found is None:
        thumbnails = Thumbnails(dataset, order)
        found = duplicates.find(thumbnails, copies_only)
        if mirrored:
            found = duplicates.joined([found, duplicates.find_mirrored(thumbnails)])
        if kept is not None:
            # A name of its own: two processes may have searched at once.
            beside = kept.with_name(f"{kept.stem}-{os.getpid()}.partial.npz")
            np.savez(beside, **vars(found))
            beside.replace(kept)
    names = hashes[order]
    rows = zip(found.first, found.second, found.coarse, found.fine, strict=True)
    pairs = tuple((str(names[a]), str(names[b]), float(c), float(f)) for a, b, c, f in rows)
    return Links(pairs, copies_only, mirrored)


class Thumbnails:
    """A prepared set's thumbnails in another order; they stay on the disk until they are asked for."""

    def __init__(self, dataset: datasets.Dataset, order: np.ndarray):
        self._rows, self._order = dataset.select_columns("thumbnail").with_format("arrow"), order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows) -> np.ndarray:
        """uint8 `(n, SIDE, SIDE)` of n row numbers, or of a slice of them."""
        pictures = self._rows[self._order[rows].tolist()].column("thumbnail")
        joined = b"".join(picture.as_buffer() for picture in pictures)
        return np.frombuffer(joined, np.uint8).reshape(-1, duplicates.SIDE, duplicates.SIDE)


def stand_in_patients(hashes: Sequence[str], links: Links | None, volumes: Sequence[str] = ()) -> list[str]:
    """A name for each group that a volume or near-duplicates hold together: "g" and the beginning of its first hash.

    Args:
        hashes: `n` content hashes.
        links: near-duplicates; None where none were searched for.
        volumes: `n` names, empty where unknown; none where no volume is known.
    """
    numbers = _components(hashes, [volumes], links)
    first: dict[int, str] = {}
    for value, number in sorted(zip(hashes, numbers, strict=True)):
        first.setdefault(number, f"g{value[:12]}")
    return [first[number] for number in numbers]


def units(
    hashes: Sequence[str], patients: Sequence[str], links: Links | None, volumes: Sequence[str] = ()
) -> list[str]:
    """What must stay together: patients, joined where near-duplicates or a volume link them; named after the first.

    Args:
        hashes, patients: `n` content hashes and patient ids.
        links: near-duplicates; None where none were searched for.
        volumes: `n` names, empty where unknown; none where no volume is known.

    Returns:
        `n` names; those of patients that nothing links are the patient ids.
    """
    numbers = _components(hashes, [patients, volumes], links)
    first: dict[int, str] = {}
    for patient, number in sorted(zip(patients, numbers, strict=True)):
        first.setdefault(number, patient)
    return [first[number] for number in numbers]


def certificate(
    hashes: Sequence[str],
    patients: Sequence[str],
    sides: Strings,
    links: Links | None,
    volumes: Sequence[str] | None = None,
) -> dict:
    """What a split promises, as counts that anyone can make again; in an honest split each `…_on_two_sides` is 0.

    Args:
        hashes, patients, sides: `n` strings each.
        links: near-duplicates of these images; None where none were searched for.
        volumes: `n` names, empty where unknown, to be counted too. A run doesn't: no file of it could prove the count.

    Returns:
        patients, files and volumes on two sides; of near-duplicates the method, pairs across patients and on two
        sides; and how many images are on no side, because the held-out side has their patient, or a near-duplicate of
        them.
    """
    side = np.array(sides)
    out = side == UNUSED
    patient_kept = np.isin(np.array(patients), np.array(patients)[~out]) & out
    counts = {
        "patients_on_two_sides": len(on_two_sides(patients, sides)),
        "files_on_two_sides": len(on_two_sides(hashes, sides)),
        "near_duplicates": None,
        "taken_out": {"patient_held_out": int(patient_kept.sum()), "near_duplicate_held_out": 0},
    }
    if volumes is not None:
        counts["volumes_on_two_sides"] = len(on_two_sides(volumes, sides))
    if links is not None:
        across = links.across(hashes, patients).pairs
        of = dict(zip(hashes, sides, strict=True))
        linked = np.array(units(hashes, patients, links))
        near = out & ~patient_kept & np.isin(linked, linked[~out])
        counts["taken_out"]["near_duplicate_held_out"] = int(near.sum())
        counts["near_duplicates"] = {
            "method": duplicates.METHOD + "; mirrored copies too" * links.mirrored,
            "copy": duplicates.COPY,
            "neighbour": None if links.copies_only else duplicates.NEIGHBOUR,
            "pairs_across_patients": len(across),
            "pairs_on_two_sides": sum(UNUSED not in (of[a], of[b]) and of[a] != of[b] for a, b, *_ in across),
        }
    return counts


def leaks(counts: dict) -> list[str]:
    """What a certificate says that an honest split doesn't have, each in words."""
    found = [(counts["patients_on_two_sides"], "patient(s)"), (counts["files_on_two_sides"], "file(s)")]
    found.append((counts.get("volumes_on_two_sides", 0), "volume(s)"))
    if counts.get("near_duplicates"):
        found.append((counts["near_duplicates"]["pairs_on_two_sides"], "pair(s) of near-duplicates"))
    return [f"{number} {what} on two sides" for number, what in found if number]


def differences(published: Links, found: Links, side: dict[str, str], whole: bool) -> list[str]:
    """Where the near-duplicates of the data at hand are not the published ones, in words.

    A new pair on two sides always counts. Others count where they are clear of the threshold, since another processor
    rounds otherwise, and where the data are whole, since a search among other images finds other pairs.

    Args:
        published, found: near-duplicates across patients.
        side: of each content hash.
        whole: whether the data have just these images.
    """
    before, now = ({pair[:2]: pair for pair in links.pairs} for links in (published, found))

    def clear(pair: tuple[str, str, float, float]) -> bool:
        neighbours = not published.copies_only and pair[2] >= duplicates.NEIGHBOUR + duplicates.ROUNDING
        return neighbours or pair[3] >= duplicates.COPY + duplicates.ROUNDING

    new = [now[key] for key in now if key not in before]
    crossing = [p for p in new if side[p[0]] != side[p[1]] and UNUSED not in (side[p[0]], side[p[1]])]
    said = [
        f"lacks {a[:12]}… ({side[a]}) and {b[:12]}… ({side[b]}), which are near-duplicates" for a, b, *_ in crossing
    ]
    missing = sum(clear(pair) for pair in new if pair not in crossing)
    if whole and missing:
        said.append(f"lacks {missing} pairs of near-duplicates that the data have")
    gone = sum(clear(before[key]) for key in before if key not in now)
    if whole and gone:
        said.append(f"{gone} of its {len(before)} pairs are no near-duplicates in the data")
    return said


def write_links(path: Path, links: Links) -> None:
    """Writes near_duplicates.csv: pairs of content hashes, with their correlations."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((a, b, f"{coarse:.4f}", f"{fine:.4f}") for a, b, coarse, fine in links.pairs)


def read_links(path: Path, copies_only: bool) -> Links:
    """What `write_links` wrote.

    Raises:
        DataError: it isn't such a file.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        pairs = tuple((r[_COLUMNS[0]], r[_COLUMNS[1]], float(r["coarse"]), float(r["fine"])) for r in rows)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: not a {LINKS_FILE} with the columns {', '.join(_COLUMNS)} ({error!r})") from None
    return Links(pairs, copies_only)


def _components(hashes: Sequence[str], wholes: Sequence[Sequence[str]], links: Links | None) -> np.ndarray:
    """A number for each image; equal where a whole (a patient, a volume) or a chain of near-duplicates joins them."""
    row = {value: index for index, value in enumerate(hashes)}
    pairs = [p for p in links.pairs if p[0] in row and p[1] in row] if links else []
    ones, others = [row[p[0]] for p in pairs], [row[p[1]] for p in pairs]
    for names in wholes:
        first: dict[str, int] = {}
        for index, name in enumerate(names):
            if name:
                ones.append(index)
                others.append(first.setdefault(name, index))
    graph = coo_array((np.ones(len(ones), bool), (ones, others)), shape=(len(hashes), len(hashes)))
    return connected_components(graph, directed=False)[1]


def _found_before(kept: Path | None) -> duplicates.Pairs | None:
    """The pairs that were kept; None where there are none, or where the file was damaged."""
    if kept is None:
        return None
    try:
        with np.load(kept) as arrays:
            return duplicates.Pairs(**arrays)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile):
        return None


def _kept_beside(dataset: datasets.Dataset, hashes: np.ndarray, what: str) -> Path | None:
    """Where the pairs of just these images, found by just this method, are kept; None where nothing can be kept."""
    if not dataset.cache_files:
        return None
    folder = Path(dataset.cache_files[0]["filename"]).parent
    if not os.access(folder, os.W_OK):
        return None
    how = f"{duplicates.METHOD} {duplicates.COPY} {duplicates.NEIGHBOUR} {what} {','.join(hashes)}"
    return folder / f"near-duplicates-{hashlib.sha256(how.encode()).hexdigest()[:16]}.npz"
