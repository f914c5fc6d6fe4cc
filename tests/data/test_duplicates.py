import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oct_hf.data import duplicates
from oct_hf.data.duplicates import SIDE, find, find_mirrored, groups, thumbnail
from oct_hf.data.phantom import LABELS, draw
from oct_hf.images import read_image, to_gray


def stack(images) -> np.ndarray:
    return np.frombuffer(b"".join(map(thumbnail, images)), np.uint8).reshape(-1, SIDE, SIDE)


def again(image: np.ndarray, seed: int) -> np.ndarray:
    """The same picture shifted, brightened, resized and encoded anew, as copies come back from the net."""
    rng = np.random.default_rng(seed)
    height, width = image.shape
    down, right = int(rng.uniform(-0.08, 0.08) * height), int(rng.uniform(-0.08, 0.08) * width)
    moved = np.zeros_like(image)
    source = image[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    moved[max(0, down) : max(0, down) + len(source), max(0, right) : max(0, right) + source.shape[1]] = source
    moved = np.clip(moved * rng.uniform(0.85, 1.15) + rng.uniform(-8, 8), 0, 255).astype(np.uint8)
    encoded, scale = io.BytesIO(), rng.uniform(0.6, 1.4)
    resized = Image.fromarray(moved).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    resized.save(encoded, "JPEG", quality=int(rng.integers(50, 96)))
    return np.asarray(Image.open(encoded))


@pytest.fixture(scope="module")
def phantoms() -> list[np.ndarray]:
    """60 phantoms of 30 patients, two B-scans each."""
    return [draw(LABELS[p % 4], 5, p, scan, 192, 192).image for p in range(30) for scan in range(2)]


def test_copies_of_phantoms_are_found_and_nothing_else(phantoms):
    pairs = find(stack([*phantoms, *(again(image, n) for n, image in enumerate(phantoms))]))
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    true = {(n, n + len(phantoms)) for n in range(len(phantoms))}
    assert len(found & true) >= 0.98 * len(true)
    assert not found - true
    assert pairs.copies.mean() > 0.95


def test_mirrored_copies_are_found_where_they_are_searched_for_and_nothing_else(phantoms):
    copies = [np.ascontiguousarray(again(image, n)[:, ::-1]) for n, image in enumerate(phantoms)]
    everything = stack([*phantoms, *copies])
    assert len(find(everything, copies_only=True)) == 0
    pairs = find_mirrored(everything)
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    true = {(n, n + len(phantoms)) for n in range(len(phantoms))}
    assert len(found & true) >= 0.95 * len(true) and not found - true


def test_other_eyes_are_no_mirrored_copies(samples):
    files = sorted((samples / "neh_sample").rglob("*.jpeg"))
    assert len(find_mirrored(stack(map(read_image, files[::2])))) == 0


def test_copies_of_real_bscans_are_found_white_wedges_or_not(samples):
    images = [to_gray(read_image(f)) for f in sorted((samples / "oct2017_sample/train").rglob("*.jpeg"))]
    pairs = find(stack([*images, *(again(image, n) for n, image in enumerate(images))]), copies_only=True)
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    true = {(n, n + len(images)) for n in range(len(images))}
    assert len(found & true) >= 0.95 * len(true)
    assert len(found - true) <= 4  # B-scans of one volume are among these images


def test_real_neighbours_are_found_and_other_eyes_are_not(samples):
    files = sorted((samples / "neh_sample").rglob("*.jpeg"))
    names = [(f.parent.name, int(re.findall(r"\d+", f.stem)[0])) for f in files]
    pairs = find(stack(map(read_image, files)))
    linked = [(names[a], names[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    far = {name for one, other in linked if one[0] != other[0] or abs(one[1] - other[1]) > 100 for name in (one, other)}
    assert len(far) <= 0.01 * len(files)
    adjacent = {(one, other) for one in names for other in [(one[0], one[1] + 1)] if other in names}
    found = {tuple(sorted(pair)) for pair in linked} & adjacent
    assert len(found) > 0.25 * len(adjacent)  # the others show other places, or other eyes: borders aren't known
    copies = find(stack(map(read_image, files)), copies_only=True)
    assert 0 < len(copies) < len(pairs) and copies.copies.all()


def test_a_clump_larger_than_a_search_returns_is_one_group(phantoms):
    clump = [again(phantoms[0], seed) for seed in range(40)]
    pairs = find(stack([*phantoms[:6:2], *clump]))
    number = groups(len(clump) + 3, pairs)
    assert len(set(number[3:])) == 1 == len({number[0], *number[3:]})
    assert len({number[0], number[1], number[2]}) == 3


def test_the_same_thumbnails_give_the_same_pairs_also_when_they_stay_on_the_disk(phantoms, tmp_path):
    everything = stack([*phantoms, *(again(image, n) for n, image in enumerate(phantoms))])
    np.save(tmp_path / "t.npy", everything)
    one, other = find(everything), find(np.load(tmp_path / "t.npy", mmap_mode="r"))
    for name in ("first", "second", "coarse"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert (one.first < one.second).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_picture_is_no_fault(count, phantoms):
    assert len(find(stack(phantoms[: 2 * count : 2]))) == 0
    assert len(find(np.zeros((count, SIDE, SIDE), np.uint8))) <= 1


def test_what_an_export_left_white_is_black_in_the_thumbnail(bscan):
    wedged, blackened = np.maximum(bscan, 0), bscan.copy()
    rows, columns = np.indices(bscan.shape)
    wedge = rows > len(bscan) - 80 + columns // 2  # as an export leaves it where it turned the picture
    wedged[wedge], blackened[wedge] = 255, 0
    one, other = (np.frombuffer(thumbnail(image), np.uint8).astype(int) for image in (wedged, blackened))
    assert np.abs(one - other).mean() < 2 < np.abs(one - np.frombuffer(thumbnail(bscan), np.uint8)).max()


def test_colour_depth_and_size_of_the_file_do_not_change_the_thumbnail_much(bscan):
    gray = np.frombuffer(thumbnail(bscan), np.uint8).astype(int)
    colour = np.frombuffer(thumbnail(np.stack([bscan] * 3, axis=2)), np.uint8).astype(int)
    larger = np.asarray(Image.fromarray(bscan).resize((512, 496), Image.Resampling.NEAREST))
    assert np.array_equal(gray, colour)
    assert np.abs(np.frombuffer(thumbnail(larger), np.uint8).astype(int) - gray).mean() < 2


def test_correlation_is_that_of_its_definition(phantoms):
    """Against the plain sum over the overlap, at every shift."""
    one, other = stack(phantoms[:2])
    detail = duplicates._band(np.stack([one, other]), duplicates.FINE).astype(float)
    best = -1.0
    for down in range(-12, 13):
        for right in range(-12, 13):
            a = detail[0][max(0, down) : SIDE + min(0, down), max(0, right) : SIDE + min(0, right)]
            b = detail[1][max(0, -down) : SIDE + min(0, -down), max(0, -right) : SIDE + min(0, -right)]
            best = max(best, (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    found = duplicates.correlation(one[None], other[None])[0]
    assert found <= best + 1e-4
    same = duplicates.correlation(one[None], one[None])[0]
    assert same == pytest.approx(1, abs=1e-4)
    moved = np.roll(one, 5, axis=1)
    assert duplicates.correlation(one[None], moved[None])[0] > 0.9


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux tells them")
def test_no_thread_stays_that_a_later_fork_would_have_to_wait_for():
    code = """
import os, time, numpy as np
from oct_hf.data.duplicates import correlation
images = np.random.default_rng(0).integers(0, 256, (32, 64, 64), np.uint8)
before = os.listdir("/proc/self/task")
correlation(images, images)
until = time.monotonic() + 10  # a thread is joined a little before the system has cleared it away
while (left := len(os.listdir("/proc/self/task")) - len(before)) and time.monotonic() < until:
    time.sleep(0.01)
print(left)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "0"
