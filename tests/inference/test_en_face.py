import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from oct_hf.data.volumes import Volume
from oct_hf.inference.en_face import _HEAD, _MARGIN, WIDTH, colour, mark, projection
from oct_hf.inference.eyes import EyeAnswer
from tests.data.volumes.write import SECRETS, bscans, write_vol

LABELS = ("DME", "NORMAL")


def answered(probabilities, driving=(), **volume) -> EyeAnswer:
    """An eye whose B-scans show DME with these probabilities."""
    values = np.stack([probabilities, 1 - np.array(probabilities)], 1).astype(np.float32)
    scans = Volume(bscans(len(values)), "OD", patient="Mustermann", **volume)
    return EyeAnswer("/home/Mustermann.vol", scans, LABELS, values, "mean", np.array([0.8, 0.2]), driving)


def pixel(picture: Image.Image, x: float, y: float) -> tuple[int, int, int]:
    return picture.getpixel((round(x) + _MARGIN, round(y) + _HEAD))


@pytest.mark.parametrize("size", [320, 640, 1280])
def test_each_line_lies_where_its_bscan_was_taken_in_the_colour_of_its_probability(size):
    values, heights = (0.1, 0.5, 0.9), (0.2, 0.5, 0.8)
    places = np.array([(0.25 * size, h * size, 0.75 * size, h * size) for h in heights])
    picture = mark(answered(values, (2,), en_face=np.full((size, size), 77, np.uint8), positions=places))
    for value, height in zip(values, heights, strict=True):
        assert pixel(picture, 0.4 * WIDTH, height * WIDTH) == colour(value)
        assert pixel(picture, 0.1 * WIDTH, height * WIDTH) == (77, 77, 77)  # beside the scanned field
    assert pixel(picture, 0.5 * WIDTH, 0.35 * WIDTH) == (77, 77, 77)
    wide = [sum(pixel(picture, 0.4 * WIDTH, h * WIDTH + d) != (77, 77, 77) for d in range(-9, 10)) for h in heights]
    assert wide[0] == wide[1] < wide[2]


def test_lines_end_at_the_edges_of_the_fundus():
    places = np.array([(-99.0, 20, 200, 20), (0, 90, 64, 90), (0, -30, 64, -30)])
    fundus = np.full((64, 64), 77, np.uint8)
    picture = np.array(mark(answered([0.1, 0.5, 0.9], (), en_face=fundus, positions=places)))
    plain = np.array(mark(answered([0.1, 0.5, 0.9], (), en_face=fundus, positions=np.full((3, 4), -50.0))))
    beside = np.ones(picture.shape[:2], bool)
    beside[_HEAD : _HEAD + WIDTH, _MARGIN : _MARGIN + WIDTH] = False
    assert np.array_equal(picture[beside], plain[beside])
    assert pixel(Image.fromarray(picture), 0, 20 * WIDTH / 64) == colour(0.1)


def test_a_projection_stands_in_where_the_file_has_no_fundus():
    values = np.linspace(0, 1, 8)
    picture = mark(answered(values, (7,)))
    for number, value in enumerate(values):
        assert pixel(picture, WIDTH / 2, (number + 0.5) * WIDTH / 8) == colour(value)
    placeless = mark(answered(values, (7,), en_face=np.full((64, 64), 9, np.uint8)))
    assert placeless.tobytes() == picture.tobytes()
    light = np.stack([np.full((5, 4), level, np.uint8) for level in (10, 60, 200)])
    assert projection(light)[:, 0].tolist() == sorted(projection(light)[:, 0].tolist()) and projection(light).shape == (
        3,
        4,
    )


def test_one_bscan_and_very_many_have_a_picture():
    assert mark(answered([0.5], (0,))).width == mark(answered([0.5] * 200, (0, 1, 2))).width


def test_colours_rise_in_lightness():
    light = [np.dot(colour(value), (0.2126, 0.7152, 0.0722)) for value in np.linspace(0, 1, 50)]
    assert all(a < b for a, b in pairwise(light))


def test_the_command_writes_a_picture_an_eye_that_names_nobody(finished_run, tmp_path):
    scan = write_vol(tmp_path / "Mustermann.vol", bscans(6))
    command = [sys.executable, "-m", "oct_hf.cli", "predict", scan, "--model", finished_run]
    command += ["--en-face", tmp_path / "pictures", "--out", tmp_path / "answers.csv"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    (file,) = (tmp_path / "pictures").iterdir()
    assert file.name == "0001.png" and "1 pictures" in said.stderr + said.stdout
    content = file.read_bytes()
    assert not any(secret.encode() in content for secret in (*SECRETS, "Mustermann"))
    assert Image.open(file).info == {}
