"""What lies in a folder or a zip: which picture has which label, and whose eye it shows.

Nothing is decoded or copied here; the result is a list of entries. A file whose patient, label or place is unclear is
an error that names it, because a guess would put one patient on two sides of a split.
"""

import csv
import hashlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from oct_hf.data.catalog import CATALOG, PublicSet
from oct_hf.data.listing import Entries, Entry
from oct_hf.data.source import Source
from oct_hf.errors import BadImageError, DataError, did_you_mean
from oct_hf.labels import SEVERITY

PUBLISHED_SIDES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
EYES = {"od": "OD", "r": "OD", "right": "OD", "os": "OS", "l": "OS", "left": "OS"}
CSV_COLUMNS = ("file", "patient", "eye", "volume", "device", "label", "fold", "guard", "class")
LABELLED_BY = ("image", "eye", "worst")


class Whose(NamedTuple):
    """What is known of a picture beside its label; each is empty where nothing tells it."""

    patient: str = ""
    eye: str = ""
    volume: str = ""
    fold: str = ""
    device: str = ""


def _class_parts(path: str, labels: tuple[str, ...] | list[str] | None) -> tuple[str, str, list[str]]:
    """Side, class folder, and what follows. The layout may lie below any prefix, as in `OCT2017 /train/CNV/x.jpeg`."""
    parts = list(PurePosixPath(path).parts)
    for depth, part in enumerate(parts[:-2]):
        if part.lower() in PUBLISHED_SIDES:
            return PUBLISHED_SIDES[part.lower()], parts[depth + 1], parts[depth + 2 :]
    if labels:
        for depth, part in enumerate(parts[:-1]):
            if part in labels:
                return "train", part, parts[depth + 1 :]
    return "train", parts[0] if len(parts) > 1 else "", parts[1:] if len(parts) > 1 else parts


def find_labels(config) -> list[str]:
    if config.name in CATALOG:
        return list(CATALOG[config.name].labels)
    source = config.source()
    labels = sorted({_class_parts(path, None)[1] for path in source.files} - {""})
    if not labels:
        raise DataError(
            f"{config.data_dir}: no images in class folders; expected CLASS/image.jpeg (or train/CLASS/image.jpeg)"
        )
    return labels


def list_entries(config, labels: list[str], skipped: list[dict]) -> Entries:
    """Every picture with its label and patient; what can't be placed is refused, or noted where `skip_bad` is on."""
    source = config.source()
    bad, foreign = [], set()
    if config.name in CATALOG:
        row = CATALOG[config.name]
        entries = Entries(_public_entries(source, row, labels, bad))
        bad += [item for item in source.unreadable() if re.fullmatch(row.pattern, item["file"])]
    else:
        entries = Entries(_folder_entries(source, config, labels, bad, foreign))
        bad += source.unreadable()
    refuse_or_note(bad, skipped, config.skip_bad)
    if config.label_by != "image":
        entries = _by_eye(entries, config.label_by)
    entries = _without_copies(source, entries, skipped, config.skip_bad)
    present = entries.present("label")
    empty = [label for label in labels if label not in present]
    if empty:
        others = f"; other folders there: {', '.join(sorted(foreign - {''}))}" if foreign - {""} else ""
        expected = f"; expected {CATALOG[config.name].says}" if config.name in CATALOG else ""
        raise DataError(f"{config.data_dir}: no usable image of class {', '.join(empty)}{others}{expected}")
    return entries


def _public_entries(source: Source, row: PublicSet, labels: list[str], bad: list[dict]) -> Iterator[Entry]:
    """The pictures of a public set by its row of the catalogue; those that can't be placed go to `bad`."""
    table, pattern, sides = _table_of(source, row), re.compile(row.pattern), _published_sides(row)
    for path in source.files:
        match = pattern.fullmatch(path)
        if not match:
            if reason := _nearly(row, path):
                bad.append({"file": path, "reason": reason})
            continue
        found = {key: value or "" for key, value in match.groupdict().items()}
        written = found["label"].upper()
        try:
            if found.get("folder", written) != written:
                folder = found["folder"]
                raise BadImageError(path, f"two labels for one file: its name says {written}, its folder {folder}")
            label, patient = written, found.get("patient", "")
            whose = Whose(patient, found.get("eye", ""), found.get("volume", ""))
            if table:
                label, whose = table.public(path, found.get("path", path), written, whose.volume, row)
            elif row.patients and not patient and not row.table:
                raise BadImageError(path, f"its patient is unknown; expected {row.says}")
        except BadImageError as error:
            bad.append({"file": error.file, "reason": error.reason})
            continue
        label = row.aliases.get(label, label)
        if label in labels:
            side = sides.get(found.get("side", ""), "train")
            yield Entry(path, label, whose.patient, whose.eye, whose.fold, side, whose.volume, whose.device)
    if table:
        bad += [{"file": f, "reason": f"listed in {table.name} but not there"} for f in table.unused(None)]


