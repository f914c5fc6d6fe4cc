"""What the readers of binary device files share: faults as one line, gray levels, notes.

None of a library's words go out, since they may quote a header, and a header says whose eye it is.
"""

import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from oct_hf.errors import DataError

NO_EYE = "the file doesn't say which eye it is"
NEVER_TRIED = "this reader was written from the published layout and never tried on a genuine file"
_FULL_SCALES = (255, 4095, 65535)  # devices store 8 or 12 bits in 16


@contextmanager
def damage_is_one_line(path: Path, kind: str):
    """Whatever a damaged file makes a parser raise becomes a DataError with the kind of fault, and no more."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path}: there isn't the memory to read it") from None
    except Exception as error:
        raise DataError(f"{path}: not {kind} that can be read ({type(error).__name__})") from None


def gray_levels(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """uint8 `(n, height, width)` of B-scans of unsigned integers, by the smallest full scale that holds them all.

    A volume of uint8 comes back as it is; B-scans may lie in a mapped file, since no copy of all is made.
    """
    if values[0].dtype == np.uint8:
        return np.asarray(values)
    top = max(int(bscan.max()) for bscan in values)
    full = next(scale for scale in _FULL_SCALES if top <= scale)
    result = np.empty((len(values), *values[0].shape), np.uint8)
    for number, bscan in enumerate(values):  # one after the other: a float copy of all would be eight times as large
        result[number] = np.rint(bscan * (255 / full))
    return result


def text(raw: bytes) -> str:
    """A padded field."""
    return raw.split(b"\0", 1)[0].decode("latin-1").strip()


def only(values: set) -> str:
    """The one value that was told; "" where none was, or where two contradict each other."""
    return next(iter(values)) if len(values) == 1 else ""
