import csv
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from oct_hf.data.oct import OCT, prepare
from oct_hf.errors import DataError
from oct_hf.images import read_image


@pytest.fixture
def oct2017(tmp_path, clinic):
    """A tiny copy of the published layout, with a patient under two labels and a macOS leftover."""
    root = tmp_path / "OCT2017 "
    files = sorted(clinic.rglob("*.png"))
    number = 0
    for side, count in (("train", 4), ("test", 1)):
        for label in ("CNV", "DME", "DRUSEN", "NORMAL"):
            place = root / side / label
            place.mkdir(parents=True)
            for index in range(count):
                patient = 7 if label in ("CNV", "DRUSEN") and side == "train" and index == 0 else 100 + number
                Image.open(files[number]).convert("L").save(place / f"{label}-{patient}-{index}.jpeg", quality=95)
                number += 1
    (root / "train" / "CNV" / "._CNV-1-1.jpeg").write_bytes(b"leftover")
    (root / ".DS_Store").write_bytes(b"x")
    return root


def write_csv(folder, rows, name="patients.csv"):
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_phantoms_need_no_file_and_are_the_same_each_time(tmp_path):
    first, _ = prepare("phantom", cache_dir=tmp_path / "a", patients=2, scans=2, height=96, width=96)
    again, _ = prepare("phantom", cache_dir=tmp_path / "b", patients=2, scans=2, height=96, width=96)
    assert first["content_hash"][:] == again["content_hash"][:]
    assert first.features["label"].names == ["CNV", "DME", "DRUSEN", "NORMAL"]
    assert len(first) == 16 and len(set(first["patient_id"][:])) == 8 and set(first["eye"][:]) <= {"OD", "OS"}
    other, _ = prepare("phantom", cache_dir=tmp_path / "a", patients=2, scans=2, height=96, width=96, seed=1)
    assert not set(first["content_hash"][:]) & set(other["content_hash"][:])


@pytest.mark.parametrize("packed", [False, True])
def test_oct2017_is_read_from_its_folder_and_from_its_zip(oct2017, tmp_path, packed):
    source = oct2017
    if packed:
        source = shutil.make_archive(str(tmp_path / "OCT2017"), "zip", oct2017.parent, oct2017.name)
    dataset, skipped = prepare("oct2017", source, tmp_path / "cache")
    assert len(dataset) == 20 and skipped == []
    assert sorted(set(dataset["fold"][:])) == ["test", "train"]
    for row in dataset:
        name = row["source"].split("/")[-1]
        assert name.startswith(f"{dataset.features['label'].int2str(row['label'])}-{row['patient_id']}-")
    twice = [row for row in dataset if row["patient_id"] == "7"]
    assert {row["label"] for row in twice} == {0, 2}


