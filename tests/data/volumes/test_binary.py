"""Formats written byte by byte: what their readers give, what they refuse, and what never comes out of them."""

import numpy as np
import pytest

from oct_hf.data.volumes import is_volume, read_volumes
from oct_hf.data.volumes.as_pictures import DevicePictures
from oct_hf.data.volumes.e2e import _LEVELS
from oct_hf.data.volumes.heidelberg import shown
from oct_hf.errors import DataError
from oct_hf.images import read_image
from tests.data.volumes.kinds import cube
from tests.data.volumes.write import bscans, reflectivity, write_vol
from tests.data.volumes.write_binary import (
    stored,
    write_bioptigen,
    write_e2e,
    write_img,
    write_optovue,
    write_topcon,
    write_xml,
)


def test_e2e_gives_each_eye_with_its_bscans_and_places(tmp_path):
    right, left = bscans(4), bscans(3, label="NORMAL")
    first, second = read_volumes(write_e2e(tmp_path / "a.E2E", {"R": right, "L": left}))
    assert (first.laterality, second.laterality, first.number, second.number) == ("OD", "OS", 0, 1)
    assert np.array_equal(first.bscans, right) and np.array_equal(second.bscans, left)
    assert first.spacing.depth == pytest.approx(3.87) and first.spacing.along is None  # degrees aren't microns
    assert first.en_face.shape == (60, 60) and first.positions[1].tolist() == [10, 22, 50, 22]
    assert first.patient == second.patient != ""


def _mantissa_reversed(stored: np.ndarray) -> np.ndarray:
    """What eyepy and oct-converter take a stored number for."""
    low = sum(((stored >> bit) & 1) << (9 - bit) for bit in range(10))
    return (stored & ~np.int64(1023)) | low


def test_e2e_reads_as_its_two_libraries_do_but_for_the_order_of_the_mantissas_bits(tmp_path):
    from eyepy.core.utils import from_e2e_intensity
    from eyepy.io.he.e2e_reader import HeE2eReader
    from oct_converter.readers import E2E

    path = write_e2e(tmp_path / "a.e2e", {"R": bscans(3), "L": bscans(2)})
    ours = read_volumes(path)
    theirs = E2E(path).read_oct_volume()
    assert [v.laterality for v in theirs] == ["R", "L"] and [len(v.volume) for v in theirs] == [3, 2]
    with HeE2eReader(path) as reader:
        series = [(s.laterality(), s.get_bscans()) for s in reader.series]
    assert ["82" in eye or "OD" in eye for eye, _ in series] == [True, False]
    for volume, converted, (_, numbers) in zip(ours, theirs, series, strict=True):
        expected = _LEVELS[_mantissa_reversed(stored(volume.bscans).astype(np.int64))].astype(int)
        assert np.abs(from_e2e_intensity(numbers.copy()) - expected).max() <= 1
        assert np.abs(255 * np.stack(converted.volume) - expected).max() <= 1
        assert np.abs(volume.bscans - expected).max() <= 22


def test_one_scan_gives_one_picture_as_vol_and_as_e2e(tmp_path):
    """As eyepy shows the .vol too; by the fourth root, which other readers of .vol use, it would be another picture."""
    from eyepy.io.he.vol_reader import HeVolReader

    scan = bscans(3)
    (vol,) = read_volumes(write_vol(tmp_path / "a.vol", scan))
    (e2e,) = read_volumes(write_e2e(tmp_path / "a.e2e", {"L": scan}))
    assert np.abs(vol.bscans.astype(int) - e2e.bscans).max() <= 1
    theirs = np.stack([bscan.data for bscan in HeVolReader(tmp_path / "a.vol").volume])
    assert np.abs(vol.bscans.astype(int) - theirs).max() <= 1
    fourth_root = np.rint(255 * reflectivity(scan) ** 0.25)
    assert np.abs(vol.bscans - fourth_root).max() > 30


def test_what_heidelberg_filled_in_is_black():
    assert shown(np.array([0, 0.5, 1, 1.5, 3.4e38, np.nan, np.inf, -1], np.float32)).tolist() == [
        *(0, 234, 255, 255),
        *(0, 0, 0, 0),
    ]


def test_two_statements_that_contradict_each_other_leave_the_eye_unknown(tmp_path):
    (volume,) = read_volumes(write_e2e(tmp_path / "a.e2e", {"R": bscans(2)}, preamble={"R": "L"}))
    assert volume.laterality == "" and any("contradict" in note for note in volume.warnings)


def test_lost_and_disordered_bscans_are_told(tmp_path):
    (lost,) = read_volumes(write_e2e(tmp_path / "a.e2e", {"R": bscans(4)}, left_out=2))
    assert len(lost.bscans) == 3 and any("another number" in note for note in lost.warnings)
    (mixed,) = read_volumes(write_e2e(tmp_path / "b.e2e", {"R": bscans(4)}, shuffled=True))
    assert any("order" in note for note in mixed.warnings)


