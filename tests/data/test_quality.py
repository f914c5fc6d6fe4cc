"""The gate and the score. On real B-scans, and on pictures that come with the libraries of the tests or are drawn."""

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from oct_hf.data.oct import prepare
from oct_hf.data.phantom import LABELS, draw
from oct_hf.data.quality import is_oct, look, measure_quality
from oct_hf.data.shrunken import shrink
from oct_hf.errors import DataError
from oct_hf.images import read_image
from oct_hf.runs.check import check
from oct_hf.runs.labelled import load_data
from oct_hf.training.recipe_file import make_recipe


def measured(image: np.ndarray):
    return measure_quality(shrink(np.clip(image, 0, 255).astype(np.uint8)))


def scores(image: np.ndarray) -> dict[str, float]:
    return look(shrink(np.clip(image, 0, 255).astype(np.uint8)))[1]


def noise(width: float, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(0, width, shape)


@pytest.fixture(params=["phantom", "real"])
def picture(request) -> np.ndarray:
    """A good B-scan, without fill, as float."""
    if request.param == "phantom":
        return draw("NORMAL", 5, height=496, width=512).image.astype(float)
    folder = request.getfixturevalue("samples")
    return read_image(folder / "oct2017_sample/train/NORMAL/NORMAL-1384-1.jpeg").astype(float)


def others() -> dict[str, np.ndarray]:
    """Pictures of anything else."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    page = Image.new("L", (400, 500), 255)
    for line in range(10, 490, 14):
        ImageDraw.Draw(page).text((10, line), "Optical coherence tomography, a review of layers " * 2, fill=0)
    y, x = np.mgrid[:400, :400]
    fundus = (np.hypot(y - 200, x - 200) < 180) * (110 + 60 * np.exp(-(np.hypot(y - 190, x - 280) ** 2) / 900))
    found = {f"photograph {n}": photo.mean(2) for n, photo in enumerate(load_sample_images().images)}
    return found | {
        "text": np.asarray(page).astype(float),
        "noise": rng.normal(128, 50, (300, 300)),
        "clouds": 128 + 900 * ndimage.gaussian_filter(rng.normal(0, 1, (300, 300)), 8),
        "fundus": fundus,
        "gradient": y * 0.6,
        "black": np.zeros((200, 300)),
        "white": np.full((200, 300), 255.0),
        "on its side": np.rot90(draw("NORMAL", 5, height=496, width=512).image).astype(float),
    }


def test_bscans_of_another_hospital_pass_and_other_pictures_do_not(samples):
    for folder in ("oct2017_sample", "srf_sample"):
        files = sorted(p for p in (samples / folder).rglob("*") if p.suffix in (".jpeg", ".png"))
        refused = [file.name for file in files if not is_oct(measured(read_image(file)).oct_likeness)]
        assert len(files) >= 30 and len(refused) <= 0.02 * len(files), refused
    passed = [name for name, image in others().items() if is_oct(measured(image).oct_likeness)]
    assert passed == []


def test_phantoms_pass():
    for number, label in enumerate(LABELS * 5):
        assert is_oct(measured(draw(label, 7, number, height=248, width=256).image).oct_likeness)


@pytest.mark.parametrize(
    "component, spoil",
    [
        ("signal", lambda image, much: image + noise(90 * much, image.shape)),
        (
            "signal",
            lambda image, much: 60 + (image - 60) * (1 - much) + np.random.default_rng(0).normal(0, 9, image.shape),
        ),
        ("sharpness", lambda image, much: ndimage.gaussian_filter(image, 12 * much)),
        ("unclipped", lambda image, much: image * (1 + 4 * much)),
        ("whole", lambda image, much: np.roll(image, -int(much * np.argmax(image.mean(1))), 0)),
    ],
)
def test_what_spoils_a_bscan_lowers_its_component(picture, component, spoil):
    values = [scores(spoil(picture, much))[component] for much in (0, 0.4, 0.7, 1.0)]
    assert values[0] > values[-1] and all(a >= b - 1e-6 for a, b in pairwise(values)), values


def test_a_wedge_is_counted_and_named(picture):
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    shares = []
    for steep in (0.0, 0.3, 0.45):
        spoilt = picture.copy()
        spoilt[rows < steep * columns * picture.shape[0] / picture.shape[1]] = 255
        shares.append(1 - scores(spoilt)["unfilled"])
    assert shares[0] < 0.01 and shares[1] == pytest.approx(0.15, abs=0.06) and shares[2] > shares[1]


def test_the_score_is_that_of_the_worst_component(picture):
    assert measured(picture).quality > 0.6
    blurred = measured(ndimage.gaussian_filter(picture, 12))
    assert blurred.quality == 0 and blurred.fault == "blurred"
    noisy = measured(picture + np.random.default_rng(0).normal(0, 150, picture.shape))
    assert noisy.quality == 0 and noisy.fault == "weak signal"


def spoilt_clinic(clinic):
    """The clinic with a photograph and a blurred B-scan among its pictures."""
    Image.fromarray(others()["photograph 0"].astype(np.uint8)).save(clinic / "DME/D0/holiday.png")
    blurred = ndimage.gaussian_filter(draw("DME", 3, 50, height=248, width=256).image, 5)
    Image.fromarray(blurred).save(clinic / "DME/D1/blurred.png")
    return clinic


def recipe(clinic, **data):
    return make_recipe({"data": {"name": "folder", "path": str(clinic), **data}})


def test_a_recipe_leaves_out_what_it_does_not_want(clinic):
    spoilt_clinic(clinic)
    everything, skipped = load_data(recipe(clinic).data)
    assert len(everything) == 26 and skipped == []
    kept, skipped = load_data(recipe(clinic, require_oct=True).data)
    assert len(kept) == 25 and skipped[0]["file"] == "DME/D0/holiday.png" and "look like an OCT" in skipped[0]["reason"]
    kept, skipped = load_data(recipe(clinic, min_quality=0.02).data)
    reasons = {item["file"]: item["reason"] for item in skipped}
    assert reasons["DME/D1/blurred.png"] == "quality 0.00 is below 0.02 (blurred)"
    assert set(kept["source"][:]) | set(reasons) == set(everything["source"][:])
    with pytest.raises(DataError, match=r"no B-scan of .*is left"):
        load_data(recipe(clinic, min_quality=1.0).data)


def test_check_names_what_is_no_bscan(clinic):
    checked = check(recipe(spoilt_clinic(clinic)))
    assert [item["file"] for item in checked.quality["not_oct"]] == ["DME/D0/holiday.png"]
    assert any(note.startswith("1 pictures don't look like OCT") for note in checked.notes)
    assert list(checked.to_dict()["quality"]["by_class"]) == ["DME", "NORMAL"]


def test_the_columns_are_those_of_the_function(clinic):
    rows = prepare("folder", clinic)[0]
    for row in rows.select(range(3)):
        image = io.BytesIO()
        row["image"].save(image, "PNG")
        found = measure_quality(shrink(read_image(image.getvalue())))
        assert (row["oct_likeness"], row["quality"]) == pytest.approx((found.oct_likeness, found.quality), abs=1e-6)
        assert row["fault"] == found.fault
