import pytest

from oct_hf.errors import DataError
from oct_hf.labels import COARSER, DESCRIPTIONS, LABEL_SETS, label_map


def test_every_label_of_every_set_has_a_description():
    for labels in LABEL_SETS.values():
        assert all(label in DESCRIPTIONS for label in labels)
    assert {*COARSER, *(name for names in COARSER.values() for name in names)} <= set(DESCRIPTIONS)


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


def test_maps_between_every_two_public_sets_are_total_or_refused():
    assert set(label_map(LABEL_SETS["octdl"], LABEL_SETS["oct2017_binary"]).values()) == {"ABNORMAL", "NORMAL"}
    assert label_map(["NORMAL"], LABEL_SETS["octdl"]) == {"NORMAL": "NO"}
    for source in LABEL_SETS.values():
        for target in LABEL_SETS.values():
            try:
                mapped = label_map(source, target)
            except DataError as error:
                assert "no counterpart" in str(error)
            else:
                assert list(mapped) == list(source) and set(mapped.values()) <= set(target)
    with pytest.raises(DataError, match=r"label\(s\) ABNORMAL have no counterpart"):
        label_map(LABEL_SETS["oct2017_binary"], LABEL_SETS["oct2017"])
    with pytest.raises(DataError, match=r"label\(s\) DR"):  # retinopathy without oedema is no DME
        label_map(["DR"], LABEL_SETS["oct2017"])
