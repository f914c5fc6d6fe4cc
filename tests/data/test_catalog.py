"""Every public set from a tiny copy of its layout, made here of phantoms."""

import csv
import io
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oct_hf.data.catalog import CATALOG, files_of, public_set
from oct_hf.data.npz import Npz
from oct_hf.data.oct import prepare
from oct_hf.data.phantom import draw
from oct_hf.errors import DataError
from oct_hf.labels import LABEL_SETS
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.training.recipe_file import load_recipe


def picture(path: Path, number: int, size: int = 96, kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw("CNV", 11, number, 0, size, size).image).save(path, kind)


def table(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def oct2017(root: Path) -> None:
    number = 0
    for side, count in (("train", 4), ("test", 1)):
        for label in LABEL_SETS["oct2017"]:
            for index in range(count):
                number += 1
                picture(root / "OCT2017 " / side / label / f"{label}-{100 + number}-{index}.jpeg", number)


def neh_ut_2021(root: Path) -> None:
    rows, number = [], 0
    for label in LABEL_SETS["neh_ut_2021"]:
        for patient in range(1, 5):
            for eye in ("OD", "OS"):
                for shown in dict.fromkeys(("NORMAL", label)):
                    number += 1
                    inner = f"{label}/{patient}/{eye}/{number:03d}_{shown.title()}.jpg"
                    picture(root / "NEH_UT_2021RetinalOCTDataset" / inner, number)
                    row = {"": number, "Patient ID": patient, "Class": label, "Eye": eye}
                    rows.append({**row, "Directory": f"/{inner}", "Label": shown.title()})
    table(root / "data_information.csv", [*rows, {**rows[0], "": 0}])  # the published one has rows twice


def neh_2018(root: Path) -> None:
    for index, label in enumerate(LABEL_SETS["neh_2018"]):
        for patient in range(4):
            for scan in range(2):
                picture(root / label / str(10 * index + patient) / f"{scan}.tif", 8 * index + 2 * patient + scan)


def srinivasan2014(root: Path) -> None:
    number = 0
    for label in LABEL_SETS["srinivasan2014"]:
        for patient in range(1, 5):
            for scan in range(2):
                number += 1
                top = root / "Publication_Dataset" / f"{label}{patient}" / "TIFFs"
                picture(top / "8bitTIFFs" / f"{scan + 1:03d}.tif", number)
                picture(top / "otherTIFFs" / f"{scan + 1:03d}.tif", number)


def octdl(root: Path) -> None:
    rows, number = [], 0
    for label in LABEL_SETS["octdl"]:
        for _ in range(4):
            number += 1
            name = f"{label.lower()}_{1000 + number}_1"
            picture(root / "OCTDL" / label / f"{name}.jpg", number)
            about = {"subcategory": "", "condition": "", "patient_id": 1000 + number, "eye": "OD", "sex": "F"}
            rows.append({"file_name": name, "disease": label, **about})
    table(root / "OCTDL_labels.csv", rows)


def octid(root: Path) -> None:
    number = 0
    for label in ("NORMAL", "ARMD", "CSR", "DR", "MH"):
        for scan in range(4):
            number += 1
            picture(root / label / f"{label}{scan}.jpeg", number)


LAYOUTS = {f.__name__: f for f in (oct2017, neh_ut_2021, neh_2018, srinivasan2014, octdl, octid)}
LAYOUTS["oct2017_binary"] = oct2017


def zipped(root: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(root))
    return target


def tarred(root: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as archive:
        archive.add(root, ".")
    return target


def octmnist(path: Path, size: int = 28, colour: bool = False, write=np.savez_compressed) -> Path:
    arrays = {}
    for side, count in (("train", 8), ("val", 4), ("test", 4)):
        images = [draw("DME", 3, len(arrays) * 10 + n, 0, 96, 96).image for n in range(count)]
        small = np.stack([np.asarray(Image.fromarray(i).resize((size, size))) for i in images])
        arrays[f"{side}_images"] = np.stack([small] * 3, axis=3) if colour else small
        arrays[f"{side}_labels"] = (np.arange(count) % 4).reshape(-1, 1).astype(np.uint8)
    write(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_set_is_read_from_its_layout(name, kind, tmp_path):
    root = tmp_path / "set"
    LAYOUTS[name](root)
    source = {"folder": lambda: root, "zip": lambda: zipped(root, tmp_path / "s.zip")}
    source["tar"] = lambda: tarred(root, tmp_path / "s.tar")
    dataset, skipped = prepare(name, source[kind](), tmp_path / "cache")
    assert dataset.features["label"].names == list(CATALOG[name].labels) and skipped == []
    wanted = "8bitTIFFs" if name == "srinivasan2014" else ""
    assert len(dataset) == sum(wanted in str(p) for p in root.rglob("*") if p.suffix in (".jpeg", ".jpg", ".tif"))
    patients = dataset["patient_id"][:]
    assert all(patients) if CATALOG[name].patients else not any(patients)


def test_every_row_of_the_catalogue_is_whole_and_has_a_recipe():
    assert set(LAYOUTS) | {"octmnist"} == set(CATALOG)
    for name, row in CATALOG.items():
        assert row.labels == LABEL_SETS[name] and row.homepage.startswith("https://") and "20" in row.citation
        assert re.compile(row.pattern).groupindex.keys() >= {"label"}
        recipe = load_recipe(name)
        assert recipe.data.title == row.title and recipe.data.citation == row.citation
        assert recipe.data.license == row.license and recipe.data.public
        for file in row.files:
            assert file.url is None or file.url.startswith("http")
            assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
    with pytest.raises(DataError, match='mean "srinivasan2014"'):
        public_set("srinivasan")
    with pytest.raises(DataError, match="no images of 100 pixels; it has 28, 64, 128, 224"):
        files_of(CATALOG["octmnist"], 100)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if "oct2017" not in n and n != "neh_2018"])
def test_a_sets_recipe_splits_its_patients(name, tmp_path):
    LAYOUTS[name](tmp_path / "set")
    recipe = load_recipe(name, [f"data.path={tmp_path / 'set'}", "validation=0.25", "test=0.25"])
    dataset, _ = load_data(recipe.data, str(tmp_path / "cache"))
    data = assign_sides(dataset, recipe)
    assert {"train", "validation", "test"} == set(data.sides)
    assert len(set(data.patients)) > 3


VOLUMES = {  # of the first picture, where its set tells volumes, and how many there are
    "neh_ut_2021": ("CNV/1/OD", 24),
    "neh_2018": ("0", 12),
    "srinivasan2014": ("AMD1", 12),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_volume_is_told_where_the_layout_tells_it_and_is_of_one_patient(name, tmp_path):
    LAYOUTS[name](tmp_path / "set")
    dataset, _ = prepare(name, tmp_path / "set", tmp_path / "cache")
    volumes, patients = dataset["volume"][:], dataset["patient_id"][:]
    first, count = VOLUMES.get(name, ("", 1))
    assert volumes[0] == first and len(set(volumes)) == count
    if first:
        of = dict(zip(volumes, patients, strict=True))
        assert [of[volume] for volume in volumes] == patients


def test_a_groups_csv_has_no_volume_and_eye_folders_are_volumes(tmp_path):
    neh_2018(tmp_path / "set")
    place = tmp_path / "set" / "AMD" / "0"
    (place / "OD").mkdir()
    (place / "0.tif").rename(place / "OD" / "0.tif")
    dataset, _ = prepare("neh_2018", tmp_path / "set", tmp_path / "cache")
    assert {"0", "0/OD"} <= set(dataset["volume"]) and dataset["patient_id"][:].count("0") == 2
    flat = [
        dict(file=f"{label}/{n}.tif", eye=f"{label}{n}", fold=n, guard="")
        for label in ("AMD", "DME", "NORMAL")
        for n in range(2)
    ]
    for number, row in enumerate(flat):
        picture(tmp_path / "flat" / row["file"], number)
    table(tmp_path / "flat" / "groups.csv", flat)
    dataset, _ = prepare("neh_2018", tmp_path / "flat", tmp_path / "cache")
    assert set(dataset["volume"]) == {""} and set(dataset["patient_id"]) == {row["eye"] for row in flat}


def test_the_binary_set_has_the_same_images_under_two_labels(tmp_path):
    oct2017(tmp_path)
    four, _ = prepare("oct2017", tmp_path, tmp_path / "c")
    two, _ = prepare("oct2017_binary", tmp_path, tmp_path / "c")
    assert sorted(four["content_hash"]) == sorted(two["content_hash"]) and set(two["fold"]) == {"train", "test"}
    assert [two.features["label"].int2str(v) for v in two["label"][:]].count("NORMAL") == 5


def test_neh_ut_patients_are_told_apart_by_class_and_labels_are_of_the_image_the_eye_or_its_worst(tmp_path):
    neh_ut_2021(tmp_path)

    def labels(how: str) -> dict[str, str]:
        dataset, _ = prepare("neh_ut_2021", tmp_path, tmp_path / "c", label_by=how)
        names = dataset.features["label"].names
        return {row["source"].split("/", 1)[1]: names[row["label"]] for row in dataset}

    dataset, _ = prepare("neh_ut_2021", tmp_path, tmp_path / "c")
    assert {"CNV-1", "DRUSEN-1", "NORMAL-1"} <= set(dataset["patient_id"]) and set(dataset["eye"]) == {"OD", "OS"}
    image, eye, worst = labels("image"), labels("eye"), labels("worst")
    assert image["CNV/1/OD/001_Normal.jpg"] == "NORMAL" and eye["CNV/1/OD/001_Normal.jpg"] == "CNV"
    assert "CNV/1/OD/001_Normal.jpg" not in worst and worst["CNV/1/OD/002_Cnv.jpg"] == "CNV"
    assert len(image) == len(eye) == 40 and len(worst) == 24
    with pytest.raises(DataError, match=r"label_by: found 'patient', expected one of image, eye, worst"):
        prepare("neh_ut_2021", tmp_path, tmp_path / "c", label_by="patient")
    octdl(tmp_path / "other")
    with pytest.raises(DataError, match="it isn't settled how severe"):
        prepare("octdl", tmp_path / "other", tmp_path / "c", label_by="eye")


def test_octid_comes_as_a_folder_of_zips(tmp_path):
    octid(tmp_path / "set")
    for folder in sorted((tmp_path / "set").iterdir()):
        zipped(folder, tmp_path / "set" / f"{folder.name}.zip")
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    dataset, _ = prepare("octid", tmp_path / "set", tmp_path / "c")
    assert len(dataset) == 20 and not any(dataset["patient_id"])


def test_a_csv_lies_beside_the_zip_as_it_is_published(tmp_path):
    octdl(tmp_path / "set")
    home = tmp_path / "home"
    home.mkdir()
    zipped(tmp_path / "set" / "OCTDL", home / "OCTDL.zip")
    (tmp_path / "set" / "OCTDL_labels.csv").rename(home / "OCTDL_labels.csv")
    dataset, _ = prepare("octdl", home, tmp_path / "c")
    assert len(dataset) == 28 and all(dataset["patient_id"])


@pytest.mark.parametrize("size, colour, write", [(28, False, np.savez_compressed), (64, True, np.savez)])
def test_octmnist_is_read_row_by_row_from_its_npz(size, colour, write, tmp_path):
    octmnist(tmp_path / f"octmnist_{size}.npz", size, colour, write)
    dataset, _ = prepare("octmnist", tmp_path / f"octmnist_{size}.npz", tmp_path / "c", size=size)
    assert len(dataset) == 16 and not any(dataset["patient_id"])
    assert [dataset["fold"][:].count(side) for side in ("train", "validation", "test")] == [8, 4, 4]
    with np.load(tmp_path / f"octmnist_{size}.npz") as arrays:
        for row in dataset:
            side, label, name = row["source"].split("/")
            number = int(name.removesuffix(".png"))
            assert np.array_equal(np.asarray(row["image"]), arrays[f"{side}_images"][number])
            assert label == LABEL_SETS["octmnist"][arrays[f"{side}_labels"][number, 0]]
    scratch = Path(Npz(tmp_path / f"octmnist_{size}.npz").scratch)
    assert not scratch.exists()  # gone with the object


def test_an_npz_that_is_none_is_one_line(tmp_path):
    whole = octmnist(tmp_path / "octmnist.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "objects.npz", train_images=np.array([{"a": 1}], dtype=object), train_labels=np.zeros(1))
    lying = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "octmnist.npz") as old, zipfile.ZipFile(lying, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == "train_images.npy":
                data = data.replace(b"(8, 28, 28), }     ", b"(8, 28, 280000), } ")
            new.writestr(info.filename, data)
    (tmp_path / "lying.npz").write_bytes(lying.getvalue())
    np.savez(tmp_path / "scalar.npz", train_images=np.uint8(3), train_labels=np.uint8(0))
    many = np.zeros((1_000_001, 1, 1), np.uint8)
    np.savez_compressed(tmp_path / "many.npz", train_images=many, train_labels=many[:, 0])
    with pytest.raises(DataError, match=r"many\.npz: .*says \(1000001, 1, 1\), far more than OCTMNIST has"):
        prepare("octmnist", tmp_path / "many.npz", tmp_path / "c")
    with np.load(tmp_path / "octmnist.npz") as arrays:
        for label in (4, -1):
            np.savez(tmp_path / "label.npz", **{**arrays, "val_labels": np.full((4, 1), label, np.int8)})
            with pytest.raises(DataError, match="val_labels are not numbers from 0 to 3"):
                prepare("octmnist", tmp_path / "label.npz", tmp_path / "c")
    for name in ("half", "other", "objects", "lying", "scalar"):
        with pytest.raises(DataError, match=rf"{name}\.npz: not an \.npz of MedMNIST") as caught:
            prepare("octmnist", tmp_path / f"{name}.npz", tmp_path / "c")
        assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_csv_is_said(tmp_path):
    octdl(tmp_path)
    path = tmp_path / "OCTDL_labels.csv"
    text = path.read_text()
    for old, new, said in (
        ("patient_id", "patientid", r'no column "patient_id" for the patient \(did you mean "patientid"'),
        ("amd_1001_1,AMD", "amd_1001_1,DME", "two labels for one file: OCTDL_labels.csv says DME, its folder AMD"),
        ("amd_1001_1,AMD", "amd_1001_1,XYZ", "two labels for one file"),
        (",1001,", ",,", "names no patient for it"),
        ("amd_1001_1,", "amd_9999_1,", "not listed in OCTDL_labels.csv"),
        ("amd_1002_1,AMD", "amd_1001_1,AMD", r"line 3: amd_1001_1 stands there twice, with different values"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(DataError, match=said):
            prepare("octdl", tmp_path, tmp_path / "c")
    path.unlink()
    with pytest.raises(DataError, match=r"no CSV OCTDL_labels\.csv"):
        prepare("octdl", tmp_path, tmp_path / "c")


def test_another_set_is_not_taken_for_this_one(tmp_path):
    octid(tmp_path)
    with pytest.raises(DataError, match=r"no usable image of class .*expected CLASSn/TIFFs/8bitTIFFs"):
        prepare("srinivasan2014", tmp_path, tmp_path / "c")
    with pytest.raises(DataError, match=r"no usable image of class .*expected train\|test/LABEL"):
        prepare("oct2017", tmp_path, tmp_path / "c")