def _published_sides(row: PublicSet) -> dict[str, str]:
    return PUBLISHED_SIDES if "(?P<side>" in row.pattern else {}


def _nearly(row: PublicSet, path: str) -> str | None:
    """Why a picture in a class folder of a set with names of its own is no part of it; None where it lies elsewhere."""
    if "(?P<folder>" not in row.pattern:
        return None
    parts = path.split("/")
    written = {*row.labels, *row.aliases}
    if len(parts) > 2 and parts[-2] in written and parts[-3] in PUBLISHED_SIDES:
        return f"its name is not {row.says.split('/')[-1]}, so its patient is unknown"
    return None


def _table_of(source: Source, row: PublicSet) -> "_Table | None":
    if row.table is None:
        return None
    try:
        content = source.read_table(row.table.name)
    except DataError:
        if row.table.needed:
            raise
        return None
    return _Table(content, row.table.name, row.table.columns, set(row.table.columns), _most_rows(source))


def _by_eye(entries: Entries, how: str) -> Entries:
    """Labels by the worst case of each eye: all its images with that label, or only the images that show it."""
    unknown = sorted({e.label for e in entries} - set(SEVERITY))
    if unknown:
        raise DataError(f"data.label_by={how}: it isn't settled how severe {', '.join(unknown)} is beside other labels")
    if not all(e.patient_id and e.eye for e in entries):
        raise DataError(f"data.label_by={how} needs to know patient and eye of every image")
    worst: dict[tuple[str, str], str] = {}
    for entry in entries:
        key = entry.patient_id, entry.eye
        worst[key] = max(entry.label, worst.get(key, SEVERITY[0]), key=SEVERITY.index)
    if how == "eye":
        return Entries(replace(entry, label=worst[entry.patient_id, entry.eye]) for entry in entries)
    return entries.where(lambda entry: entry.label == worst[entry.patient_id, entry.eye])


def _folder_entries(source: Source, config, labels: list[str], bad: list[dict], foreign: set[str]) -> Iterator[Entry]:
    """The pictures of a folder as a person keeps it; those that can't be placed, and folders of no class, are noted."""
    table = None
    if config.csv:
        needed = {"file"} | set(config.columns) | (set() if config.without_patients else {"patient"})
        table = _Table(source.read_table(config.csv), config.csv, config.columns, needed, _most_rows(source))
    pattern = _compiled(config.pattern, config.without_patients)
    for path in source.files:
        side, label, rest = _class_parts(path, labels)
        if label not in labels:
            foreign.add(label)
            continue
        try:
            whose = _who(config, path, label, rest, table, pattern, source.shown(path))
        except BadImageError as error:
            bad.append({"file": error.file, "reason": error.reason})
            continue
        yield Entry(path, label, whose.patient, whose.eye, whose.fold, side, whose.volume, whose.device)
    if table:
        bad += [{"file": f, "reason": f"listed in {config.csv} but not there"} for f in table.unused(labels)]


def _of_patient(whose: Whose) -> Whose:
    """With a name of the volume that is one in the whole set: many a CSV numbers each patient's volumes from 1."""
    return whose._replace(volume=f"{whose.patient}/{whose.volume}") if whose.patient and whose.volume else whose


