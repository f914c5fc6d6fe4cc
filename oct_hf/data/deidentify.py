"""A picture file with nothing in it but pixels: no EXIF, comment, text, thumbnail or profile that may name a patient.

Of a JPEG the segments that decoding needs are kept and all others cut out, so its pixels aren't compressed again. Every
other kind is written anew as PNG: its containers have too many places for text to list them all.
"""

import io
import re

import numpy as np
from PIL import Image

from oct_hf.errors import BadImageError
from oct_hf.images import read_image

_END, _SCAN, _JFIF, _ADOBE = 0xD9, 0xDA, 0xE0, 0xEE
# Tables, frame headers, restart interval and line count (ITU-T T.81, table B.1): what a decoder reads besides scans.
_NEEDED = {*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD} - {0xC8}
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # not a stuffed byte, not a restart


def without_metadata(data: bytes) -> bytes:
    """The same pixels, as `images.read_image` gives them, in a file that holds no metadata.

    Args:
        data: an encoded picture.

    Returns:
        a JPEG with its compressed pixels unchanged, or a PNG.

    Raises:
        BadImageError: it can't be decoded.
    """
    pixels = read_image(data)
    bare = _bare_jpeg(data)
    # An EXIF rotation, or a fault that decoders forgive, makes the two differ; then the pixels are what counts.
    if bare is not None and _shows(bare, pixels):
        return bare
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def _bare_jpeg(data: bytes) -> bytes | None:
    """The JPEG's needed segments and scans; None where it is no JPEG, or not as the standard has it."""
    if not data.startswith(b"\xff\xd8"):
        return None
    kept, at = bytearray(data[:2]), 2
    while at + 1 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _END:
            return bytes(kept + b"\xff\xd9")
        length = int.from_bytes(data[at + 2 : at + 4])
        body, at = data[at + 4 : at + 2 + length], at + 2 + length
        if marker == _JFIF and body.startswith(b"JFIF\0"):
            kept += b"\xff\xe0\x00\x10" + body[:12] + b"\0\0"  # its thumbnail is left out
        elif marker == _ADOBE and body.startswith(b"Adobe"):
            kept += b"\xff\xee\x00\x0e" + body[:12]  # says how colours are coded
        elif marker in _NEEDED or marker == _SCAN:
            kept += bytes((0xFF, marker)) + length.to_bytes(2) + body
        if marker == _SCAN:
            end = _AFTER_SCAN.search(data, at)
            if end is None:
                return None
            kept += data[at : end.start()]
            at = end.start()
    return None


def _shows(data: bytes, pixels: np.ndarray) -> bool:
    try:
        return np.array_equal(read_image(data), pixels)
    except BadImageError:
        return False
