"""The package's own filters against scipy's, bit by bit."""

import sys

import numpy as np
import pytest
from scipy import ndimage

from oct_hf.data import filters
from oct_hf.data.quality import look, measure_quality, oct_likeness
from oct_hf.data.shrunken import shrink
from oct_hf.images import read_image


@pytest.fixture
def without_scipy(monkeypatch):
    """As in a process that hasn't imported it."""
    monkeypatch.delitem(sys.modules, "scipy.ndimage")


@pytest.mark.parametrize("shape", [(128, 128), (31, 77)])
def test_filters_are_scipys_to_the_last_bit(without_scipy, shape):
    random = np.random.default_rng(0)
    for _ in range(20):
        image = random.integers(0, 256, shape).astype(np.float32)
        once = filters.uniform(image, 5)
        assert np.array_equal(once, ndimage.uniform_filter(image, 5))
        assert np.array_equal(filters.uniform(once, 9), ndimage.uniform_filter(once, 9))
        assert np.array_equal(filters.uniform_lines(once[0], 5), ndimage.uniform_filter1d(once[0], 5))
        mask = random.random(shape) > 0.97
        assert np.array_equal(filters.widened(mask, 5), ndimage.maximum_filter(mask, 5))


def test_a_picture_looks_the_same_without_scipy(real_files, monkeypatch):
    small = [shrink(read_image(file)) for file in real_files]
    expected, likeness = [look(one)[0] for one in small], [measure_quality(one).oct_likeness for one in small]
    monkeypatch.delitem(sys.modules, "scipy.ndimage")
    assert all(np.array_equal(look(one, rate=False)[0], other) for one, other in zip(small, expected, strict=True))
    assert [oct_likeness(one) for one in small] == likeness
    assert "scipy.ndimage" not in sys.modules
