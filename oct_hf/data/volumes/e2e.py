"""Heidelberg's .e2e: a chain of directories whose entries point at containers.

eyepy and oct-converter read it by different rules and are known to lose volumes or to name the wrong eye (OCT-Converter
issues 11, 45, 123, 126, 149). Both rules are applied here to the same bytes, since neither parser survives a damaged
directory (eyepy jumps back for ever); where they contradict each other the answer is "unknown" or a warning.
"""

import mmap
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oct_hf.data.splits import pseudonyms
from oct_hf.data.volumes import Spacing, Volume, refuse_size, refuse_total
from oct_hf.data.volumes.heidelberg import shown
from oct_hf.data.volumes.unreadable import NEVER_TRIED, NO_EYE, damage_is_one_line, only, text
from oct_hf.errors import DataError

_MULTIPLE = b"E2EMultipleVolumeFile"  # then all places are counted from byte 64
_DIRECTORY, _ENTRY, _CONTAINER = 52, 44, 60  # bytes of each header
_PATIENT, _LATERALITY, _PREAMBLE, _BSCAN, _IMAGE = 9, 11, 3, 10004, 0x40000000
_OCT, _LOCALIZER = 35652097, 33620481  # kinds of image, by eyepy
_EYES = {"R": "OD", "L": "OS"}
_MOST = 500_000  # entries of all directories; 20 volumes of 200 B-scans with their layers have some 100,000
_FIELD = 30.0  # degrees that the localizer shows; the file doesn't say, and eyepy assumes it too


@dataclass(frozen=True)
class _Item:
    """One container: to whom it belongs (patient, study, series), its slice (-1 for the series), kind and bytes."""

    series: tuple[int, int, int]
    slice: int
    kind: int
    start: int
    size: int


