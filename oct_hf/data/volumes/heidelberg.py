"""Heidelberg's .vol (HSF-OCT), through eyepy's description of it.

Values from 0 to 1 become gray levels as Heidelberg's own viewer shows them, by their fourth root (Heidelberg's special
function specification of the raw export); columns that the device filled are black.
"""

import struct
from pathlib import Path

import numpy as np

from oct_hf.data.splits import pseudonyms
from oct_hf.data.volumes import Spacing, Volume, refuse_size
from oct_hf.errors import DataError

_TOO_LARGE = 1024**3
_HEADER = 2048  # bytes
_SIZES = struct.Struct("<3I3d2I2d")  # width, B-scans, height; their scales; the same of the localizer
_NO_VALUE = 1e30  # Heidelberg writes 3.4e38 where there is no image


def read_vol(path: Path) -> list[Volume]:
    """The one acquisition of a .vol.

    Raises:
        DataError: it isn't such a file, or is shorter than its header says.
    """
    try:
        from eyepy.io.he.vol_reader import vol_format
    except ImportError:
        raise DataError(f'{path}: reading Heidelberg files needs eyepy: pip install "oct-hf[volumes]"') from None
    _check(path)
    try:
        with open(path, "rb") as file:
            parsed = vol_format.parse_stream(file)
        bscans = np.stack([_gray(np.asarray(bscan.data, np.float32)) for bscan in parsed.bscans])
        localizer = np.asarray(parsed.localizer, np.uint8)
        ends = np.array([[b.start_x, b.start_y, b.end_x, b.end_y] for b in parsed.bscans], float)
    except Exception as error:  # construct raises many kinds, and their words may quote the header
        raise DataError(f"{path}: not a Heidelberg .vol that can be read ({type(error).__name__})") from None
    scale = np.array([parsed.scale_x_slo, parsed.scale_y_slo] * 2)
    # A circle is one B-scan whose "end" is a centre: no line to draw.
    usable = parsed.scan_pattern != 2 and (scale > 0).all() and np.isfinite(ends).all()
    eye = parsed.scan_position.strip("\0 ").upper()
    patient = parsed.patient_id.strip("\0 ") or (str(parsed.pid) if parsed.pid else "")
    notes = [] if eye in ("OD", "OS") else ["the file doesn't say which eye it is"]
    spacing = (parsed.scale_y, parsed.scale_x, parsed.distance)
    return [
        Volume(
            bscans,
            eye if eye in ("OD", "OS") else "",
            Spacing(*(1000 * v if 0 < v < 10 else None for v in spacing)),
            localizer,
            ends / scale if usable else None,
            pseudonyms([patient])[0] if patient else "",
            kind="Heidelberg .vol",
            warnings=tuple(notes),
        )
    ]


def _gray(values: np.ndarray) -> np.ndarray:
    there = np.isfinite(values) & (values < _NO_VALUE)
    return np.rint(255 * np.clip(np.where(there, values, 0), 0, 1) ** 0.25).astype(np.uint8)


def _check(path: Path) -> None:
    """What the header says of sizes against the bytes that are there, before a parser believes it."""
    length = path.stat().st_size
    if length > _TOO_LARGE:
        raise DataError(f"{path}: has more than {_TOO_LARGE >> 30} GB")
    with open(path, "rb") as file:
        head = file.read(_HEADER)
    if len(head) < _HEADER or not head.startswith((b"HSF-OCT", b"ep-v")):
        raise DataError(f"{path}: not a Heidelberg .vol (it doesn't begin as one)")
    width, count, height, *_, slo_width, slo_height, _, _ = _SIZES.unpack_from(head, 12)
    refuse_size(path, count, height, width)
    (bscan_header,) = struct.unpack_from("<I", head, 100)
    needed = _HEADER + slo_width * slo_height + count * (bscan_header + 4 * width * height)
    if needed > length:
        raise DataError(f"{path}: ends too early: {length:,} of {needed:,} bytes")
