"""Files as an OCT device exports them: B-scans of one eye with their spacing and places, never whose eye it is.

Each family of formats has a reader in a file of its own; the table below says which. Names, birth dates and ids stay
inside the readers: what leaves them is a pseudonym made with a key of this machine. What a file doesn't say is
unknown here, and not guessed.
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np

from oct_hf.errors import DataError


@dataclass(frozen=True)
class Spacing:
    """Distances in microns; None where the file doesn't say.

    Attributes:
        depth: of two pixels of a column.
        along: of two columns of a B-scan.
        between: of two neighbouring B-scans.
    """

    depth: float | None = None
    along: float | None = None
    between: float | None = None


@dataclass(frozen=True)
class Volume:
    """The B-scans of one acquisition of one eye.

    Attributes:
        bscans: uint8 `(n, height, width)`.
        laterality: "OD", "OS", or "" where unknown.
        spacing: in microns.
        en_face: uint8 `(h, w)`, the device's own picture of the fundus, or None.
        positions: float `(n, 4)`, x0, y0, x1, y1 of each B-scan in pixels of `en_face` from its upper left corner,
            or None.
        patient: a pseudonym, equal for one patient on this machine; "" where the file names none.
        number: which acquisition of its file, from 0.
        kind: the format, in words.
        warnings: what a person should know.
    """

    bscans: np.ndarray
    laterality: str = ""
    spacing: Spacing = field(default_factory=Spacing)
    en_face: np.ndarray | None = None
    positions: np.ndarray | None = None
    patient: str = ""
    number: int = 0
    kind: str = ""
    warnings: tuple[str, ...] = ()


# Ending -> the file of this folder and its function; imported only when such a file comes.
_READERS: dict[str, tuple[str, str]] = {
    ".dcm": ("dicom", "read_dicom"),
    ".dicom": ("dicom", "read_dicom"),
    ".vol": ("heidelberg", "read_vol"),
    ".e2e": ("e2e", "read_e2e"),
    ".xml": ("heidelberg_xml", "read_xml"),
    ".fda": ("topcon", "read_topcon"),
    ".fds": ("topcon", "read_topcon"),
    ".img": ("raw_cubes", "read_img"),
    ".oct": ("raw_cubes", "read_oct"),
}
# What a search through a folder takes up. An .xml is read when it is named; in a folder its pictures are found already.
VOLUME_EXTENSIONS = tuple(ending for ending in _READERS if ending != ".xml")
MAX_BYTES = 384 * 1024**2  # pixels of all B-scans of a file; a cube of 512x1024x128 has a sixth


def is_volume(path: str | Path) -> bool:
    """Whether a file is one of a device, by its ending, or by DICOM's mark where it has no known ending."""
    path = Path(path)
    if path.suffix.lower() == ".xml":  # Heidelberg's root element; any other .xml is none of ours
        return b"HEDX" in _beginning(path, 4096).replace(b"\0", b"")
    return path.suffix.lower() in _READERS or (path.suffix == "" and _begins_as_dicom(path))


def read_volumes(path: str | Path) -> list[Volume]:
    """Every acquisition in a device's file.

    Example:
        volume, *_ = oct_hf.read_volumes("scan.e2e")
        volume.bscans.shape, volume.laterality, volume.spacing.depth  # (49, 496, 512), "OD", 3.87 microns

    Raises:
        DataError: it can't be read, isn't OCT, or is larger than such a file can be.
    """
    path = Path(path)
    reader = _READERS[".dcm"] if _begins_as_dicom(path) else _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: no file of a device that is read ({', '.join(_READERS)})")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return getattr(import_module(f"{__name__}.{reader[0]}"), reader[1])(path)


def refuse_size(path: Path, frames: int, height: int, width: int) -> None:
    """Raises DataError where a header asks for more than a device writes, before anything is decoded."""
    if min(frames, height, width) < 1 or max(height, width) > 16_384 or frames * height * width > MAX_BYTES:
        raise DataError(f"{path}: its header says {frames} B-scans of {width}x{height} pixels, which no device writes")


def refuse_total(path: Path, pixels: int) -> None:
    """Raises DataError where all volumes of a file together have more pixels than a device writes."""
    if pixels > MAX_BYTES:
        raise DataError(f"{path}: has more than {MAX_BYTES >> 20} million pixels of B-scans, which no device writes")


def _begins_as_dicom(path: Path) -> bool:
    return _beginning(path, 132)[128:] == b"DICM"


def _beginning(path: Path, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(length)
    except OSError:
        return b""