def read_e2e(path: Path) -> list[Volume]:
    """Every series with OCT B-scans, in the order of its numbers.

    Raises:
        DataError: it isn't such a file, is damaged, or has no OCT.
    """
    with (
        damage_is_one_line(path, "a Heidelberg .e2e"),
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        skip = 64 if data[: len(_MULTIPLE)] == _MULTIPLE else 0
        if data[skip : skip + 4] != b"CMDb":
            raise DataError(f"{path}: not a Heidelberg .e2e (it doesn't begin as one)")
        items, notes = _items(path, data, skip)
        return _volumes(path, data, items, notes)


def _items(path: Path, data: mmap.mmap, skip: int) -> tuple[list[_Item], list[str]]:
    """All containers that either way of walking the directories finds."""
    chained, one_after_the_other = _chain(path, data, skip), _sequence(path, data, skip)
    found = {}
    for entry in chained + one_after_the_other:
        item = _container(path, data, skip, *entry)
        if item:
            found[item.start] = item
    ways = [{entry for entry in way if entry[2]} for way in (chained, one_after_the_other)]
    differ = ways[0] != ways[1]
    notes = ["eyepy's and oct-converter's way through its directories find different parts of it"] if differ else []
    return sorted(found.values(), key=lambda item: item.start), notes


def _chain(path: Path, data: mmap.mmap, skip: int) -> list[tuple[int, int, int]]:
    """Backwards from the last directory, as oct-converter does."""
    parts, seen, count = [], set(), 0
    (at,) = struct.unpack_from("<I", data, skip + 36 + 40)
    while at:
        if at in seen or at + skip + _DIRECTORY > len(data):
            raise DataError(f"{path}: its directories point {'in a circle' if at in seen else 'past its end'}")
        seen.add(at)
        parts.append(_entries(data, skip, at))
        count = _bounded(path, count + len(parts[-1]))
        (at,) = struct.unpack_from("<I", data, skip + at + 44)
    return [entry for part in reversed(parts) for entry in part]


def _bounded(path: Path, count: int) -> int:
    if count > _MOST:
        raise DataError(f"{path}: has more than {_MOST:,} entries in its directories, which no device writes")
    return count


def _sequence(path: Path, data: mmap.mmap, skip: int) -> list[tuple[int, int, int]]:
    """Forwards, each directory after the last container of the one before, as eyepy does."""
    entries, at = [], 36 + _DIRECTORY
    while at + skip + _DIRECTORY <= len(data) and data[at + skip : at + skip + 4] == b"MDbD":
        here = _entries(data, skip, at)
        entries += here
        _bounded(path, len(entries))
        last = max((start + size for start, size, _ in here), default=0) + _CONTAINER
        if last <= at:
            break
        at = last
    return entries


def _entries(data: mmap.mmap, skip: int, at: int) -> list[tuple[int, int, int]]:
    """Place, size and kind of each entry that is in use."""
    (count,) = struct.unpack_from("<I", data, skip + at + 36)
    count = min(count, (len(data) - skip - at - _DIRECTORY) // _ENTRY, _MOST + 1)
    entries = []
    for number in range(count):
        pos, start, size = struct.unpack_from("<3I", data, skip + at + _DIRECTORY + number * _ENTRY)
        (kind,) = struct.unpack_from("<I", data, skip + at + _DIRECTORY + number * _ENTRY + 36)
        if start > pos and kind:
            entries.append((start, size, kind))
    return entries


def _container(path: Path, data: mmap.mmap, skip: int, start: int, size: int, kind: int) -> _Item | None:
    at = skip + start
    if kind not in (_PATIENT, _LATERALITY, _PREAMBLE, _BSCAN, _IMAGE):
        return None
    if at + _CONTAINER + size > len(data):
        raise DataError(f"{path}: ends too early: {len(data):,} of at least {at + _CONTAINER + size:,} bytes")
    if data[at : at + 7] != b"MDbData":
        raise DataError(f"{path}: its directory points at {at:,}, where nothing begins")
    patient, study, series, piece = struct.unpack_from("<4i", data, at + 32)
    return _Item((patient, study, series), piece, kind, at + _CONTAINER, size)


def _volumes(path: Path, data: mmap.mmap, items: list[_Item], notes: list[str]) -> list[Volume]:
    patients = {i.series[0]: text(data[i.start + 102 : i.start + 127]) for i in items if i.kind == _PATIENT}
    series_items = defaultdict(list)
    for item in items:
        series_items[item.series].append(item)
    volumes, total = [], 0
    for series, own in sorted(series_items.items()):
        images = {}
        for item in own:
            if item.kind == _IMAGE and struct.unpack_from("<I", data, item.start + 4)[0] == _OCT:
                images.setdefault(item.slice, item)
        if not images:
            continue
        height, width = struct.unpack_from("<2I", data, images[min(images)].start + 12)
        refuse_size(path, len(images), height, width)
        total += len(images) * height * width
        refuse_total(path, total)
        patient = patients.get(series[0], "")
        volumes.append(_volume(path, data, own, images, (height, width), patient, len(volumes), notes))
    if not volumes:
        raise DataError(f"{path}: has no OCT B-scans")
    return volumes


def _volume(path, data, own, images, size, patient, number, notes) -> Volume:
    height, width = size
    bscans = np.empty((len(images), height, width), np.uint8)
    for row, piece in enumerate(sorted(images)):  # the slice's number is what both libraries order by
        item = images[piece]
        if struct.unpack_from("<2I", data, item.start + 12) != size or 20 + 2 * height * width > item.size:
            raise DataError(f"{path}: B-scan {row} of volume {number} isn't of the size that it says")
        bscans[row] = _LEVELS[
            np.frombuffer(data[item.start + 20 : item.start + 20 + 2 * height * width], "<u2")
        ].reshape(size)
    heads = {item.slice: item.start for item in own if item.kind == _BSCAN and item.size >= 76}
    eye, eye_notes = _eye(data, own)
    en_face = _en_face(path, data, own)
    positions = _positions(data, [heads.get(piece) for piece in sorted(images)], en_face)
    told = list(notes) + eye_notes + _order_notes(data, heads, images)
    if positions is not None:
        told.append("places of the B-scans assume that the en-face picture is 30 degrees wide")
    scales = {round(struct.unpack_from("<f", data, at + 36)[0], 7) for at in heads.values()}
    depth = next(iter(scales)) if len(scales) == 1 else 0
    return Volume(
        bscans,
        eye,
        Spacing(depth=1000 * depth if 0 < depth < 0.1 else None),  # across it has degrees, not microns
        en_face,
        positions,
        pseudonyms([patient])[0] if patient else "",
        number,
        "Heidelberg .e2e",
        (NEVER_TRIED, *told),
    )


def _eye(data: mmap.mmap, own: list[_Item]) -> tuple[str, list[str]]:
    """eyepy takes container 11, oct-converter container 3, which was seen to be wrong: alone it isn't believed."""
    stated = {chr(data[i.start + 14]) for i in own if i.kind == _LATERALITY and i.size >= 15} & set(_EYES)
    preamble = {chr(data[i.start + 4]) for i in own if i.kind == _PREAMBLE and i.size >= 5} & set(_EYES)
    if len(stated) == 1 and preamble <= stated:
        return _EYES[only(stated)], []
    if stated or len(preamble) > 1:
        return "", ["its two statements of which eye it is contradict each other"]
    return "", ["only a field that is wrong in some files says which eye it is" if preamble else NO_EYE]


def _order_notes(data: mmap.mmap, heads: dict[int, int], images: dict[int, _Item]) -> list[str]:
    rows = [struct.unpack_from("<2I", data, heads[piece] + 64) for piece in sorted(images) if piece in heads]
    notes = []
    if rows and {count for count, _ in rows} != {len(images)}:
        notes.append(f"{len(images)} B-scans were found, but the file speaks of another number")
    numbers = [number for _, number in rows]
    if numbers != sorted(numbers) or len(set(numbers)) != len(numbers):
        notes.append("the order of its B-scans is uncertain: their numbers and those of their containers differ")
    return notes


def _en_face(path: Path, data: mmap.mmap, own: list[_Item]) -> np.ndarray | None:
    """The series' localizer; a line scan has it beside its B-scan."""
    for item in sorted((item for item in own if item.kind == _IMAGE), key=lambda item: item.slice):
        kind, _, height, width = struct.unpack_from("<4I", data, item.start + 4)
        if kind == _LOCALIZER and 20 + height * width <= item.size:
            refuse_size(path, 1, height, width)
            raw = data[item.start + 20 : item.start + 20 + height * width]
            return np.frombuffer(raw, np.uint8).reshape(height, width).copy()
    return None


def _positions(data: mmap.mmap, heads: list[int | None], en_face: np.ndarray | None) -> np.ndarray | None:
    """Degrees from the middle of the localizer -> its pixels, as eyepy has it."""
    known = [at for at in heads if at is not None]
    if en_face is None or len(known) < len(heads):
        return None
    if any(struct.unpack_from("<I", data, at + 72)[0] == 2 for at in known):  # a circle
        return None
    ends = np.array([struct.unpack_from("<4f", data, at + 12) for at in known], float)
    pixels = (ends + _FIELD / 2) * (np.array(en_face.shape[::-1] * 2) / _FIELD)
    inside = np.isfinite(pixels).all() and (pixels >= 0).all() and (pixels <= np.array(en_face.shape[::-1] * 2)).all()
    return pixels if inside else None


def _levels() -> np.ndarray:
    """Gray level of each of the 65,536 stored numbers, which are floats of 6 bits exponent and 10 bits mantissa.

    The mantissa is the low 10 bits as they stand (LibE2E, image.cpp); eyepy and oct-converter read them in reverse
    order, up to 22 gray levels off.
    """
    stored = np.arange(65536)
    return shown((1 + (stored & 1023) / 1024) * np.exp2((stored >> 10) - 63.0))


_LEVELS = _levels()
