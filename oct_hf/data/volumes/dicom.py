"""DICOM Ophthalmic Tomography (OPT), through pydicom; compressed pixels through its plugins (gdcm, pillow).

Where things stand is DICOM PS3.3 A.52 (the OPT object) and C.8.17 (its modules). A fundus photograph, a report or a
segmentation is refused by what it says it is.
"""

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from oct_hf.data.splits import pseudonyms
from oct_hf.data.volumes import Spacing, Volume, refuse_size
from oct_hf.errors import DataError

TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"  # Ophthalmic Tomography Image Storage
PHOTOGRAPHY = ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.840.10008.5.1.4.1.1.77.1.5.2")
_EYES = {"R": "OD", "L": "OS"}
_FULL_SCALES = (255, 4095, 65535)  # devices store 8 or 12 bits in 16
_NEIGHBOURS = 200  # files of a folder that are looked at for the en-face picture
_TOO_LARGE = 2 * 1024**3


def read_dicom(path: Path) -> list[Volume]:
    """The B-scans of one OPT file.

    Raises:
        DataError: it isn't DICOM, isn't OPT, is damaged, or says of itself what can't be.
    """
    try:
        import pydicom
    except ImportError:
        raise DataError(f'{path}: reading DICOM needs pydicom: pip install "oct-hf[volumes]"') from None
    if path.stat().st_size > _TOO_LARGE:
        raise DataError(f"{path}: has more than {_TOO_LARGE >> 30} GB")
    with _silent(path):
        file = pydicom.dcmread(path)
        _refuse_other_kinds(path, file)
        frames = int(file.get("NumberOfFrames", 1) or 1)
        refuse_size(path, frames, int(file.Rows), int(file.Columns))
        bscans = _bscans(path, file, frames)
        shared = _first(file, "SharedFunctionalGroupsSequence")
        positions, reference = _positions(file, frames)
        laterality = _laterality(file, shared)
        notes = [] if laterality else ["the file doesn't say which eye it is"]
        en_face = _en_face(path, reference) if reference else None
        if positions is not None and en_face is None:
            notes.append("the picture that its B-scans are placed on isn't in the folder")
        name = str(file.get("PatientID", "") or file.get("PatientName", "") or "")
        return [
            Volume(
                bscans,
                laterality,
                _spacing(file, shared),
                en_face,
                positions,
                pseudonyms([name])[0] if name else "",
                kind="DICOM (OPT)",
                warnings=tuple(notes),
            )
        ]


@contextmanager
def _silent(path: Path):
    """pydicom's warnings and errors may quote the header, and that is whose eye it is: none of their words go out."""
    log = logging.getLogger("pydicom")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path}: there isn't the memory to read it") from None
    except Exception as error:  # of a damaged file pydicom and its decoders raise nearly anything
        raise DataError(f"{path}: not a DICOM file that can be read ({type(error).__name__})") from None
    finally:
        log.setLevel(before)


def _refuse_other_kinds(path: Path, file) -> None:
    kind = file.get("SOPClassUID", None)
    if kind == TOMOGRAPHY or (kind is None and file.get("Modality") == "OPT"):
        if int(file.get("SamplesPerPixel", 1)) != 1:
            raise DataError(f"{path}: its B-scans are in colour, which OCT isn't")
        return
    # The name is DICOM's own, for a registered number; what else stands there isn't repeated.
    known = getattr(kind, "name", "") if kind is not None and kind.is_valid else ""
    told = f" (it is {known})" if known and known != kind else ""
    raise DataError(f"{path}: is no volume of OCT B-scans{told}")


