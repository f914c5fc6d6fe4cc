import numpy as np
import pytest
from drawn_patients import cohort

from oct_hf.data.fewer import choose_labelled, fewer_patients
from oct_hf.errors import DataError


def test_the_few_labels_that_are_kept_come_from_as_many_patients_as_there_are():
    labels, patients = cohort(30)
    hashes = [f"h{i}" for i in range(len(labels))]
    chosen = choose_labelled(hashes, patients, labels, 16, seed=3)
    for label in ("CNV", "DME", "NORMAL"):
        mine = np.flatnonzero(chosen & (np.array(labels) == label))
        having = {p for p, own in zip(patients, labels, strict=True) if own == label}
        taken = [patients[row] for row in mine]
        assert len(mine) == 16
        assert set(taken) == having if len(having) <= 16 else len(set(taken)) == 16
    # Neither order nor names of patients count, and the first ones of a larger choice are those of a smaller one.
    order = np.random.default_rng(1).permutation(len(labels))
    columns = [[column[i] for i in order] for column in (hashes, [f"{p} by another name" for p in patients], labels)]
    assert np.array_equal(choose_labelled(*columns, 16, seed=3), chosen[order])
    assert not np.array_equal(choose_labelled(hashes, patients, labels, 16, seed=4), chosen)
    assert not (choose_labelled(hashes, patients, labels, 5, seed=3) & ~chosen).any()


def test_more_labels_than_a_class_has_are_refused():
    with pytest.raises(DataError, match=r"split.labelled_per_class: 3, and B has 2 images to train on"):
        choose_labelled(list("abcde"), list("pqrst"), ["A"] * 3 + ["B"] * 2, 3)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
def test_fewer_patients_to_train_on_are_a_share_of_each_class_and_whole_patients(share):
    labels, patients = cohort(60)
    sides = np.array(["test" if p in ("p0", "p1") else "validation" if p == "p2" else "train" for p in patients])
    found = fewer_patients(patients, labels, sides, share, seed=3)
    learned = sides == "train"
    assert np.array_equal(found[~learned], sides[~learned]) and set(found[learned]) <= {"train", "unused"}
    kept = {p for p, side in zip(patients, found, strict=True) if side == "train"}
    assert [p in kept for p in np.array(patients)[learned]] == (found[learned] == "train").tolist()
    for label in ("CNV", "DME", "NORMAL"):
        own = {p for p, la, side in zip(patients, labels, sides, strict=True) if side == "train" and la == label}
        assert len(own & kept) >= max(1, round(share * len(own)))
    one_label = [["CNV", "DME", "NORMAL"][int(p[1:]) % 3] for p in patients]
    alone = fewer_patients(patients, one_label, sides, share, seed=3)
    assert (
        len({p for p, side in zip(patients, alone, strict=True) if side == "train"})
        == {0.01: 3, 0.25: 3 * 5, 0.5: 3 * 10, 1.0: 57}[share]
    )
    # The patients of a smaller share are among those of a larger one, and another seed keeps others.
    more = fewer_patients(patients, labels, sides, min(1, 2 * share), seed=3)
    assert set(np.flatnonzero(found == "train")) <= set(np.flatnonzero(more == "train"))
    if share < 1:
        assert not np.array_equal(fewer_patients(patients, labels, sides, share, seed=4), found)
