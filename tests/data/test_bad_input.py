"""What is wrong with files is one line, or one file left out: no crash, no hang, no more than 2 GB of memory."""

import io
import json
import os
import subprocess
import sys
import zipfile
import zlib

import pytest
from PIL import Image

from oct_hf.data import source
from oct_hf.data.oct import prepare
from oct_hf.data.phantom import draw
from oct_hf.errors import DataError

MEASURE = """
import json, os, resource, sys
os.cpu_count = lambda: 16  # as many threads as a large machine has
from oct_hf.data.oct import prepare
from oct_hf.errors import OCTError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    rows, skipped = prepare("folder", sys.argv[1], sys.argv[2], 1, skip_bad=True, **json.loads(sys.argv[3]))
    told = {"rows": len(rows), "skipped": skipped}
except OCTError as error:
    told = {"error": str(error)}
print(json.dumps(told | {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def measured(path, tmp_path, **options) -> dict:
    """What a preparation in a process of its own says, and the most memory it had, in MB."""
    command = [sys.executable, "-c", MEASURE, path, tmp_path / "cache", json.dumps(options)]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def png() -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(draw("DME", 2, height=96, width=96).image).save(encoded, "PNG")
    return encoded.getvalue()


def zeros(archive: zipfile.ZipFile, name: str, blocks: int, crc: int) -> None:
    """An entry of so many times 10 MB of zeros, which has a few KB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(10 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    info = zipfile.ZipInfo(name)
    archive.writestr(info, block * blocks + packer.flush())
    info.compress_type, info.file_size, info.CRC = zipfile.ZIP_DEFLATED, blocks * (10 << 20), crc


def bombs(archive: zipfile.ZipFile) -> None:
    """Pictures of 60 MB, just below what one may have, and one of 3 GB."""
    for number in range(17):  # more than one thread reads
        zeros(archive, f"DME/P2/{number}.png", 6, number)
    zeros(archive, "DME/P2/large.png", 300, 0)


def wide(archive: zipfile.ZipFile) -> None:
    """Pictures of 100 million pixels in 100 KB."""
    encoded = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(encoded, "PNG", compress_level=1)
    for number in range(33):
        archive.writestr(f"DME/P2/{number}.png", encoded.getvalue() + bytes([number]))


def long(archive: zipfile.ZipFile) -> None:
    """A CSV of a million rows."""
    archive.writestr("t.csv", b"file,patient\n" + b"".join(b"%d,%d\n" % (row, row) for row in range(1_000_000)))


def large(archive: zipfile.ZipFile) -> None:
    """A CSV of 3 GB."""
    zeros(archive, "t.csv", 300, 0)


@pytest.mark.promise("A changed or damaged file is read or refused: no crash, no hang, no more than 2 GB.")
@pytest.mark.parametrize(
    "make, options, left_out, said",
    [
        (bombs, {}, 18, "unpacks to more than 64 MB"),
        (wide, {}, 33, "has 10000x10000 pixels, more than 16 megapixels"),
        (long, {"csv": "t.csv"}, None, "t.csv: lists more than 10,010 files, far more than are there"),
        (large, {"csv": "t.csv"}, None, "t.csv can't be read (it unpacks to more than 128 MB)"),
    ],
)
def test_what_unpacks_to_far_more_than_it_should_costs_no_memory(make, options, left_out, said, png, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("DME/P1/good.png", png)
        make(archive)
    told = measured(tmp_path / "a.zip", tmp_path, **options)
    assert told["mb"] < 2048
    if left_out is None:
        assert said in told["error"]
    else:
        assert told["rows"] == 1 and len(told["skipped"]) == left_out
        assert any(said in item["reason"] for item in told["skipped"])


def test_a_table_that_is_far_too_large_is_not_read(png, tmp_path, monkeypatch):
    from oct_hf.data import archives

    monkeypatch.setattr(source, "MAX_TABLE", 1 << 20)
    monkeypatch.setattr(archives, "MAX_TABLE", 1 << 20)
    (tmp_path / "set/DME/P1").mkdir(parents=True)
    (tmp_path / "set/DME/P1/a.png").write_bytes(png)
    (tmp_path / "set/t.csv").write_bytes(bytes((1 << 20) + 1))
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("DME/P1/a.png", png)
        archive.writestr("t.csv", bytes((1 << 20) + 1))
    for name, said in (("set", "larger than 1 MB"), ("set.zip", "unpacks to more than 1 MB")):
        with pytest.raises(DataError, match=said):
            prepare("folder", tmp_path / name, tmp_path / "c", csv="t.csv")


@pytest.mark.promise("A changed or damaged file is read or refused: no crash, no hang, no more than 2 GB.")
def test_pipes_links_to_nothing_and_huge_files_are_listed_and_nothing_waits(clinic, tmp_path):
    os.mkfifo(clinic / "DME/D0/pipe.png")
    os.symlink(tmp_path / "nowhere.png", clinic / "DME/D0/gone.png")
    with open(clinic / "DME/D0/huge.png", "wb") as file:
        file.truncate(source.MAX_FILE + 1)
    told = measured(clinic, tmp_path)
    reasons = {item["file"]: item["reason"] for item in told["skipped"]}
    assert told["rows"] == 24 and reasons == {
        "DME/D0/gone.png": "can't be opened (No such file or directory)",
        "DME/D0/huge.png": "has more than 64 MB, so it is no B-scan",
        "DME/D0/pipe.png": "is a pipe or a device, no file",
    }
    with pytest.raises(DataError, match=r"2 file\(s\) can't be used: DME/D0/"):
        prepare("folder", clinic, tmp_path / "c")


def test_the_same_in_a_public_set_is_listed_where_a_picture_of_it_should_be(tmp_path):
    from tests.data.test_catalog import oct2017

    oct2017(tmp_path / "set")
    place = tmp_path / "set" / "OCT2017 " / "train" / "CNV"
    os.symlink(tmp_path / "nowhere", place / "CNV-999-1.jpeg")
    os.symlink(tmp_path / "nowhere", tmp_path / "set" / "thumbnail.jpeg")
    with pytest.raises(DataError, match=r"1 file\(s\) can't be used: OCT2017 /train/CNV/CNV-999-1.jpeg \(can't be op"):
        prepare("oct2017", tmp_path / "set", tmp_path / "c")


def test_folders_that_link_to_each_other_end_and_links_to_other_folders_are_followed(clinic, tmp_path):
    for name in ("one", "two"):
        os.symlink(clinic, clinic / "DME" / name)
    (tmp_path / "elsewhere").mkdir()
    os.rename(clinic / "DME/D5", tmp_path / "elsewhere/D5")
    os.symlink(tmp_path / "elsewhere/D5", clinic / "DME/D5")
    os.symlink("itself", clinic / "DME/itself")
    rows, skipped = prepare("folder", clinic, tmp_path / "c")
    assert len(rows) == 24 and skipped == [] and rows["patient_id"][:].count("D5") == 2


def test_an_eye_in_two_class_folders_is_noted(clinic):
    from oct_hf.runs.check import check
    from oct_hf.training.recipe_file import make_recipe

    for label, patient in (("DME", "D0"), ("NORMAL", "N0")):
        (clinic / label / "both" / "OD").mkdir(parents=True)
        for file in (clinic / label / patient).iterdir():
            file.rename(clinic / label / "both" / "OD" / file.name)
    checked = check(make_recipe({"name": "c", "data": {"name": "folder", "path": str(clinic)}}))
    assert "1 of 1 eyes have B-scans of several classes, such as both OD: DME, NORMAL" in checked.notes
