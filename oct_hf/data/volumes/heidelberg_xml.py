"""Heidelberg's XML export: one .xml that names a picture for each B-scan, in the same folder.

eyepy's reader takes an eye that isn't stated for the left one, mixes the series of a file and opens any path, so the
file is read here. A document type, hence any entity, is refused; a picture's path is cut to its name.
"""

from pathlib import Path, PureWindowsPath

import numpy as np

from oct_hf.data.splits import pseudonyms
from oct_hf.data.volumes import Spacing, Volume, refuse_size, refuse_total
from oct_hf.data.volumes.unreadable import NEVER_TRIED, NO_EYE, damage_is_one_line
from oct_hf.errors import BadImageError, DataError
from oct_hf.images import read_image, to_gray
from oct_hf.untrusted import xml_of

_TOO_LONG = 64 * 1024**2  # bytes of text; an export of hundreds of segmented B-scans has some ten
_ELEMENTS = 2_000_000
_EYES = {"R": "OD", "L": "OS"}
_CONTEXT = "OphthalmicAcquisitionContext"


def read_xml(path: Path) -> list[Volume]:
    """Every series with OCT pictures.

    Raises:
        DataError: it isn't such an export, has entities, or a picture is missing or of another size.
    """
    with damage_is_one_line(path, "a Heidelberg XML export"):
        if path.stat().st_size > _TOO_LONG:
            raise DataError(f"{path}: has more than {_TOO_LONG >> 20} MB of text, which no export has")
        raw = path.read_bytes()
        if raw.count(b"<") > _ELEMENTS:
            raise DataError(f"{path}: has more than {_ELEMENTS:,} elements, which no export has")
        try:
            root = xml_of(raw)
        except ValueError as error:
            raise DataError(f"{path}: no Heidelberg XML export ({error})") from None
        volumes, total = [], 0
        for person in root.iter("Patient"):
            patient = (person.findtext("PatientID") or person.findtext("ID") or "").strip()
            for series in person.iter("Series"):
                if any(_kind(image) == "OCT" for image in series.iter("Image")):
                    volumes.append(_volume(path, series, patient, len(volumes), total))
                    total += volumes[-1].bscans.size
        if not volumes:
            raise DataError(f"{path}: no Heidelberg XML export with OCT pictures")
        return volumes


def _kind(image) -> str:
    return (image.findtext("ImageType/Type") or "").strip()


def _volume(path: Path, series, patient: str, number: int, before: int) -> Volume:
    images = [image for image in series.iter("Image") if _kind(image) == "OCT"]
    localizer = next((image for image in series.iter("Image") if _kind(image) == "LOCALIZER"), None)
    first = _picture(path, images[0])
    refuse_size(path, len(images), *first.shape)
    refuse_total(path, before + len(images) * first.size)
    bscans = np.empty((len(images), *first.shape), np.uint8)
    for row, image in enumerate(images):
        picture = _picture(path, image)
        if picture.shape != first.shape:
            raise DataError(f"{path}: its pictures differ in size, so they are no volume")
        bscans[row] = picture
    en_face = _picture(path, localizer) if localizer is not None else None
    eye = _EYES.get((series.findtext("Laterality") or "").strip(), "")
    ends = [
        [_number(image, f"{_CONTEXT}/{end}/Coord/{axis}") for end in ("Start", "End") for axis in "XY"]
        for image in images
    ]
    ends = np.array([[np.nan if v is None else v for v in row] for row in ends])
    scale = [_number(localizer, f"{_CONTEXT}/Scale{axis}") if localizer is not None else None for axis in "XY"]
    placed = en_face is not None and all(v and v > 0 for v in scale) and np.isfinite(ends).all()
    depth, along = (_microns(_number(images[0], f"{_CONTEXT}/Scale{axis}")) for axis in "YX")
    return Volume(
        bscans,
        eye,
        Spacing(depth, along, _between(ends)),
        en_face,
        ends / np.array(scale * 2) if placed else None,
        pseudonyms([patient])[0] if patient else "",
        number,
        "Heidelberg XML",
        (NEVER_TRIED, *([] if eye else [NO_EYE])),
    )


def _picture(path: Path, image) -> np.ndarray:
    """The picture beside the .xml; the export names it with the path of the machine that wrote it."""
    name = PureWindowsPath((image.findtext("ImageData/ExamURL") or "").strip()).name
    beside = path.parent / name
    if not name or beside.resolve().parent != path.parent.resolve():  # a link out of the folder
        raise DataError(f"{path}: names a picture that isn't in its folder")
    try:
        return to_gray(read_image(beside))
    except BadImageError as error:
        raise DataError(f"{path}: one of its pictures, {error}") from None


def _number(image, where: str) -> float | None:
    told = image.findtext(where)
    return float(told) if told and told.strip() else None


def _microns(millimetres: float | None) -> float | None:
    return 1000 * millimetres if millimetres and 0 < millimetres < 1 else None


def _between(ends: np.ndarray) -> float | None:
    """The steps from one B-scan to the next where they are equal within 4 %, as eyepy has it; in microns."""
    if len(ends) < 2 or not np.isfinite(ends).all():
        return None
    steps = np.hypot(*(ends[1:] - ends[:-1]).reshape(-1, 2).T)
    return 1000 * float(steps.mean()) if np.allclose(steps, steps[0], rtol=0.04) and steps[0] > 0 else None
