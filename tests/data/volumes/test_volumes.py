import numpy as np
import pytest
from pydicom.uid import (
    EncapsulatedPDFStorage,
    OphthalmicPhotography8BitImageStorage,
    SegmentationStorage,
)

from oct_hf.data.volumes import is_volume, read_volumes
from oct_hf.errors import DataError
from tests.data.volumes.kinds import KINDS, small
from tests.data.volumes.write import bscans, write_dicom, write_not_oct, write_vol


def test_dicom_gives_its_bscans_in_order_with_spacing_eye_and_places(tmp_path):
    values, fundus = bscans(), np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 256
    path = write_dicom(tmp_path / "a.dcm", values, "L", fundus.astype(np.uint8))
    (volume,) = read_volumes(path)
    assert np.array_equal(volume.bscans, values) and volume.laterality == "OS" and volume.warnings == ()
    assert (volume.spacing.depth, volume.spacing.along, volume.spacing.between) == pytest.approx((3.9, 11.5, 120))
    assert np.array_equal(volume.en_face, fundus) and volume.kind == "DICOM (OPT)"
    # row 11, column 6 to 56, counted from 1
    assert volume.positions[0].tolist() == [5, 10, 55, 10] and volume.positions[4].tolist() == [5, 18, 55, 18]


@pytest.mark.parametrize("kind", ["dicom", "dicom rle", "dicom jpeg-ls", "dicom jpeg 2000"])
def test_compressed_dicom_is_the_same_picture(kind, tmp_path):
    (volume,) = read_volumes(KINDS[kind](tmp_path))
    assert np.array_equal(volume.bscans, small())


def test_sixteen_bits_and_inverted_pixels_are_the_same_picture(tmp_path):
    values = bscans(2)
    deep = write_dicom(tmp_path / "deep.dcm", (values.astype(np.uint16) * 257))
    inverted = write_dicom(tmp_path / "inverted.dcm", 255 - values, photometric="MONOCHROME1")
    assert np.abs(read_volumes(deep)[0].bscans.astype(int) * values.max() / 255 - values).max() <= 255
    assert np.array_equal(read_volumes(inverted)[0].bscans, values)
    full = np.concatenate([values, np.full((1, *values.shape[1:]), 255, np.uint8)])
    exact = write_dicom(tmp_path / "exact.dcm", full.astype(np.uint16) * 257)
    assert np.array_equal(read_volumes(exact)[0].bscans, full)


def test_vol_gives_its_bscans_with_places_on_its_localizer(tmp_path):
    values = bscans(4)
    (volume,) = read_volumes(write_vol(tmp_path / "a.vol", values))
    assert np.abs(volume.bscans.astype(int) - values).max() <= 1 and volume.laterality == "OS"
    assert (volume.spacing.depth, volume.spacing.along, volume.spacing.between) == pytest.approx((3.9, 11.5, 120))
    assert volume.en_face.shape == (64, 64) and volume.positions[1] == pytest.approx([20, 22, 40, 22])


def test_what_the_file_does_not_say_is_unknown(tmp_path):
    (dicom,) = read_volumes(write_dicom(tmp_path / "a.dcm", bscans(2), laterality=""))
    assert dicom.laterality == "" and any("which eye" in warning for warning in dicom.warnings)
    assert dicom.en_face is None and dicom.positions is None
    (vol,) = read_volumes(write_vol(tmp_path / "a.vol", bscans(2), eye="??"))
    assert vol.laterality == "" and any("which eye" in warning for warning in vol.warnings)


def test_what_a_header_cannot_mean_is_refused_before_anything_is_decoded(tmp_path):
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", bscans(2))
    for changes in ({"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 65535}, {"NumberOfFrames": 2**31 - 1}):
        file = pydicom.dcmread(path)
        for key, value in changes.items():
            setattr(file, key, value)
        file.save_as(tmp_path / "bomb.dcm")
        with pytest.raises(DataError, match=r"its header says|ends too early"):
            read_volumes(tmp_path / "bomb.dcm")
    data = bytearray(write_vol(tmp_path / "a.vol", bscans(2)).read_bytes())
    data[16:20] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "bomb.vol").write_bytes(data)
    with pytest.raises(DataError, match="which no device writes"):
        read_volumes(tmp_path / "bomb.vol")


@pytest.mark.parametrize(
    "kind, named",
    [
        (OphthalmicPhotography8BitImageStorage, "Ophthalmic Photography"),
        (EncapsulatedPDFStorage, "PDF"),
        (SegmentationStorage, "Segmentation"),
    ],
)
def test_a_dicom_that_is_not_oct_is_named_for_what_it_is(kind, named, tmp_path):
    with pytest.raises(DataError, match=rf"is no volume of OCT B-scans \(it is .*{named}"):
        read_volumes(write_not_oct(tmp_path / "a.dcm", kind))


def test_files_are_known_by_ending_or_by_dicoms_mark(tmp_path):
    write_dicom(tmp_path / "a.dcm", bscans(2)).rename(tmp_path / "IM0001")
    assert is_volume(tmp_path / "IM0001") and len(read_volumes(tmp_path / "IM0001")) == 1
    (tmp_path / "README").write_text("text")
    (tmp_path / "empty.dcm").write_bytes(b"")
    assert not is_volume(tmp_path / "README") and is_volume("x.VOL") and not is_volume("x.png")
    for name in ("README", "empty.dcm", "gone.dcm"):
        with pytest.raises(DataError):
            read_volumes(tmp_path / name)


def test_both_builds_of_opencv_work_in_one_process(bscan):
    """oct-converter brings opencv-python beside albumentations' opencv-python-headless."""
    import oct_converter.readers
    from albumentations import HorizontalFlip

    assert oct_converter.readers.FDA
    assert np.array_equal(HorizontalFlip(p=1)(image=bscan)["image"], bscan[:, ::-1])
