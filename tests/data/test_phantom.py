import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from oct_hf.data.phantom import LABELS, LESIONS, SMALLEST_SIDE, draw
from oct_hf.data.speckle import speckle
from oct_hf.errors import DataError, OCTError

LAYERS = ["ILM", "GCL", "IPL", "INL", "OPL", "ONL", "ELM", "IS", "EZ", "OS", "RPE", "BM", "CSI"]
DISEASED = [label for label in LABELS if label != "NORMAL"]


def digest(phantom) -> str:
    return hashlib.sha256(phantom.image.tobytes() + phantom.mask.tobytes()).hexdigest()


def test_a_phantom_is_the_same_in_a_fresh_process():
    program = (
        "import sys, hashlib; from oct_hf.data.phantom import draw; draw('DME', 9); p = draw('CNV', 3, 14, 15);"
        "print(hashlib.sha256(p.image.tobytes() + p.mask.tobytes()).hexdigest())"
    )
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == digest(draw("CNV", 3, 14, 15))


@pytest.mark.parametrize("other", [{"seed": 1}, {"patient": 1}, {"scan": 1}, {"label": "DME"}])
def test_each_argument_changes_the_picture(other):
    same = {"label": "CNV", "seed": 0, "patient": 0, "scan": 0}
    assert digest(draw(**same)) != digest(draw(**same | other))


def test_the_scans_of_a_patient_share_eye_and_acquisition():
    """The RPE's brightness and place differ between patients far more than between one patient's scans."""
    scans = [[draw("NORMAL", 5, patient, scan) for scan in range(4)] for patient in range(8)]
    assert all(len({phantom.eye for phantom in patient}) == 1 for patient in scans)
    for measure in (lambda p: np.median(p.boundaries["BM"]), lambda p: np.percentile(p.image[p.image < 250], 99)):
        values = np.array([[measure(phantom) for phantom in patient] for patient in scans])
        assert values.std(axis=1).mean() < 0.5 * values.mean(axis=1).std()


@pytest.mark.parametrize("label", LABELS)
def test_layers_lie_in_order_from_vitreous_to_sclera(label):
    for patient in range(10):
        phantom = draw(label, 2, patient)
        rows = np.stack(list(phantom.boundaries.values()))
        assert rows.shape == (len(LAYERS), 512) and rows.dtype == np.float32
        assert list(phantom.boundaries) == LAYERS
        assert (np.diff(rows, axis=0) > 0).all()


def test_the_nerve_fibre_layer_is_thicker_on_the_nasal_side():
    excess = {"OD": [], "OS": []}
    for patient in range(40):
        phantom = draw("NORMAL", 4, patient)
        thickness = phantom.boundaries["GCL"] - phantom.boundaries["ILM"]
        excess[phantom.eye].append(thickness[-60:].mean() - thickness[:60].mean())
    assert np.mean(excess["OD"]) > 3 and np.mean(excess["OS"]) < -3  # pixels; nasal is right in OD, left in OS


def test_a_normal_eye_has_no_lesion():
    for patient in range(20):
        phantom = draw("NORMAL", 1, patient)
        assert phantom.lesions == {} and not phantom.mask.any() and phantom.mask.shape == phantom.image.shape


@pytest.mark.parametrize(("label", "expected"), [("CNV", "cnv"), ("DME", "cyst"), ("DRUSEN", "drusen")])
def test_every_diseased_phantom_shows_a_lesion_with_its_mask(label, expected):
    for patient in range(40):
        phantom = draw(label, 6, patient)
        assert set(phantom.lesions) <= set(LESIONS)
        assert all(m.dtype == bool and m.shape == phantom.image.shape and m.any() for m in phantom.lesions.values())
        assert (phantom.mask == np.any(list(phantom.lesions.values()), axis=0)).all()
        seen = cv2.resize(phantom.lesions[expected].astype(np.float32), (96, 96), interpolation=cv2.INTER_AREA)
        assert (seen > 0.5).sum() >= 4  # pixels, more lesion than not, in a thumbnail of 96


@pytest.mark.parametrize("label", DISEASED)
def test_masks_lie_where_the_lesion_changes_the_picture(label):
    """Against the healthy twin, which has the same noise, the picture changes more where the mask is than elsewhere."""
    for patient in range(8):
        phantom, twin = draw(label, 7, patient), draw("NORMAL", 7, patient)
        change = np.abs(phantom.image.astype(float) - twin.image)
        assert change[phantom.mask].mean() > 2 * change[~phantom.mask].mean()


@pytest.mark.parametrize(("kind", "label"), [("cyst", "DME"), ("subretinal_fluid", "CNV")])
def test_fluid_is_dark_and_exudates_are_bright(kind, label):
    for patient in range(8):
        phantom = draw(label, 8, patient)
        retina = (
            phantom.image[np.add.outer(np.arange(-20, 0), phantom.boundaries["INL"].astype(int)), np.arange(512)]
        ).mean()
        if kind in phantom.lesions:
            assert phantom.image[phantom.lesions[kind]].mean() < 0.7 * retina
        if "exudate" in phantom.lesions:
            assert phantom.image[phantom.lesions["exudate"]].mean() > 1.2 * retina


