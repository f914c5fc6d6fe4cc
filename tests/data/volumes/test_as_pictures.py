"""Device files in a folder, as a data set: the builder, the split and a training see B-scans like any others."""

import json

import numpy as np
import pytest

from oct_hf import finetune
from oct_hf.data.oct import prepare
from oct_hf.data.phantom import draw
from oct_hf.data.volumes import read_volumes
from oct_hf.errors import DataError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.training.recipe_file import make_recipe
from tests.data.volumes.write import SECRETS, write_vol


def volume(path, label: str, patient: int, eye: str = "OS", count: int = 3):
    """A .vol of a patient of its own."""
    scans = np.stack([draw(label, 6 + (eye == "OD"), patient, scan, 96, 128).image for scan in range(count)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_vol(path, scans, eye)
    path.write_bytes(path.read_bytes().replace(b"MRN-4711", f"MRN-{4711 + patient}".encode(), 1))
    return path


@pytest.fixture
def practice(tmp_path):
    """CLASS/number.vol as a practice exports them: eight patients a class, both eyes of some."""
    for at, label in enumerate(("DME", "NORMAL")):
        for number in range(8):
            volume(tmp_path / "scans" / label / f"{number}.vol", label, 50 * at + number)
        volume(tmp_path / "scans" / label / "other_eye.vol", label, 50 * at, "OD")
    return tmp_path / "scans"


def test_each_bscan_is_a_row_with_patient_and_eye_of_its_file(practice, tmp_path):
    rows, skipped = prepare("folder", practice, tmp_path / "cache")
    assert len(rows) == 54 and skipped == []
    (whole,) = read_volumes(practice / "DME/3.vol")
    mine = [row for row in rows if row["source"].startswith("DME/3.vol#0/")]
    assert [row["source"] for row in mine] == [f"DME/3.vol#0/{number:03d}.png" for number in range(3)]
    assert all(np.array_equal(row["image"], bscan) for row, bscan in zip(mine, whole.bscans, strict=True))
    assert {row["patient_id"] for row in mine} == {whole.patient} and {row["eye"] for row in mine} == {"OS"}
    assert len(set(rows["patient_id"][:])) == 16 and rows["eye"][:].count("OD") == 6
    assert {row["volume"] for row in mine} == {"DME/3.vol#0"} and len(set(rows["volume"][:])) == 18
    assert not any(secret in str(rows.to_dict()) for secret in SECRETS)
    again, _ = prepare("folder", practice, tmp_path / "other", workers=2)
    assert again["content_hash"][:] == rows["content_hash"][:]


def test_a_folder_or_a_csv_may_name_the_patient_and_not_contradict_the_file(practice, tmp_path):
    volume(practice / "DME/P77/scan.vol", "DME", 90)
    rows = prepare("folder", practice, tmp_path / "a")[0]
    assert set(rows.filter(lambda row: "P77" in row["source"])["patient_id"][:]) == {"P77"}
    files = sorted(path.relative_to(practice).as_posix() for path in practice.rglob("*.vol"))
    lines = [f"{file},patient {number // 2},{'R' if 'other' in file else 'L'}" for number, file in enumerate(files)]
    (practice / "who.csv").write_text("\n".join(["file,patient,eye", *lines]))
    rows = prepare("folder", practice, tmp_path / "b", csv="who.csv")[0]
    assert len(rows) == 57 and set(rows["patient_id"][:]) == {f"patient {number // 2}" for number in range(len(files))}
    wrong = [line.replace(",L", ",R") if line.startswith("NORMAL/5") else line for line in lines]
    (practice / "who.csv").write_text("\n".join(["file,patient,eye", *wrong]))
    with pytest.raises(DataError, match=r"NORMAL/5.vol \(who.csv says OD, the file itself OS\)"):
        prepare("folder", practice, tmp_path / "c", csv="who.csv")


def test_a_file_that_cannot_be_read_is_named_and_can_be_left_out(practice, tmp_path):
    broken = practice / "DME/4.vol"
    broken.write_bytes(broken.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"1 file\(s\) can't be used: DME/4.vol \("):
        prepare("folder", practice, tmp_path / "cache")
    rows, skipped = prepare("folder", practice, tmp_path / "cache", skip_bad=True)
    assert len(rows) == 51 and [item["file"] for item in skipped] == ["DME/4.vol"]


def test_the_same_scan_exported_twice_is_used_once(practice, tmp_path):
    (practice / "DME/copy.vol").write_bytes((practice / "DME/0.vol").read_bytes())
    rows, skipped = prepare("folder", practice, tmp_path / "cache")
    assert len(rows) == 54 and len(skipped) == 3 and all("the same file as" in item["reason"] for item in skipped)


def test_a_model_is_trained_on_device_files_and_measured_eye_by_eye(practice, tmp_path):
    recipe = make_recipe(
        {
            "data": {"name": "folder", "path": str(practice)},
            "split": {"validation": 0.25, "test": 0.25},
            "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64},
            "train": {"epochs": 1, "batch_size": 8, "workers": 0},
        }
    )
    facts = finetune(recipe, tmp_path / "run")
    assert facts["data"]["groups"] == 16 and facts["per_eye"]["bscans"] == 3
    predictions = Predictions.read(tmp_path / "run/model/predictions.parquet")
    assert set(predictions.eyes) <= {"OD", "OS"} and "" not in predictions.eyes
    test = predictions.of("test")
    assert facts["per_eye"]["eyes"]["test"] == len(set(zip(test.groups, test.eyes, strict=True)))
    published = "".join(path.read_text(errors="replace") for path in (tmp_path / "run/model").glob("*.[jcm]*"))
    assert not any(secret in published for secret in SECRETS) and json.loads((tmp_path / "run/run.json").read_text())
