"""A cascade: the small network answers what it is sure of, the full one the rest, and what that costs is measured."""

import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from oct_hf import Predictor, finetune, read_image
from oct_hf.errors import DataError, ModelError, OCTError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.images import Preprocessing
from oct_hf.inference.cascade import Rule, lead, sureness
from oct_hf.inference.network import probabilities_of
from oct_hf.runs.fast_export import export_model
from oct_hf.runs.fast_measured import lowest_threshold, most_alike
from oct_hf.training.recipe import TeacherRecipe

pytestmark = pytest.mark.skipif(
    find_spec("openvino") is None or find_spec("nncf") is None, reason="the extra openvino isn't installed"
)


@pytest.fixture(scope="module")
def recipe(tiny):
    """A recipe that learns enough for answers that a small network can be sure of."""
    data = dataclasses.replace(tiny.data, patients=16, scans=3)
    train = dataclasses.replace(tiny.train, epochs=12, learning_rate=0.01, freeze_epochs=0)
    return dataclasses.replace(tiny, data=data, train=train, evaluation=dataclasses.replace(tiny.evaluation, explain=0))


@pytest.fixture(scope="module")
def full(recipe, tmp_path_factory) -> Path:
    """A run to make a cascade of."""
    folder = tmp_path_factory.mktemp("cascade") / "full"
    finetune(recipe, folder)
    return folder


@pytest.fixture(scope="module")
def small(recipe, full, tmp_path_factory) -> Path:
    """A run at half the resolution that learned the full one's answers."""
    folder = tmp_path_factory.mktemp("cascade") / "small"
    recipe = dataclasses.replace(
        recipe,
        name="small",
        model=dataclasses.replace(recipe.model, base=str(full / "model"), weights="hub", image_size=32),
        teacher=TeacherRecipe(base=str(full / "model"), epochs=0, labels=0, logits=1),
    )
    finetune(recipe, folder)
    return folder


@pytest.fixture
def own(full, tmp_path) -> Path:
    """A full run of one's own, to write to; its B-scans count as what it says of them."""
    folder = shutil.copytree(full, tmp_path / "own", ignore=shutil.ignore_patterns("checkpoints"))
    answers = Predictions.read(folder / "model/predictions.parquet")
    names = np.array(answers.names, dtype=object)
    labels = names[answers.probabilities.argmax(1)]
    dataclasses.replace(answers, labels=labels).write(folder / "model/predictions.parquet")
    return folder


def values(answers) -> np.ndarray:
    return np.array([list(answer.probabilities.values()) for answer in answers], np.float32)


