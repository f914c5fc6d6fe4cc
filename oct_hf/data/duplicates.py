"""Near-duplicate B-scans: one picture twice (shifted, brightened, re-encoded), or neighbours of one volume.

A thumbnail is kept of each picture while it is decoded. Magnitudes of its Fourier transform, which a shift leaves as
they are, find candidates in a graph of nearest neighbours (HNSW, so no step is quadratic); each candidate is then laid
over its partner and correlated. Two bands are looked at, because different healthy eyes look alike in the coarse one
and only copies agree in the fine one, where the speckle is.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from scipy import fft, ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from oct_hf.data.shrunken import shrink, white_wedges

SIDE = 64  # pixels of a thumbnail
COARSE = (1.0, 3.0)  # pixels of the thumbnail: what lies between two Gaussian blurs
FINE = (0.5, 1.5)
# Chosen on 540 B-scans of the NEH set and 180 phantoms, with copies of both: a shift up to 8 %, 15 % of contrast,
# JPEG quality 50 to 95, resize by 0.6 to 1.4. Of the 38,773 pairs of one class over 100 numbers apart, one reached
# 0.83 in the coarse band; the 300 that look most alike there reached 0.61 in the fine one.
COPY = 0.63  # correlation in the fine band from which two pictures are one
NEIGHBOUR = 0.83  # correlation in the coarse band from which they are at least neighbours of one volume
ROUNDING = 0.02  # that a correlation may be off on another processor
METHOD = "Fourier magnitudes, HNSW, correlation after registration; version 1"

_REACH = 12  # thumbnail pixels that a copy may be shifted: 19 %
_FREQUENCIES = 14  # lowest ones of each axis, in the descriptor
_CLIP = 4.0  # median deviations; one bright edge must not outweigh the rest
_NEAREST = 12  # candidates a picture
_FAR_COPY, _FAR_NEIGHBOUR = 0.45, 0.6  # cosine distances of descriptors; 99.96 % of copies lie within 0.4
_ROUNDS = 4
_WORTH = 0.4
_BLOCK = 2048


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures that are near-duplicates; `first < second`, sorted.

    Attributes:
        first, second: int `(m,)`, row numbers.
        coarse, fine: float32 `(m,)`, correlations from -1 to 1 in the two bands; `fine` is NaN where not looked at.
    """

    first: np.ndarray
    second: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray

    @property
    def copies(self) -> np.ndarray:
        """bool `(m,)`: the same picture, not only the same volume."""
        return self.fine >= COPY

    def of(self, rows: np.ndarray) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.first[rows], self.second[rows], self.coarse[rows], self.fine[rows])

    def __len__(self) -> int:
        return len(self.first)


def thumbnail(image: np.ndarray) -> bytes:
    """`SIDE` x `SIDE` gray levels of a B-scan, area-averaged, white wedges and margins of an export blackened.

    Args:
        image: uint8 `(height, width)` or `(height, width, 3)`.
    """
    return thumbnail_of(shrink(image))


def thumbnail_of(small: np.ndarray) -> bytes:
    """The thumbnail of a picture that `shrink` has made small already."""
    twice = np.where(white_wedges(small), 0, small)
    return np.rint(twice.reshape(SIDE, 2, SIDE, 2).mean((1, 3))).astype(np.uint8).tobytes()


