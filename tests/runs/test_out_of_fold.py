import dataclasses

import numpy as np
import pytest

from oct_hf.errors import DataError, RunError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.labelled import load_data
from oct_hf.runs.out_of_fold import out_of_fold
from oct_hf.runs.training import Stopped


@pytest.fixture(scope="module")
def quick(tiny):
    return dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, epochs=2, freeze_epochs=0))


@pytest.fixture(scope="module")
def two_folds(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oof") / "run"
    return out_of_fold(quick, folder, 2), folder


def test_every_image_is_predicted_once_by_a_network_that_never_saw_its_patient(two_folds, quick):
    pooled, folder = two_folds
    dataset, _ = load_data(quick.data)
    assert sorted(pooled.hashes) == sorted(dataset["content_hash"][:])
    names = dataset.features["label"].names
    truth = dict(zip(dataset["content_hash"][:], (names[i] for i in dataset["label"][:]), strict=True))
    assert all(truth[value] == label for value, label in zip(pooled.hashes, pooled.labels, strict=True))
    assert set(pooled.sides) == {"fold 0", "fold 1"}
    for fold in range(2):
        held_out = set(pooled.groups[pooled.sides == f"fold {fold}"])
        split = (folder / f"fold-{fold}" / "model" / "split.csv").read_text().splitlines()[1:]
        trained = {row.split(",")[1] for row in split if row.endswith((",train", ",validation"))}
        assert held_out and trained and not held_out & trained


def test_what_is_pooled_is_what_each_run_wrote(two_folds):
    pooled, folder = two_folds
    parts = [Predictions.read(folder / f"fold-{i}" / "model" / "predictions.parquet").of("test") for i in (0, 1)]
    assert np.array_equal(pooled.probabilities, np.concatenate([p.probabilities for p in parts]))
    stored = Predictions.read(folder / "out_of_fold.parquet")
    assert stored.measure() == pooled.measure() and stored.sides.tolist() == pooled.sides.tolist()


def test_a_stopped_call_goes_on_and_ends_with_the_same_predictions(two_folds, quick, tmp_path, interrupt_when_saved):
    pooled, folder = two_folds[0], tmp_path / "stopped"
    first = folder / "fold-0"
    interrupt_when_saved(first)
    with pytest.raises(Stopped):
        out_of_fold(quick, folder, 2)
    assert not (folder / "out_of_fold.parquet").exists() and not (first / "model").exists()
    again = out_of_fold(quick, folder, 2)
    assert np.array_equal(again.probabilities, pooled.probabilities) and again.hashes.tolist() == pooled.hashes.tolist()


def test_finished_folds_are_not_trained_again(two_folds, quick):
    pooled, folder = two_folds
    weights = [folder / f"fold-{fold}" / "model" / "model.safetensors" for fold in range(2)]
    before = [path.stat().st_mtime_ns for path in weights]
    again = out_of_fold(quick, folder, 2)
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert np.array_equal(again.probabilities, pooled.probabilities)


def test_other_folds_are_not_mixed_with_those_there(two_folds, quick):
    _, folder = two_folds
    before = (folder / "out_of_fold.parquet").stat().st_mtime_ns
    for recipe, folds in ((quick, 3), (dataclasses.replace(quick, split=dataclasses.replace(quick.split, seed=5)), 2)):
        with pytest.raises(RunError, match="already holds another run"):
            out_of_fold(recipe, folder, folds)
    assert (folder / "out_of_fold.parquet").stat().st_mtime_ns == before


def test_more_folds_than_patients_and_fewer_than_two_are_refused_before_training(quick, tmp_path):
    with pytest.raises(DataError, match="patient"):
        out_of_fold(quick, tmp_path / "many", 7)
    with pytest.raises(RunError, match="2 or more"):
        out_of_fold(quick, tmp_path / "one", 1)
    assert not list(tmp_path.iterdir())


def test_pooling_refuses_an_image_twice_and_other_labels(two_folds):
    pooled, _ = two_folds
    with pytest.raises(DataError, match="two of the parts"):
        Predictions.pool([pooled, pooled])
    with pytest.raises(DataError, match="different labels"):
        Predictions.pool([pooled, dataclasses.replace(pooled, names=("A", "B", "C", "D"))])
