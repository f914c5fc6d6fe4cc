"""Pixels with little or no header: Zeiss Cirrus .img, Optovue .OCT with its .txt, Bioptigen .OCT.

Layouts: oct-converter's, with three differences. A Cirrus cube is row after row and turned by 180 degrees, as four
public readers have it and oct-converter doesn't; the second volume of an Optovue file begins where the first ends; a
Bioptigen A-scan is a column.
"""

import re
from pathlib import Path

import numpy as np

from oct_hf.data.splits import pseudonyms
from oct_hf.data.volumes import MAX_BYTES, Volume, refuse_size, refuse_total
from oct_hf.data.volumes.unreadable import NEVER_TRIED, NO_EYE, damage_is_one_line, gray_levels
from oct_hf.errors import DataError

_DEPTH = 1024  # pixels of every Cirrus A-scan
_CUBES = ((200, 200), (512, 128))  # A-scans, B-scans
_NAMED_SIZE = re.compile(r"(\d{2,4})x(\d{1,4})")
_NAMED_EYE = re.compile(r"(?:^|[^A-Za-z])(OD|OS)(?:[^A-Za-z]|$)")
# What a Bioptigen header has, in this order; the tags' own names are not checked.
_FIELDS = 23
_FRAMES, _LINE_LENGTH = 1, 3
_FRAME_FIELDS = 3


def _eye_in_name(path: Path) -> str:
    found = set(_NAMED_EYE.findall(path.name))
    return found.pop() if len(found) == 1 else ""


def read_img(path: Path) -> list[Volume]:
    """A Zeiss Cirrus cube; its size, eye and patient stand in the file's name alone.

    Raises:
        DataError: the number of bytes is no cube's.
    """
    with damage_is_one_line(path, "a Zeiss .img"):
        length = path.stat().st_size
        named = _NAMED_SIZE.search(path.name)
        sizes = [(int(named[1]), int(named[2]))] if named else _CUBES
        size = next((size for size in sizes if size[0] * size[1] * _DEPTH == length), None)
        if size is None:
            wanted = " or ".join(f"{w * n * _DEPTH:,}" for w, n in sizes)
            raise DataError(f"{path}: no Zeiss .img: it has {length:,} bytes, a cube has {wanted}")
        refuse_size(path, size[1], _DEPTH, size[0])
        bscans = np.fromfile(path, np.uint8).reshape(size[1], _DEPTH, size[0])[:, ::-1, ::-1]
        eye, patient = _eye_in_name(path), re.match(r"P[^_]*\d[^_]*(?=_)", path.name)
        return [
            Volume(
                np.ascontiguousarray(bscans),
                eye,
                patient=pseudonyms([patient[0]])[0] if patient else "",
                kind="Zeiss .img",
                warnings=(NEVER_TRIED, *([] if eye else ["its name doesn't say which eye it is"])),
            )
        ]


def read_oct(path: Path) -> list[Volume]:
    """An Optovue .OCT where a .txt lies beside it, else a Bioptigen .OCT.

    Raises:
        DataError: it is neither, or is damaged.
    """
    with damage_is_one_line(path, "an Optovue or Bioptigen .OCT"):
        if path.stat().st_size > 4 * MAX_BYTES:
            raise DataError(f"{path}: has more than {4 * MAX_BYTES >> 20} MB, which no device writes")
        beside = path.with_suffix(".txt")
        return _optovue(path, beside) if beside.is_file() else _bioptigen(path)


def _optovue(path: Path, beside: Path) -> list[Volume]:
    with open(beside, encoding="latin-1") as file:
        told = file.read(1 << 20)
    height = re.search(r"Window Height\s*=?\s*(\d+)", told)
    scans = re.findall(r"Scan Length\s*=?\s*(\d+)[^\n]*\n[^\n]*Scan Usage\s*=?\s*(\d+)", told)
    if not height or not scans:
        raise DataError(f"{path}: the .txt beside it doesn't say how large its B-scans are")
    eyes = set(re.findall(r"Eye Scanned[^\n]*?\b(OD|OS)\b", told))
    eye = eyes.pop() if len(eyes) == 1 else ""
    length = path.stat().st_size // 4
    volumes, at, rows = [], 0, int(height[1])
    refuse_total(path, rows * sum(int(columns) * int(count) for columns, count in scans))
    for number, (columns, count) in enumerate((int(c), int(n)) for c, n in scans):
        refuse_size(path, count, rows, columns)
        end = at + count * rows * columns
        if end > length:
            raise DataError(f"{path}: ends too early: {length:,} of {end:,} values")
        places = [(path, at + bscan * rows * columns, rows, columns) for bscan in range(count)]
        top = max(float(_a_scans(*place).max()) for place in places) or 1.0
        bscans = np.empty((count, rows, columns), np.uint8)
        for row, place in enumerate(places):
            bscans[row] = np.rint(255 * np.rot90(_a_scans(*place)) / top)
        notes = (NEVER_TRIED, *([] if eye else [NO_EYE]))
        volumes.append(Volume(bscans, eye, number=number, kind="Optovue .OCT", warnings=notes))
        at = end
    return volumes


def _a_scans(path: Path, at: int, rows: int, columns: int) -> np.ndarray:
    """One B-scan as it is stored: A-scans one after the other, each from the deepest point up; faults are 0."""
    values = np.fromfile(path, "<f4", rows * columns, offset=4 * at).reshape(columns, rows)
    return np.clip(np.nan_to_num(values, posinf=0, neginf=0), 0, None)


def _bioptigen(path: Path) -> list[Volume]:
    data = np.memmap(path, np.uint8, "r")
    at, fields = 6, []
    for number in range(_FIELDS):
        at, value = _field(path, data, at, empty=number == 0)
        fields.append(value)
    count, rows = (int.from_bytes(fields[n][:4], "little") for n in (_FRAMES, _LINE_LENGTH))
    at += 4
    frames = []
    for number in range(count):
        at, _ = _field(path, data, at, empty=True)
        for _ in range(_FRAME_FIELDS):
            at, value = _field(path, data, at)
        columns = int.from_bytes(value[:4], "little")
        at, _ = _field(path, data, at, empty=True)
        refuse_size(path, count, rows, columns)
        if at + 2 * rows * columns > len(data):
            raise DataError(f"{path}: ends too early: {number} of {count} B-scans")
        pixels = data[at : at + 2 * rows * columns].view("<u2").reshape(columns, rows).T
        if frames and frames[0].shape != pixels.shape:
            raise DataError(f"{path}: its B-scans differ in size")
        frames.append(pixels)
        at += 2 * rows * columns + 4
    if not frames:
        raise DataError(f"{path}: has no B-scans")
    eye = _eye_in_name(path)
    notes = (NEVER_TRIED, *([] if eye else ["its name doesn't say which eye it is"]))
    return [Volume(gray_levels(frames), eye, kind="Bioptigen .OCT", warnings=notes)]


def _field(path: Path, data: np.ndarray, at: int, empty: bool = False) -> tuple[int, bytes]:
    """Where the next field begins, and this one's value: length and name, then length and value.

    Args:
        empty: a header, whose value is the fields that follow.
    """
    neither = f"{path}: ends too early, or is neither Optovue's (no .txt lies beside it) nor Bioptigen's"
    for part in ("name", "value"):
        if at + 4 > len(data):
            raise DataError(neither)
        start = at + 4
        at = start + int.from_bytes(data[at:start].tobytes(), "little")
        if part == "value" and empty:
            return start, b""
    if at > len(data):
        raise DataError(neither)
    return at, data[start : min(at, start + 64)].tobytes()
