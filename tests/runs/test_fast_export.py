"""`oct-hf export`: what is written travels with the model and is verified; what costs too much isn't written."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from oct_hf.errors import DataError, OCTError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.stand_in import compare_int8
from oct_hf.hub.download import download
from oct_hf.hub.fast import check_fast
from oct_hf.hub.verify import verify
from oct_hf.inference.fast_files import FAST_FILES, fast_probabilities
from oct_hf.inference.predictor import Predictor
from oct_hf.runs.fast_export import export_model

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None or find_spec("nncf") is None, reason="the extra openvino isn't installed"
)


@pytest.fixture
def own(finished_run, tmp_path) -> Path:
    """A run of one's own, to write to."""
    return shutil.copytree(finished_run, tmp_path / "own", ignore=shutil.ignore_patterns("checkpoints"))


def faults_of(run: Path) -> list[str]:
    return [fault for check in verify(download(str(run))) for fault in check.faults]


def test_every_run_brings_the_fast_onnx_file_and_its_card_and_verify_know_it(own):
    pytest.importorskip("onnxruntime")
    run = json.loads((own / "model/run.json").read_text())
    size = (own / "model/onnx/gray.onnx").stat().st_size
    assert run["gray_onnx"] == "yes" and run["fast"] == {"onnx/gray.onnx": {"bytes": size}}
    assert f"| `onnx/gray.onnx` | {size / 1e6:.1f} | as torch to 1e-5" in (own / "model/README.md").read_text()
    checks = {check.name: check for check in verify(download(str(own)))}
    assert "onnx/gray.onnx" in checks["fast files"].note and not checks["fast files"].faults
    run["fast"]["onnx/gray.onnx"]["bytes"] += 1
    (own / "model/run.json").write_text(json.dumps(run))
    assert any("fast.onnx/gray.onnx.bytes" in fault for fault in faults_of(own))


@needs_openvino
def test_what_is_exported_into_a_run_is_on_its_card_and_verified(own, run):
    code, out, err = run("export", own, "--to", "openvino")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == [
        str(own / "model/openvino" / name) for name in ("gray.xml", "gray.bin")
    ]
    assert "| `openvino/gray.xml` |" in (own / "model/README.md").read_text()
    assert faults_of(own) == []
    weights = own / "model/openvino/gray.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80?")  # another number at the end
    assert any(fault.startswith("openvino/gray.bin: changed since") for fault in faults_of(own))


def test_a_folder_of_ones_own_leaves_the_model_as_it_was_and_can_be_used_alone(own, tmp_path):
    pytest.importorskip("onnxruntime")
    (own / "model/onnx/model.onnx").unlink()  # it is made again where it is missing
    before = (own / "model/run.json").read_bytes()
    done = export_model(own, "onnx", tmp_path / "mine")
    assert done.files == (tmp_path / "mine/onnx/gray.onnx",) and done.report is None
    assert (own / "model/run.json").read_bytes() == before
    assert {p.name for p in (tmp_path / "mine").iterdir()} == {"config.json", "preprocessor_config.json", "onnx"}


@needs_openvino
@pytest.mark.parametrize(
    "to, file", [("openvino-int8", "openvino/gray_int8.xml"), ("onnx-int8", "onnx/gray_int8.onnx")]
)
def test_int8_is_measured_on_the_held_out_bscans_and_recorded(own, to, file):
    calm(own)
    done = export_model(own, to)
    report, folder = done.report, own / "model"
    assert done.files[0] == folder / file and report["within_rule"]
    float_answers = Predictions.read(folder / "predictions.parquet")
    assert report["images"] == len(float_answers.hashes) and report["calibrated_on"] > 0
    assert report["bytes"] < (folder / "onnx/gray.onnx").stat().st_size
    assert 0 < report["largest_difference"] < 0.3
    said = json.loads((folder / "run.json").read_text())["fast"][file]
    assert said == {key: report[key] for key in said} and "int8" in said
    assert (own / f"{file.split('/')[0]}_int8.json").is_file()
    assert f"| `{file}` |" in (folder / "README.md").read_text()
    assert [fault for fault in faults_of(own) if "fast" in fault or "int8" in fault] == []
    another = Predictor(folder, device="cpu")
    another.model.timm_model.get_classifier().bias.data[0] += 50
    facts = {file: json.loads((folder / "run.json").read_text())["fast"][file]}
    assert any(fault.startswith(f"{file}: its probabilities are") for fault in check_fast(folder, facts, another)[1])


