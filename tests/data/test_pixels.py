import gc
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

from oct_hf.data.pixels import PixelFile
from oct_hf.errors import DataError


def test_pictures_come_back_by_row_also_in_another_process(bscan):
    images = np.stack([np.roll(bscan, shift, 0) for shift in range(7)])
    file = PixelFile(*images.shape)
    file.write(iter(images))
    copy = pickle.loads(pickle.dumps(file))
    assert len(file) == 7 and all(np.array_equal(copy[row], images[row]) for row in (6, 0, 3))


def test_the_file_goes_with_the_object(bscan):
    file = PixelFile(1, *bscan.shape)
    file.write([bscan])
    path = Path(file.path)
    copy = pickle.loads(pickle.dumps(file))
    assert path.exists()
    del file
    gc.collect()
    assert not path.exists() and len(copy) == 1


def test_a_full_disk_is_one_line(bscan, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = PixelFile(20, *bscan.shape)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(DataError, match="no room for 20 pictures of 256x248 pixels"):
            file.write([bscan] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