@pytest.mark.parametrize("looks", [1, 3, 8, 21])
def test_speckle_has_the_distribution_of_its_looks(looks):
    field = speckle(np.random.default_rng(0), looks, 496, 512)
    assert field.dtype == np.float32 and field.mean() == pytest.approx(1, abs=0.02)
    assert field.std() == pytest.approx(looks**-0.5, rel=0.04)
    skewness = ((field - field.mean()) ** 3).mean() / field.std() ** 3
    assert skewness == pytest.approx(2 * looks**-0.5, rel=0.15)  # of a gamma distribution of shape `looks`


def test_nuisance_does_not_tell_the_label():
    """What surrounds the retina is the same picture for each label of a patient: nothing there can leak the label."""
    for patient in range(12):
        phantoms = [draw(label, 11, patient) for label in LABELS]
        highest = int(min(phantom.boundaries["ILM"].min() for phantom in phantoms)) - 90
        if highest > 0:
            assert all((phantom.image[:highest] == phantoms[0].image[:highest]).all() for phantom in phantoms)
        assert len({phantom.eye for phantom in phantoms}) == 1


@pytest.mark.parametrize("label", DISEASED)
def test_brightness_and_position_hardly_tell_disease_from_health(label):
    phantoms = [draw(name, 12, 1000 * (name == label) + patient) for name in ("NORMAL", label) for patient in range(40)]
    truth = [phantom.label == label for phantom in phantoms]
    for measure in (lambda p: p.image.mean(), lambda p: p.image[-60:].mean(), lambda p: p.boundaries["BM"].mean()):
        assert abs(roc_auc_score(truth, [measure(phantom) for phantom in phantoms]) - 0.5) < 0.2


@pytest.mark.parametrize("size", [(64, 64), (64, 300), (200, 64), (291, 507), (1200, 1100)])
@pytest.mark.parametrize("label", LABELS)
def test_any_size_from_the_smallest_holds_the_whole_retina(label, size):
    for patient in range(1 if max(size) > 1000 else 4):
        phantom = draw(label, 13, patient, height=size[0], width=size[1])
        assert phantom.image.shape == size and phantom.image.dtype == np.uint8
        assert phantom.mask.any() == (label != "NORMAL")
        assert phantom.boundaries["ILM"].min() >= 0
        whole = draw(label, 13, patient)  # anatomy is in microns: the same share of the picture at each size
        assert phantom.boundaries["BM"].mean() / size[0] == pytest.approx(whole.boundaries["BM"].mean() / 496, abs=0.03)


def test_an_unknown_label_names_the_nearest():
    with pytest.raises(DataError, match=r'"DRUSSEN".*CNV, DME, DRUSEN, NORMAL.*did you mean "DRUSEN"'):
        draw("DRUSSEN")
    assert issubclass(DataError, OCTError)


@pytest.mark.parametrize("size", [(SMALLEST_SIDE - 1, 512), (496, SMALLEST_SIDE - 1)])
def test_too_small_a_size_is_refused(size):
    with pytest.raises(DataError, match=f"{size[0]}x{size[1]}.*{SMALLEST_SIDE}"):
        draw("NORMAL", height=size[0], width=size[1])


@pytest.mark.skipif("OCT_SAMPLES" not in os.environ, reason="OCT_SAMPLES names no folder of real B-scans")
def test_gray_levels_are_those_of_real_b_scans():
    """Median and 99th percentile of real normal B-scans lie within the spread of the phantoms'."""

    def levels(images):
        return np.array([np.percentile(image[image < 250], (50, 99)) for image in images])

    files = sorted((Path(os.environ["OCT_SAMPLES"]) / "neh_sample" / "NORMAL").glob("*.jpeg"))[::10]
    real = levels([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files])
    low, high = np.percentile(levels([draw("NORMAL", 14, patient).image for patient in range(60)]), (5, 95), axis=0)
    assert (low < np.median(real, axis=0)).all() and (np.median(real, axis=0) < high).all()


def test_wide_phantoms_vary_more_than_the_usual_ones():
    usual, wide = ([draw("NORMAL", 4, patient, 0, 96, 96, wide=w) for patient in range(40)] for w in (False, True))
    assert not np.array_equal(usual[0].image, wide[0].image) and usual[0].eye == wide[0].eye
    noise = [[np.diff(p.image.astype(float), axis=1).std() for p in some] for some in (usual, wide)]
    place = [[np.median(p.boundaries["BM"]) for p in some] for some in (usual, wide)]
    assert np.std(noise[1]) > 1.3 * np.std(noise[0]) and np.std(place[1]) > 1.3 * np.std(place[0])


def test_a_wide_phantom_keeps_its_lesions_inside_the_image():
    for patient in range(40):
        drawn = draw(LABELS[patient % 4], 6, patient, 0, 128, 128, wide=True)
        assert drawn.mask.any() == (drawn.label != "NORMAL")
        twin = draw(drawn.label, 6, patient, 0, 128, 128, wide=True)
        assert np.array_equal(drawn.image, twin.image)