class Thumbnails(Protocol):
    """uint8 `(n, SIDE, SIDE)`, what `thumbnail` gave: an array, or what gives one when indexed with row numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


def find(everything: Thumbnails, copies_only: bool = False) -> Pairs:
    """All near-duplicates of a set. The same thumbnails in the same order give the same pairs.

    Args:
        everything: of all pictures.
        copies_only: leave out neighbours of one volume.
    """
    rows, seen, found = np.arange(len(everything)), np.empty(0, np.int64), []
    # A clump of more pictures than a search returns hides its neighbours. So each group then sends one picture to a
    # next round, until no clump is left.
    for _ in range(_ROUNDS):
        candidates = np.setdiff1d(_candidates(everything, rows, copies_only), seen, assume_unique=True)
        seen = np.union1d(seen, candidates)
        found.append(_confirmed(everything, *np.divmod(candidates, len(everything)), copies_only))
        numbers = groups(len(everything), joined(found))
        if np.bincount(numbers[rows], minlength=1).max(initial=0) <= _NEAREST:
            break
        rows = np.intersect1d(rows, np.unique(numbers, return_index=True)[1])
    return joined(found)


def find_across(known: np.ndarray, new: np.ndarray) -> Pairs:
    """Near-duplicates of new pictures among known ones, whatever is alike within each.

    Args:
        known, new: uint8 `(n, SIDE, SIDE)` and `(m, SIDE, SIDE)`, what `thumbnail` gave.

    Returns:
        pairs whose `first` is a row of `known` and whose `second` is one of `new`.
    """
    if not len(known) or not len(new):
        return joined([])
    theirs, own = (_all_descriptors(images, np.arange(len(images))) for images in (known, new))
    common = theirs.mean(0, dtype=np.float32).astype(np.float16)
    rows, partners = _near(own - common, theirs - common, _NEAREST, False)
    found = _confirmed(np.concatenate([known, new]), partners, rows + len(known), False)
    return Pairs(found.first, found.second - len(known), found.coarse, found.fine)


def find_mirrored(everything: Thumbnails) -> Pairs:
    """Copies that are also turned left to right. It searches twice as many pictures as `find`.

    Args:
        everything: as for `find`.
    """
    count = len(everything)
    both = find(_Mirrored(everything), copies_only=True)
    across = both.of((both.first < count) & (both.second >= count) & (both.second - both.first != count))
    first, second = across.first, across.second - count
    return joined([Pairs(np.minimum(first, second), np.maximum(first, second), across.coarse, across.fine)])


class _Mirrored:
    """Thumbnails, and behind them the same turned left to right."""

    def __init__(self, everything: Thumbnails):
        self._everything = everything

    def __len__(self) -> int:
        return 2 * len(self._everything)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        turned, rows = np.divmod(rows, len(self._everything))
        images = self._everything[rows]
        return np.where(turned.astype(bool)[:, None, None], images[:, :, ::-1], images)


def groups(count: int, pairs: Pairs) -> np.ndarray:
    """int `(count,)`: pictures that pairs link, directly or through others, have one number."""
    links = coo_array((np.ones(len(pairs), bool), (pairs.first, pairs.second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _on_threads(transform: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
    """`transform(images)`, a part of the images on each core.

    Not by scipy's own threads (`workers`): they stay, and where a process forks while they wake up, as it does for the
    second worker of a DataLoader, it may wait for them for ever.
    """
    parts = np.array_split(images, min(os.cpu_count() or 1, len(images)))
    with ThreadPoolExecutor(len(parts)) as pool:
        return np.concatenate([*pool.map(transform, parts)])


def _band(images: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    """float32 `(n, SIDE, SIDE)`: detail between two widths, without outliers."""
    values = images.astype(np.float32)
    low, high = (ndimage.gaussian_filter(values, (0, width, width), truncate=3) for width in band)
    detail = low - high
    limit = _CLIP * np.median(np.abs(detail), axis=(1, 2), keepdims=True)
    return np.clip(detail, -limit, limit, out=detail)


def _descriptors(images: np.ndarray) -> np.ndarray:
    """float16 `(n, d)` of length 1, alike for shifted copies (the magnitude of a Fourier transform is)."""
    window = np.hanning(SIDE + 2)[1:-1].astype(np.float32)
    spectrum = np.abs(_on_threads(fft.rfft2, _band(images, COARSE) * np.outer(window, window)))
    rows = np.r_[0:_FREQUENCIES, -_FREQUENCIES:0]
    low = np.sqrt(spectrum[:, rows, :_FREQUENCIES]).reshape(len(images), -1)
    return (low / np.maximum(np.linalg.norm(low, axis=1, keepdims=True), 1e-6)).astype(np.float16)


def _candidates(everything: Thumbnails, rows: np.ndarray, copies_only: bool) -> np.ndarray:
    """Pairs worth laying over each other, as sorted numbers `first * n + second`."""
    if len(rows) < 2:
        return np.empty(0, np.int64)
    vectors = _all_descriptors(everything, rows)
    vectors -= vectors.mean(0, dtype=np.float32).astype(np.float16)  # what all B-scans have in common says nothing
    ones, others = _near(vectors, vectors, _NEAREST + 1, copies_only)
    there = ones != others
    ones, others = rows[ones[there]], rows[others[there]]
    return np.unique(np.minimum(ones, others) * len(everything) + np.maximum(ones, others))


def _all_descriptors(everything: Thumbnails, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([_descriptors(everything[rows[at : at + _BLOCK]]) for at in range(0, len(rows), _BLOCK)])


def _near(vectors: np.ndarray, known: np.ndarray, count: int, copies_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of vectors and of up to `count` known ones near each."""
    from usearch.index import Index

    index = Index(ndim=known.shape[1], metric="cos", dtype="f16", connectivity=16, expansion_add=96)
    index.expansion_search = 96
    index.add(np.arange(len(known)), known, threads=1)  # one thread, so that the graph is the same each time
    nearest = index.search(vectors, min(count, len(known)), threads=0)
    partners = np.atleast_2d(nearest.keys).astype(np.int64)
    ones = np.repeat(np.arange(len(vectors)), partners.shape[-1])
    others = partners.ravel()
    near = np.ravel(nearest.distances) <= (_FAR_COPY if copies_only else _FAR_NEIGHBOUR)
    there = near & (others >= 0) & (others < len(known))
    return ones[there], others[there]


