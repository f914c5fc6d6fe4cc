import numpy as np
import pytest
from PIL import Image
from small import pixels

from oct_hf import Preprocessing
from oct_hf.data import duplicates
from oct_hf.data.phantom import draw
from oct_hf.errors import DataError
from oct_hf.training.distillation import draw_phantoms
from oct_hf.training.unlabelled import NO_LABEL, MixedSampler, Together, read_unlabelled
from oct_hf.whole import file_sha256

SMALL = Preprocessing(64, 64)


def test_every_batch_has_its_share_of_each_kind_and_an_epoch_shows_every_picture():
    sampler = MixedSampler(labelled=10, others=30, batch_size=8, others_a_batch=5, seed=3)
    assert len(sampler) == 6 * 8
    seen = set()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert len(pairs) == len(sampler)
        for start in range(0, len(pairs), 8):
            kinds = [index >= 10 for _, index in pairs[start : start + 8]]
            assert kinds == [False] * 3 + [True] * 5
        assert {index for _, index in pairs} == set(range(40))
        assert sorted(index for _, index in pairs if index >= 10) == list(range(10, 40))
        assert not seen & set(pairs)  # no picture comes with the same augmentation twice
        seen |= set(pairs)
        assert len(set(pairs)) == len(pairs)
    again = MixedSampler(10, 30, 8, 5, 3)
    again.set_epoch(2)
    assert list(again) == pairs


def test_pictures_of_several_sets_stand_one_after_the_other():
    one, other = pixels(4), draw_phantoms(3, SMALL)
    both = Together(one, other)
    assert len(both) == 7 and np.array_equal(both[3]["pixel_values"], one.images[3])
    assert np.array_equal(both[4]["pixel_values"], other.images[0]) and both[4]["labels"] == NO_LABEL
    assert np.array_equal(both[2, 1]["pixel_values"], one[2, 1]["pixel_values"])  # augmented as in its own set


def write(folder, name: str, image: np.ndarray) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / name)
    return duplicates.thumbnail(image)


def test_unlabelled_pictures_that_are_held_out_or_near_one_are_left_out(tmp_path):
    held_out = draw("CNV", 0, 1, 0, 248, 256).image
    shifted = np.roll(held_out, 9, axis=1)
    shifted[:, :9] = shifted[:, 9:10]
    thumbnails = [write(tmp_path / "any", f"{i}.png", draw("DME", 0, 10 + i, 0, 248, 256).image) for i in range(5)]
    write(tmp_path / "any" / "deeper", "copy.png", draw("DME", 0, 10, 0, 248, 256).image)
    write(tmp_path, "shifted.png", shifted)
    same = tmp_path / "any" / "4.png"
    looks = np.frombuffer(duplicates.thumbnail(held_out), np.uint8).reshape(1, 64, 64)
    found, left_out = read_unlabelled(tmp_path, SMALL, {file_sha256(same)}, looks)
    assert len(found) == 4 and left_out == 3 and set(found.labels.tolist()) == {NO_LABEL}
    assert len(thumbnails) == 5 and found.images[0].shape == (64, 64)
    with pytest.raises(DataError, match="one of the B-scans held out"):
        read_unlabelled(tmp_path, SMALL, {file_sha256(p) for p in tmp_path.rglob("*.png")}, looks)
    with pytest.raises(DataError, match="no such folder"):
        read_unlabelled(tmp_path / "gone", SMALL, set(), looks)


def test_an_unlabelled_picture_that_can_not_be_read_is_named(tmp_path):
    write(tmp_path, "good.png", draw("DME", 0, 1, 0, 96, 96).image)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad.png: is not an image"):
        read_unlabelled(tmp_path, SMALL, set(), np.empty((0, 64, 64), np.uint8))
