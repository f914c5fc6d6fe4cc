"""Inputs of every kind as one stream, and a table that a killed run goes on with."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from oct_hf import Predictor
from oct_hf.data.phantom import draw
from oct_hf.errors import DataError
from oct_hf.inference.bulk import answer
from oct_hf.inference.inputs import stream, survey
from oct_hf.inference.recorded import recorded_gate, recorded_rule
from oct_hf.inference.results import Journal
from tests.data.volumes.write import bscans, write_dicom

LABELS = ("CNV", "DME", "DRUSEN", "NORMAL")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """400 pictures in four folders, one of them corrupt."""
    folder = tmp_path_factory.mktemp("many")
    drawn = [Image.fromarray(draw("DME", 2, patient, 0, 96, 96).image) for patient in range(8)]
    for number in range(400):
        place = folder / f"{number // 100}"
        place.mkdir(exist_ok=True)
        drawn[number % 8].save(place / f"{number:03d}.png")
    (folder / "1/150.png").write_bytes(b"no picture")
    return folder


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_archives_and_tables_give_the_answers_of_their_files(fast_model, real_files, tmp_path):
    few = real_files[:4]
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive, tarfile.open(tmp_path / "scans.tar", "w") as tar:
        for file in few:
            archive.write(file, f"inside/{file.name}")
            tar.add(file, f"inside/{file.name}")
    content = [file.read_bytes() for file in few]
    structs = [{"bytes": data, "path": None} for data in content]
    parquet.write_table(pa.table({"label": [0] * 4, "image": structs}), tmp_path / "scans.parquet", row_group_size=3)
    parquet.write_table(pa.table({"picture": content}), tmp_path / "plain.parquet")
    predictor = Predictor(fast_model)
    expected = [answer.probabilities for answer in predictor.predict(few)]
    for name in ("scans.zip", "scans.tar", "scans.parquet", "plain.parquet"):
        given = [tmp_path / name]
        assert survey(given).count == 4
        answers = list(predictor.predict(stream(given)))
        assert answers[3].file in (f"{tmp_path}/{name}/inside/{few[3].name}", f"{tmp_path}/{name}#3")
        assert [answer.probabilities for answer in answers] == [pytest.approx(row, abs=1e-6) for row in expected]
    parquet.write_table(pa.table({"label": [0]}), tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name, said in (
        ("none", "no column image of encoded pictures; its columns: label"),
        ("broken", "not a Parquet"),
    ):
        with pytest.raises(DataError, match=said):
            survey([tmp_path / f"{name}.parquet"])


def test_a_stream_is_in_the_order_of_names_and_is_read_only_a_little_ahead(fast_model, many):
    names = [given.name for given in stream([many])]
    assert len(names) == 400 and names == sorted(names)
    pulled = []
    answers = Predictor(fast_model, batch_size=4).predict(pulled.append(given) or given for given in stream([many]))
    for number, one in enumerate(answers):
        assert one.file == names[number]
        assert len(pulled) - number <= 4 * 16  # a few batches, whatever the folder holds


def test_a_killed_run_loses_nothing_finished_and_goes_on(fast_model, many, tmp_path):
    for ending in ("csv", "parquet"):
        out, journal = tmp_path / f"a.{ending}", tmp_path / f"a.{ending}.unfinished"
        command = [sys.executable, "-m", "oct_hf.cli", "predict", many, "--model", fast_model]
        command += ["--backend", "onnx", "--batch-size", "1", "--out", out]
        begun = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 60):
            assert begun.poll() is None and time.monotonic() < until
            time.sleep(0.001)
        os.kill(begun.pid, signal.SIGKILL)
        begun.wait()
        assert not out.exists()
        kept = journal.read_bytes()
        whole = kept[: kept.rfind(b"\n") + 1]
        journal.write_bytes(whole + b'["cut off in the mi')  # as a full disk leaves it
        answered = whole.count(b"\n") - 1
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and f"{answered} of 400 files were classified already" in done.stderr
        assert not journal.exists() and "399 of 400 files classified on onnx" in done.stderr
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.returncode == 2 and "nothing of it is left to do; --overwrite starts anew" in again.stderr
    rows = rows_of(tmp_path / "a.csv")
    assert [row["file"] for row in rows] == [given.name for given in stream([many])]
    assert [row["error"] != "" for row in rows] == [row["file"].endswith("150.png") for row in rows]
    table = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    expected = list(Predictor(fast_model, backend="onnx").predict(stream([many])))
    for row, other, one in zip(rows, table, expected, strict=True):
        assert row["file"] == other["file"] == one.file
        if not one.error:
            assert [other[f"p_{name}"] for name in one.probabilities] == pytest.approx(
                list(one.probabilities.values()), abs=1e-6
            )


def test_a_run_is_gone_on_with_only_by_the_same_model_and_options(run, fast_model, finished_run, clinic, tmp_path):
    out = tmp_path / "a.csv"
    given = ["predict", clinic, "--model", fast_model, "--backend", "onnx", "--out", out]
    assert run(*given)[0] == 0
    expected = out.read_bytes()
    entries = [[row["file"], [row]] for row in rows_of(out)]

    def unfinished(**other):
        """A journal of half of the answers, of a run like the one above but for `other`."""
        predictor = Predictor(fast_model, backend="onnx")
        facts = {"weights": predictor.network.sha256, "labels": list(predictor.labels), "backend": "onnx"}
        gate = recorded_gate(fast_model, predictor.labels)
        facts |= {"rule": recorded_rule(fast_model)[0], "gate": gate.to_dict()} | other
        lines = [json.dumps(entry) for entry in (facts, *entries[:10])]
        (tmp_path / "a.csv.unfinished").write_text("\n".join(lines) + "\n")
        out.unlink(missing_ok=True)

    for other, said in (
        ({"weights": "0" * 64}, r"begun with another model \(000000000000, now "),
        ({"labels": ["A", "B"]}, r"begun with a model with other labels \(A, B, now CNV, DME, DRUSEN, NORMAL\)"),
        ({"backend": "onnx-int8"}, r"begun with another backend \(onnx-int8, now onnx\)"),
        ({"gate": None}, r"begun with other rules for the column answer"),
    ):
        unfinished(**other)
        code, _, err = run(*given)
        assert code == 2 and len(err.strip().splitlines()) == 1
        assert re.search(said, err) and not out.exists()
    assert run(*given, "--overwrite")[0] == 0 and out.read_bytes() == expected
    unfinished()
    code, _, err = run(*given)
    assert code == 0 and "10 of 24 files were classified already" in err
    found = [{**row, "p_CNV": float(row["p_CNV"])} for row in rows_of(out)]
    assert [row["file"] for row in found] == [entry[0] for entry in entries]
    assert run(*given)[0] == 2 and run(*given, "--overwrite")[0] == 0 and out.read_bytes() == expected


def test_files_of_devices_are_whole_or_absent_in_a_run_that_goes_on(run, fast_model, clinic, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    write_dicom(folder / "b.dcm", bscans(4))
    (clinic / "DME/D0/0.png").rename(folder / "a.png")
    (clinic / "DME/D0/1.png").rename(folder / "c.png")
    out, pictures = tmp_path / "a.csv", tmp_path / "pictures"
    given = ["predict", folder, "--model", fast_model, "--out", out, "--en-face", pictures]
    assert run(*given)[0] == 0
    expected = rows_of(out)
    assert [row["level"] for row in expected] == ["", *["bscan"] * 4, "eye", ""]
    assert [picture.name for picture in pictures.iterdir()] == ["0001.png"]
    # As if it had been killed after the device's file, and a second one had come meanwhile.
    write_dicom(folder / "d.dcm", bscans(3))
    predictor = Predictor(fast_model, gate=recorded_gate(fast_model, LABELS), backend="onnx")
    rule = recorded_rule(fast_model)[0]
    facts = {"weights": predictor.network.sha256, "labels": LABELS, "backend": "onnx", "rule": rule}
    with Journal(tmp_path / "b.csv", facts | {"gate": predictor.gate.to_dict()}) as journal:
        for one in islice(answer(predictor, stream([folder]), rule), 2):
            journal.add(one.name, one.rows)
    given[given.index(out)] = tmp_path / "b.csv"
    code, _, err = run(*given)
    assert code == 0 and "2 of 4 files were classified already" in err and "2 pictures, numbered as the eyes" in err
    found = rows_of(tmp_path / "b.csv")
    assert found[:7] == expected and [row["level"] for row in found[7:]] == [*["bscan"] * 3, "eye"]
    assert sorted(picture.name for picture in pictures.iterdir()) == ["0001.png", "0002.png"]


def test_the_same_name_twice_is_answered_twice(run, fast_model, clinic, tmp_path):
    file, out = clinic / "DME/D0/0.png", tmp_path / "a.csv"
    assert run("predict", file, file, "--model", fast_model, "--out", out)[0] == 0
    assert [row["file"] for row in rows_of(out)] == [str(file)] * 2


def test_a_name_that_is_no_text_has_its_row(run, fast_model, clinic, tmp_path):
    strange = os.fsencode(clinic / "DME/D0") + b"/\xff.png"
    os.rename(clinic / "DME/D0/0.png", strange)
    for ending in ("csv", "parquet"):
        out = tmp_path / f"a.{ending}"
        assert run("predict", clinic / "DME/D0", "--model", fast_model, "--out", out)[0] == 0
    assert rows_of(tmp_path / "a.csv")[1]["file"].endswith(r"\udcff.png")


def test_a_journal_of_something_else_is_not_written_over(run, fast_model, clinic, tmp_path):
    (tmp_path / "a.csv.unfinished").write_text("[1, 2]\n")
    code, _, err = run("predict", clinic, "--model", fast_model, "--out", tmp_path / "a.csv")
    assert code == 2 and "of oct-hf predict; remove it" in err
    assert (tmp_path / "a.csv.unfinished").read_text() == "[1, 2]\n"


def test_values_of_a_stream_are_those_of_arrays(fast_model, many):
    predictor = Predictor(fast_model, batch_size=3)
    images = [np.asarray(Image.open(given)) for given in sorted((many / "0").iterdir())[:7]]
    answers = [list(answer.probabilities.values()) for answer in predictor.predict(iter(images))]
    files = [list(answer.probabilities.values()) for answer in predictor.predict(sorted((many / "0").iterdir())[:7])]
    assert answers == files