def _confirmed(everything: Thumbnails, first: np.ndarray, second: np.ndarray, copies_only: bool) -> Pairs:
    """The candidates that correlate, block by block."""
    kept = []
    for at in range(0, len(first), _BLOCK):
        one, other = first[at : at + _BLOCK], second[at : at + _BLOCK]
        coarse = correlation(everything[one], everything[other], COARSE)
        fine = np.full(len(one), np.nan, np.float32)
        near = coarse >= COPY  # a copy agrees in both bands
        fine[near] = correlation(everything[one[near]], everything[other[near]], FINE)
        keep = (fine >= COPY) if copies_only else (fine >= COPY) | (coarse >= NEIGHBOUR)
        kept.append(Pairs(one[keep], other[keep], coarse[keep], fine[keep]))
    return joined(kept)


def joined(parts: list[Pairs]) -> Pairs:
    """All of them, each pair once."""
    if not parts:
        return Pairs(np.empty(0, int), np.empty(0, int), np.empty(0, np.float32), np.empty(0, np.float32))
    joined = Pairs(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("first", "second", "coarse", "fine")))
    order = np.lexsort((joined.second, joined.first))
    once = np.ones(len(order), bool)
    once[1:] = (np.diff(joined.first[order]) != 0) | (np.diff(joined.second[order]) != 0)
    return joined.of(order[once])


def correlation(ones: np.ndarray, others: np.ndarray, band: tuple[float, float] = FINE) -> np.ndarray:
    """Normalised cross-correlation of thumbnails, pair by pair, at the shift where it is largest.

    Numerator by the correlation theorem, denominator over the part that overlaps (Lewis, Fast Normalized
    Cross-Correlation, 1995, without its local means: the band has none). Where the correlation is below 0.4 even so,
    the denominator is that of the whole thumbnails.

    Args:
        ones, others: uint8 `(m, SIDE, SIDE)` each.
        band: `COARSE` or `FINE`.

    Returns:
        float32 `(m,)`, -1 to 1.
    """
    if not len(ones):
        return np.empty(0, np.float32)
    ones, others = _band(ones, band), _band(others, band)
    size = fft.next_fast_len(SIDE + _REACH, real=True)
    spectra = [_on_threads(partial(fft.rfft2, s=(size, size)), images) for images in (ones, others)]
    products = _on_threads(partial(fft.irfft2, s=(size, size)), spectra[0] * spectra[1].conj())
    shifts = np.arange(-_REACH, _REACH + 1)
    products = products[:, shifts][:, :, shifts]
    energy = np.sqrt(np.square(ones).sum((1, 2)) * np.square(others).sum((1, 2)))
    result = products.max((1, 2)) / np.maximum(energy, 1e-6)
    # Exactly, where the part that doesn't overlap may make the difference.
    close = result > _WORTH
    energy = _energy(ones[close], shifts) * _energy(others[close], -shifts)
    result[close] = (products[close] / np.sqrt(np.maximum(energy, 1e-6))).max((1, 2))
    return result.astype(np.float32)


def _energy(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Sum of squares over the part that overlaps at each shift, `(n, shifts, shifts)`, from an integral image."""
    integral = np.zeros((len(images), SIDE + 1, SIDE + 1))
    np.cumsum(np.cumsum(np.square(images, dtype=np.float64), 1), 2, out=integral[:, 1:, 1:])
    low, high = np.maximum(0, shifts), SIDE + np.minimum(0, shifts)
    top, bottom = integral[:, low], integral[:, high]
    return bottom[:, :, high] - top[:, :, high] - bottom[:, :, low] + top[:, :, low]
