"""DICOM files beyond the plain one: functional groups per frame by highdicom, JPEG 2000, Zeiss's scrambled pictures."""

import io
import struct
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless

from tests.data.volumes.write import write_dicom


def write_per_frame(
    path: Path, values: np.ndarray, eyes: str = "R", step: float | None = 0.12, numbers: list[int] | None = None
) -> Path:
    """An OPT file that says eye, place and spacing frame by frame, the eyes in turn, and nothing at its root.

    Args:
        step: millimetres from one B-scan to the next; their thickness is another.
        numbers: of the B-scans in their stack, from 1.
    """
    file = pydicom.dcmread(write_dicom(path, values, laterality=""))
    del file.SharedFunctionalGroupsSequence
    groups = []
    for frame in range(len(values)):
        number = numbers[frame] if numbers else frame + 1
        place, anatomy, content = Dataset(), Dataset(), Dataset()
        anatomy.FrameLaterality = eyes[frame % len(eyes)]
        content.StackID, content.InStackPositionNumber = "1", number
        place.PixelMeasuresSequence = highdicom.PixelMeasuresSequence([0.0039, 0.0115], slice_thickness=0.03)
        place.FrameAnatomySequence, place.FrameContentSequence = Sequence([anatomy]), Sequence([content])
        if step is not None:
            place.PlanePositionSequence = highdicom.PlanePositionSequence(
                highdicom.CoordinateSystemNames.PATIENT, (0.0, number * step, 0.0)
            )
        groups.append(place)
    file.PerFrameFunctionalGroupsSequence = Sequence(groups)
    file.save_as(path)
    return path


def jp2(image: np.ndarray, boxes: bool = True) -> bytes:
    """A picture as JPEG 2000 without loss, in the boxes of a .jp2 or as a bare codestream."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG2000", irreversible=False, no_jp2=not boxes)
    return encoded.getvalue()


def write_jpeg_2000(path: Path, values: np.ndarray, frames: list[bytes] | None = None, maker: str = "") -> Path:
    """Pydicom can't write it: pillow does. `frames` stand in for those of `values`."""
    file = pydicom.dcmread(write_dicom(path, values))
    file.PixelData = encapsulate(frames or [jp2(image, boxes=False) for image in values])
    file["PixelData"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = JPEG2000Lossless
    if maker:
        file.Manufacturer = maker
    file.save_as(path)
    return path


def scrambled(picture: bytes) -> bytes:
    """As Zeiss scrambles a .jp2: eight pieces in another order, and every seventh byte changed by 0x5A."""
    size = len(picture)
    head, rest = picture[:253], size - 253
    lengths = [23, 487, 253, 3 * size // 5 - 1016, 23, 230]
    parts, at = [], 253
    for length in lengths:
        parts.append(picture[at : at + length])
        at += length
    i993, i276, i23, i1016, i0, i763 = parts
    data = bytearray(i0 + i23 + i276 + i763 + i993 + i1016 + head + picture[at:])
    assert len(data) == size and rest > 0
    for place in range(0, size, 7):
        data[place] ^= 0x5A
    return bytes(data)


def write_zeiss(path: Path, values: np.ndarray) -> Path:
    """As Cirrus exports it: scrambled pictures, fields with rubbish behind a zero byte, numbers parted by commas."""
    write_jpeg_2000(path, values, [scrambled(jp2(image)) for image in values], "Carl Zeiss Meditec")
    file = pydicom.dcmread(path)
    del file.SharedFunctionalGroupsSequence, file.ImageLaterality
    with pydicom.config.disable_value_validation():
        file.Laterality = "OS"
        file.save_as(path)
    raw = path.read_bytes()
    count = struct.pack("<HH2sH", 0x28, 8, b"IS", 2) + f"{len(values)} ".encode()
    assert raw.count(count) == 1
    rubbish = f"{len(values)}\0\x8ax\xff7".encode("latin-1")
    spacing = struct.pack("<HH2sH", 0x28, 0x30, b"DS", 16) + b"0.00195,0.0117\0\x9c"
    at = raw.index(struct.pack("<HH2sH", 0x28, 0x100, b"US", 2))
    raw = raw[:at] + spacing + raw[at:]
    path.write_bytes(raw.replace(count, struct.pack("<HH2sH", 0x28, 8, b"IS", len(rubbish)) + rubbish))
    return path


def write_jpeg_lossless(path: Path, values: np.ndarray) -> Path:
    """JPEG without loss (DICOM's own default); gdcm encodes it, but of another kind of object."""
    import gdcm

    other = write_dicom(path.with_name("other.dcm"), values, kind="1.2.840.10008.5.1.4.1.1.7.2")
    file = pydicom.dcmread(other)
    del file.SharedFunctionalGroupsSequence
    file.save_as(other)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(other))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(other))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    encoded, file = pydicom.dcmread(other), pydicom.dcmread(write_dicom(path, values))
    file.PixelData, file.file_meta.TransferSyntaxUID = encoded.PixelData, encoded.file_meta.TransferSyntaxUID
    file["PixelData"].is_undefined_length = True
    file.save_as(path)
    other.unlink()
    return path
