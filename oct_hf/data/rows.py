"""One file of a set as one row: its bytes, its hash, and what is measured of the picture while it is decoded anyway.

Every file is decoded whole here: a corrupt image is found now and not in epoch 7.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from oct_hf.data import filters
from oct_hf.data.duplicates import METHOD, thumbnail_of
from oct_hf.data.listing import Entries, Entry
from oct_hf.data.quality import measure_quality, version
from oct_hf.data.shrunken import shrink
from oct_hf.data.source import Source
from oct_hf.errors import BadImageError
from oct_hf.images import read_image

filters.expect_many()  # who makes rows makes thousands of them

MAX_PIXELS = 16_000_000  # of a picture: a B-scan has under 3 million, and several are decoded at once

# Columns that `measure` fills, with their Arrow types.
MEASURED = {"thumbnail": "binary", "oct_likeness": "float32", "quality": "float32", "fault": "string"}
MEASURED_BY = f"{METHOD}; quality {version()}"  # another text when the same picture would be measured differently
BLOCK = 4  # rows that a thread or a process makes at once
KNOWN = ("label", "patient_id", "eye", "volume", "device", "source", "fold", "side")


@dataclass(frozen=True)
class Work:
    """Rows to be made, in parts that need nothing of each other.

    Attributes:
        read: rows of a block; of a file that can't be read, `file` and `reason` alone. It can be sent to a process.
        blocks: gives the blocks, in order.
        size: about how many bytes the pictures of a block have.
    """

    read: Callable[[Any], list[dict]]
    blocks: Callable[[], Iterator]
    size: Callable[[Any], int]


def measure(pixels: np.ndarray) -> dict:
    """The measured columns of one picture, uint8 `(height, width[, 3])`."""
    small = shrink(pixels)
    return {"thumbnail": thumbnail_of(small), **vars(measure_quality(small))}


def read_row(source: Source, entry: Entry) -> dict:
    """The row of one file.

    Raises:
        BadImageError: it can't be read or decoded.
    """
    data = source.read(entry.source)
    pixels = read_image(data, entry.source, MAX_PIXELS)
    row = {key: getattr(entry, key) for key in KNOWN}
    return row | {"image": picture(eight_bit_file(data, pixels)), "content_hash": sha256(data)} | measure(pixels)


def read_rows(source: Source, entries: Entries) -> list[dict]:
    """The rows of some files; of one that can't be read, `file` and `reason` alone."""
    rows = []
    for entry in entries:
        try:
            rows.append(read_row(source, entry))
        except BadImageError as error:
            rows.append({"file": error.file, "reason": error.reason})
    return rows


def size_of(source: Source, entries: Entries) -> int:
    """Bytes of some files."""
    return sum(source.size(entry.source) for entry in entries)


def picture(data: bytes) -> dict:
    """A value of the column `image`. Without a path: `datasets` would look for a file of that name, image by image."""
    return {"path": None, "bytes": data}


def sha256(data: bytes) -> str:
    """`content_hash` of a file."""
    return hashlib.sha256(data).hexdigest()


def png(pixels: np.ndarray) -> bytes:
    """A PNG that takes little time to write."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def eight_bit_file(data: bytes, pixels: np.ndarray) -> bytes:
    """The file itself, or its pixels as PNG where it has 16 bits or floating point, which `datasets` would saturate."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode[0] not in "IF":
            return data
    return png(pixels)
