"""A B-scan made small, which is all that near-duplicates and quality look at, and what of it is no B-scan."""

import numpy as np
from PIL import Image

from oct_hf.data.filters import widened
from oct_hf.images import to_gray

SHRUNKEN = 128  # pixels, height and width
_WHITE, _FLAT = 180, 6  # gray levels: a wedge that an export filled is at least so bright and varies so little
_PAPER = 235  # a margin that a plotting tool left


def shrink(image: np.ndarray) -> np.ndarray:
    """uint8 `(SHRUNKEN, SHRUNKEN)`, area-averaged, of uint8 `(height, width)` or `(height, width, 3)`."""
    size = (SHRUNKEN, SHRUNKEN)
    return np.array(Image.fromarray(to_gray(image)).resize(size, Image.Resampling.BOX, reducing_gap=1.0))


def white_wedges(small: np.ndarray) -> np.ndarray:
    """bool mask of what an export filled with white, in the upper and the lower quarter of a shrunken picture.

    What is bright and even in the middle is a layer of the retina.
    """
    mask = np.zeros(small.shape, bool)
    for rows in (slice(None, SHRUNKEN // 4), slice(-SHRUNKEN // 4, None)):
        edge = small[rows]
        white = edge >= _WHITE
        if white.any():
            even = np.abs(np.diff(edge.astype(np.int16), axis=1)) <= _FLAT
            white[:, 1:-1] &= even[:, 1:] & even[:, :-1]
            white[:, [0, -1]] &= white[:, [1, -2]]
            mask[rows] = widened(white, 5) & (edge >= 40)
    return mask


def margins(small: np.ndarray) -> np.ndarray:
    """bool mask of the rows and columns at the edges that are white from end to end."""
    mask = np.zeros(small.shape, bool)
    for axis, view in ((1, mask), (0, mask.T)):
        white = small.min(axis) >= _PAPER
        view[: np.argmin(white) if not white.all() else len(white)] = True
        view[len(white) - np.argmin(white[::-1]) :] = True
    return mask
