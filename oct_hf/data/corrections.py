"""corrections.csv: labels that a person looked at again, by the content hash of the picture.

They are laid over the prepared set each time it is opened, not baked into it: the cache stays as the data set came, and
one line taken out of the file brings its label back. Each line says which label it replaces, so an outdated file is
refused instead of undoing newer work.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from oct_hf.errors import DataError, did_you_mean

NAME = "corrections.csv"
COLUMNS = ("content_hash", "label", "given_label")  # what is published; a person's file may have more
LEAVE_OUT = "leave out"  # in place of a label: the picture is in no side
_LARGEST = 256 * 2**20  # bytes; a line has about 100


@dataclass(frozen=True)
class Correction:
    """One line of the file.

    Attributes:
        label: what it should be: a class, `given_label` itself where a person confirmed it, or `LEAVE_OUT`.
        given_label: what the data set says.
        line: where it stands, from 1.
        reviewer, note: whose decision, and a remark; both stay at home.
    """

    content_hash: str
    label: str
    given_label: str
    line: int
    reviewer: str = ""
    note: str = ""


def read_corrections(path: str | Path) -> list[Correction]:
    """Reads a corrections.csv, in the file's order; an empty label is `LEAVE_OUT`.

    Raises:
        DataError: no such file, a column is missing, a line is incomplete, or two lines contradict each other.
    """
    reader = _reader(Path(path).expanduser(), path)
    found: dict[str, Correction] = {}
    try:
        for row in reader:
            values = [(row[column] or "").strip() for column in COLUMNS]
            remarks = [(row.get(column) or "").strip() for column in ("reviewer", "note")]
            item = Correction(values[0].lower(), values[1] or LEAVE_OUT, values[2], reader.line_num, *remarks)
            if not item.content_hash or not item.given_label:
                missing = "given_label" if item.content_hash else "content_hash"
                raise DataError(f"{path}, line {item.line}: no {missing}")
            first = found.setdefault(item.content_hash, item)
            if (first.label, first.given_label) != (item.label, item.given_label):
                raise DataError(
                    f"{path}, lines {first.line} and {item.line}: one image ({item.content_hash[:12]}…) is "
                    f"{first.label} ({first.given_label} before) and {item.label} ({item.given_label} before)"
                )
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV ({error})") from None
    return list(found.values())


def write_corrections(path: Path, corrections: Sequence[Correction]) -> None:
    """Writes what may be published of them, sorted by content hash: no remark and no name of a reader."""
    path.write_bytes(_published(corrections))


def correct_labels(
    dataset: datasets.Dataset, skipped: list[dict], path: str | Path, skip_bad: bool = False
) -> tuple[datasets.Dataset, list[dict]]:
    """The set with its labels corrected.

    Args:
        dataset: rows with the builder's columns.
        skipped: the files left out so far.
        path: the corrections.csv.
        skip_bad: go on where some corrections name images that aren't in the set.

    Returns:
        the images that stay, and the files left out, now with those that a correction leaves out.

    Raises:
        DataError: the file can't be read, names an unknown label or foreign images, or replaces other labels than the
            set has.
    """
    corrections = {c.content_hash: c for c in read_corrections(path)}
    names, hashes = dataset.features["label"].names, dataset["content_hash"][:]
    labels = list(dataset["label"][:])
    _check(corrections, names, dict(zip(hashes, labels, strict=True)), path, skip_bad)
    left_out = []
    for row, value in enumerate(hashes):
        correction = corrections.get(value)
        if correction is None:
            continue
        if correction.label == LEAVE_OUT:
            left_out.append(row)
        else:
            labels[row] = names.index(correction.label)
    order, feature = dataset.column_names, dataset.features["label"]
    corrected = dataset.remove_columns("label").add_column("label", labels, feature=feature).select_columns(order)
    gone = set(left_out)
    empty = [name for i, name in enumerate(names) if all(r in gone for r, label in enumerate(labels) if label == i)]
    if empty:
        raise DataError(f"{path}: no image of class {', '.join(empty)} is left")
    if left_out:
        files = dataset.select(left_out)["source"][:]
        skipped = skipped + [{"file": file, "reason": f"left out by {Path(path).name}"} for file in files]
        corrected = corrected.select([row for row in range(len(hashes)) if row not in gone])
    return corrected, skipped


def describe_corrections(path: str | Path | None, hashes: list[str]) -> dict | None:
    """What a run records: what the file did to the images with these hashes, and its SHA-256 as it is published.

    Args:
        path: the corrections.csv; None where there is none.
        hashes: of the images that stayed.

    Returns:
        `relabelled`, `confirmed`, `left_out` (images) and `sha256`; None without a file.
    """
    if path is None:
        return None
    corrections, here = read_corrections(path), set(hashes)
    stayed = [c for c in corrections if c.content_hash in here]
    return {
        "relabelled": sum(c.label != c.given_label for c in stayed),
        "confirmed": sum(c.label == c.given_label for c in stayed),
        "left_out": sum(c.label == LEAVE_OUT for c in corrections),
        "sha256": hashlib.sha256(_published(corrections)).hexdigest(),
    }


def _published(corrections: Sequence[Correction]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted((c.content_hash, c.label, c.given_label) for c in corrections))
    return text.getvalue().encode()


def _reader(path: Path, given: str | Path) -> csv.DictReader:
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{given}: larger than {_LARGEST // 2**20} MB, so no table of corrections")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text in UTF-8"
        raise DataError(f"{given}: the corrections can't be read ({reason})") from None
    first = text.partition("\n")[0]
    # A spreadsheet set to a language with a decimal comma saves with semicolons.
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ",")
    try:
        header = reader.fieldnames or []
    except csv.Error as error:
        raise DataError(f"{given}: not a CSV ({error})") from None
    for column in COLUMNS:
        if column not in header:
            there = ", ".join(map(str, header))[:200] or "none"
            raise DataError(f'{given}: no column "{column}"{did_you_mean(column, header)}; its columns: {there}')
    return reader


def _check(corrections: dict[str, Correction], names: list[str], given: dict[str, int], path, skip_bad: bool) -> None:
    foreign, stale = [], []
    for correction in corrections.values():
        for label in (correction.label, correction.given_label):
            if label not in names and label != LEAVE_OUT:
                raise DataError(
                    f'{path}, line {correction.line}: label "{label}" is unknown{did_you_mean(label, names)}; '
                    f"the set has {', '.join(names)}, and {LEAVE_OUT} leaves an image out"
                )
        if correction.content_hash not in given:
            foreign.append(correction)
        elif names[given[correction.content_hash]] != correction.given_label:
            stale.append(correction)
    if stale:
        first = stale[0]
        raise DataError(
            f"{path} is outdated: {len(stale)} of its {len(corrections)} corrections replace another label than the "
            f"set now has (line {first.line}: {first.given_label}, but the set says "
            f"{names[given[first.content_hash]]}); make it anew, or take these lines out"
        )
    if foreign and (len(foreign) == len(corrections) or not skip_bad):
        raise DataError(
            f"{path}: {len(foreign)} of its {len(corrections)} corrections name images that aren't in the set "
            f"(line {foreign[0].line}: {foreign[0].content_hash[:12]}…); take them out, or go on without them "
            f"with --skip-bad"
        )
