"""Sources as strangers make them: archives with unsafe paths, lies about sizes, halves, odd names; pipes."""

import os
import pickle
import stat
import tarfile
import zipfile

import pytest
from PIL import Image

from oct_hf.data import archives
from oct_hf.data.oct import prepare
from oct_hf.data.phantom import draw
from oct_hf.data.sources import open_source
from oct_hf.errors import BadImageError, DataError
from oct_hf.parallel import in_order


@pytest.fixture
def png(tmp_path) -> bytes:
    Image.fromarray(draw("DME", 2, height=96, width=96).image).save(tmp_path / "x.png")
    return (tmp_path / "x.png").read_bytes()


@pytest.mark.promise("An archive whose entries lead out of it, or are links, isn't read.")
@pytest.mark.parametrize("path", ["../DME/a.png", "/DME/a.png", "DME\\..\\..\\a.png", "C:/a.png", "a/../../b.png"])
def test_a_path_that_leads_out_of_an_archive_is_refused(path, png, tmp_path):
    info = zipfile.ZipInfo("x")
    info.filename = path
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, png)
    member = tarfile.TarInfo(path)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member)
    for name in ("a.zip", "a.tar"):
        with pytest.raises(DataError, match="leads out of the archive") as caught:
            open_source(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.promise("An archive whose entries lead out of it, or are links, isn't read.")
def test_links_in_archives_are_refused(tmp_path):
    info = zipfile.ZipInfo("DME/a.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    member = tarfile.TarInfo("DME/a.png")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member)
    for name in ("a.zip", "a.tar"):
        with pytest.raises(DataError, match="is a link"):
            open_source(tmp_path / name)


@pytest.mark.promise("A changed or damaged file is read or refused: no crash, no hang, no more than 2 GB.")
def test_a_zip_bomb_is_one_bad_file_and_is_not_unpacked(png, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("DME/P1/good.png", png)
        archive.writestr("DME/P2/bomb.png", bytes(64 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 200_000
    with pytest.raises(BadImageError, match="unpacks to more than 1 MB"):
        open_source(tmp_path / "bomb.zip").read("DME/P2/bomb.png")
    dataset, skipped = prepare("folder", tmp_path / "bomb.zip", tmp_path / "c", skip_bad=True)
    assert len(dataset) == 1 and "1 MB" in skipped[0]["reason"]


def test_a_directory_that_lies_about_a_size_does_not_fill_the_memory(png, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE", 1 << 20)
    path = tmp_path / "lying.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("DME/P1/a.png", bytes(8 << 20))
    data = path.read_bytes().replace((8 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(BadImageError, match="can't be read from the zip"):
        open_source(path).read("DME/P1/a.png")


def test_half_of_an_archive_is_one_line(clinic, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in sorted(clinic.rglob("*.png")):
            archive.write(file, file.relative_to(clinic))
            tar.add(file, file.relative_to(clinic))
    for name in ("a.zip", "a.tar"):
        whole = (tmp_path / name).read_bytes()
        for part in range(1, 20):
            half = tmp_path / f"half-{name}"
            half.write_bytes(whole[: len(whole) * part // 20])
            try:
                dataset, _ = prepare("folder", half, tmp_path / "c")
            except DataError as error:
                assert "\n" not in str(error) and len(str(error)) < 2000
            else:  # a tar that ends between two of its files is a smaller tar
                assert name == "a.tar" and len(dataset) <= 24


@pytest.mark.parametrize("name", ["set.tar.gz", "set.tgz", "set.rar", "set.7z"])
def test_an_archive_that_cannot_be_read_in_place_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="unpack it, or zip it"):
        open_source(tmp_path / name)


def test_names_in_any_script_are_read(png, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("DME/Müller-Łódź/網膜.png", png)
    assert open_source(tmp_path / "a.zip").files == ["DME/Müller-Łódź/網膜.png"]


@pytest.mark.parametrize("kind", ["zip", "tar", "several"])
def test_an_archive_is_read_by_many_threads_and_after_pickling(kind, clinic, tmp_path):
    (tmp_path / "home").mkdir()
    files = sorted(clinic.rglob("*.png"))
    if kind == "tar":
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            for file in files:
                tar.add(file, file.relative_to(clinic))
    elif kind == "zip":
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(clinic))
    else:
        path = tmp_path / "home"
        for label in ("DME", "NORMAL"):
            with zipfile.ZipFile(path / f"{label}.zip", "w") as archive:
                for file in sorted((clinic / label).rglob("*.png")):
                    archive.write(file, file.relative_to(clinic / label))
    source = pickle.loads(pickle.dumps(open_source(path)))
    assert source.files == [file.relative_to(clinic).as_posix() for file in files]
    for name, data in in_order(source.read, list(source.files) * 4):
        assert data == (clinic / name).read_bytes()
    assert all(source.size(name) == (clinic / name).stat().st_size for name in source.files)
    assert len({source.stamp(name) for name in source.files}) == len(files)


def test_what_cannot_be_listed_is_told_once_whenever_it_is_asked(png, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(png)
    os.mkfifo(tmp_path / "pictures/pipe.png")
    source = open_source(tmp_path / "pictures")
    told = [{"file": "pipe.png", "reason": "is a pipe or a device, no file"}]
    assert source.unreadable() == told  # before anybody asked what is there
    source.forget()
    assert list(source.files) == ["a.png"] and source.unreadable() == told
