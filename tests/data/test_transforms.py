import json

import numpy as np
import pytest

from oct_hf.data.course import retina_course
from oct_hf.data.phantom import draw
from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import (
    PIPELINES,
    TRANSFORMS,
    Augmentation,
    Background,
    Bend,
    Corners,
    RemoveWedge,
    Shading,
    Speckle,
    Tone,
)
from oct_hf.errors import RecipeError


@pytest.mark.parametrize("name", [*PIPELINES, *([step] for step in TRANSFORMS)])
def test_pictures_keep_shape_and_type(bscan, name):
    result = Augmentation([{"name": name[0], "p": 1.0}] if isinstance(name, list) else name)(bscan, 0, "h")
    assert result.shape == bscan.shape and result.dtype == np.uint8
    if name not in ("none", ["wedge"]):
        assert not np.array_equal(result, bscan) or name == "light"


def test_the_same_seed_epoch_and_content_give_the_same_picture_whatever_came_before(bscan):
    one, other = Augmentation("strong", seed=5), Augmentation("strong", seed=5)
    for epoch in range(3):
        other(bscan, epoch, "something else")
    assert np.array_equal(one(bscan, 7, "abc"), other(bscan, 7, "abc"))
    pictures = [
        one(bscan, 7, "abc"),
        one(bscan, 8, "abc"),
        one(bscan, 7, "abd"),
        Augmentation("strong", 6)(bscan, 7, "abc"),
    ]
    assert all(not np.array_equal(pictures[0], other) for other in pictures[1:])


@pytest.mark.parametrize("name", ["strong", "robust"])
def test_a_stored_pipeline_gives_the_same_pictures(bscan, name):
    augmentation = Augmentation(name, seed=2)
    again = Augmentation.from_dict(json.loads(json.dumps(augmentation.to_dict())))
    assert all(np.array_equal(augmentation(bscan, e, "x"), again(bscan, e, "x")) for e in range(8))


def test_a_bscan_is_never_turned_upside_down(bscan):
    dark_below = np.zeros((64, 64), np.uint8)
    dark_below[:20] = 200
    for epoch in range(40):
        result = Augmentation("strong")(dark_below, epoch, "h").astype(int)
        assert result[:20].mean() >= result[-20:].mean()


def test_the_white_wedge_goes_and_the_bright_retina_stays():
    image = np.full((128, 128), 20, np.uint8)
    image[60:64] = 250  # a bright layer that reaches both borders is thinner than a wedge …
    image[60:64, :2] = image[60:64, -2:] = 30  # … and seldom saturates at the border
    wedge = np.add.outer(np.arange(128), np.arange(128)) < 30
    image[wedge] = 255
    cleaned = RemoveWedge(p=1.0)(image=image)["image"]
    assert cleaned[wedge].max() < 64 and (cleaned[60:64, 10:-10] == 250).all()


def test_speckle_has_mean_one_and_the_variance_of_its_looks():
    flat = np.full((256, 256), 100, np.uint8)
    noisy = Speckle(looks=(16, 16), p=1.0)(image=flat)["image"] / 100
    assert abs(noisy.mean() - 1) < 0.02 and abs(noisy.std() - 1 / 4) < 0.02


def still(**changed) -> Bend:
    """Moves nothing but what a test asks for."""
    options = {"flatten": (0, 0), "tilt": 0, "curve": 0, "wave": 0, "scale": (1, 1), "shift": 0, "p": 1.0}
    bend = Bend(**{**options, **changed})
    bend.set_random_seed(0)
    return bend


def course_of(image: np.ndarray) -> np.ndarray:
    """The brightest row of each column of a curve drawn on black; what is white came in from outside."""
    return np.where(image > 204, 0, image).argmax(0).astype(float)


def curved_retina() -> np.ndarray:
    x = np.linspace(-1, 1, 120)
    rows = np.rint(50 + 18 * x**2 + 6 * x).astype(int)
    image = np.full((128, 120), 10, np.uint8)
    for thick in range(5):
        image[rows + thick, np.arange(120)] = 200 + thick
    return image


def test_bending_by_nothing_leaves_the_picture(bscan):
    moved = still()(image=bscan)["image"].astype(int)
    assert np.abs(moved - bscan).max() <= 1


