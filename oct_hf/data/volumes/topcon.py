"""Topcon's .fda and .fds: named blocks one after the other.

Layout: the uocte project's notes and oct-converter's structures. oct-converter itself can't read them with numpy 2.3 or
later (it calls `np.fromstring`, which is gone), and eyepy reads .fda through it, so the blocks are read here.
"""

import io
import mmap
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from oct_hf.data.splits import pseudonyms
from oct_hf.data.volumes import Spacing, Volume, refuse_size
from oct_hf.data.volumes.unreadable import NEVER_TRIED, NO_EYE, damage_is_one_line, gray_levels, only, text
from oct_hf.errors import DataError
from oct_hf.images import to_gray

_EYES = {0: "OD", 1: "OS"}
_RASTER = 2  # scan mode "3D"; others are radial, cross and line scans
_BLOCKS = 10_000
# Block -> where the scan's width and depth in mm and its axial step in microns begin.
_SCAN_SIZES = {"@PARAM_SCAN_04": 12, "@PARAM_SCAN_02": 21}


def read_topcon(path: Path) -> list[Volume]:
    """The one acquisition of a .fda or .fds.

    Raises:
        DataError: it isn't such a file, is damaged, or has its B-scans in a block that isn't known.
    """
    with damage_is_one_line(path, "a Topcon file"), open(path, "rb") as file:
        if file.read(4) != b"FOCT":
            raise DataError(f"{path}: not a Topcon .fda or .fds (it doesn't begin as one)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return [_volume(path, data, _blocks(path, data))]


def _blocks(path: Path, data: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Name -> where its content begins and its length; of blocks of one name the first."""
    blocks: dict[str, tuple[int, int]] = {}
    at = 15
    for _ in range(_BLOCKS):
        if at >= len(data):
            raise DataError(f"{path}: ends too early, before its last block")
        named = data[at]
        if named == 0:
            return blocks
        name = data[at + 1 : at + 1 + named].decode("latin-1")
        (size,) = struct.unpack_from("<I", data, at + 1 + named)
        at += 5 + named
        if at + size > len(data):
            raise DataError(f"{path}: ends too early: {len(data):,} of at least {at + size:,} bytes")
        blocks.setdefault(name, (at, size))
        at += size
    raise DataError(f"{path}: has more than {_BLOCKS:,} blocks, which no device writes")


def _volume(path: Path, data: mmap.mmap, blocks: dict[str, tuple[int, int]]) -> Volume:
    mode, bscans = _bscans(path, data, blocks)
    notes = [NEVER_TRIED]
    eye = only({_EYES.get(data[blocks[name][0]], "") for name in blocks if name.startswith("@CAPTURE_INFO")})
    if not eye:
        notes.append(NO_EYE)
    en_face = _en_face(path, data, blocks)
    positions = _positions(data, blocks, len(bscans), en_face) if mode == _RASTER else None
    if positions is not None:
        notes.append("places of the B-scans are even lines from top to bottom of the scanned box")
    patients = {text(data[at : at + 32]) for name, (at, size) in blocks.items() if name.startswith("@PATIENT_INFO")}
    patient = only(patients - {""})
    kind = "Topcon .fds" if path.suffix.lower() == ".fds" else "Topcon .fda"
    return Volume(
        bscans,
        eye,
        _spacing(data, blocks, bscans.shape, mode),
        en_face,
        positions,
        pseudonyms([patient])[0] if patient else "",
        kind=kind,
        warnings=tuple(notes),
    )


def _bscans(path: Path, data: mmap.mmap, blocks: dict[str, tuple[int, int]]) -> tuple[int, np.ndarray]:
    """The scan mode, and uint8 `(n, height, width)`."""
    if "@IMG_JPEG" in blocks:
        return _pictures(path, data, *blocks["@IMG_JPEG"])
    name = next((name for name in ("@IMG_MOT_COMP_03", "@IMG_SCAN_03") if name in blocks), None)
    if name is None:
        raise DataError(f"{path}: has no B-scans in IMG_JPEG, IMG_MOT_COMP_03 or IMG_SCAN_03; others aren't read")
    at, size = blocks[name]
    mode, width, height, _bits, count, _, _ = struct.unpack_from("<B4IBI", data, at)
    refuse_size(path, count, height, width)
    if 22 + 2 * count * height * width > size:
        raise DataError(f"{path}: ends too early: {size:,} of {22 + 2 * count * height * width:,} bytes of B-scans")
    values = np.frombuffer(data, "<u2", count * height * width, at + 22).reshape(count, height, width)
    levels = gray_levels(values)
    del values  # or the file couldn't be closed
    return mode, levels


def _pictures(path: Path, data: mmap.mmap, at: int, size: int) -> tuple[int, np.ndarray]:
    mode, _, _, width, height, count, _ = struct.unpack_from("<B6I", data, at)
    refuse_size(path, count, height, width)
    end, at = at + size, at + 25
    bscans = np.empty(0)
    for row in range(count):
        (length,) = struct.unpack_from("<I", data, at)
        if at + 4 + length > end:
            raise DataError(f"{path}: ends too early: {row} of {count} B-scans")
        with Image.open(io.BytesIO(data[at + 4 : at + 4 + length]), formats=("JPEG", "JPEG2000")) as picture:
            if picture.size != (width, height):
                raise DataError(f"{path}: B-scan {row} isn't of the size that the header says")
            values = np.asarray(picture)
        values = to_gray(values) if values.dtype == np.uint8 else values.astype(np.uint16)
        if row == 0:  # one array from the start: a list and its stack would be twice as large
            bscans = np.empty((count, height, width), values.dtype)
        bscans[row] = values
        at += 4 + length
    return mode, gray_levels(bscans)


def _en_face(path: Path, data: mmap.mmap, blocks: dict[str, tuple[int, int]]) -> np.ndarray | None:
    """The fundus photograph, gray; None where there is none that can be read, since the B-scans count more."""
    for name, header in (("@IMG_FUNDUS", 24), ("@IMG_OBS", 21)):
        if name not in blocks:
            continue
        at, size = blocks[name]
        width, height, _, _ = struct.unpack_from("<4I", data, at)
        try:
            refuse_size(path, 1, height, width)
            if name == "@IMG_OBS":
                if header + 3 * width * height > size:
                    return None
                raw = data[at + header : at + header + 3 * width * height]
                values = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
            else:
                with Image.open(io.BytesIO(data[at + header : at + size]), formats=("JPEG", "JPEG2000")) as picture:
                    if picture.size != (width, height):
                        return None
                    values = np.asarray(picture)
        except (DataError, OSError, ValueError, SyntaxError):
            return None
        if values.dtype != np.uint8:
            return None
        return values if values.ndim == 2 else to_gray(np.ascontiguousarray(values[..., 2::-1]))  # blue comes first
    return None


def _spacing(data: mmap.mmap, blocks: dict, shape: tuple[int, int, int], mode: int) -> Spacing:
    """Width over columns, and for a raster depth over the gaps between B-scans, as eyepy has it."""
    for name, offset in _SCAN_SIZES.items():
        if name in blocks and blocks[name][1] >= offset + 24:
            wide, deep, axial = struct.unpack_from("<3d", data, blocks[name][0] + offset)
            return Spacing(
                axial if 0 < axial < 100 else None,
                1000 * wide / shape[2] if 0 < wide < 100 else None,
                1000 * deep / (shape[0] - 1) if 0 < deep < 100 and shape[0] > 1 and mode == _RASTER else None,
            )
    return Spacing()


def _positions(data: mmap.mmap, blocks: dict, count: int, en_face: np.ndarray | None) -> np.ndarray | None:
    """Even lines over the box that the device says it scanned, in pixels of the fundus photograph."""
    if en_face is None or blocks.get("@REGIST_INFO", (0, 0))[1] < 25:
        return None
    x0, y0, x1, y1 = struct.unpack_from("<4I", data, blocks["@REGIST_INFO"][0] + 9)
    if not (x0 < x1 < en_face.shape[1] and y0 < y1 < en_face.shape[0]):
        return None
    rows = np.linspace(y0, y1, count)
    return np.stack([np.full(count, x0), rows, np.full(count, x1), rows], 1).astype(float)
