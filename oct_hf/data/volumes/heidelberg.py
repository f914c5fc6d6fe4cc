"""Heidelberg's .vol (HSF-OCT), its header through eyepy's description; and the gray levels of .vol and .e2e.

One eye must give one picture, whichever way it was exported, or a model trained on one export fails on the other. So
both formats use the logarithm that eyepy fitted to Heidelberg's own pictures (within 3 levels of the XML export of the
same scans, says its author in OCT-Converter issue 21), and not the fourth root that many readers of .vol use. B-scans
are read one after the other, since a parser's copy of a large cube has several gigabytes.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from oct_hf.data.splits import pseudonyms
from oct_hf.data.volumes import Spacing, Volume, refuse_size
from oct_hf.data.volumes.unreadable import NO_EYE, damage_is_one_line
from oct_hf.errors import DataError

_HEADER = 2048  # bytes
_SIZES = struct.Struct("<3I3d2I2d")  # width, B-scans, height; their scales; the same of the localizer
_NO_IMAGE = 1.99  # above it the device filled in: .vol has 3.4e38 there, .e2e its largest numbers


def read_vol(path: Path) -> list[Volume]:
    """The one acquisition of a .vol.

    Raises:
        DataError: it isn't such a file, or is shorter than its header says.
    """
    try:
        from construct import Struct
        from eyepy.io.he.vol_reader import vol_format
    except ImportError:
        raise DataError(f'{path}: reading Heidelberg files needs eyepy: pip install "oct-hf[volumes]"') from None
    bscan_header = _check(path)
    with damage_is_one_line(path, "a Heidelberg .vol"), open(path, "rb") as file:
        parsed = Struct(*vol_format.subcons[:-2]).parse_stream(file)  # all but its pictures
        bscans, localizer, ends = _pictures(file, parsed, bscan_header)
    scale = np.array([parsed.scale_x_slo, parsed.scale_y_slo] * 2)
    # A circle is one B-scan whose "end" is a centre: no line to draw.
    with np.errstate(all="ignore"):
        places = ends / scale
    usable = parsed.scan_pattern != 2 and (scale > 0).all() and np.isfinite(places).all()
    eye = parsed.scan_position.strip("\0 ").upper()
    patient = parsed.patient_id.strip("\0 ") or (str(parsed.pid) if parsed.pid else "")
    notes = [] if eye in ("OD", "OS") else [NO_EYE]
    spacing = (parsed.scale_y, parsed.scale_x, parsed.distance)
    return [
        Volume(
            bscans,
            eye if eye in ("OD", "OS") else "",
            Spacing(*(1000 * v if 0 < v < 10 else None for v in spacing)),
            localizer,
            places if usable else None,
            pseudonyms([patient])[0] if patient else "",
            kind="Heidelberg .vol",
            warnings=tuple(notes),
        )
    ]


def shown(values: np.ndarray) -> np.ndarray:
    """uint8 gray levels of float reflectivities from 0 to 1; what isn't there (above 1.99, or no number) is black."""
    there = np.isfinite(values) & (values <= _NO_IMAGE)
    clean = np.clip(np.where(there, values, 0), 0, 1)
    levels = (np.log(clean + 2.44e-4) + 8.3) / 8.285
    return np.rint(255 * np.clip(levels, 0, 1)).astype(np.uint8)


def _pictures(file: BinaryIO, head, bscan_header: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B-scans, the localizer, and each B-scan's ends in millimetres on it."""
    count, height, width = head.n_bscans, head.size_y, head.size_x
    file.seek(_HEADER)
    localizer = np.frombuffer(file.read(head.size_x_slo * head.size_y_slo), np.uint8)
    bscans, ends = np.empty((count, height, width), np.uint8), np.empty((count, 4))
    for number in range(count):
        ends[number] = struct.unpack_from("<4d", file.read(bscan_header), 16)
        bscans[number] = shown(np.frombuffer(file.read(4 * width * height), "<f4").reshape(height, width))
    return bscans, localizer.reshape(head.size_y_slo, head.size_x_slo), ends


def _check(path: Path) -> int:
    """What the header says of sizes against the bytes that are there; bytes of the header before each B-scan."""
    length = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(_HEADER)
    if len(head) < _HEADER or not head.startswith((b"HSF-OCT", b"ep-v")):
        raise DataError(f"{path}: not a Heidelberg .vol (it doesn't begin as one)")
    width, count, height, *_, slo_width, slo_height, _, _ = _SIZES.unpack_from(head, 12)
    refuse_size(path, count, height, width)
    refuse_size(path, 1, slo_height, slo_width)
    (bscan_header,) = struct.unpack_from("<I", head, 100)
    needed = _HEADER + slo_width * slo_height + count * (bscan_header + 4 * width * height)
    if needed > length or bscan_header < 48:
        raise DataError(f"{path}: ends too early: {length:,} of {needed:,} bytes")
    return bscan_header