def _bscans(path: Path, file, frames: int) -> np.ndarray:
    """uint8 `(n, height, width)`, decoded one frame after the other."""
    from pydicom.pixels import apply_rescale, apply_windowing, iter_pixels

    height, width = int(file.Rows), int(file.Columns)
    stored = int(file.get("BitsAllocated", 8))
    if not file.file_meta.TransferSyntaxUID.is_compressed:
        needed = frames * height * width * (stored // 8)
        if len(file.PixelData) < needed:
            raise DataError(f"{path}: ends too early: {len(file.PixelData):,} of {needed:,} bytes of pixels")
    elif frames > len(file.PixelData) // 8:  # each frame of a compressed file has a header of that size at least
        raise DataError(f"{path}: its header says {frames} B-scans, but it has {len(file.PixelData):,} bytes of them")
    result = np.empty((frames, height, width), np.uint8 if stored <= 8 else np.uint16)
    windowed = "WindowWidth" in file
    count = 0
    for frame in iter_pixels(file):
        values = apply_windowing(apply_rescale(frame, file), file) if windowed else frame
        if windowed:
            low, high = 0, 2 ** int(file.get("BitsStored", stored)) - 1
            values = np.clip(np.rint((values - low) * (65535 / (high - low))), 0, 65535)
            values = values if stored > 8 else values / 257
        result[count] = values
        count += 1
    if count != frames:
        raise DataError(f"{path}: has {count} B-scans, its header says {frames}")
    if result.dtype != np.uint8:
        full = next(scale for scale in _FULL_SCALES if result.max() <= scale)
        table = np.rint(np.arange(full + 1) * (255 / full)).astype(np.uint8)
        result = np.stack([table[frame] for frame in result])  # frame by frame: floating point would take 8 bytes each
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        np.subtract(255, result, out=result)
    return result


def _first(item, name: str):
    """The first of a sequence; None where there is none."""
    found = getattr(item, name, None) if item is not None else None
    return found[0] if found else None


def _laterality(file, shared) -> str:
    anatomy = _first(shared, "FrameAnatomySequence")
    told = [file.get("ImageLaterality", ""), file.get("Laterality", ""), getattr(anatomy, "FrameLaterality", "")]
    eyes = {_EYES[side] for side in told if side in _EYES}
    return eyes.pop() if len(eyes) == 1 else ""  # two that contradict each other say nothing


def _spacing(file, shared) -> Spacing:
    """PixelSpacing is row spacing (depth), then column spacing (along), in millimetres."""
    measures = _first(shared, "PixelMeasuresSequence")
    pixels = getattr(measures, "PixelSpacing", None) or file.get("PixelSpacing", None)
    between = getattr(measures, "SpacingBetweenSlices", None) or getattr(measures, "SliceThickness", None)
    depth, along = (pixels[0], pixels[1]) if pixels is not None and len(pixels) == 2 else (None, None)
    return Spacing(*(1000 * float(value) if value else None for value in (depth, along, between)))


def _positions(file, frames: int) -> tuple[np.ndarray | None, str | None]:
    """Ends of each B-scan on the reference picture, and that picture's number.

    ReferenceCoordinates are row and column of the first end, then of the second, counted from 1.
    """
    groups = getattr(file, "PerFrameFunctionalGroupsSequence", None)
    places = [_first(group, "OphthalmicFrameLocationSequence") for group in groups] if groups else []
    if len(places) != frames or any(place is None for place in places):
        return None, None
    ends = np.array([[float(v) for v in place.ReferenceCoordinates] for place in places])
    if ends.shape != (frames, 4) or not np.isfinite(ends).all():
        return None, None
    return ends[:, [1, 0, 3, 2]] - 1, str(places[0].get("ReferencedSOPInstanceUID", "")) or None


def _en_face(path: Path, number: str) -> np.ndarray | None:
    """The picture of that number among the files beside this one."""
    import pydicom

    beside = sorted(p for p in path.parent.iterdir() if p != path and p.suffix.lower() in (".dcm", ".dicom", ""))
    for other in beside[:_NEIGHBOURS]:
        try:
            head = pydicom.dcmread(other, stop_before_pixels=True, specific_tags=["SOPInstanceUID", "SOPClassUID"])
            if head.get("SOPInstanceUID") != number or head.get("SOPClassUID") not in PHOTOGRAPHY:
                continue
            picture = pydicom.dcmread(other)
            refuse_size(other, int(picture.get("NumberOfFrames", 1) or 1), int(picture.Rows), int(picture.Columns))
            values = picture.pixel_array
        except Exception:  # a neighbour that can't be read is no fault of this file
            continue
        values = values if values.ndim == 2 else values[..., :3].mean(-1) if values.shape[-1] in (3, 4) else values[0]
        top = max(float(values.max()), 1.0)
        return (values if values.dtype == np.uint8 else np.rint(values * (255 / top))).astype(np.uint8)
    return None
