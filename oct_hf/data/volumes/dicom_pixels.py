"""Frames of a DICOM file, one after the other, as they are decoded: nothing of a file is believed before it is checked.

A codestream says its own size, and a decoder makes room for that before anyone can compare it with Rows and Columns, so
it is compared here; a header is read up to 16 MB, and its items are counted, before a parser makes objects of it.

Zeiss scrambles the JPEG 2000 pictures of Cirrus: every seventh byte is changed by 0x5A, and eight pieces are in another
order (found by pydicom's community, discussion 1618). They are put in order here; a picture that isn't one then is
scrambled in a way that isn't known.
"""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from oct_hf.data.volumes.decoding_apart import Decoder
from oct_hf.errors import DataError

_HEADER = 16 * 1024**2  # bytes before the pixels; a per-frame header of 512 B-scans has half a megabyte
_ITEMS = 100_000
_RLE = 16 * 1024**2  # bytes of one frame: RLE unpacks to 64 times as much at most
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_RLE_SYNTAX = "1.2.840.10008.1.2.5"
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_JPEG = tuple(f"1.2.840.10008.1.2.4.{kind}" for kind in (50, 51, 57, 70))
_JPEG_LS = tuple(f"1.2.840.10008.1.2.4.{kind}" for kind in (80, 81))
# gdcm ends its process at some damaged pictures: it decodes what no other can, and apart.
_APART = _JPEG[1:]
_DECODERS = {**dict.fromkeys(_JPEG_2000, "pillow"), _JPEG[0]: "pillow", **dict.fromkeys(_JPEG_LS, "pyjpegls")}
_CODESTREAM = b"\xff\x4f\xff\x51"
_JP2 = b"\x00\x00\x00\x0cjP  "


def plain(file, name: str) -> str:
    """A field as it stands in the file, up to the first zero byte: Zeiss writes others behind it; "" without one."""
    value = file.get_item(name).value if file is not None and name in file else None
    value = value.decode("latin-1") if isinstance(value, bytes) else "" if value is None else str(value)
    return value.split("\0", 1)[0].strip()


def is_zeiss(file) -> bool:
    """Whether Zeiss's software wrote it."""
    return plain(file, "Manufacturer").lower().startswith("carl zeiss")


def read_header(path: Path, opened: BinaryIO):
    """Everything before the pixels as a pydicom data set, and the place where they begin.

    Raises:
        DataError: it has more of a header than a device writes, or is deflated.
    """
    import pydicom
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise DataError(f"{path}: is deflated as a whole; convert it first (dcmtk: dcmconv +te)")
    opened.seek(0)
    head = opened.read(_HEADER)
    if head.count(b"\xfe\xff\x00\xe0") + head.count(b"\xff\xfe\xe0\x00") > _ITEMS:
        raise DataError(f"{path}: has more than {_ITEMS:,} items, which no device writes")
    within = io.BytesIO(head)
    file = pydicom.dcmread(within, stop_before_pixels=True)
    if within.tell() >= _HEADER:
        raise DataError(f"{path}: has no pixels in its first {_HEADER >> 20} MB")
    return file, within.tell()