def test_published_sides_are_splits_of_the_builder_and_stream(oct2017, tmp_path):
    builder = OCT(config_name="oct2017", data_dir=str(oct2017), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    sides = builder.as_dataset()
    assert {side: len(rows) for side, rows in sides.items()} == {"train": 16, "test": 4}
    streamed = list(builder.as_streaming_dataset("test"))
    assert [row["content_hash"] for row in streamed] == sides["test"]["content_hash"][:]


def test_the_real_sample_loads_and_its_bytes_stay_as_they_are(samples, tmp_path):
    dataset, _ = prepare("oct2017", samples / "oct2017_sample", tmp_path)
    row = dataset[5]
    file = samples / "oct2017_sample" / row["source"]
    assert np.array_equal(read_image(file), np.asarray(row["image"]))
    assert len(dataset) == 80


def test_folder_takes_patient_and_eye_from_folders(clinic, tmp_path):
    (clinic / "DME/D0").rename(clinic / "DME/D9")
    deeper = clinic / "NORMAL/N0/OS"
    deeper.mkdir()
    shutil.move(clinic / "NORMAL/N0/0.png", deeper / "0.png")
    dataset, _ = prepare("folder", clinic, tmp_path / "cache")
    rows = {row["source"]: row for row in dataset}
    assert rows["DME/D9/0.png"]["patient_id"] == "D9"
    assert (rows["NORMAL/N0/OS/0.png"]["patient_id"], rows["NORMAL/N0/OS/0.png"]["eye"]) == ("N0", "OS")


def test_folder_takes_patient_and_eye_from_a_pattern(clinic, tmp_path):
    for file in clinic.rglob("*.png"):
        eye = "right" if file.stem == "0" else "os"
        file.rename(file.parents[1] / f"{file.parent.name}-{eye}.png")
    dataset, _ = prepare("folder", clinic, tmp_path / "c", pattern=r"/(?P<patient>[A-Z]\d)-(?P<eye>right|os)")
    assert set(dataset["eye"][:]) == {"OD", "OS"} and len(set(dataset["patient_id"][:])) == 12
    with pytest.raises(DataError, match="doesn't match the pattern"):
        prepare("folder", clinic, tmp_path / "c", pattern=r"(?P<patient>X\d)")
    with pytest.raises(DataError, match="no group"):
        prepare("folder", clinic, tmp_path / "c", pattern=r"X\d")
    with pytest.raises(DataError, match="not a regular expression"):
        prepare("folder", clinic, tmp_path / "c", pattern=r"(?P<patient>")


def test_folder_takes_patient_eye_and_fold_from_a_csv(clinic, tmp_path):
    rows = [
        {
            "image": f.relative_to(clinic).as_posix(),
            "pid": f.parent.name,
            "side": "R",
            "fold": "3",
            "guard": int(f.stem),
        }
        for f in sorted(clinic.rglob("*.png"))
    ]
    write_csv(clinic, rows)
    columns = {"file": "image", "patient": "pid", "eye": "side"}
    dataset, _ = prepare("folder", clinic, tmp_path / "c", csv="patients.csv", columns=columns)
    assert set(dataset["eye"][:]) == {"OD"} and set(dataset["fold"][:]) == {"3", "guard"}
    with pytest.raises(DataError, match=r'no column "pidd" for the patient \(did you mean "pid"'):
        prepare("folder", clinic, tmp_path / "c", csv="patients.csv", columns={"file": "image", "patient": "pidd"})
    write_csv(clinic, rows[1:])
    with pytest.raises(DataError, match=r"DME/D0/0.png \(not listed in patients.csv"):
        prepare("folder", clinic, tmp_path / "c", csv="patients.csv", columns=columns)
    write_csv(clinic, [*rows, {**rows[0], "image": "DME/none.png"}])
    with pytest.raises(DataError, match=r"DME/none.png \(listed in patients.csv but not there"):
        prepare("folder", clinic, tmp_path / "c", csv="patients.csv", columns=columns)
    write_csv(clinic, [*rows, {**rows[0], "pid": "other"}])
    with pytest.raises(DataError, match=r"line 26: DME/D0/0.png stands there twice"):
        prepare("folder", clinic, tmp_path / "c", csv="patients.csv", columns=columns)
    with pytest.raises(DataError, match=r"no CSV nothing.csv"):
        prepare("folder", clinic, tmp_path / "c", csv="nothing.csv")


def test_a_volume_comes_from_a_csv_or_a_pattern_and_is_counted_within_its_patient(clinic, tmp_path):
    files = sorted(clinic.rglob("*.png"))
    rows = [{"file": f.relative_to(clinic).as_posix(), "patient": f.parent.name, "volume": f.stem} for f in files]
    write_csv(clinic, rows)
    dataset, _ = prepare("folder", clinic, tmp_path / "c", csv="patients.csv")
    assert set(dataset["volume"]) == {f"{f.parent.name}/{f.stem}" for f in files}
    pattern = r"/(?P<patient>[A-Z]\d)/(?P<volume>\d)"
    told, _ = prepare("folder", clinic, tmp_path / "c", pattern=pattern)
    assert told["volume"][:] == dataset["volume"][:]
    write_csv(clinic, [{"file": row["file"], "volume": row["patient"]} for row in rows])
    with pytest.raises(DataError, match='no column "patient" for the patient'):
        prepare("folder", clinic, tmp_path / "c", csv="patients.csv")
    for options in ({"csv": "patients.csv"}, {"pattern": r"/(?P<volume>[A-Z]\d)/"}):
        nameless, _ = prepare("folder", clinic, tmp_path / "c", without_patients=True, **options)
        assert set(nameless["patient_id"]) == {""} and set(nameless["volume"]) == {f.parent.name for f in files}


def test_a_bare_name_that_two_files_have_is_refused(clinic, tmp_path):
    write_csv(clinic, [{"file": f"{n}.png", "patient": f"p{n}"} for n in range(2)])
    with pytest.raises(DataError, match=r"patients.csv says 0.png, which may also be DME/D0/0.png: write CLASS/0.png"):
        prepare("folder", clinic, tmp_path / "c", csv="patients.csv")


def test_a_flat_folder_without_patients_is_refused(clinic, tmp_path):
    for file in clinic.rglob("*.png"):
        file.rename(file.parents[1] / f"{file.parent.name}{file.name}")
    with pytest.raises(DataError, match="nothing tells its patient"):
        prepare("folder", clinic, tmp_path / "c")


def test_unreadable_files_are_all_named_and_can_be_left_out(clinic, tmp_path):
    (clinic / "DME/D0/0.png").write_bytes(b"")
    whole = (clinic / "DME/D1/0.png").read_bytes()
    (clinic / "DME/D1/0.png").write_bytes(whole[: len(whole) // 2])
    (clinic / "NORMAL/N0/note.jpeg").write_text("see letter")
    with pytest.raises(DataError, match=r"3 file\(s\) can't be used") as caught:
        prepare("folder", clinic, tmp_path / "c")
    assert all(name in str(caught.value) for name in ("DME/D0/0.png", "DME/D1/0.png", "NORMAL/N0/note.jpeg"))
    dataset, skipped = prepare("folder", clinic, tmp_path / "c", skip_bad=True)
    assert len(dataset) == 22 and len(skipped) == 3
    _, from_cache = prepare("folder", clinic, tmp_path / "c", skip_bad=True)
    assert from_cache == skipped


def test_every_readable_kind_of_image_is_the_right_picture_for_whoever_opens_the_set(clinic, tmp_path):
    place, picture = clinic / "DME" / "D0", np.asarray(Image.open(clinic / "DME/D0/0.png"))
    for file in place.iterdir():
        file.unlink()
    image = Image.fromarray(picture)
    image.convert("RGBA").save(place / "rgba.png")
    image.convert("RGB").convert("CMYK").save(place / "cmyk.tiff")
    image.convert("P").save(place / "palette.png")
    Image.fromarray(picture.astype(np.uint16) * 257).save(place / "deep.png")
    Image.fromarray(picture.astype(np.float32)).save(place / "float.tiff")
    dataset, _ = prepare("folder", clinic, tmp_path / "c")
    rows = [row for row in dataset if row["patient_id"] == "D0"]
    assert len(rows) == 5
    for row in rows:
        seen = np.asarray(row["image"].convert("L")).astype(int)
        assert np.abs(seen - picture).max() <= (255 - picture.max() if "float" in row["source"] else 1), row["source"]


def test_one_picture_under_two_labels_is_refused_and_neither_copy_stays(clinic, tmp_path):
    shutil.copy(clinic / "DME/D0/0.png", clinic / "NORMAL/N0/copy.png")
    with pytest.raises(DataError, match="two labels for one file"):
        prepare("folder", clinic, tmp_path / "c")
    dataset, skipped = prepare("folder", clinic, tmp_path / "c", skip_bad=True)
    assert {item["file"] for item in skipped} == {"DME/D0/0.png", "NORMAL/N0/copy.png"}
    assert len(dataset) == 23


def test_a_repeated_picture_is_used_once(clinic, tmp_path):
    shutil.copy(clinic / "DME/D0/0.png", clinic / "DME/D1/again.png")
    dataset, skipped = prepare("folder", clinic, tmp_path / "c")
    assert len(dataset) == 24 == len(set(dataset["content_hash"][:]))
    assert skipped == [{"file": "DME/D1/again.png", "reason": "the same file as DME/D0/0.png"}]


def test_a_name_that_contradicts_its_folder_is_refused(oct2017, tmp_path):
    (oct2017 / "train/CNV/CNV-100-9.jpeg").write_bytes((oct2017 / "train/DME/DME-104-0.jpeg").read_bytes())
    (oct2017 / "train/CNV/CNV-100-9.jpeg").rename(oct2017 / "train/CNV/DME-100-9.jpeg")
    (oct2017 / "train/CNV/scan.jpeg").write_bytes(b"x")
    with pytest.raises(DataError, match="its name says DME, its folder CNV") as caught:
        prepare("oct2017", oct2017, tmp_path / "c")
    assert "scan.jpeg (its name is not LABEL-PATIENT-NUMBER" in str(caught.value)


def test_a_changed_file_is_prepared_anew(clinic, tmp_path):
    before, _ = prepare("folder", clinic, tmp_path / "c")
    Image.fromarray(np.full((96, 96), 9, np.uint8)).save(clinic / "DME/D0/0.png")
    after, _ = prepare("folder", clinic, tmp_path / "c")
    assert set(before["content_hash"][:]) != set(after["content_hash"][:])


@pytest.mark.parametrize("name, path, text", [("oct2018", "x", 'mean "oct2017"'), ("folder", None, "give --data")])
def test_what_is_missing_is_said(name, path, text):
    with pytest.raises(DataError, match=text):
        prepare(name, path)


def test_empty_and_broken_sources_are_one_line(tmp_path, clinic):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not a zip")
    for source, text in (
        ("empty", "no images in class folders"),
        ("gone", "no such folder"),
        ("broken.zip", "not a zip"),
    ):
        with pytest.raises(DataError, match=text) as caught:
            prepare("folder", tmp_path / source, tmp_path / "c")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no usable image of class CNV"):
        prepare("folder", clinic, tmp_path / "c", labels=("CNV", "DME"))


def test_a_zip_entry_that_is_damaged_is_named(oct2017, tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(oct2017.rglob("*.jpeg")):
            archive.write(file, file.relative_to(oct2017))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("train/DME/" + next(p.name for p in (oct2017 / "train/DME").iterdir()))
    data[info.header_offset + 200] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train/DME/.*can't be read from the zip"):
        prepare("oct2017", path, tmp_path / "c")


def test_a_csv_names_devices_and_results_are_told_apart_by_them(clinic, finished_run):
    from oct_hf import Predictor
    from oct_hf.runs.labelled import assign_sides, predict_sides
    from oct_hf.training.recipe_file import make_recipe

    files = sorted(clinic.rglob("*.png"))
    rows = [
        {
            "file": f.relative_to(clinic).as_posix(),
            "patient": f.parent.name,
            "device": ("Cirrus", "Spectralis")[int(f.parent.name[1:]) % 2],
        }
        for f in files
    ]
    write_csv(clinic, rows)
    dataset, _ = prepare("folder", clinic, csv="patients.csv")
    assert dataset["device"][:] == [row["device"] for row in rows]
    data = assign_sides(dataset, make_recipe({"data": {"name": "folder", "path": str(clinic), "csv": "patients.csv"}}))

    predictions = predict_sides(Predictor(finished_run / "model", backend="torch"), data)
    told = dict(zip(dataset["content_hash"], dataset["device"], strict=True))
    assert [told[value] for value in predictions.hashes] == predictions.traits["device"].tolist()


@pytest.mark.parametrize("name", ["folder", "parquet", "neh_2018"])
def test_a_set_of_files_without_a_folder_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(DataError, match=f'data set "{name}" needs a data_dir'):
        OCT(config_name=name, cache_dir=str(tmp_path)).work()
