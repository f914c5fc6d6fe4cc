import csv
import json
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import oct_hf
from oct_hf.errors import OCTError
from oct_hf.evaluation.aggregation import RULES, join
from oct_hf.inference import table
from oct_hf.inference.eyes import answer_eyes
from oct_hf.inference.predictor import Predictor
from oct_hf.inference.recorded import recorded_rule
from tests.data.volumes.write import SECRETS, bscans, write_dicom, write_vol

LABELS = ("CNV", "DME", "NORMAL")


def test_rules_on_a_worked_example():
    values = np.array([[0.1, 0.1, 0.8], [0.1, 0.7, 0.2]])
    assert join(values, LABELS, "mean") == pytest.approx([0.1, 0.4, 0.5])
    assert join(values, LABELS, "maximum") == pytest.approx(np.array([0.1, 0.7, 0.2]) / 1.0)
    assert join(values, LABELS, "noisy-or") == pytest.approx(np.array([0.19, 0.73, 0.16]) / 1.08)
    assert join(values[:, :2], LABELS[:2], "maximum") == pytest.approx([0.1 / 0.8, 0.7 / 0.8])
    with pytest.raises(OCTError, match=r'no rule "max" \(did you mean "maximum"'):
        join(values, LABELS, "max")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.sampled_from(sorted(RULES)))
def test_an_eyes_answer_is_a_distribution_whatever_the_order(count, seed, rule):
    values = np.random.default_rng(seed).dirichlet([0.2] * 3, count)
    joined = join(values, LABELS, rule)
    assert joined.sum() == pytest.approx(1) and (joined >= 0).all() and np.isfinite(joined).all()
    assert join(values[::-1], LABELS, rule) == pytest.approx(joined)
    more = np.concatenate([values, [[0.0, 1.0, 0.0]]])  # one more B-scan that surely shows DME
    assert join(more, LABELS, rule)[1] >= joined[1] - 1e-9


def test_one_bscan_is_the_eye():
    for rule in RULES:
        assert join(np.array([[0.2, 0.3, 0.5]]), LABELS, rule) == pytest.approx([0.2, 0.3, 0.5])


def test_a_volume_of_too_many_bscans_is_refused_before_any_is_predicted(tmp_path):
    path = write_dicom(tmp_path / "scan.dcm", bscans(6))
    cannot_predict = SimpleNamespace(labels=LABELS, several=False)
    with pytest.raises(OCTError, match="has 6 B-scans, at most 5 are taken here"):
        next(answer_eyes(cannot_predict, path, most=5))


def test_an_eyes_answer_is_that_of_its_bscans(finished_run, tmp_path):
    values, predictor = bscans(6), Predictor(finished_run / "model")
    path = write_dicom(tmp_path / "scan.dcm", values)
    (answer,) = answer_eyes(predictor, path, "maximum")
    alone = [list(a.probabilities.values()) for a in predictor.predict(list(values))]
    assert np.allclose(answer.bscans, alone, atol=1e-6) and answer.volume.laterality == "OD"
    assert answer.probabilities == pytest.approx(join(np.array(alone), predictor.labels, "maximum"), abs=1e-6)
    column = np.array(alone)[:, predictor.labels.index(answer.predicted)]
    assert answer.driving[0] == column.argmax() and len(answer.driving) == 3


def test_an_answer_can_be_kept_without_its_pixels(finished_run, tmp_path):
    path = write_dicom(tmp_path / "scan.dcm", bscans(4))
    (answer,) = oct_hf.answer_eyes(Predictor(finished_run / "model"), path)
    pixels = weakref.ref(answer.volume.bscans)
    kept = answer.without_pixels()
    rows = table.eye_rows(answer)
    del answer
    assert pixels() is None and table.eye_rows(kept) == rows and kept.volume.laterality == "OD"


def test_device_files_and_pictures_go_into_one_table_without_a_name(finished_run, clinic, tmp_path):
    home = tmp_path / "scans"
    home.mkdir()
    write_dicom(home / "a.dcm", bscans(4))
    write_vol(home / "b.vol", bscans(3))
    (home / "broken.dcm").write_bytes((home / "a.dcm").read_bytes()[:3000])
    (clinic / "DME/D0/0.png").rename(home / "c.png")
    said = b""
    for ending in ("csv", "parquet", "json"):
        command = [sys.executable, "-m", "oct_hf.cli", "predict", home, "--model", finished_run, "--rule", "noisy-or"]
        done = subprocess.run([*command, "--out", tmp_path / f"a.{ending}"], capture_output=True)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr + (tmp_path / f"a.{ending}").read_bytes()
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert sorted(row["level"] for row in rows) == ["", "", *["bscan"] * 7, "eye", "eye"]
    eyes = [row for row in rows if row["level"] == "eye"]
    assert {(row["eye"], row["rule"]) for row in eyes} == {("OD", "noisy-or"), ("OS", "noisy-or")}
    assert all(len(row["driving"].split()) == 3 for row in eyes)
    assert next(row["error"] for row in rows if "broken" in row["file"])
    assert list(rows[0]) == list(parquet.read_table(tmp_path / "a.parquet").column_names)
    assert list(rows[0]) == list(json.loads((tmp_path / "a.json").read_text())[0])
    assert not [secret for secret in SECRETS if secret.encode() in said]


def test_on_the_screen_an_eye_is_one_line(finished_run, tmp_path):
    write_dicom(tmp_path / "a.dcm", bscans(4))
    command = [sys.executable, "-m", "oct_hf.cli", "predict", tmp_path / "a.dcm", "--model", finished_run]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "joined by mean" in done.stdout and "not for diagnosis" in done.stdout
    wrong = subprocess.run([*command, "--rule", "vote"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "expected mean, maximum, noisy-or" in wrong.stderr


def test_the_rule_of_a_models_run_is_taken_and_said(finished_run, tmp_path):
    run = json.loads((finished_run / "model/run.json").read_text())
    assert run["per_eye"]["rule"] in RULES and run["per_eye"]["eyes"]["test"] > 2
    rule, count = recorded_rule(finished_run / "model")
    assert (rule, count) == (run["per_eye"]["rule"], run["per_eye"]["eyes"]["validation"])
    assert f"| eye by eye | {rule} |" in (finished_run / "model/README.md").read_text()
    path = write_dicom(tmp_path / "scan.dcm", bscans(4))
    command = [sys.executable, "-m", "oct_hf.cli", "predict", path, "--model", finished_run]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"joined by {rule}: best on the model's {count} validation eyes" in said.stderr + said.stdout
    assert recorded_rule(tmp_path) == ("mean", 0)