@pytest.mark.parametrize("block", ["@IMG_JPEG", "@IMG_MOT_COMP_03", "@IMG_SCAN_03"])
def test_topcon_gives_bscans_spacing_eye_and_places(block, tmp_path):
    values = bscans(5)
    (volume,) = read_volumes(write_topcon(tmp_path / "a.fda", values, block))
    assert np.array_equal(volume.bscans, values) and volume.laterality == "OS"
    spacing = volume.spacing
    assert (spacing.depth, spacing.along, spacing.between) == pytest.approx((2.6, 6000 / 128, 1000))
    assert volume.en_face.shape == (80, 90) and volume.en_face[0, 0] == pytest.approx(73, abs=1)  # 200 is red
    assert volume.positions[[0, 4]].tolist() == [[10, 20, 70, 20], [10, 60, 70, 60]]
    (radial,) = read_volumes(write_topcon(tmp_path / "b.fda", values, block, eye=None, mode=3))
    assert radial.positions is None and radial.spacing.between is None and radial.laterality == ""


def test_xml_gives_what_it_states_and_nothing_from_outside_its_folder(tmp_path):
    values = bscans(3)
    path = write_xml(tmp_path / "a.xml", values)
    (volume,) = read_volumes(path)
    assert np.array_equal(volume.bscans, values) and volume.laterality == "OD" and is_volume(path)
    assert (volume.spacing.depth, volume.spacing.between) == pytest.approx((3.9, 120))
    assert volume.positions[0].tolist() == [20, 20, 40, 20]
    (unknown,) = read_volumes(write_xml(tmp_path / "b.xml", values, eye=""))
    assert unknown.laterality == ""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.xml").write_text(path.read_text().replace("D:\\export\\", "../"))
    with pytest.raises(DataError, match="one of its pictures"):
        read_volumes(tmp_path / "sub" / "a.xml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_entities_is_refused(encoding, tmp_path):
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
    path = write_xml(tmp_path / "a.xml", bscans(1), before=laughs)
    path.write_bytes(path.read_text().replace('version="1.0"', f'version="1.0" encoding="{encoding}"').encode(encoding))
    with pytest.raises(DataError, match="entities"):
        read_volumes(path)


def test_raw_cubes_stand_upright_and_in_order(tmp_path):
    scan = cube()
    (zeiss,) = read_volumes(write_img(tmp_path / "P1_Cube 64x3_OD_cube_z.img", scan))
    assert np.array_equal(zeiss.bscans, scan) and zeiss.laterality == "OD" and zeiss.patient
    one, two = bscans(3), bscans(2, label="NORMAL")
    first, second = read_volumes(write_optovue(tmp_path / "a.OCT", [one, two]))
    assert np.abs(first.bscans - one * (255 / one.max())).max() <= 1 and second.laterality == "OS"
    assert np.abs(second.bscans - two * (255 / two.max())).max() <= 1
    (bioptigen,) = read_volumes(write_bioptigen(tmp_path / "b_OD.oct", one))
    assert np.array_equal(bioptigen.bscans, one) and bioptigen.laterality == "OD"


def test_an_e2e_whose_directories_point_in_a_circle_ends(tmp_path):
    path = write_e2e(tmp_path / "a.e2e", {"R": bscans(2)})
    data = bytearray(path.read_bytes())
    data[88 + 44 : 88 + 48] = (88).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="circle"):
        read_volumes(path)


def test_opencv_of_the_readers_and_of_albumentations_work_together(tmp_path):
    import albumentations
    import cv2
    from oct_converter.readers import E2E

    (volume,) = E2E(write_e2e(tmp_path / "a.e2e", {"R": bscans(2)})).read_oct_volume()
    picture = (255 * np.clip(volume.volume[0], 0, 1)).astype(np.uint8)
    turned = albumentations.HorizontalFlip(p=1)(image=picture)["image"]
    assert np.array_equal(turned, cv2.flip(picture, 1))


def test_each_bscan_is_a_row_of_its_volume_and_patient(tmp_path):
    write_e2e(tmp_path / "a.e2e", {"R": bscans(2), "L": bscans(1)})
    pictures = DevicePictures(tmp_path)
    names = list(pictures.names_in("a.e2e"))
    assert names == ["a.e2e#0/000.png", "a.e2e#0/001.png", "a.e2e#1/000.png"]
    shown = [pictures.shown(name) for name in names]
    assert [one.eye for one in shown] == ["OD", "OD", "OS"] and len({one.patient for one in shown}) == 1
    assert np.array_equal(read_image(pictures.read(names[1])), bscans(2)[1])
