"""The filters that every picture goes through, as scipy.ndimage has them to the last bit, without its import.

That takes longer than answering a picture does; scipy's own are twice as fast, though, so that with many pictures to
come `expect_many` takes them.
"""

import sys

import numpy as np


def expect_many() -> None:
    """Imports scipy, whose filters are then taken."""
    import scipy.ndimage  # noqa: F401


def uniform(image: np.ndarray, size: int) -> np.ndarray:
    """The mean of `size` x `size` pixels around each, float32 `(height, width)`; edges are mirrored.

    Args:
        image: float32 `(height, width)`.
        size: odd.
    """
    if scipy := sys.modules.get("scipy.ndimage"):
        return scipy.uniform_filter(image, size)
    return uniform_lines(uniform_lines(image.T, size).T, size)  # down the columns first


def uniform_lines(lines: np.ndarray, size: int) -> np.ndarray:
    """The mean of `size` neighbours along each line, float32 `(n, length)` or `(length,)`; ends are mirrored."""
    length, half = lines.shape[-1], size // 2
    # A running sum in double precision: the order of its additions decides the last bit.
    wide = np.empty((*lines.shape[:-1], length + 2 * half))
    wide[..., half:-half] = lines
    wide[..., :half], wide[..., -half:] = lines[..., half - 1 :: -1], lines[..., : -half - 1 : -1]
    sums = np.empty(lines.shape)
    np.subtract(wide[..., size:], wide[..., :-size], out=sums[..., 1:])
    sums[..., 0] = sum(wide[..., place] for place in range(size))
    np.cumsum(sums, -1, out=sums)
    sums /= size
    return sums.astype(np.float32)


def widened(mask: np.ndarray, size: int) -> np.ndarray:
    """bool `(height, width)`: true wherever one of the `size` x `size` pixels around is; `size` is odd."""
    half, wide = size // 2, mask
    for axis in (0, 1):
        before, wide = np.moveaxis(wide, axis, 0), wide.copy()
        after = np.moveaxis(wide, axis, 0)
        for step in range(1, half + 1):
            after[step:] |= before[:-step]
            after[:-step] |= before[step:]
    return wide