def _who(config, path: str, label: str, rest: list[str], table, pattern, shown) -> Whose:
    """Whose a file is. What a device's file says itself stands in for what nothing else says; it is one volume.

    Raises:
        BadImageError: neither its name, the CSV nor its folder tells the patient, or they contradict the class folder.
    """
    if table:
        whose = table.who(shown.file if shown else path, label, config.without_patients)
        if not shown:
            return whose
        if whose.eye and shown.eye and whose.eye != shown.eye:
            raise BadImageError(shown.file, f"{config.csv} says {whose.eye}, the file itself {shown.eye}")
        return _of_device(whose, path, shown)
    if pattern:
        match = pattern.search(path)
        if not match:
            raise BadImageError(
                path, f"its name doesn't match the pattern {pattern.pattern}, so its patient is unknown"
            )
        groups = match.groupdict()
        eye = EYES.get((groups.get("eye") or "").lower(), "")
        known = {key: groups.get(key) or "" for key in ("patient", "volume", "device")}
        whose = _of_patient(Whose(eye=eye, **known))
        return _of_device(whose, path, shown) if shown else whose
    if shown:  # CLASS/[PATIENT/]scan.vol, whose B-scans seem to lie in a folder of its name
        patient = rest[0] if len(rest) > 2 else shown.patient
        if patient or config.without_patients:
            return _of_device(Whose(patient), path, shown)
    elif len(rest) > 1:  # CLASS/PATIENT/[EYE/]image
        return Whose(rest[0], EYES.get(rest[1].lower(), "") if len(rest) > 2 else "")
    if config.without_patients:
        return Whose()
    raise BadImageError(
        path,
        "nothing tells its patient: give a CSV (data.csv), a name pattern (data.pattern) or CLASS/PATIENT/ folders, "
        "or let near-duplicates stand in (data.without_patients=true)",
    )


def _most_rows(source: Source) -> int:
    return 10_000 + 10 * len(source.files)  # of a CSV; far more than there are pictures would only fill the memory


def _of_device(whose: Whose, path: str, shown) -> Whose:
    """With what a device's file says of itself, where nothing else says it."""
    volume = path.rpartition("/")[0]  # scan.e2e#0, the first acquisition in the file
    return whose._replace(
        eye=whose.eye or shown.eye, volume=whose.volume or volume, device=whose.device or shown.device
    )


class _Table:
    """The CSV that names each file's patient, and may name more, see CSV_COLUMNS."""

    def __init__(self, content: bytes, name: str, columns: dict[str, str], needed: set[str], most: int):
        self.name = name
        self.columns = {key: columns.get(key, key) for key in CSV_COLUMNS}
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig", errors="replace")))
        header = reader.fieldnames or []
        for key in sorted(needed):
            if self.columns[key] not in header:
                wanted = self.columns[key]
                raise DataError(
                    f'{name}: no column "{wanted}" for the {key}{did_you_mean(wanted, header)}; '
                    f"its columns: {', '.join(header) or 'none'} (set data.columns.{key})"
                )
        self.rows: dict[str, tuple[str, ...]] = {}  # values in the order of CSV_COLUMNS[1:], each text kept once
        for number, row in enumerate(reader, 2):
            file = PurePosixPath((row[self.columns["file"]] or "").replace("\\", "/").lstrip("/")).as_posix()
            values = tuple(sys.intern((row.get(self.columns[key]) or "").strip()) for key in CSV_COLUMNS[1:])
            if self.rows.setdefault(file, values) != values:
                raise DataError(f"{name}, line {number}: {file} stands there twice, with different values")
            if len(self.rows) > most:
                raise DataError(f"{name}: lists more than {most:,} files, far more than are there; is it of this set?")
        self.seen: dict[str, str] = {}  # row -> the file it was used for

    def value(self, row: tuple[str, ...], key: str) -> str:
        return row[CSV_COLUMNS.index(key) - 1]

    def who(self, path: str, label: str, without_patients: bool = False) -> Whose:
        row = self.row(path, path, label)
        if self.value(row, "label") not in ("", label):
            said = self.value(row, "label")
            raise BadImageError(path, f"two labels for one file: {self.name} says {said}, its folder {label}")
        if not without_patients and not self.value(row, "patient"):
            raise BadImageError(path, f"{self.name} names no patient for it")
        return self.whose(row)

    def whose(self, row: tuple[str, ...]) -> Whose:
        guard = self.value(row, "guard").lower() in ("1", "true", "yes")
        eye, fold = EYES.get(self.value(row, "eye").lower(), ""), "guard" if guard else self.value(row, "fold")
        volume, device = self.value(row, "volume"), self.value(row, "device")
        return _of_patient(Whose(self.value(row, "patient"), eye, volume, fold, device))

    def row(self, path: str, inner: str, label: str) -> tuple[str, ...]:
        """What is said of the file at `path`, whose place inside its set is `inner`."""
        name = PurePosixPath(path)
        keys = (path, inner, f"{label}/{name.name}", name.name, name.stem)
        key = next((key for key in keys if key in self.rows), None)
        if key is None:
            raise BadImageError(path, f"not listed in {self.name}")
        if self.seen.setdefault(key, path) != path:
            why = f"{self.name} says {key}, which may also be {self.seen[key]}: write CLASS/{name.name} there"
            raise BadImageError(path, why)
        return self.rows[key]

    def public(self, path: str, inner: str, folder: str, volume: str, about: PublicSet) -> tuple[str, Whose]:
        """Label of one file of a public set, and whose it is; `volume` is what its path tells."""
        assert about.table is not None  # this is it
        row = self.row(path, inner, folder)
        said = self.value(row, "class" if "class" in about.table.columns else "label").upper()
        if said not in ("", folder):
            raise BadImageError(path, f"two labels for one file: {self.name} says {said}, its folder {folder}")
        label = self.value(row, "label").upper() or folder
        if {label, about.aliases.get(label, label)}.isdisjoint(about.labels):
            raise BadImageError(path, f"{self.name} says {label}, which is none of {', '.join(about.labels)}")
        whose = self.whose(row)
        if not whose.patient:
            raise BadImageError(path, f"{self.name} names no patient for it")
        patient = about.table.patient.format(patient=whose.patient, **{"class": folder})
        return label, whose._replace(patient=patient, volume=whose.volume or volume)

    def unused(self, labels: list[str] | None) -> list[str]:
        wanted = (f for f, row in self.rows.items() if labels is None or self.value(row, "label") in ("", *labels))
        return sorted(f for f in wanted if f not in self.seen)


