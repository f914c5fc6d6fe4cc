"""DICOM beyond the plain file: groups per frame, Zeiss's scrambled pictures, and bombs of each compressed form."""

import struct

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from oct_hf.data.volumes import read_volumes
from oct_hf.errors import DataError
from tests.data.volumes.write import bscans, write_dicom
from tests.data.volumes.write_dicom_kinds import (
    jp2,
    scrambled,
    write_jpeg_2000,
    write_jpeg_lossless,
    write_per_frame,
    write_zeiss,
)


def test_what_is_said_frame_by_frame_is_read(tmp_path):
    values = bscans(4)
    (volume,) = read_volumes(write_per_frame(tmp_path / "a.dcm", values, "L"))
    assert np.array_equal(volume.bscans, values) and volume.laterality == "OS" and volume.warnings == ()
    spacing = volume.spacing
    assert (spacing.depth, spacing.along, spacing.between) == pytest.approx((3.9, 11.5, 120))


def test_thickness_is_no_distance_and_uneven_steps_have_none(tmp_path):
    (placeless,) = read_volumes(write_per_frame(tmp_path / "a.dcm", bscans(3), step=None))
    assert placeless.spacing.between is None and placeless.spacing.depth == pytest.approx(3.9)
    (uneven,) = read_volumes(write_per_frame(tmp_path / "b.dcm", bscans(3), numbers=[1, 2, 9]))
    assert uneven.spacing.between is None


@pytest.mark.parametrize("eyes", ["RL", "B", "U"])
def test_frames_of_two_eyes_or_of_none_leave_it_unknown(eyes, tmp_path):
    (volume,) = read_volumes(write_per_frame(tmp_path / "a.dcm", bscans(2), eyes))
    assert volume.laterality == "" and any("which eye" in warning for warning in volume.warnings)


def test_an_eye_that_root_and_frames_say_differently_is_unknown(tmp_path):
    file = pydicom.dcmread(write_per_frame(tmp_path / "a.dcm", bscans(2), "R"))
    file.ImageLaterality = "L"
    file.save_as(tmp_path / "a.dcm")
    assert read_volumes(tmp_path / "a.dcm")[0].laterality == ""


def test_frames_stand_in_the_order_of_their_numbers_and_it_is_said(tmp_path):
    values = bscans(4)
    (volume,) = read_volumes(write_per_frame(tmp_path / "a.dcm", values, numbers=[3, 1, 4, 2]))
    assert np.array_equal(volume.bscans, values[[1, 3, 0, 2]]) and volume.spacing.between == pytest.approx(120)
    assert any("put in the order of their numbers" in warning for warning in volume.warnings)
    (twice,) = read_volumes(write_per_frame(tmp_path / "b.dcm", values, numbers=[2, 1, 1, 3]))
    assert np.array_equal(twice.bscans, values) and any(
        "one place in its stack" in warning for warning in twice.warnings
    )


def test_a_picture_that_the_file_refers_to_is_its_en_face_without_places(tmp_path):
    values, fundus = bscans(3), np.full((40, 40), 70, np.uint8)
    file = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", values, en_face=fundus))
    place = file.PerFrameFunctionalGroupsSequence[0].OphthalmicFrameLocationSequence[0]
    del file.PerFrameFunctionalGroupsSequence, place.ReferenceCoordinates
    file.ReferencedImageSequence = [place]
    file.save_as(tmp_path / "a.dcm")
    (volume,) = read_volumes(tmp_path / "a.dcm")
    assert np.array_equal(volume.en_face, fundus) and volume.positions is None
    place.ReferencedSOPInstanceUID = "1.2.3"  # another picture, which isn't here
    file.save_as(tmp_path / "a.dcm")
    assert read_volumes(tmp_path / "a.dcm")[0].en_face is None


def test_zeiss_pictures_are_put_in_order(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 64, 96), np.uint8)  # a .jp2 of some size
    (volume,) = read_volumes(write_zeiss(tmp_path / "a.dcm", values))
    assert np.array_equal(volume.bscans, values) and volume.laterality == "OS"
    assert (volume.spacing.depth, volume.spacing.along) == pytest.approx((1.95, 11.7))
    assert any("never tried on a genuine file" in warning for warning in volume.warnings)


def test_pictures_scrambled_in_another_way_are_named_so(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (2, 64, 96), np.uint8)
    frames = [bytes(byte ^ 0x33 for byte in scrambled(jp2(image))) for image in values]
    with pytest.raises(DataError, match=r"scrambled by Zeiss in a way that isn't known; export the cube as \.img"):
        read_volumes(write_jpeg_2000(tmp_path / "a.dcm", values, frames, "Carl Zeiss Meditec"))
    with pytest.raises(DataError, match="aren't JPEG 2000"):
        read_volumes(write_jpeg_2000(tmp_path / "b.dcm", values, frames, "Another"))
    boxed = write_jpeg_2000(tmp_path / "c.dcm", values, [jp2(image) for image in values])
    assert np.array_equal(read_volumes(boxed)[0].bscans, values)


def test_a_codestream_larger_than_the_header_says_is_refused_before_it_is_decoded(tmp_path):
    values = bscans(2, 64, 96)
    frames = [bytearray(jp2(image, boxes=False)) for image in values]
    for frame in frames:
        struct.pack_into(">2I", frame, 8, 30000, 30000)
    with pytest.raises(DataError, match="B-scan 0 isn't of the size that the header says"):
        read_volumes(write_jpeg_2000(tmp_path / "a.dcm", values, [bytes(frame) for frame in frames]))


def test_what_only_gdcm_decodes_is_read_and_its_end_is_not_ours(tmp_path):
    values = bscans(2, 64, 64)
    path = write_jpeg_lossless(tmp_path / "a.dcm", values)
    assert np.array_equal(read_volumes(path)[0].bscans, values)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"\xff\xc3") + 4] = 157  # bits a sample: gdcm ends its process
    path.write_bytes(raw)
    with pytest.raises(DataError, match="can be read"):
        read_volumes(path)


def test_run_lengths_that_unpack_to_gigabytes_are_refused(tmp_path):
    file = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", bscans(1), compress=RLELossless))
    bomb = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * (9 << 20)
    file.PixelData = encapsulate([bomb])
    file.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="B-scan 0 has 18,874,432 bytes, which no device writes"):
        read_volumes(tmp_path / "a.dcm")


def test_headers_that_would_fill_the_memory_are_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", bscans(1))
    raw = path.read_bytes()
    at = raw.index(struct.pack("<HH2s", 0x20, 0xD, b"UI"))
    items = struct.pack("<HH2sHI", 0x19, 0x1010, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\0\0\0\0" * 200_000
    path.write_bytes(raw[:at] + items + b"\xfe\xff\xdd\xe0\0\0\0\0" + raw[at:])
    with pytest.raises(DataError, match="more than 100,000 items"):
        read_volumes(path)
    blob = struct.pack("<HH2sHI", 0x19, 0x1010, b"OB", 0, 20 << 20) + bytes(20 << 20)
    path.write_bytes(raw[:at] + blob + raw[at:])
    with pytest.raises(DataError, match=r"no pixels in its first 16 MB|can't be read|can be read"):
        read_volumes(path)
    file = pydicom.dcmread(write_dicom(tmp_path / "b.dcm", bscans(1)))
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file.save_as(tmp_path / "b.dcm")
    with pytest.raises(DataError, match="deflated as a whole"):
        read_volumes(tmp_path / "b.dcm")
