"""DICOM Ophthalmic Tomography (OPT), through pydicom; compressed pixels through its plugins (gdcm, pillow).

Where things stand is DICOM PS3.3 A.52 (the OPT object) and C.8.17 (its modules). A fundus photograph, a report or a
segmentation is refused by what it says it is.
"""

import logging
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from oct_hf.data.splits import pseudonyms
from oct_hf.data.volumes import MAX_BYTES, Spacing, Volume, refuse_size
from oct_hf.data.volumes.dicom_pixels import frames_of, is_zeiss, plain, read_header, registered
from oct_hf.data.volumes.unreadable import NEVER_TRIED, NO_EYE, gray_levels, only
from oct_hf.errors import DataError

TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"  # Ophthalmic Tomography Image Storage
PHOTOGRAPHY = ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.840.10008.5.1.4.1.1.77.1.5.2")
_EYES = {"R": "OD", "L": "OS", "OD": "OD", "OS": "OS"}  # the latter as Zeiss writes them
_NEIGHBOURS = 200  # files of a folder that are looked at for the en-face picture
_EN_FACE = 64 * 1024**2  # its pixels
_TOO_LARGE = 3 * MAX_BYTES


def read_dicom(path: Path) -> list[Volume]:
    """The B-scans of one OPT file.

    Raises:
        DataError: it isn't DICOM, isn't OPT, is damaged, or says of itself what can't be.
    """
    try:
        import pydicom  # noqa: F401 - imported here for its absence to be one line
    except ImportError:
        raise DataError(f'{path}: reading DICOM needs pydicom: pip install "oct-hf[volumes]"') from None
    if path.stat().st_size > _TOO_LARGE:
        raise DataError(f"{path}: has more than {_TOO_LARGE >> 20} MB")
    with _silent(path), open(path, "rb") as opened:
        file, start = read_header(path, opened)
        _refuse_other_kinds(path, file)
        file.NumberOfFrames = frames = int(plain(file, "NumberOfFrames") or 1)  # without what Zeiss writes behind it
        refuse_size(path, frames, int(file.Rows), int(file.Columns))
        groups = _Groups(file, frames)
        bscans = _bscans(path, opened, file, start, frames)
        order, notes = groups.order()
        if order is not None:
            bscans = bscans[order]
        laterality = groups.laterality()
        positions, reference = groups.positions(order)
        en_face = _en_face(path, reference) if reference else None
        if positions is not None and en_face is None:
            notes.append("the picture that its B-scans are placed on isn't in the folder")
        name = plain(file, "PatientID") or plain(file, "PatientName")
        return [
            Volume(
                bscans,
                laterality,
                groups.spacing(order),
                en_face,
                positions,
                pseudonyms([name])[0] if name else "",
                kind="DICOM (OPT)",
                warnings=(*([NEVER_TRIED] if is_zeiss(file) else []), *([] if laterality else [NO_EYE]), *notes),
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
    kind = plain(file, "SOPClassUID")
    if kind == TOMOGRAPHY or (not kind and plain(file, "Modality") == "OPT"):
        if int(file.get("SamplesPerPixel", 1)) != 1:
            raise DataError(f"{path}: its B-scans are in colour, which OCT isn't")
        return
    name = registered(kind)
    raise DataError(f"{path}: is no volume of OCT B-scans{f' (it is {name})' if name else ''}")


def _bscans(path: Path, opened, file, start: int, frames: int) -> np.ndarray:
    """uint8 `(n, height, width)`, decoded one frame after the other."""
    from pydicom.pixels.processing import apply_rescale, apply_windowing

    stored = int(file.get("BitsAllocated", 8))
    result = np.empty((frames, int(file.Rows), int(file.Columns)), np.uint8 if stored <= 8 else np.uint16)
    windowed = bool(_numbers(plain(file, "WindowWidth"))) and not is_zeiss(file)  # whose pictures are as shown
    for number, frame in enumerate(frames_of(path, opened, file, start, frames)):
        if windowed:
            high = 2 ** int(file.get("BitsStored", stored)) - 1
            values = apply_windowing(apply_rescale(frame, file), file)
            frame = np.clip(np.rint(values * (65535 / high)), 0, 65535)
            frame = frame if stored > 8 else frame / 257
        result[number] = np.maximum(frame, 0)
    result = gray_levels(result)
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        np.subtract(255, result, out=result)
    return result


def _first(item, name: str):
    """The first of a sequence; None where there is none."""
    found = getattr(item, name, None) if item is not None else None
    return found[0] if found else None


class _Groups:
    """What the file says of all frames (its root and the shared group) and of each (the groups per frame)."""

    def __init__(self, file, frames: int):
        self.file, self.frames = file, frames
        self.shared = _first(file, "SharedFunctionalGroupsSequence")
        each = list(getattr(file, "PerFrameFunctionalGroupsSequence", None) or ())
        self.each = each if len(each) == frames else []

    def _of_all(self, name: str) -> list:
        """The first item of a group's sequence, of the shared group and of each frame that has it."""
        found = [_first(group, name) for group in (self.shared, *self.each)]
        return [item for item in found if item is not None]

    def _of_each(self, name: str) -> list:
        """The same of every frame; empty where one lacks it."""
        found = [_first(group, name) for group in self.each]
        return [] if any(item is None for item in found) else found

    def laterality(self) -> str:
        """The one eye that is told; both, or two that contradict each other, say nothing."""
        told = [plain(self.file, "ImageLaterality"), plain(self.file, "Laterality")]
        told += [plain(item, "FrameLaterality") for item in self._of_all("FrameAnatomySequence")]
        return only({_EYES.get(side, "") for side in told if side})

    def order(self) -> tuple[np.ndarray | None, list[str]]:
        """Frames by their number in the stack, where it isn't the file's order; and what to say of it."""
        places = [
            (plain(item, "StackID"), int(item.get("InStackPositionNumber", None) or 0))
            for item in self._of_each("FrameContentSequence")
        ]
        numbers = [number for _, number in places]
        if not numbers or 0 in numbers or len({stack for stack, _ in places}) > 1 or numbers == sorted(numbers):
            return None, []
        if len(set(numbers)) < len(numbers):  # repeated scans of one place: the file's order is as good as any
            return None, ["two B-scans have one place in its stack; they stand as in the file"]
        return np.argsort(numbers), ["its B-scans were put in the order of their numbers, which isn't the file's"]

    def spacing(self, order: np.ndarray | None) -> Spacing:
        """PixelSpacing is row spacing (depth), then column spacing (along), in millimetres.

        The thickness of a slice is no distance to the next and isn't taken for one.
        """
        measures = self._of_all("PixelMeasuresSequence")
        pixels = {_numbers(plain(item, "PixelSpacing")) for item in (*measures, self.file)} - {()}
        between = {_numbers(plain(item, "SpacingBetweenSlices")) for item in measures} - {()}
        depth, along = next(iter(pixels)) if len(pixels) == 1 and len(next(iter(pixels))) == 2 else (0.0, 0.0)
        step = next(iter(between))[0] if len(between) == 1 else 0.0 if between else self._step(order)
        return Spacing(*(1000 * value if 0 < value < 100 else None for value in (depth, along, step)))

    def _step(self, order: np.ndarray | None) -> float:
        """The distance of neighbouring frames' positions where it is the same within 4 %, else 0."""
        places = self._of_each("PlanePositionSequence")
        ends = np.array([_numbers(plain(item, "ImagePositionPatient")) for item in places if len(places) > 1])
        if ends.ndim != 2 or ends.shape[1] != 3:
            return 0.0
        steps = np.linalg.norm(np.diff(ends if order is None else ends[order], axis=0), axis=1)
        return float(steps.mean()) if np.allclose(steps, steps[0], rtol=0.04) else 0.0

    def positions(self, order: np.ndarray | None) -> tuple[np.ndarray | None, str | None]:
        """Ends of each B-scan on the reference picture, and that picture's number.

        ReferenceCoordinates are row and column of the first end, then of the second, counted from 1. A picture that the
        file only refers to is shown without places.
        """
        places = self._of_each("OphthalmicFrameLocationSequence")
        pictures = {plain(place, "ReferencedSOPInstanceUID") for place in places}
        if len(pictures) != 1:
            return None, plain(_first(self.file, "ReferencedImageSequence"), "ReferencedSOPInstanceUID") or None
        ends = [[float(v) for v in place.get("ReferenceCoordinates", None) or ()] for place in places]
        if any(len(row) != 4 for row in ends) or not np.isfinite(ends).all():
            return None, pictures.pop() or None
        ends = np.array(ends)[:, [1, 0, 3, 2]] - 1
        return ends if order is None else ends[order], pictures.pop() or None


def _numbers(text: str) -> tuple[float, ...]:
    """The numbers of a field: DICOM parts them by a backslash, Zeiss by a comma."""
    try:
        return tuple(float(part) for part in re.split(r"\\" if "\\" in text else ",", text.strip("[]")) if part.strip())
    except ValueError:
        return ()


def _en_face(path: Path, number: str) -> np.ndarray | None:
    """The picture of that number among the files beside this one."""
    from pydicom.filereader import read_partial

    beside = sorted(p for p in path.parent.iterdir() if p != path and p.suffix.lower() in (".dcm", ".dicom", ""))
    for other in beside[:_NEIGHBOURS]:
        try:
            with open(other, "rb") as opened:
                head = read_partial(opened, stop_when=lambda tag, *_: tag > 0x00080018)
                if plain(head, "SOPInstanceUID") != number or plain(head, "SOPClassUID") not in PHOTOGRAPHY:
                    continue
                file, start = read_header(other, opened)
                if int(file.Rows) * int(file.Columns) * int(file.get("SamplesPerPixel", 1)) > _EN_FACE:
                    continue
                values = next(frames_of(other, opened, file, start, int(plain(file, "NumberOfFrames") or 1)))
        except Exception:  # a neighbour that can't be read is no fault of this file
            continue
        values = values[..., :3].mean(-1) if values.ndim == 3 else values
        top = max(float(values.max()), 1.0)
        return (values if values.dtype == np.uint8 else np.rint(values * (255 / top))).astype(np.uint8)
    return None