def frames_of(path: Path, opened: BinaryIO, file, start: int, count: int) -> Iterator[np.ndarray]:
    """Each frame, `(rows, columns[, samples])`, as it is stored.

    Raises:
        DataError: there are fewer than `count`, or one isn't of the size that the header says.
    """
    from pydicom.pixels.utils import iter_pixels

    syntax = plain(file.file_meta, "TransferSyntaxUID")
    left = path.stat().st_size - start
    if syntax in _NATIVE:
        samples = int(file.get("SamplesPerPixel", 1) or 1)
        needed = count * int(file.Rows) * int(file.Columns) * samples * (int(file.BitsAllocated) // 8)
        if left < needed:
            raise DataError(f"{path}: ends too early: {left:,} of {needed:,} bytes of pixels")
        frames = iter_pixels(opened)
    elif syntax in (_RLE_SYNTAX, *_JPEG_2000, *_JPEG, *_JPEG_LS):
        if count > left // 8:  # each frame of a compressed file has a header of that size at least
            raise DataError(f"{path}: its header says {count} B-scans, but it has {left:,} bytes of them")
        frames = _decoded(path, opened, file, start, count, syntax)
    else:
        raise DataError(
            f"{path}: its pixels are in a form that isn't read (transfer syntax {registered(syntax) or 'unknown'})"
        )
    found = 0
    for found, frame in enumerate(frames, 1):
        if found > count:
            break
        yield frame
    if found != count:
        raise DataError(f"{path}: has {'more' if found > count else found} B-scans, its header says {count}")


def registered(number: str) -> str:
    """DICOM's own name for a registered number, else ""; what else stands there isn't repeated."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    name = UID(number, IGNORE).name
    return name if name != number else ""


def _decoded(path: Path, opened: BinaryIO, file, start: int, count: int, syntax: str) -> Iterator[np.ndarray]:
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import UID

    opened.seek(start)
    element = opened.read(12)
    if element[4:6] not in (b"OB", b"OW", b"UN") or element[8:] != b"\xff\xff\xff\xff":
        raise DataError(f"{path}: its header says that it is compressed, but its pixels aren't in pieces")
    options: dict[str, Any] = {"pixel_keyword": "PixelData", "pixel_vr": "OB"} | as_pixel_options(file)
    options |= {"transfer_syntax_uid": str(syntax), "number_of_frames": 1}
    frames = _checked(path, generate_frames(opened, number_of_frames=count), file, syntax)
    if syntax in _APART:
        with Decoder() as apart:
            for frame in frames:
                yield apart.decode(encapsulate([frame]), options)
        return
    decoder, plugin = get_decoder(UID(syntax)), _DECODERS.get(syntax, "")
    options["transfer_syntax_uid"] = UID(syntax)
    for frame in frames:
        yield decoder.as_array(encapsulate([frame]), index=0, decoding_plugin=plugin, **options)[0]


def _checked(path: Path, frames: Iterator[bytes], file, syntax: str) -> Iterator[bytes]:
    """Frames that are of the size that the header says, as far as they say it themselves."""
    size = int(file.Rows), int(file.Columns)
    for number, frame in enumerate(frames):
        if syntax in _JPEG_2000:
            frame = _codestream(path, frame, is_zeiss(file))
        if syntax == _RLE_SYNTAX and len(frame) > _RLE:
            raise DataError(f"{path}: B-scan {number} has {len(frame):,} bytes, which no device writes")
        if syntax != _RLE_SYNTAX and _size_of(frame) != size:
            raise DataError(f"{path}: B-scan {number} isn't of the size that the header says")
        if syntax in (*_JPEG, *_JPEG_LS) and not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise DataError(f"{path}: B-scan {number} ends too early")  # CharLS would search for its end for seconds
        yield frame


def _codestream(path: Path, frame: bytes, zeiss: bool) -> bytes:
    """JPEG 2000 without the boxes of a JP2 file, which decoders read in ways of their own."""
    if frame.startswith(_CODESTREAM):
        return frame
    if not frame.startswith(_JP2) and zeiss:
        frame = in_order(frame)
        if not frame.startswith(_JP2):
            raise DataError(
                f"{path}: its pictures are scrambled by Zeiss in a way that isn't known; "
                "export the cube as .img, or ask Zeiss for a plain DICOM export"
            )
    at = frame.find(b"jp2c" + _CODESTREAM)
    if at < 0:
        raise DataError(f"{path}: its pictures aren't JPEG 2000, as its header says")
    return frame[at + 4 :]


def in_order(frame: bytes) -> bytes:
    """A picture that Zeiss scrambled, as JP2 again; of another picture nothing meaningful."""
    data = np.frombuffer(frame, np.uint8).copy()
    data[::7] ^= 0x5A
    data = data.tobytes()
    at = 3 * len(data) // 5
    if not data.startswith(_JP2, at):
        at = data.find(_JP2)
    if at < 1016:
        return b""
    pieces = ((at, at + 253), (993, 1016), (276, 763), (23, 276), (1016, at), (0, 23), (763, 993), (at + 253, None))
    return b"".join(data[begin:end] for begin, end in pieces)


def _size_of(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a codestream says of itself: SIZ of JPEG 2000, SOF of JPEG and JPEG-LS; None if neither."""
    try:
        if frame.startswith(_CODESTREAM):
            columns, rows, left, top = struct.unpack_from(">4I", frame, 8)
            return rows - top, columns - left
        at = 2
        while frame.startswith(b"\xff\xd8"):
            marker, length = struct.unpack_from(">2H", frame, at)
            if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)):
                return struct.unpack_from(">2H", frame, at + 5)
            at += 2 + length
    except struct.error:
        pass
    return None
