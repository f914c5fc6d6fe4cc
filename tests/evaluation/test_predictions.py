import dataclasses

import numpy as np
import pytest

from oct_hf.errors import DataError
from oct_hf.evaluation.predictions import Predictions


def some() -> Predictions:
    text = [np.array(v, dtype=object) for v in (["h1", "h2", "h3"], ["p", "p", "q"], ["A", "B", "A"])]
    sides = np.array(["test", "test", "validation"], dtype=object)
    return Predictions(("A", "B"), *text, sides, np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], np.float32))


def test_the_file_holds_every_prediction_as_it_was(tmp_path):
    some().write(tmp_path / "predictions.parquet")
    again = Predictions.read(tmp_path / "predictions.parquet")
    assert again.names == ("A", "B") and np.array_equal(again.probabilities, some().probabilities)
    assert again.measure() == some().measure()


def test_a_side_is_measured_alone_and_counts_its_patients():
    test = some().of("test")
    assert test.measure()["n"] == 2 and test.measure()["groups"] == 1 and test.measure()["accuracy"] == 1.0
    assert some().of("validation").measure()["accuracy"] == 0.0


def test_an_unknown_label_and_a_wrong_file_are_named(tmp_path):
    strange = Predictions(
        ("A", "C"), *(getattr(some(), f) for f in ("hashes", "groups", "labels", "sides", "probabilities"))
    )
    with pytest.raises(DataError, match=r"true label\(s\) B are none of A, C"):
        strange.measure()
    (tmp_path / "x.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"not a predictions.parquet"):
        Predictions.read(tmp_path / "x.parquet")


def test_what_tells_bscans_apart_is_written_and_read_and_goes_with_its_rows(tmp_path):
    traits = {
        "width": np.array([512, 768, 512], np.int32),
        "height": np.array([496, 496, 496], np.int32),
        "quality": np.array([0.5, 0.25, 1], np.float32),
        "device": np.array(["Spectralis", None, "Cirrus"], dtype=object),
    }
    predictions = dataclasses.replace(some(), traits=traits)
    predictions.write(tmp_path / "predictions.parquet")
    again = Predictions.read(tmp_path / "predictions.parquet")
    assert again.traits.keys() == traits.keys()
    assert all(again.traits[name].tolist() == values.tolist() for name, values in traits.items())
    last = again.rows(np.array([2]))
    assert last.traits["device"].tolist() == ["Cirrus"] and last.hashes.tolist() == again.hashes[2:].tolist()