@needs_openvino
def test_int8_that_costs_too_much_is_refused_with_the_numbers(own, run):
    answers = Predictions.read(own / "model/predictions.parquet")
    sure = np.eye(len(answers.names), dtype=np.float32)[answers.indices()]  # a float model that is never wrong
    answers.with_probabilities(sure).write(own / "model/predictions.parquet")
    code, _, err = run("export", own, "--to", "openvino-int8")
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: openvino/gray_int8.xml is not written: balanced accuracy 0.")
    assert "(float 1.0000, may fall by 0.005), ECE" in last
    assert not (own / "model/openvino").exists()
    assert not json.loads((own / "openvino_int8.json").read_text())["within_rule"]


def calm(own: Path) -> None:
    """Answers that a rounding can't turn: the few held-out B-scans count as what the network says of them."""
    answers = Predictions.read(own / "model/predictions.parquet")
    names = np.array(answers.names, dtype=object)
    replace(answers, labels=names[answers.probabilities.argmax(1)]).write(own / "model/predictions.parquet")


@needs_openvino
def test_data_that_have_moved_are_asked_for(own, clinic):
    recipe = own / "model/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: phantom", "name: folder"))
    with pytest.raises(DataError, match="it doesn't say where they lie; give --data PATH"):
        export_model(own, "openvino-int8")
    with pytest.raises(DataError, match=r"none of the 24 images is one that was predicted"):
        export_model(own, "openvino-int8", data=clinic)


def test_torchs_own_program_lies_beside_what_is_published(own):
    done = export_model(own, "torch-export")
    assert done.files == (own / "gray.pt2",)
    gray = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = torch.export.load(own / "gray.pt2").module()(gray).detach().numpy()
    assert np.abs(found - fast_probabilities(own / "model/onnx/gray.onnx", gray.numpy())).max() <= 1e-5
    with pytest.raises(OCTError, match="may not be: give --out"):
        export_model(own / "model", "torch-export")


def test_what_is_no_export_is_named(own):
    with pytest.raises(OCTError, match=r'no export to openvno \(did you mean "openvino"\?\); there are onnx, openvino'):
        export_model(own, "openvno")
    with pytest.raises(OCTError, match="you/model isn't a folder here: say with --out"):
        export_model("you/model", "onnx")


def answers(probabilities, truth=None) -> Predictions:
    count = len(probabilities)
    texts = (np.array([f"{kind}{n}" for n in range(count)], dtype=object) for kind in ("hash", "patient"))
    labels = np.array(["A" if n % 2 == 0 else "B" for n in range(count)], dtype=object)
    sides = np.array(["test"] * count, dtype=object)
    return Predictions(("A", "B"), *texts, labels, sides, np.asarray(probabilities, np.float32), truth=truth)


def test_the_rule_of_int8_by_hand():
    right = np.array([[0.9, 0.1], [0.1, 0.9]] * 200)
    one_wrong, two_wrong = right.copy(), right.copy()
    one_wrong[0], two_wrong[:4:2] = (0.1, 0.9), (0.1, 0.9)
    assert compare_int8(answers(right), answers(one_wrong))["within_rule"]
    found = compare_int8(answers(right), answers(two_wrong))
    # two of 200 A's: their recall falls by 0.01, balanced accuracy by 0.005, which is just allowed
    assert found["within_rule"] and found["int8"]["balanced_accuracy"] == pytest.approx(0.995)
    assert found["agreement"] == pytest.approx(398 / 400) and found["largest_difference"] == pytest.approx(0.8)
    three_wrong = right.copy()
    three_wrong[:6:2] = (0.1, 0.9)
    assert not compare_int8(answers(right), answers(three_wrong))["within_rule"]
    unsure = right * 0.8 + 0.1  # 0.82: the same answers, 0.08 less sure of them
    found = compare_int8(answers(right), answers(unsure))
    assert found["agreement"] == 1 and found["int8"]["ece"] - found["float"]["ece"] == pytest.approx(0.08)
    assert not found["within_rule"]


def test_int8_is_compared_row_by_row_whatever_the_order():
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.3, 0.7]])
    shuffled = answers(p).rows(np.array([2, 0, 3, 1]))
    assert compare_int8(answers(p), shuffled)["largest_difference"] == 0
    with pytest.raises(DataError, match="not of the same B-scans"):
        compare_int8(answers(p), shuffled.rows(np.array([0, 1, 2])))


def test_signs_are_measured_one_by_one():
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, np.nan]], np.float32)
    p = np.array([[0.9, 0.2], [0.2, 0.9], [0.8, 0.8], [0.1, 0.5]])
    worse = p.copy()
    worse[0, 0] = 0.4
    found = compare_int8(answers(p, truth), answers(worse, truth))
    assert found["float"]["balanced_accuracy"] == 1 and found["int8"]["balanced_accuracy"] == pytest.approx(0.875)
    assert found["agreement"] == pytest.approx(7 / 8) and not found["within_rule"]


def test_the_names_of_fast_files_may_be_published():
    from oct_hf.hub.allowed import ALLOWED

    assert {Path(name).suffix for name in FAST_FILES} <= set(ALLOWED)