def _without_copies(source: Source, entries: Entries, skipped: list[dict], skip_bad: bool) -> Entries:
    """Of byte-identical files the first stays; copies under different labels contradict each other, and none stays."""
    contradictions, repeats, stays = [], [], np.ones(len(entries), bool)
    for rows in _copies(source, entries):
        alike = list(entries.take(rows))
        first = alike[0]
        if len({entry.label for entry in alike}) > 1:
            stays[rows] = False
            for entry in alike:
                other = next(e for e in alike if e.label != entry.label)
                reason = f"two labels for one file: the same picture is {other.source}"
                contradictions.append({"file": entry.source, "reason": reason})
        else:
            stays[rows[1:]] = False
            repeats += [{"file": e.source, "reason": f"the same file as {first.source}"} for e in alike[1:]]
    refuse_or_note(contradictions, skipped, skip_bad)
    skipped += repeats
    return entries if stays.all() else entries.take(stays)


def _copies(source: Source, entries: Entries) -> list[np.ndarray]:
    """Row numbers of byte-identical files. Each test reads more than the last: size, then a glance, then all of it."""

    def digest(value: object) -> int:
        return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little")

    keys = np.fromiter((source.size(entry.source) for entry in entries), np.uint64, len(entries))
    rows = _repeated(keys, np.arange(len(entries)))
    for test in (source.glance, lambda path: hashlib.sha256(source.read(path)).digest()):
        for row, entry in zip(rows, entries.at(rows), strict=True):
            keys[row] = digest((int(keys[row]), test(entry.source)))
        rows = _repeated(keys, rows)
    order = rows[np.argsort(keys[rows], kind="stable")]
    alike = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(order) else []
    return sorted(alike, key=lambda rows: rows[0])


def _repeated(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of the rows whose key another one of them has."""
    order = rows[np.argsort(keys[rows], kind="stable")]
    ordered = keys[order]
    as_next = np.append(ordered[1:] == ordered[:-1], False)[: len(order)]  # the last has none after it
    return np.sort(order[as_next | np.roll(as_next, 1)])


def refuse_or_note(bad: list[dict], skipped: list[dict], skip_bad: bool) -> None:
    if bad and not skip_bad:
        named = "; ".join(f"{item['file']} ({item['reason']})" for item in bad[:10])
        more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError(
            f"{len(bad)} file(s) can't be used: {named}{more}. Mend them, or leave them out with --skip-bad"
        )
    skipped += bad


def _compiled(pattern: str | None, without_patients: bool) -> re.Pattern | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.pattern {pattern!r} is not a regular expression ({error})") from None
    if "patient" not in compiled.groupindex and not without_patients:
        raise DataError(f"data.pattern {pattern!r} has no group (?P<patient>…)")
    return compiled
