import hashlib
import io
import json
import os
import shutil

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from oct_hf.data import oct, prepared
from oct_hf.data.encoded import Encoded
from oct_hf.data.oct import builder_of, prepare
from oct_hf.data.phantom import draw
from oct_hf.data.prepared import write_prepared
from oct_hf.data.shards import UNFINISHED, Shards
from oct_hf.errors import DataError, OCTError

COLUMNS = ("content_hash", "label", "patient_id", "eye", "volume", "device", "source", "fold", "side", "thumbnail")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that two dozen pictures make several shards."""
    monkeypatch.setattr(oct, "BLOCK", 2)


def contents(folder) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def same_rows(one, other) -> bool:
    pictures, others = Encoded(one), Encoded(other)
    return all(one[name][:] == other[name][:] for name in COLUMNS) and all(
        pictures[row] == others[row] for row in range(len(one))
    )


def png(patient: int) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(draw("DME", 2, patient, height=64, width=64).image).save(encoded, "PNG")
    return encoded.getvalue()


def test_any_number_of_processes_and_a_cluster_write_the_same_bytes(clinic, tmp_path):
    ways = {"one": (1, "processes"), "three": (3, "processes"), "cluster": (2, "ray")}
    for name, (workers, engine) in ways.items():
        facts = write_prepared(builder_of("folder", clinic), str(tmp_path / name), workers, engine, 40_000)
        assert facts["images"] == 24 and facts["classes"] == {"DME": 12, "NORMAL": 12} and len(facts["shards"]) > 3
    one, three, cluster = (contents(tmp_path / name) for name in ways)
    assert one == three == cluster and UNFINISHED not in one


def test_processes_prepare_what_threads_prepare(clinic, tmp_path):
    alone = prepare("folder", clinic, tmp_path / "a", workers=1)[0]
    (clinic / "DME/D0/bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"DME/D0/bad.png \(is not an image"):
        prepare("folder", clinic, tmp_path / "b", workers=2)
    helped, skipped = prepare("folder", clinic, tmp_path / "b", workers=2, skip_bad=True)
    assert [item["file"] for item in skipped] == ["DME/D0/bad.png"] and same_rows(alone, helped)


def test_a_large_set_is_prepared_on_processes_without_being_asked(clinic, tmp_path, monkeypatch):
    alone = prepare("folder", clinic, tmp_path / "a", workers=1)[0]
    monkeypatch.setattr(oct, "_ON_THREADS", 8)
    started = []
    real = oct.in_processes
    monkeypatch.setattr(oct, "in_processes", lambda *given: started.append(given) or real(*given))
    assert same_rows(alone, prepare("folder", clinic, tmp_path / "b")[0]) and len(started) == (os.cpu_count() > 1)


def test_phantoms_are_the_same_on_processes(tmp_path):
    size = {"patients": 3, "scans": 2, "height": 64, "width": 64}
    assert same_rows(*(prepare("phantom", None, tmp_path / str(n), n, **size)[0] for n in (1, 2)))


@pytest.mark.parametrize("stream", [False, True])
def test_prepared_shards_are_the_set_itself(clinic, tmp_path, stream):
    write_prepared(builder_of("folder", clinic), str(tmp_path / "out"), 1, shard_bytes=40_000)
    original = prepare("folder", clinic, tmp_path / "cache")[0]
    again = prepare("parquet", tmp_path / "out", tmp_path / "cache", stream=stream)[0]
    assert same_rows(original, again) and again.features["label"] == original.features["label"]
    only = prepare("parquet", tmp_path / "out", tmp_path / "cache", stream=stream, labels=("NORMAL",))[0]
    assert len(only) == 12 and set(only["source"][:]) < set(original["source"][:])


def test_sides_and_what_is_on_none_come_back(tmp_path):
    for side, count in (("train", 3), ("test", 2)):
        for number in range(count):
            place = tmp_path / "set" / side / "DME" / f"{side}{number}"
            place.mkdir(parents=True)
            (place / "a.png").write_bytes(png(number + 10 * count))
    write_prepared(builder_of("folder", tmp_path / "set"), str(tmp_path / "out"), 1)
    (tmp_path / "out/data/test-00000-of-00001.parquet").rename(tmp_path / "out/data/unused-00000-of-00001.parquet")
    rows = prepare("parquet", tmp_path / "out", tmp_path / "cache")[0]
    assert sorted(zip(rows["side"][:], rows["fold"][:], strict=True)) == [
        *[("train", "train")] * 3,
        *[("unused", "guard")] * 2,
    ]


def test_a_stopped_preparation_is_no_set_and_goes_on_where_it_was(clinic, tmp_path, monkeypatch):
    out, whole, written = tmp_path / "out", tmp_path / "whole", []
    real = prepared._write

    def stopped(part):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(part.path)
        return real(part)

    write_prepared(builder_of("folder", clinic), str(whole), 1, shard_bytes=40_000)
    monkeypatch.setattr(prepared, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_prepared(builder_of("folder", clinic), str(out), 1, shard_bytes=40_000)
    with pytest.raises(DataError, match="preparation isn't finished"):
        prepare("parquet", out)
    monkeypatch.setattr(prepared, "_write", real)
    times = {path: (out / path).stat().st_mtime_ns for path in contents(out) if path.endswith(".parquet")}
    assert len(times) == 3
    write_prepared(builder_of("folder", clinic), str(out), 1, shard_bytes=40_000)
    assert contents(out) == contents(whole)
    assert all((out / path).stat().st_mtime_ns == time for path, time in times.items())


def test_bad_files_leave_no_set_and_can_be_left_out(clinic, tmp_path):
    (clinic / "DME/D0/bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"DME/D0/bad.png \(is not an image"):
        write_prepared(builder_of("folder", clinic), str(tmp_path / "out"), 1)
    with pytest.raises(DataError, match="preparation isn't finished"):
        prepare("parquet", tmp_path / "out")
    facts = write_prepared(builder_of("folder", clinic, skip_bad=True), str(tmp_path / "out"), 2)
    assert facts["images"] == 24 and [item["file"] for item in facts["skipped"]] == ["DME/D0/bad.png"]
    assert json.loads((tmp_path / "out/prepared.json").read_text()) == facts
    assert len(prepare("parquet", tmp_path / "out")[0]) == 24


def test_what_lies_there_already_stays(clinic, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something else; name a new folder"):
        write_prepared(builder_of("folder", clinic), str(tmp_path / "home"), 1)
    write_prepared(builder_of("folder", clinic), str(tmp_path / "out"), 1)
    (clinic / "DME/D0/0.png").unlink()
    with pytest.raises(DataError, match="another prepared set, or one whose files changed since"):
        write_prepared(builder_of("folder", clinic), str(tmp_path / "out"), 1)
    assert len(prepare("parquet", tmp_path / "out")[0]) == 24
    with pytest.raises(OCTError, match=r'--engine: found rai \(did you mean "ray"\?\)'):
        write_prepared(builder_of("folder", clinic), str(tmp_path / "new"), 1, "rai")


def test_shards_that_are_no_set_are_one_line(clinic, tmp_path):
    out = tmp_path / "out"
    write_prepared(builder_of("folder", clinic), str(out), 1, shard_bytes=40_000)
    paths = sorted((out / "data").iterdir())
    shutil.move(paths[1], tmp_path / "kept")
    with pytest.raises(DataError, match=r"shard 1 of \d is missing"):
        prepare("parquet", out)
    paths[1].write_bytes((tmp_path / "kept").read_bytes()[:-50])
    with pytest.raises(DataError, match=r"00001-of-.*can't be read as Parquet"):
        prepare("parquet", out)
    with pytest.raises(DataError, match="no Parquet files in it"):
        prepare("parquet", clinic)
    with pytest.raises(DataError, match="needs its folder or address"):
        prepare("parquet")
    with pytest.raises(DataError, match=r"data\.stream reads Parquet"):
        prepare("folder", clinic, stream=True)
    with pytest.raises(DataError, match="give it when they are prepared"):
        prepare("parquet", out, label_by="eye")


def test_other_peoples_parquet_needs_picture_label_and_patient(tmp_path):
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(n), "path": None} for n in range(4)], "label": [0, 1, 0, 1]}
    )
    rows = rows.cast_column("image", datasets.Image())
    (tmp_path / "a").mkdir()
    rows.to_parquet(tmp_path / "a/rows.parquet")
    with pytest.raises(DataError, match=r"names no classes; give them with data\.labels"):
        prepare("parquet", tmp_path / "a")
    rows = rows.cast_column("label", datasets.ClassLabel(names=["AMD", "NORMAL"]))
    rows.to_parquet(tmp_path / "a/rows.parquet")
    with pytest.raises(DataError, match="no column patient_id; near-duplicates can stand in"):
        prepare("parquet", tmp_path / "a", tmp_path / "c1")
    got = prepare("parquet", tmp_path / "a", tmp_path / "c2", without_patients=True)[0]
    assert len(got) == 4 and set(got["patient_id"][:]) == {""} and len(set(got["source"][:])) == 4
    assert got["content_hash"][:] == [hashlib.sha256(png(n)).hexdigest() for n in range(4)]
    with pytest.raises(DataError, match="no class DRUSEN in it; there are AMD, NORMAL"):
        prepare("parquet", tmp_path / "a", tmp_path / "c3", without_patients=True, labels=("DRUSEN",))


def test_shards_written_before_there_were_volumes_are_read(clinic, tmp_path):
    pattern = r"/(?P<patient>[A-Z]\d)/(?P<volume>\d)"
    write_prepared(builder_of("folder", clinic, tmp_path / "c", pattern=pattern), str(tmp_path / "new"), 1)
    new, _ = prepare("parquet", tmp_path / "new", tmp_path / "c1")
    assert new["volume"][0] == "D0/0"
    for path in sorted((tmp_path / "new/data").glob("*.parquet")):
        (tmp_path / "old").mkdir(exist_ok=True)
        older = pq.read_table(path)
        about = json.loads(older.schema.metadata[b"huggingface"])
        del about["info"]["features"]["volume"]
        older = older.drop_columns("volume").replace_schema_metadata({b"huggingface": json.dumps(about)})
        pq.write_table(older, tmp_path / "old" / path.name)
    for stream in (False, True):
        old, _ = prepare("parquet", tmp_path / "old", tmp_path / "c2", stream=stream)
        assert old["content_hash"][:] == new["content_hash"][:] and set(old["volume"][:]) == {""}


def test_a_shard_says_by_its_name_which_side_it_is(tmp_path):
    names = ("0000", "rows", "test-00000-of-00001", "unused-00000-of-00001", "val-00000-of-00001")
    for name in names:
        (tmp_path / f"{name}.parquet").write_bytes(b"")
    shards = Shards(str(tmp_path))
    assert [shards.side(path) for path in shards.paths] == ["train", "train", "test", "unused", "validation"]
