"""What is listed and what is refused before a cluster is asked."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oct_hf.data.phantom import draw
from oct_hf.errors import OCTError
from oct_hf.inference.parts import Parts, write_part
from oct_hf.inference.places import list_places, read_listed

FACTS = {"weights": "a" * 64, "labels": ["DME", "NORMAL"], "backend": "torch", "rule": "mean", "gate": None}
NAMES = ["file", "predicted", "answer", "p_DME", "p_NORMAL", "error"]


@pytest.fixture
def scans(tmp_path):
    from PIL import Image

    for name in ("b/1.png", "b/10.png", "a.png", "b/2.PNG"):
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw("DME", 5, 1, 0, 64, 64).image).save(tmp_path / "scans" / name, "PNG")
    (tmp_path / "scans/readme.txt").write_text("x")
    return tmp_path / "scans"


def test_a_listing_has_each_picture_once_and_in_the_order_of_one_machine(scans, monkeypatch):
    from oct_hf.inference.inputs import stream

    monkeypatch.chdir(scans.parent)
    listed = list_places(["scans", "scans/a.png", f"scans/{'b/1.png'}"])
    assert listed.names == [given.name for given in stream(["scans"])] and len(listed.names) == 4
    assert not listed.devices
    (scans / "b/eye.e2e").write_bytes(b"x")
    assert list_places(["scans"]).devices


def test_rows_of_a_table_are_read_by_number_from_the_groups_that_hold_them(tmp_path):
    content = [f"picture {number}".encode() for number in range(10)]
    pq.write_table(pa.table({"image": content}), tmp_path / "rows.parquet", row_group_size=3)
    names = list_places([str(tmp_path)]).names
    assert names == [f"{tmp_path}/rows.parquet#{number}" for number in range(10)]
    some = [names[1], names[5], names[9]]
    read = [(given.name, given.read()) for given in read_listed(some, tmp_path)]
    assert read == list(zip(some, (content[1], content[5], content[9]), strict=True))


@pytest.mark.parametrize(
    "place, text",
    [
        ("gone", "no such file or folder"),
        ("empty", "no image in this folder"),
        ("scans.zip", "an archive is read by one machine"),
        ("s4://bucket/scans", "s4"),
        pytest.param(
            "s3://bucket/scans", "[Ii]nstall s3fs", marks=pytest.mark.skipif(bool(find_spec("s3fs")), reason="")
        ),
        ("zip://*.png::file:///a.zip", "an address inside another"),
        ("broken.parquet", "not a Parquet file"),
        ("http://127.0.0.1:9/scans", "can't be listed|no such file"),
    ],
)
def test_what_is_no_place_is_one_line(tmp_path, monkeypatch, place, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "scans.zip").write_bytes(b"PK")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(OCTError, match=text) as caught:
        list_places([place])
    assert "\n" not in str(caught.value) and place.split("/")[0].rstrip(":") in str(caught.value)


def rows(*files):
    return [{"file": file, "p_DME": 0.25, "error": "bad" if file == "bad.png" else None} for file in files]


def test_parts_go_on_with_what_they_hold_and_are_one_table_at_the_end(tmp_path):
    out = str(tmp_path / "out")
    parts = Parts(out, FACTS, NAMES)
    write_part(parts.address, parts.number(), rows("a.png", "bad.png"), NAMES, parts.facts)
    (tmp_path / "out/.1234.partial").write_bytes(b"half of one")
    again = Parts(out, FACTS, NAMES)
    assert again.answered == {"a.png", "bad.png"} and again.failed == 1 and again.number() == 1
    assert not (tmp_path / "out/.1234.partial").exists()
    write_part(again.address, 1, rows("c.png"), NAMES, again.facts)
    assert not again.look()
    again.finish({"images": 3, "errors": 1})
    assert pq.read_table(out).column("file").to_pylist() == ["a.png", "bad.png", "c.png"]
    assert json.loads((tmp_path / "out/_predicted.json").read_text())["labels"] == ["DME", "NORMAL"]
    assert Parts(out, FACTS, NAMES, overwrite=True).answered == set()


def test_parts_of_another_model_or_something_else_are_refused_and_stay(tmp_path):
    out = str(tmp_path / "out")
    parts = Parts(out, FACTS, NAMES)
    write_part(parts.address, 0, rows("a.png"), NAMES, parts.facts)
    for key, value, text in (
        ("weights", "b" * 64, "another model"),
        ("labels", ["AMD", "NORMAL"], r"other labels \(DME, NORMAL, now AMD, NORMAL\)"),
        ("backend", "onnx", "another backend"),
    ):
        with pytest.raises(OCTError, match=f"part-00000.parquet: was begun with .*{text}"):
            Parts(out, FACTS | {key: value}, NAMES)
    write_part(parts.address, 1, rows("a.png"), NAMES, parts.facts)
    with pytest.raises(OCTError, match=r"a\.png is in two parts"):
        Parts(out, FACTS, NAMES)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OCTError, match=r"holds something else \(thesis.txt\); name a new folder"):
            Parts(str(tmp_path / "thesis"), FACTS, NAMES, overwrite)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OCTError, match="file"):
        Parts(str(tmp_path / "file"), FACTS, NAMES)
    with pytest.raises(OCTError, match="no folder"):
        Parts(str(tmp_path / "gone/answers.csv"), FACTS, NAMES)
    assert (tmp_path / "thesis/thesis.txt").exists()


@pytest.mark.parametrize(
    "options, text",
    [
        (["--engine", "rai", "--out", "o"], 'did you mean "ray"'),
        (["--engine", "ray"], "--out FOLDER"),
        (["--workers", "2"], "--engine ray"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(run, scans, options, text):
    code, _, said = run("predict", scans, "--model", "gone", *options)
    assert code == 2 and text in said and len(said.splitlines()) == 1


def test_without_ray_the_line_says_which_extra(scans, tmp_path):
    code = "import sys; sys.modules['ray'] = None; from oct_hf import cli; cli.main()"
    command = ["predict", scans, "--model", "x", "--engine", "ray", "--out", tmp_path / "o"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'oct-hf[ray]'" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_parts_become_one_table_and_go(tmp_path, kind):
    out = tmp_path / f"answers.{kind}"
    parts = Parts(str(out), FACTS, NAMES)
    for names in (("a.png", "bad.png"), ("c.png",)):
        write_part(parts.address, parts.number(), rows(*names), NAMES, parts.facts)
    parts.finish({})
    table = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[kind](out)
    assert table["file"].tolist() == ["a.png", "bad.png", "c.png"] and list(table.columns) == NAMES
    assert table["p_DME"].tolist() == [0.25] * 3 and table["error"].count() == 1
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with pytest.raises(OCTError, match="is there already"):
        Parts(str(out), FACTS, NAMES)
