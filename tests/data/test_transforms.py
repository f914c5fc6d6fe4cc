import json

import numpy as np
import pytest

from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import PIPELINES, TRANSFORMS, Augmentation, RemoveWedge, Speckle
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


def test_a_stored_pipeline_gives_the_same_pictures(bscan):
    augmentation = Augmentation("strong", seed=2)
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
