"""What lies in a folder or a zip: which picture has which label, and whose eye it shows.

Nothing is decoded or copied here; the result is a list of entries. A file whose patient, label or place is unclear is
an error that names it, because a guess would put one patient on two sides of a split.
"""

import csv
import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from oct_hf.data.sources import Source
from oct_hf.errors import BadImageError, DataError, did_you_mean
from oct_hf.labels import LABEL_SETS

PUBLISHED_SIDES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
EYES = {"od": "OD", "r": "OD", "right": "OD", "os": "OS", "l": "OS", "left": "OS"}
CSV_COLUMNS = ("file", "patient", "eye", "label", "fold", "guard")
OCT2017_NAME = re.compile(r"(?P<label>[A-Z]+)-(?P<patient>\d+)-(?P<index>\d+)\.(?i:jpe?g)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: its path inside the source, and what is known of it. `side` is the published one, or "train"."""

    source: str
    label: str
    patient_id: str
    eye: str
    fold: str
    side: str


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
    if config.name == "oct2017":
        return list(LABEL_SETS["oct2017"])
    source = config.source()
    labels = sorted({_class_parts(path, None)[1] for path in source.files} - {""})
    if not labels:
        raise DataError(
            f"{config.data_dir}: no images in class folders; expected CLASS/image.jpeg (or train/CLASS/image.jpeg)"
        )
    return labels


def list_entries(config, labels: list[str], skipped: list[dict]) -> list[Entry]:
    """Every picture with its label and patient; what can't be placed is refused, or noted where `skip_bad` is on."""
    source = config.source()
    table = _Table(source, config) if config.csv else None
    pattern = _compiled(config.pattern)
    entries, bad, foreign = [], [], set()
    for path in source.files:
        side, label, rest = _class_parts(path, labels)
        if label not in labels:
            foreign.add(label)
            continue
        try:
            patient, eye, fold = _who(config, path, label, rest, table, pattern)
        except BadImageError as error:
            bad.append({"file": error.file, "reason": error.reason})
            continue
        entries.append(Entry(path, label, patient, eye, fold, side))
    if table:
        bad += [{"file": f, "reason": f"listed in {config.csv} but not there"} for f in table.unused(labels)]
    refuse_or_note(bad, skipped, config.skip_bad)
    entries = _without_copies(source, entries, skipped, config.skip_bad)
    empty = [label for label in labels if not any(e.label == label for e in entries)]
    if empty:
        others = f"; other folders there: {', '.join(sorted(foreign - {''}))}" if foreign - {""} else ""
        raise DataError(f"{config.data_dir}: no usable image of class {', '.join(empty)}{others}")
    return entries


def _who(config, path: str, label: str, rest: list[str], table, pattern) -> tuple[str, str, str]:
    """Patient, eye and fold of one file.

    Raises:
        BadImageError: neither its name, the CSV nor its folder tells the patient, or they contradict the class folder.
    """
    if config.name == "oct2017":
        match = OCT2017_NAME.fullmatch(rest[-1])
        if not match:
            raise BadImageError(path, "its name is not LABEL-PATIENT-NUMBER.jpeg, so its patient is unknown")
        if match["label"] != label:
            raise BadImageError(path, f"two labels for one file: its name says {match['label']}, its folder {label}")
        return match["patient"], "", ""
    if table:
        return table.who(path, label)
    if pattern:
        match = pattern.search(path)
        if not match:
            raise BadImageError(
                path, f"its name doesn't match the pattern {pattern.pattern}, so its patient is unknown"
            )
        groups = match.groupdict()
        return groups["patient"] or "", EYES.get((groups.get("eye") or "").lower(), ""), ""
    if len(rest) > 1:  # CLASS/PATIENT/[EYE/]image
        return rest[0], EYES.get(rest[1].lower(), "") if len(rest) > 2 else "", ""
    raise BadImageError(
        path,
        "nothing tells its patient: give a CSV (data.csv), a name pattern (data.pattern) or CLASS/PATIENT/ folders",
    )


class _Table:
    """The CSV that names each file's patient, and may name its eye, label, fold and whether it is a guard."""

    def __init__(self, source: Source, config):
        self.name = config.csv
        self.columns = {key: config.columns.get(key, key) for key in CSV_COLUMNS}
        text = source.read_table(config.csv).decode("utf-8-sig", errors="replace")
        reader = csv.DictReader(io.StringIO(text))
        header = reader.fieldnames or []
        needed = {"file", "patient"} | set(config.columns)
        for key in needed:
            if self.columns[key] not in header:
                wanted = self.columns[key]
                raise DataError(
                    f'{config.csv}: no column "{wanted}" for the {key}{did_you_mean(wanted, header)}; '
                    f"its columns: {', '.join(header) or 'none'} (set data.columns.{key})"
                )
        self.rows: dict[str, dict] = {}
        for number, row in enumerate(reader, 2):
            file = PurePosixPath((row[self.columns["file"]] or "").replace("\\", "/")).as_posix()
            if file in self.rows and self.rows[file] != row:
                raise DataError(f"{config.csv}, line {number}: {file} stands there twice, with different values")
            self.rows[file] = row
        self.seen: dict[str, str] = {}  # row -> the file it was used for

    def value(self, row: dict, key: str) -> str:
        return (row.get(self.columns[key]) or "").strip()

    def who(self, path: str, label: str) -> tuple[str, str, str]:
        name = PurePosixPath(path).name
        key = path if path in self.rows else next((k for k in (f"{label}/{name}", name) if k in self.rows), None)
        if key is None:
            raise BadImageError(path, f"not listed in {self.name}")
        row = self.rows[key]
        if self.seen.setdefault(key, path) != path:
            other = self.seen[key]
            raise BadImageError(path, f"{self.name} says {key}, which may also be {other}: write CLASS/{name} there")
        if self.value(row, "label") not in ("", label):
            said = self.value(row, "label")
            raise BadImageError(path, f"two labels for one file: {self.name} says {said}, its folder {label}")
        patient = self.value(row, "patient")
        if not patient:
            raise BadImageError(path, f"{self.name} names no patient for it")
        guard = self.value(row, "guard").lower() in ("1", "true", "yes")
        return patient, EYES.get(self.value(row, "eye").lower(), ""), "guard" if guard else self.value(row, "fold")

    def unused(self, labels: list[str]) -> list[str]:
        wanted = (f for f, row in self.rows.items() if self.value(row, "label") in ("", *labels))
        return sorted(f for f in wanted if f not in self.seen)


def _without_copies(source: Source, entries: list[Entry], skipped: list[dict], skip_bad: bool) -> list[Entry]:
    """Of byte-identical files the first stays; copies under different labels contradict each other, and none stays."""
    contradictions, repeats = [], []
    for alike in _copies(source, entries):
        first = alike[0]
        if len({entry.label for entry in alike}) > 1:
            for entry in alike:
                other = next(e for e in alike if e.label != entry.label)
                reason = f"two labels for one file: the same picture is {other.source}"
                contradictions.append({"file": entry.source, "reason": reason})
        else:
            repeats += [{"file": e.source, "reason": f"the same file as {first.source}"} for e in alike[1:]]
    refuse_or_note(contradictions, skipped, skip_bad)
    skipped += repeats
    gone = {item["file"] for item in contradictions + repeats}
    return [entry for entry in entries if entry.source not in gone]


def _copies(source: Source, entries: list[Entry]) -> list[list[Entry]]:
    """Groups of byte-identical files. Each test reads more than the last: size, then a glance, then the whole file."""
    groups = [entries]
    for test in (source.size, source.glance, lambda path: hashlib.sha256(source.read(path)).digest()):
        finer = []
        for group in groups:
            same: dict = {}
            for entry in group:
                same.setdefault(test(entry.source), []).append(entry)
            finer += [alike for alike in same.values() if len(alike) > 1]
        groups = finer
    return groups


def refuse_or_note(bad: list[dict], skipped: list[dict], skip_bad: bool) -> None:
    if bad and not skip_bad:
        named = "; ".join(f"{item['file']} ({item['reason']})" for item in bad[:10])
        more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError(
            f"{len(bad)} file(s) can't be used: {named}{more}. Mend them, or leave them out with --skip-bad"
        )
    skipped += bad


def _compiled(pattern: str | None) -> re.Pattern | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.pattern {pattern!r} is not a regular expression ({error})") from None
    if "patient" not in compiled.groupindex:
        raise DataError(f"data.pattern {pattern!r} has no group (?P<patient>…)")
    return compiled
