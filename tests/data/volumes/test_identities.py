"""Names, ids, birth dates, accession numbers and UIDs, planted in every field of every kind, and searched for in all
that comes out. Text burned into the pixels isn't searched for, here or by the package."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pyarrow import parquet

from oct_hf import finetune
from oct_hf.data.phantom import draw
from oct_hf.data.volumes import read_volumes
from oct_hf.errors import DataError
from oct_hf.training.recipe_file import make_recipe
from tests.data.volumes.kinds import KINDS
from tests.data.volumes.write import SECRETS, write_dicom
from tests.data.volumes.write_binary import write_e2e, write_img, write_topcon

PLANTED = (*SECRETS, "Planted", "4711")
_FIELDS = (
    "AccessionNumber StudyID StudyDescription SeriesDescription InstitutionName ReferringPhysicianName OperatorsName "
    "PatientComments OtherPatientNames PatientMotherBirthName StationName DeviceSerialNumber ProtocolName ImageComments"
)


def plant(path: Path) -> Path:
    """Every text field of a DICOM file that may name someone, private ones too, and its UIDs."""
    file = pydicom.dcmread(path)
    for name in _FIELDS.split():
        setattr(file, name, "Planted 4711")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(file, name, "1.2.4711.4711")
    file.add_new((0x0019, 0x0010), "LO", "Planted Maker")
    file.add_new((0x0019, 0x1001), "LO", "Mustermann")
    file.save_as(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_patient_comes_out(kind, tmp_path, capfd, caplog):
    path = KINDS[kind](tmp_path)
    if kind.startswith("dicom") and kind != "dicom zeiss":  # whose header pydicom wouldn't write again
        for file in tmp_path.glob("*.dcm"):
            plant(file)
    said = []
    with caplog.at_level(logging.DEBUG):
        for volume in read_volumes(path):
            said.append(repr(volume))
            patient = re.fullmatch("[0-9a-f]{16}", volume.patient)
            assert patient or kind in ("optovue", "bioptigen"), "whose eye it is was lost"
        whole = path.read_bytes()
        for part in range(1, 20):
            path.write_bytes(whole[: len(whole) * part // 20])
            try:
                said.append(repr(read_volumes(path)))
            except DataError as error:
                said.append(str(error))
    out = capfd.readouterr()
    text = " ".join([*said, out.out, out.err, caplog.text])
    assert len(said) > 19 and not [secret for secret in PLANTED if secret in text]


def test_one_patient_has_one_pseudonym_in_all_kinds_that_name_an_id(tmp_path):
    kinds = ("dicom", "dicom rle", "vol", "e2e", "xml", "fda", "fds")
    found = set()
    for kind in kinds:
        (tmp_path / kind).mkdir()
        found |= {volume.patient for volume in read_volumes(KINDS[kind](tmp_path / kind))}
    assert len(found) == 1


@pytest.fixture
def exports(tmp_path) -> Path:
    """CLASS/number.ENDING of five kinds, a patient each, with everything planted; some say only whose eye it is."""
    home = tmp_path / "exports"
    for at, label in enumerate(("DME", "NORMAL")):
        (home / label).mkdir(parents=True)
        for number in range(8):
            patient = 20 * at + number
            scans = np.stack([draw(label, 6, patient, scan, 64, 64).image for scan in range(2)])
            place = home / label / f"{number}"
            if number < 3:
                path = plant(write_dicom(place.with_suffix(".dcm"), scans))
            elif number < 5:
                path = write_e2e(place.with_suffix(".e2e"), {"R": scans})
            elif number < 7:
                path = write_topcon(place.with_suffix(".fda"), scans)
            else:
                tall = np.stack([np.asarray(Image.fromarray(scan).resize((64, 1024))) for scan in scans])
                path = write_img(place.with_name("P4711_Cube 64x2_OD.img"), tall)
            path.write_bytes(path.read_bytes().replace(b"MRN-4711", f"MRN-{5000 + patient}".encode()))
            if path.suffix == ".img":
                path.rename(path.with_name(f"PMRN-{5000 + patient}_Cube 64x2_OD.img"))
    return home


def test_neither_a_run_nor_what_is_published_nor_answers_name_anyone(exports, tmp_path):
    settings = {
        "data": {"name": "folder", "path": str(exports), "license": "cc-by-4.0"},
        "split": {"validation": 0.25, "test": 0.25},
        "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64},
        "train": {"epochs": 1, "batch_size": 8, "workers": 0},
    }
    finetune(make_recipe(settings), tmp_path / "run")
    command = [sys.executable, "-m", "oct_hf.cli", "predict", exports / "DME", "--model", tmp_path / "run"]
    command += ["--out", tmp_path / "run/model/answers.parquet", "--en-face", tmp_path / "run/model/pictures"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = parquet.read_table(tmp_path / "run/model/answers.parquet").drop_columns("file")
    assert answers.num_rows > 20 and len(list((tmp_path / "run/model/pictures").glob("*.png"))) == 8
    texts = [str(answers.to_pylist())]
    for path in (tmp_path / "run/model").rglob("*"):
        if path.suffix == ".parquet" and path.name != "answers.parquet":
            texts.append(str(parquet.read_table(path).to_pylist()))
        elif path.is_file() and path.name != "answers.parquet":
            texts.append(path.read_bytes().decode("latin-1"))
    # A file's own name is the user's and stands before its faults; nothing else may.
    texts.append(re.sub(r"PMRN-\d+_Cube", "", said.stdout + said.stderr))
    hidden = ("Mustermann", "Erika", "19550317", "MRN-", "Planted", "1.2.4711")
    assert len(texts) > 8 and not [secret for secret in hidden for text in texts if secret in text]