def test_the_course_of_a_retina_is_found_and_flattening_takes_it_away():
    image = curved_retina()
    x = np.linspace(-1, 1, 120)
    true = 18 * x**2 + 6 * x
    assert np.allclose(128 * retina_course(image)(x), true - true.mean(), atol=2.5)
    flat = course_of(still(flatten=(1, 1))(image=image)["image"])[6:-6]
    half = course_of(still(flatten=(0.5, 0.5))(image=image)["image"])[6:-6]
    assert np.ptp(course_of(image)[6:-6]) > 18 and np.ptp(flat) <= 4 and 7 < np.ptp(half) < 13


def test_a_white_wedge_does_not_change_the_course_that_is_found():
    image = curved_retina()
    with_wedge = image.copy()
    with_wedge[np.add.outer(np.arange(128), np.arange(120)) < 40] = 255
    x = np.linspace(-1, 1, 50)
    assert np.allclose(retina_course(image)(x), retina_course(with_wedge)(x), atol=0.01)


def test_a_picture_without_anything_bright_has_no_course():
    assert not retina_course(np.zeros((64, 64), np.uint8))(np.linspace(-1, 1, 9)).any()


def test_height_and_width_are_scaled_apart():
    image = np.zeros((120, 120), np.uint8)
    image[40:80, 40:80] = 200
    ratios = []
    for seed in range(20):
        bend = still(scale=(0.7, 1.4))
        bend.set_random_seed(seed)
        there = bend(image=image)["image"] > 100
        ratios.append(there.any(1).sum() / there.any(0).sum())
    assert min(ratios) < 0.8 and max(ratios) > 1.25


def test_a_mask_moves_along_with_its_picture():
    drawn = draw("CNV", 5, height=128, width=128)
    mask = drawn.mask.astype(np.uint8)
    lit = np.where(drawn.mask, 200, 20).astype(np.uint8)
    augmentation = Augmentation(["flip", {"name": "bend", "p": 1.0}, {"name": "corners", "p": 1.0}], 1)
    for epoch in range(20):
        image, moved = augmentation.with_mask(lit, mask, epoch, "h")
        assert set(np.unique(moved)) <= {0, 1}
        assert (moved[image == 200] == 1).mean() > 0.97 and (image[moved == 1] > 110).mean() > 0.9
        assert np.array_equal(image, augmentation(lit, epoch, "h"))


def test_what_a_corner_cuts_off_is_no_lesion():
    everything = np.ones((100, 80), np.uint8)
    for seed in range(10):
        corners = Corners(size=0.3, p=1.0)
        corners.set_random_seed(seed)
        done = corners(image=np.full((100, 80), 90, np.uint8), mask=everything)
        assert np.array_equal(done["image"] == 90, done["mask"] == 1)
        assert 0 < (done["mask"] == 0).mean() < 0.5
        assert (done["mask"][35:65] == 1).all()


def test_a_tone_curve_never_turns_gray_levels_round():
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(16, 0)
    curves = []
    for seed in range(30):
        tone = Tone(p=1.0)
        tone.set_random_seed(seed)
        curves.append(tone(image=ramp)["image"][0].astype(int))
        assert (np.diff(curves[-1]) >= 0).all() and curves[-1][-1] - curves[-1][0] > 120
    assert np.ptp([curve[128] for curve in curves]) > 60


def test_shading_is_slow_and_bounded():
    for seed in range(10):
        shading = Shading(p=1.0)
        shading.set_random_seed(seed)
        gain = shading(image=np.full((120, 120), 100, np.uint8))["image"] / 100
        assert gain.max() <= 1.5 and np.abs(np.diff(gain, axis=0)).max() < 0.05
        assert np.abs(np.diff(gain, axis=1)).max() < 0.05


def test_the_background_rises_by_its_level_and_white_stays_white():
    dark = Background(level=(30, 30), looks=(4, 4), p=1.0)(image=np.zeros((200, 200), np.uint8))["image"]
    assert abs(dark.mean() - 30) < 1 and abs(dark.std() - 15) < 1.5
    assert (Background(p=1.0)(image=np.full((64, 64), 255, np.uint8))["image"] == 255).all()


@pytest.mark.parametrize(
    "steps, text",
    [
        ("standart", 'did you mean "standard"'),
        (["flipp"], 'did you mean "flip"'),
        ([{"name": "clahe", "size": 3}], "clahe"),
    ],
)
def test_a_misspelt_transform_is_named(steps, text):
    with pytest.raises(RecipeError, match=text):
        Augmentation(steps)


def test_an_index_alone_gives_the_picture_unchanged(bscan):
    pixels = Pixels(bscan[None], [1], ["h"], Augmentation("strong"))
    assert np.array_equal(pixels[0]["pixel_values"], bscan)
    assert not np.array_equal(pixels[(0, 0)]["pixel_values"], bscan)
