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
