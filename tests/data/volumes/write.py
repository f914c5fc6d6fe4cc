"""Device files of phantoms, with a patient's name, birth date and id in the header that must never come out again."""

import struct
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from oct_hf.data.phantom import draw
from oct_hf.data.volumes.dicom import PHOTOGRAPHY, TOMOGRAPHY

SECRETS = ("Mustermann", "Erika", "19550317", "1955-03-17", "MRN-4711")


def bscans(count: int = 5, height: int = 96, width: int = 128, label: str = "DME") -> np.ndarray:
    """uint8 `(count, height, width)` of one phantom eye."""
    return np.stack([draw(label, 4, 1, scan, height, width).image for scan in range(count)])


def _file(path: Path, kind: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    file.PatientName, file.PatientID, file.PatientBirthDate = "Mustermann^Erika", "MRN-4711", "19550317"
    file.StudyInstanceUID, file.SeriesInstanceUID = generate_uid(), generate_uid()
    file.Modality = "OPT"
    return file


def _pixels(file: FileDataset, values: np.ndarray, photometric: str = "MONOCHROME2") -> None:
    bits = 8 * values.dtype.itemsize
    file.NumberOfFrames, file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, photometric, 0
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit = bits - 1
    file.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()


def write_dicom(
    path: Path,
    values: np.ndarray,
    laterality: str = "R",
    en_face: np.ndarray | None = None,
    compress: str | None = None,
    photometric: str = "MONOCHROME2",
    kind: str = TOMOGRAPHY,
) -> Path:
    """An Ophthalmic Tomography file, and beside it its fundus picture where one is given."""
    file = _file(path, kind)
    _pixels(file, values, photometric)
    if laterality:
        file.ImageLaterality = laterality
    measures = Dataset()
    measures.PixelSpacing, measures.SpacingBetweenSlices, measures.SliceThickness = [0.0039, 0.0115], 0.12, 0.12
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    file.SharedFunctionalGroupsSequence = Sequence([shared])
    if en_face is not None:
        picture = _file(path, PHOTOGRAPHY[0])
        _pixels(picture, en_face[None])
        picture.save_as(path.with_name(path.stem + "_fundus.dcm"), enforce_file_format=True)
        groups = []
        for number in range(len(values)):
            place = Dataset()
            place.ReferencedSOPClassUID, place.ReferencedSOPInstanceUID = PHOTOGRAPHY[0], picture.SOPInstanceUID
            row = 11.0 + 2 * number
            place.ReferenceCoordinates = [row, 6.0, row, 56.0]
            group = Dataset()
            group.OphthalmicFrameLocationSequence = Sequence([place])
            groups.append(group)
        file.PerFrameFunctionalGroupsSequence = Sequence(groups)
    if compress:
        file.compress(compress)
    file.save_as(path, enforce_file_format=True)
    return path


def write_not_oct(path: Path, kind: str) -> Path:
    """Another kind of DICOM object: a fundus photograph, a report, a segmentation."""
    file = _file(path, kind)
    if kind != pydicom.uid.EncapsulatedPDFStorage:
        _pixels(file, np.zeros((1, 32, 32), np.uint8))
    file.save_as(path, enforce_file_format=True)
    return path


def reflectivity(levels: np.ndarray) -> np.ndarray:
    """From gray levels back to what Heidelberg stores, by eyepy's `to_vol_intensity`."""
    return np.maximum(np.exp(levels / 255 * 8.285 - 8.3) - 2.44e-4, 0)


def write_vol(path: Path, values: np.ndarray, eye: str = "OS", header: int = 256) -> Path:
    """A Heidelberg .vol byte by byte, as its raw export is described, with reflectivities that show as these levels."""
    count, height, width = values.shape
    head = bytearray(2048)
    struct.pack_into("<12s3I3d", head, 0, b"HSF-OCT-103", width, count, height, 0.0115, 0.12, 0.0039)
    struct.pack_into("<2I2dId4sQiI", head, 48, 64, 64, 0.05, 0.05, 30, 0.0, eye.encode(), 0, 3, header)
    struct.pack_into("<16s16sI24sd", head, 104, b"1", b"", 4711, b"MRN-4711", 20165.0)  # born 17 March 1955
    parts = [bytes(head), bytes([90]) * 64 * 64]
    for number, image in enumerate(values):
        row = bytearray(header)
        y = 1.0 + 0.1 * number
        struct.pack_into("<12sI4d2If", row, 0, b"HSF-BS-103", header, 1.0, y, 2.0, y, 0, 256, 30.0)
        parts += [bytes(row), reflectivity(image).astype("<f4").tobytes()]
    path.write_bytes(b"".join(parts))
    return path