def test_a_cascade_is_measured_recorded_and_answers_as_it_says(own, small, real_files, tmp_path):
    done = export_model(own, "cascade", small=small)
    folder, report = own / "model", done.report
    names = ("cascade.json", "small_int8.xml", "small_int8.bin")
    assert done.files == tuple(folder / "cascade" / name for name in names) and all(map(Path.is_file, done.files))
    float_answers = Predictions.read(folder / "predictions.parquet").of("test")
    assert report["images"] == len(float_answers.hashes) and report["within_rule"] and report["image_size"] == 32
    together = Predictions.read(folder / "cascade/answers.parquet").of("test")
    small_ones = (together.probabilities != float_answers.probabilities).any(1)
    assert report["by_small"] == small_ones.mean() > 0
    assert (sureness(together.probabilities[small_ones]) >= report["threshold"]).all()
    assert json.loads((folder / "run.json").read_text())["fast"]["cascade/cascade.json"] == {
        key: value for key, value in report.items() if key != "file"
    }
    assert "--backend cascade" in (folder / "README.md").read_text()
    assert [f for check in verify(download(str(own))) for f in check.faults if "cascade" in f] == []

    # Real B-scans, at a threshold between their answers, so that both networks are asked.
    rule = Rule.read(folder / "cascade/cascade.json")
    predictor = Predictor(folder, backend="cascade", batch_size=2)
    grays = [read_image(file) for file in real_files]
    by_small = rule.tempered(predictor.network.small.probabilities(np.stack([*map(rule.shrink, grays)])))
    by_full = predictor.network.full.probabilities(np.stack([*map(predictor.preprocessing.resize, grays)]))
    between = float(np.sort(sureness(by_small))[len(grays) // 2])
    predictor.network.rule = dataclasses.replace(rule, threshold=between)
    sure = sureness(by_small) >= between
    assert 0 < sure.sum() < len(sure) and np.abs(by_small - by_full).max(1).min() > 1e-3  # it shows who answered
    predictor.network.quick = None
    found = values(predictor.predict(real_files))
    assert np.abs(found - np.where(sure[:, None], by_small, by_full)).max() <= 1e-4
    assert np.abs(by_full - values(Predictor(folder, backend="torch").predict(real_files))).max() <= 1e-4

    # bfloat16 is believed where its label is well ahead, and asked again where it is close.
    for said, expected in (([0.9, 0.05, 0.03, 0.02], None), ([0.26, 0.25, 0.25, 0.24], by_full)):
        answer = np.array([said], np.float32)
        predictor.network.quick = SimpleNamespace(probabilities=lambda gray, answer=answer: answer.repeat(len(gray), 0))
        found = values(predictor.predict(real_files))[~sure]
        assert np.abs(found - (answer if expected is None else expected[~sure])).max() <= 1e-4

    colour = np.stack([read_image(real_files[0])] * 3, -1)
    colour[20:200, 30:290] = (255, 220, 0)
    assert np.abs(values(predictor.predict([colour])) - values(Predictor(folder).predict([colour]))).max() <= 0.02

    # Another small network is another model for a table that was begun.
    before, about = predictor.network.sha256, json.loads((folder / "cascade/cascade.json").read_text())
    about["small_sha256"]["cascade/small_int8.bin"] = "0" * 64
    (folder / "cascade/cascade.json").write_text(json.dumps(about))
    assert Predictor(folder, backend="cascade").network.sha256 != before


def test_a_cascade_that_answers_otherwise_is_refused_with_the_numbers(own, small, run):
    answers = Predictions.read(own / "model/predictions.parquet")
    turned = answers.probabilities.copy()
    test = answers.sides == "test"
    turned[test] = np.roll(turned[test], 1, axis=1)  # a full model that says something else on the test side
    answers.with_probabilities(turned).write(own / "model/predictions.parquet")
    code, _, err = run("export", own, "--to", "cascade", "--small", small)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: cascade/cascade.json is not written: balanced accuracy 0.")
    assert last.endswith("held-out B-scans, must be 99.5%")
    assert not (own / "model/cascade").exists()
    assert not json.loads((own / "cascade.json").read_text())["within_rule"]


def test_a_small_model_that_cannot_serve_is_named(own, small, tmp_path):
    with pytest.raises(OCTError, match="a cascade needs a small model: --small RUN"):
        export_model(own, "cascade")
    with pytest.raises(OCTError, match="no other export takes one"):
        export_model(own, "onnx", small=small)
    other = shutil.copytree(small / "model", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    for table in (config["id2label"], config.get("pretrained_cfg", {})):
        table.pop("3", None)
    config["id2label"]["3"] = "WET"
    config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}
    config["label_names"] = list(config["id2label"].values())
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="knows CNV, DME, DRUSEN, WET, and the full model CNV, DME, DRUSEN, NORMAL"):
        export_model(own, "cascade", small=other)
    seen = shutil.copytree(small / "model", tmp_path / "seen")
    split = (seen / "split.csv").read_text()
    (seen / "split.csv").write_text(split.replace(",test", ",train"))
    with pytest.raises(DataError, match=r"was trained on \d+ of the B-scans that the full model holds out"):
        export_model(own, "cascade", small=seen)


def test_the_threshold_lies_just_above_the_surest_answer_that_differs():
    full = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6]], np.float32)
    small = np.array([[0.8, 0.2], [0.7, 0.3], [0.45, 0.55], [0.3, 0.7]], np.float32)  # the second and third differ
    threshold = lowest_threshold(small, full)
    rule = Rule(threshold, Preprocessing())
    assert rule.sure(small).tolist() == [True, False, False, False]  # the last is as sure as one that differs
    assert threshold == pytest.approx(0.7, abs=1e-6)
    assert lowest_threshold(full, full) == 0
    # Of 400 answers one may differ: the surest one that does.
    many, others = np.repeat(full[:1], 400, 0), np.repeat(small[:1], 400, 0)
    others[0], others[1] = (0.1, 0.9), (0.3, 0.7)
    assert lowest_threshold(others, many) == pytest.approx(0.7, abs=1e-6)
    assert lowest_threshold(others[1:], many[1:]) == pytest.approx(0.7, abs=1e-6)  # of 399 none may
    # Of signs the one in most doubt counts, and every one must be the same.
    signs = np.array([[0.9, 0.95], [0.9, 0.55], [0.05, 0.1]], np.float32)
    told = np.array([[0.9, 0.9], [0.9, 0.4], [0.1, 0.1]], np.float32)
    assert sureness(signs, several=True).tolist() == pytest.approx([0.9, 0.55, 0.9])
    assert lead(signs, several=True).tolist() == pytest.approx([0.8, 0.1, 0.8])
    assert lead(np.array([[0.5, 0.3, 0.2]])).tolist() == pytest.approx([0.2])
    assert lowest_threshold(signs, told, several=True) == pytest.approx(0.55, abs=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_the_small_networks_temperature_is_found_again(several):
    logits = np.random.default_rng(0).normal(0, 2, (300, 4))
    full, small = probabilities_of(logits, several), probabilities_of(logits / 2.5, several)
    temperature = most_alike(small, full, several)
    assert temperature == pytest.approx(1 / 2.5, rel=1e-3)
    assert np.abs(Rule(0, Preprocessing(), several, temperature).tempered(small) - full).max() < 1e-3


def test_what_lacks_a_part_says_so(own, small, tmp_path):
    with pytest.raises(ModelError, match=r"no cascade/cascade\.json in it.*oct-hf export MODEL --to cascade writes it"):
        Predictor(own / "model", backend="cascade")
    export_model(own, "cascade", small=small)
    (own / "model/cascade/small_int8.bin").unlink()
    with pytest.raises(ModelError, match=r"no cascade/small_int8\.xml in it"):
        Predictor(own / "model", backend="cascade")
    rule = json.loads((own / "model/cascade/cascade.json").read_text())
    for wrong in ({}, rule | {"temperature": 0}, rule | {"threshold": "high"}):
        (own / "model/cascade/cascade.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match="says no rule of a cascade"):
            Predictor(own / "model", backend="cascade")
