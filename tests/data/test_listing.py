import pickle

import numpy as np
import pytest

from oct_hf.data.listing import Entries, Entry, Names


def entries(count: int) -> Entries:
    return Entries(
        Entry(f"{n:06d}.png", "AB"[n % 2], f"P{n // 4}", "", "", ("train", "test")[n % 3 == 0]) for n in range(count)
    )


def test_names_stand_in_pythons_order_and_are_found_with_what_stands_beside_them():
    given = ["b/ü.png", "a/9.png", "b/z.png", "網膜.png", "a/10.png", "B/1.png"] + [f"c/{n}" for n in range(9_000)]
    names = Names(iter(given), size=range(len(given)))
    assert list(names) == sorted(given) == [names[row] for row in range(len(names))]
    for number, name in enumerate(given):
        assert names.beside["size"][names.row(name)] == number
    with pytest.raises(KeyError):
        names.row("a/11.png")
    assert len(Names(iter(()))) == 0 and list(Names([])) == []


def test_entries_are_a_list_of_what_was_put_in():
    many = entries(10_000)
    assert len(many) == 10_000 and many[9_999] == list(many)[9_999] == next(many.at(np.array([9_999])))
    odd = many.where(lambda entry: entry.label == "B")
    assert [entry.source for entry in odd] == [f"{n:06d}.png" for n in range(1, 10_000, 2)]
    assert [entry.source for block in odd.blocks(7) for entry in block] == [entry.source for entry in odd]
    assert list(many.take([5, 3])) == [many[5], many[3]]


def test_published_sides_are_the_folds_that_a_csv_left_open():
    sides = entries(30).by_side()
    assert list(sides) == ["train", "test"] and [len(rows) for rows in sides.values()] == [20, 10]
    assert {entry.fold for entry in sides["test"]} == {"test"}
    alone = sides["train"].by_side()["train"]
    assert len(alone) == 20


def test_a_slice_is_sent_without_the_rest():
    block = next(entries(4_000).blocks(10))
    sent = pickle.dumps(block)
    assert len(sent) < 5_000 and list(pickle.loads(sent)) == list(block)


def test_a_listing_takes_a_tenth_of_what_objects_take():
    assert entries(4_096).nbytes / 4_096 < 40


def test_as_many_patients_as_one_likes_are_told_apart():
    many = Entries(Entry(f"{n}.png", "A", f"P{n % 300}", "", "", "train") for n in range(1_000))
    assert [entry.patient_id for entry in many] == [f"P{n % 300}" for n in range(1_000)]
    assert many.present("patient_id") == {f"P{n}" for n in range(300)}
