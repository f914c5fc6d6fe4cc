"""A set whose preparation is killed, done twice at once, or kept where nothing can be written."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from killing import Killing
from PIL import Image

from oct_hf.data.oct import prepare
from oct_hf.data.phantom import draw
from oct_hf.data.pixels import PixelFile

COMMAND = ("data", "prepare", "folder", "--skip-bad", "--json", "--data")
KILLED = pytest.mark.promise("A preparation of data that is killed at any moment is completed by the same command.")


@pytest.fixture(scope="module")
def killing(tmp_path_factory):
    killing = Killing(tmp_path_factory.mktemp("killing"))
    yield killing
    killing.close()


@pytest.fixture
def damaged_clinic(clinic) -> Path:
    """With a file that is left out, and says so."""
    (clinic / "DME/D0/bad.png").write_bytes(b"no image")
    return clinic


def told(ended) -> dict:
    assert ended.code == 0, ended.said
    return json.loads(ended.said[ended.said.index("{") :])


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kills(events: list[str]) -> list[tuple[int, bool]]:
    """Before each event, and in the middle of each write."""
    torn = [(number, True) for number in range(1, len(events)) if events[number - 1].startswith(("open", "write"))]
    return sorted([*torn, *((number, False) for number in range(len(events)))])


def spread(every: list, count: int) -> list:
    return [every[(2 * place + 1) * len(every) // (2 * count)] for place in range(count)]


@KILLED
def test_killed_at_any_write_the_same_rows_and_left_out_files_are_prepared(killing, damaged_clinic, tmp_path, cases):
    (tmp_path / "whole").mkdir()
    whole = killing.run([*COMMAND, damaged_clinic], tmp_path / "whole")
    assert [item["file"] for item in told(whole)["skipped"]] == ["DME/D0/bad.png"] and len(whole.events) >= 12
    every = kills(whole.events)
    for number, (at, torn) in enumerate(spread(every, cases(4, len(every)))):
        root = tmp_path / str(number)
        root.mkdir()
        assert killing.run([*COMMAND, damaged_clinic], root, at, torn).code == -9
        again = killing.run([*COMMAND, damaged_clinic], root)
        assert told(again) == told(whole), (at, torn, whole.events[at])
        rows = [path for path in (root / "cache").rglob("*") if path.suffix in (".arrow", ".json")]
        assert {path.name for path in rows} >= {"oct-train.arrow", "skipped.json", "dataset_info.json"}
        assert not [path for path in rows if ".incomplete" in str(path)]


@KILLED
def test_killed_at_any_write_the_same_shards_are_written(killing, damaged_clinic, tmp_path, cases):
    def command(root: Path) -> list:
        return [*COMMAND, damaged_clinic, "--workers", 1, "--out", root / "shards"]

    (tmp_path / "whole").mkdir()
    whole = killing.run(command(tmp_path / "whole"), tmp_path / "whole")
    wanted = contents(tmp_path / "whole/shards")
    assert told(whole)["images"] == 24 and len(whole.events) >= 8
    every = kills(whole.events)
    for number, (at, torn) in enumerate(spread(every, cases(3, len(every)))):
        root = tmp_path / str(number)
        root.mkdir()
        assert killing.run(command(root), root, at, torn).code == -9
        assert told(killing.run(command(root), root)) == told(whole)
        assert contents(root / "shards") == wanted, (at, torn, whole.events[at])


@pytest.mark.promise("Two programs that prepare the same set at once both get all of it.")
def test_two_that_prepare_the_same_set_at_once_tell_the_same(killing, damaged_clinic, tmp_path, cases):
    for number in range(cases(2, 10)):
        root = tmp_path / str(number)
        root.mkdir()
        one, other = killing.at_once([[*COMMAND, damaged_clinic]] * 2, root)
        assert told(one) == told(other) and len(told(one)["skipped"]) == 1


def test_two_that_search_near_duplicates_of_the_same_set_at_once_find_the_same(killing, clinic, tmp_path):
    command = ["data", "check", "folder", "--data", clinic, "--json"]
    first, *others = killing.at_once([command] * 3, tmp_path)
    assert first.code in (0, 1) and "{" in first.said, first.said
    assert all((one.code, one.said) == (first.code, first.said) for one in others), others


@pytest.mark.promise("A set that was prepared can be used where it can only be read.")
def test_a_prepared_set_is_used_where_nothing_can_be_written(killing, damaged_clinic, own_disk):
    disk, remount = own_disk
    command = ["data", "check", "folder", "--skip-bad", "--json", "--data", damaged_clinic]
    before = killing.run(command, disk)
    remount("ro")
    again = killing.run(command, disk)
    assert before.code == again.code == 0 and again.said == before.said, again.said
    (damaged_clinic / "DME/D0/0.png").touch()  # which is another set
    refused = killing.run(command, disk)
    assert refused.code == 2 and "cache: Read-only file system, and the prepared data goes there" in refused.said
    assert len(refused.said.splitlines()) == 1, refused.said


def test_a_disk_that_is_full_while_a_set_is_prepared_is_one_line_that_names_the_place(killing, clinic, own_disk):
    disk, remount = own_disk
    remount("size=64k")
    full = killing.run([*COMMAND, clinic], disk)
    assert full.code == 2 and f"{disk}/cache: No space left on device" in full.said, full.said
    assert len(full.said.splitlines()) == 1 and not list(disk.rglob("*.arrow"))
    remount("size=50m")
    assert told(killing.run([*COMMAND, clinic], disk))["images"] == 24


@pytest.mark.promise("A file that was changed after a set was prepared is noticed.")
def test_a_changed_file_is_noticed_whatever_changed_of_it(clinic, tmp_path, cases):
    """Its content at the same length under the same name, its name, that it is there, that there is another."""
    file, another = clinic / "DME/D0/0.png", clinic / "DME/D0/9.png"
    white = io.BytesIO()
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(white, "PNG")

    def rows() -> set:
        found = prepare("folder", clinic, tmp_path / "cache")[0]
        return set(zip(found["source"][:], found["content_hash"][:], strict=True))

    changes = (
        lambda: file.write_bytes(white.getvalue().ljust(file.stat().st_size, b"\0")),
        lambda: file.rename(file.with_name("7.png")),
        lambda: Image.fromarray(draw("DME", 3, height=96, width=96).image).save(another),
        another.unlink,
    )
    told = [rows()]
    for change in changes:
        change()
        told.append(rows())
        assert told[-1] != told[-2]
    cases.tried += len(changes)
    assert [len(each) for each in told] == [24, 24, 24, 25, 24] and len(told[0] ^ told[-1]) == 2


def test_pictures_of_a_killed_process_are_removed_and_those_of_a_living_one_stay(bscan, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    living = PixelFile(1, *bscan.shape)
    living.write([bscan])
    child = os.fork()
    if child == 0:
        killed = PixelFile(1, *bscan.shape)
        killed.write([bscan])
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob("pixels-*"))) == 2
    another = PixelFile(1, *bscan.shape)
    assert {str(path) for path in tmp_path.glob("pixels-*")} == {living.path, another.path}
