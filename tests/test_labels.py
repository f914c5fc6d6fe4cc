import pytest

from oct_hf.errors import DataError
from oct_hf.labels import COARSER, DESCRIPTIONS, LABEL_SETS, label_map


def test_every_label_of_every_set_has_a_description():
    for labels in LABEL_SETS.values():
        assert all(label in DESCRIPTIONS for label in labels)
    assert set(COARSER) | set(COARSER.values()) <= set(DESCRIPTIONS)


def test_finer_labels_are_read_as_coarser_ones_and_never_the_other_way_round():
    assert label_map(LABEL_SETS["oct2017"], LABEL_SETS["neh_2018"]) == {
        "CNV": "AMD",
        "DME": "DME",
        "DRUSEN": "AMD",
        "NORMAL": "NORMAL",
    }
    assert label_map(["CNV", "NO"], ["NORMAL", "DME", "AMD"]) == {"CNV": "AMD", "NO": "NORMAL"}
    with pytest.raises(DataError, match=r"label\(s\) AMD have no counterpart among CNV"):
        label_map(LABEL_SETS["neh_2018"], LABEL_SETS["oct2017"])
