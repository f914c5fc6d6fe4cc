import numpy as np
import pytest
from drawn_patients import cohort

from oct_hf.data.splits import (
    check_disjoint,
    pseudonyms,
    read_split,
    split_by_fold,
    split_by_patient,
    write_split,
)
from oct_hf.errors import DataError


@pytest.mark.parametrize("seed", range(5))
def test_a_patient_never_crosses_the_split(seed):
    labels, patients = cohort(seed=seed)
    sides = split_by_patient(labels, patients, seed=seed)
    for patient in set(patients):
        assert len(set(sides[np.array(patients) == patient])) == 1


def test_every_side_has_each_class_in_its_share():
    labels, patients = cohort(120)
    sides = split_by_patient(labels, patients)
    for label in set(labels):
        mine = sides[np.array(labels) == label]
        for side, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
            assert abs((mine == side).mean() - share) < 0.04


def test_the_split_depends_on_data_and_seed_but_not_on_the_order_of_images():
    labels, patients = cohort()
    first = split_by_patient(labels, patients, seed=3)
    order = np.random.default_rng(1).permutation(len(labels))
    again = split_by_patient([labels[i] for i in order], [patients[i] for i in order], seed=3)
    assert np.array_equal(first[order], again)
    assert not np.array_equal(first, split_by_patient(labels, patients, seed=4))


def test_three_patients_a_class_are_just_enough_and_two_are_refused_with_the_reason():
    labels = ["AMD"] * 6 + ["NORMAL"] * 6
    sides = split_by_patient(labels, ["a", "a", "b", "b", "c", "c", "d", "d", "e", "e", "f", "f"])
    assert all(set(sides[np.array(labels) == label]) == {"train", "validation", "test"} for label in set(labels))
    with pytest.raises(DataError, match=r"class NORMAL has 2 patient\(s\)"):
        split_by_patient(labels, ["a", "a", "b", "b", "c", "c", "d", "d", "d", "e", "e", "e"])


def test_an_image_without_a_patient_is_refused():
    with pytest.raises(DataError, match=r"1 image\(s\) have no patient"):
        split_by_patient(["A", "B"], ["x", ""])


def test_held_out_fold_keeps_guards_and_its_patients_out_of_training():
    labels = ["A", "B"] * 20
    patients = [f"p{i // 2}" for i in range(40)]
    folds = [str(i // 8) for i in range(40)]
    folds[8] = folds[9] = "guard"
    patients[10] = patients[38]  # a patient who is in the held-out fold too
    sides = split_by_fold(labels, patients, folds, test="4", validation=0.25)
    assert set(sides[32:]) == {"test"} and set(sides[8:11]) == {"unused"}
    assert {"train", "validation"} <= set(sides[:32])
    check_disjoint(patients, sides, [str(i) for i in range(40)])


def test_a_fold_may_be_the_validation_side():
    labels, patients = ["A", "B"] * 6, [f"p{i // 2}" for i in range(12)]
    sides = split_by_fold(labels, patients, [str(i // 4) for i in range(12)], test="2", validation="1")
    assert sides.tolist() == ["train"] * 4 + ["validation"] * 4 + ["test"] * 4


def test_a_test_patient_in_the_validation_fold_is_on_no_side():
    labels, patients = ["A", "B"] * 8, [f"p{i // 2}" for i in range(16)]
    patients[4] = patients[5] = patients[12]  # of the validation fold, and of the held-out one
    patients[0] = patients[1] = patients[7]  # of the training fold, and of the validation fold
    sides = split_by_fold(labels, patients, [str(i // 4) for i in range(16)], test="3", validation="1")
    assert (
        sides.tolist()
        == ["unused"] * 2 + ["train"] * 2 + ["unused"] * 2 + ["validation"] * 2 + ["train"] * 4 + ["test"] * 4
    )


def test_an_unknown_fold_names_those_there_are():
    with pytest.raises(DataError, match='no fold "7"; the data set has 0, 1'):
        split_by_fold(["A", "A"], ["p", "q"], ["0", "1"], test="7")
    with pytest.raises(DataError, match=r'no fold "7"; the data set has none: split\.by=patient'):
        split_by_fold(["A", "A"], ["p", "q"], ["", ""], test="7")


@pytest.mark.parametrize(
    "patients, hashes, volumes, kind",
    [("aab", "123", "uvw", "patient a"), ("abc", "112", "uvw", "file 1"), ("abc", "123", "vvw", "volume v")],
)
def test_the_check_finds_what_is_on_two_sides(patients, hashes, volumes, kind):
    with pytest.raises(DataError, match=kind):
        check_disjoint(list(patients), ["train", "test", "test"], list(hashes), list(volumes))
    check_disjoint(list(patients), ["train", "train", "test"], list("123"), ["", "", ""])


def test_split_csv_gives_the_same_split_to_whoever_has_the_files(tmp_path):
    hashes, sides = ["h1", "h2", "h3", "h4"], np.array(["train", "validation", "test", "unused"])
    write_split(tmp_path / "split.csv", hashes, ["p", "q", "r", "s"], ["A"] * 4, sides)
    header = (tmp_path / "split.csv").read_text().splitlines()[0]
    assert header == "content_hash,patient_id,label,side"
    assert read_split(tmp_path / "split.csv", ["h3", "h1", "h2", "other"]).tolist() == [
        "test",
        "train",
        "validation",
        "unused",
    ]
    with pytest.raises(DataError, match="none is on its train side"):
        read_split(tmp_path / "split.csv", ["other"])


def test_pseudonyms_hide_ids_and_keep_them_apart(tmp_path):
    key = tmp_path / "keys" / "patient.key"
    first = pseudonyms(["Smith", "Jones", "Smith"], key)
    assert first[0] == first[2] != first[1] and "Smith" not in first
    assert pseudonyms(["Smith"], key) == first[:1]
    assert pseudonyms(["Smith"], tmp_path / "other.key") != first[:1]
    assert key.stat().st_mode & 0o077 == 0
