import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from oct_hf.data.leakage import (
    Links,
    certificate,
    differences,
    leaks,
    read_links,
    search,
    stand_in_patients,
    units,
    write_links,
)
from oct_hf.data.splits import split_by_image, split_folds
from oct_hf.errors import DataError
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.training.recipe_file import make_recipe

HASHES = ["h0", "h1", "h2", "h3", "h4"]
PATIENTS = ["p", "p", "q", "r", "r"]


def links(*pairs, copies_only=True) -> Links:
    return Links(tuple((a, b, 0.9, 0.8) for a, b in pairs), copies_only)


def test_patients_that_near_duplicates_link_stay_together():
    assert units(HASHES, PATIENTS, links()) == PATIENTS
    assert units(HASHES, PATIENTS, links(("h1", "h2"))) == ["p", "p", "p", "r", "r"]
    assert set(units(HASHES, PATIENTS, links(("h1", "h2"), ("h2", "h4")))) == {"p"}
    assert units(HASHES, PATIENTS, links(("h0", "h1"), ("h0", "elsewhere"))) == PATIENTS


def test_groups_of_near_duplicates_stand_in_for_patients_whatever_the_order_of_the_files():
    found = stand_in_patients(HASHES, links(("h1", "h2"), ("h2", "h4")))
    assert found == ["gh0", "gh1", "gh1", "gh3", "gh1"]
    order = [3, 1, 4, 0, 2]
    again = stand_in_patients([HASHES[i] for i in order], links(("h1", "h2"), ("h2", "h4")))
    assert again == [found[i] for i in order]


def test_the_certificate_counts_what_is_on_two_sides_and_what_was_taken_out():
    sides = ["train", "unused", "unused", "test", "test"]
    counts = certificate(HASHES, PATIENTS, sides, links(("h2", "h3"), ("h3", "h4")))
    assert counts["patients_on_two_sides"] == counts["files_on_two_sides"] == 0
    assert counts["taken_out"] == {"patient_held_out": 1, "near_duplicate_held_out": 1}
    near = counts["near_duplicates"]
    assert near["pairs_across_patients"] == 1 and near["pairs_on_two_sides"] == 0 and leaks(counts) == []
    leaky = certificate(HASHES, PATIENTS, ["train", "test", "train", "test", "test"], links(("h2", "h3")))
    assert leaks(leaky) == ["1 patient(s) on two sides", "1 pair(s) of near-duplicates on two sides"]
    assert certificate(HASHES, PATIENTS, sides, None)["near_duplicates"] is None


def test_a_volume_stays_whole_and_stands_in_for_a_patient():
    volumes = ["v", "", "v", "w", "w"]
    assert units(HASHES, PATIENTS, None, volumes) == ["p", "p", "p", "r", "r"]
    assert stand_in_patients(HASHES, links(("h1", "h3")), volumes) == ["gh0", "gh1", "gh0", "gh1", "gh1"]
    counts = certificate(HASHES, PATIENTS, ["train", "train", "test", "test", "unused"], None, volumes)
    assert counts["volumes_on_two_sides"] == 1 and "1 volume(s) on two sides" in leaks(counts)
    assert "volumes_on_two_sides" not in certificate(HASHES, PATIENTS, ["train"] * 5, None)


def test_a_search_done_again_is_compared_where_it_can_be():
    side = {"h0": "train", "h1": "test", "h2": "train", "h3": "unused"}
    nothing, crossing, within = links(), links(("h0", "h1")), links(("h0", "h2"), ("h1", "h3"))
    assert differences(crossing, crossing, side, True) == []
    for whole in (True, False):
        assert differences(nothing, crossing, side, whole) == [
            "lacks h0… (train) and h1… (test), which are near-duplicates"
        ]
    assert differences(nothing, within, side, True) == ["lacks 2 pairs of near-duplicates that the data have"]
    assert differences(within, nothing, side, True) == ["2 of its 2 pairs are no near-duplicates in the data"]
    assert differences(nothing, within, side, False) == differences(within, nothing, side, False) == []
    near = Links((("h0", "h2", 0.7, 0.64),), True)  # another processor may find it just below
    assert differences(near, nothing, side, True) == differences(nothing, near, side, True) == []
    assert differences(Links((("h0", "h2", 0.9, 0.3),), False), Links((), False), side, True) != []


def test_a_set_that_names_volumes_alone_is_split_by_them(clinic, tmp_path):
    recipe = recipe_of(clinic, validation=0.3, test=0.3, near_duplicates=False)
    named = {"without_patients": True, "pattern": r"/(?P<volume>[A-Z]\d)/"}
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **named))
    dataset, _ = load_data(recipe.data, str(tmp_path / "cache"))
    data, volumes = assign_sides(dataset, recipe), np.array(dataset["volume"][:])
    assert len(set(data.patients)) == len(set(volumes)) == 12 and not any(dataset["patient_id"])
    for volume in set(volumes):
        assert len(set(data.sides[volumes == volume])) == 1


def test_a_volume_filed_under_two_patients_joins_them(clinic, tmp_path):
    rows = ["file,patient,volume"]
    for file in sorted(clinic.rglob("*.png")):
        rows.append(f"{file.relative_to(clinic).as_posix()},{file.parent.name},1")
    (clinic / "t.csv").write_text("\n".join(rows))
    recipe = recipe_of(clinic, validation=0.3, test=0.3)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, csv="t.csv"))
    dataset, _ = load_data(recipe.data, str(tmp_path / "cache"))
    alone = assign_sides(dataset, recipe)
    patients = np.array(dataset["patient_id"][:])
    apart = next(
        b for b in ("D1", "D2", "D3", "D4", "D5") if side_of(alone, patients, b) != side_of(alone, patients, "D0")
    )
    volumes = ["shared" if p in ("D0", apart) else v for p, v in zip(patients, dataset["volume"], strict=True)]
    joined = dataset.remove_columns("volume").add_column("volume", volumes)
    data = assign_sides(joined, recipe)
    assert side_of(data, patients, "D0") == side_of(data, patients, apart)


def side_of(data, patients, patient: str) -> str:
    (side,) = set(data.sides[patients == patient])
    return side


def test_pairs_are_written_and_read_and_another_file_is_refused(tmp_path):
    write_links(tmp_path / "near.csv", links(("h1", "h2"), ("h2", "h4")))
    assert read_links(tmp_path / "near.csv", True) == links(("h1", "h2"), ("h2", "h4"))
    (tmp_path / "near.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"not a near_duplicates\.csv"):
        read_links(tmp_path / "near.csv", True)


def recipe_of(clinic, **split):
    data = {"name": "folder", "path": str(clinic)}
    model = {"base": "test_efficientnet", "weights": "random", "image_size": 64}
    return make_recipe({"name": "clinic", "data": data, "split": split, "model": model, "train": {"epochs": 1}})


@pytest.fixture
def copied(clinic):
    """The clinic's folder in which one patient's B-scan came in again under another patient, shifted and encoded."""
    image = np.asarray(Image.open(clinic / "DME/D0/0.png"))
    Image.fromarray(np.roll(image, 4, axis=1)).save(clinic / "DME/D5/9.jpeg", quality=80)
    return clinic


def test_a_copy_under_another_patient_keeps_both_on_one_side(copied, tmp_path):
    shares = {"validation": 0.3, "test": 0.3}
    crossed = 0
    for seed in range(6):
        recipe = recipe_of(copied, seed=seed, **shares)
        dataset, _ = load_data(recipe.data, str(tmp_path / "cache"))
        data = assign_sides(dataset, recipe)
        raw = np.array(dataset["patient_id"][:])
        sides = {name: set(data.sides[raw == name]) for name in ("D0", "D5")}
        assert sides["D0"] == sides["D5"] and len(sides["D0"]) == 1
        assert certificate(data.hashes, data.patients, data.sides, data.links)["near_duplicates"] is not None
        assert len(data.links.pairs) == 1
        unaware = dataclasses.replace(recipe.split, near_duplicates=False)
        other = assign_sides(dataset, dataclasses.replace(recipe, split=unaware))
        crossed += len({*other.sides[raw == "D0"], *other.sides[raw == "D5"]}) > 1
        assert other.links is None
    assert crossed  # without the search it would have leaked


def test_a_mirrored_copy_is_kept_together_where_the_recipe_says_so(clinic, tmp_path):
    image = np.asarray(Image.open(clinic / "DME/D0/0.png"))
    Image.fromarray(np.ascontiguousarray(image[:, ::-1])).save(clinic / "DME/D5/9.jpeg", quality=90)
    recipe = recipe_of(clinic, validation=0.3, test=0.3)
    dataset, _ = load_data(recipe.data, str(tmp_path / "cache"))
    assert assign_sides(dataset, recipe).links.pairs == ()
    aware = dataclasses.replace(recipe, split=dataclasses.replace(recipe.split, mirrored=True))
    for _ in range(2):  # the second time from what was kept beside the prepared set
        data = assign_sides(dataset, aware)
        assert len(data.links.pairs) == 1
        patients = np.array(dataset["patient_id"][:])
        assert side_of(data, patients, "D0") == side_of(data, patients, "D5")
        counts = certificate(data.hashes, data.patients, data.sides, data.links)
        assert counts["near_duplicates"]["method"].endswith("mirrored copies too")


def test_a_copy_of_a_test_image_is_taken_out_of_training(copied, tmp_path):
    rows = ["file,patient,fold"]
    for file in sorted(copied.rglob("*.*")):
        if file.suffix in (".png", ".jpeg"):
            patient = file.parent.name
            rows.append(f"{file.relative_to(copied).as_posix()},{patient},{'held' if patient[1] in '05' else 'rest'}")
    # D5, who has the copy, is not in the held-out fold.
    text = "\n".join(row.replace("D5,held", "D5,rest") for row in rows)
    (copied / "t.csv").write_text(text + "\n")
    recipe = recipe_of(copied, by="fold", test_fold="held", validation=0.3)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, csv="t.csv"))
    dataset, _ = load_data(recipe.data, str(tmp_path / "cache"))
    data = assign_sides(dataset, recipe)
    raw = np.array(dataset["patient_id"][:])
    assert set(data.sides[raw == "D0"]) == {"test"} and set(data.sides[raw == "D5"]) == {"unused"}
    counts = certificate(data.hashes, data.patients, data.sides, data.links)
    assert counts["taken_out"] == {"patient_held_out": 0, "near_duplicate_held_out": 3}
    assert leaks(counts) == []


def test_folds_are_disjoint_by_patient_and_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    patients = [f"p{i}" for i in range(60) for _ in range(rng.integers(1, 9))]
    labels = [["CNV", "DME", "NORMAL"][int(p[1:]) % 3] for p in patients]
    found = split_folds(labels, patients, 5, seed=2)
    assert set(found) == set("01234")
    for patient in set(patients):
        assert len(set(found[np.array(patients) == patient])) == 1
    order = rng.permutation(len(patients))
    again = split_folds([labels[i] for i in order], [patients[i] for i in order], 5, seed=2)
    assert np.array_equal(found[order], again)
    assert not np.array_equal(found, split_folds(labels, patients, 5, seed=3))
    with pytest.raises(DataError, match=r"class NORMAL has 3 patient\(s\)"):
        split_folds(["A"] * 8 + ["NORMAL"] * 3, [f"p{i}" for i in range(11)], 4)


def test_a_recipe_of_folds_tests_each_patient_once(clinic, tmp_path):
    tested = []
    for fold in range(3):
        recipe = recipe_of(clinic, folds=3, test_fold=str(fold), validation=0.3)
        dataset, _ = load_data(recipe.data, str(tmp_path / "cache"))
        data = assign_sides(dataset, recipe)
        tested += np.array(data.hashes)[data.sides == "test"].tolist()
    assert sorted(tested) == sorted(data.hashes)
    with pytest.raises(DataError, match=r"split\.folds is 3, but split\.test_fold names none"):
        assign_sides(dataset, recipe_of(clinic, folds=3))


def test_a_split_by_image_says_that_it_leaks_and_is_not_published(clinic, tmp_path):
    from oct_hf import finetune
    from oct_hf.errors import OCTError
    from oct_hf.hub.publish import repository_folder

    recipe = recipe_of(clinic, by="image", validation=0.3, test=0.3)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, public=True))
    finetune(recipe, tmp_path / "run", cache_dir=str(tmp_path / "cache"))
    run = json.loads((tmp_path / "run/model/run.json").read_text())
    assert run["split"]["certificate"]["patients_on_two_sides"] > 0
    card = (tmp_path / "run/model/README.md").read_text()
    assert "**This split leaks.**" in card
    with pytest.raises(OCTError, match="split by image"):
        repository_folder(tmp_path / "run")
    with pytest.raises(OCTError, match="push_to_hub"):
        finetune(dataclasses.replace(recipe, push_to_hub=True), tmp_path / "other")


def test_a_split_by_image_is_stratified_and_reproducible():
    labels = ["A"] * 100 + ["B"] * 20
    sides = split_by_image(labels, {"train": 0.7, "validation": 0.15, "test": 0.15}, seed=1)
    assert [(sides[:100] == s).sum() for s in ("train", "validation", "test")] == [70, 15, 15]
    assert np.array_equal(sides, split_by_image(labels, {"train": 0.7, "validation": 0.15, "test": 0.15}, seed=1))


def test_a_set_without_patients_is_split_by_groups_of_near_duplicates(clinic, tmp_path):
    for file in sorted(clinic.rglob("*.png")):
        file.rename(file.parents[1] / f"{file.parent.name}-{file.name}")
    for folder in [p for p in clinic.glob("*/*") if p.is_dir()]:
        shutil.rmtree(folder)
    image = np.asarray(Image.open(clinic / "DME/D0-0.png"))
    Image.fromarray(np.roll(image, 4, axis=1)).save(clinic / "DME/again.jpeg", quality=80)
    recipe = recipe_of(clinic, validation=0.3, test=0.3)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, without_patients=True))
    dataset, _ = load_data(recipe.data, str(tmp_path / "cache"))
    data = assign_sides(dataset, recipe)
    names = [row.split("/")[-1] for row in dataset["source"][:]]
    of = dict(zip(names, zip(data.patients, data.sides, strict=True), strict=True))
    assert of["again.jpeg"] == of["D0-0.png"]
    assert of["again.jpeg"][0] != of["D1-0.png"][0]
    with pytest.raises(DataError, match="near-duplicates must stand in"):
        split = dataclasses.replace(recipe.split, near_duplicates=False)
        assign_sides(dataset, dataclasses.replace(recipe, split=split))


def test_a_near_duplicate_is_found_among_the_images_that_corrections_leave(copied, tmp_path):
    data = recipe_of(copied).data
    dataset, _ = load_data(data, str(tmp_path / "cache"))
    first = dataset[0]["content_hash"]
    (tmp_path / "corrections.csv").write_text(f"content_hash,label,given_label\n{first},leave out,DME\n")
    rest = dataclasses.replace(data, corrections=str(tmp_path / "corrections.csv"))
    fewer, _ = load_data(rest, str(tmp_path / "cache"))
    source = dict(zip(fewer["content_hash"][:], fewer["source"][:], strict=True))
    assert len(fewer) == len(dataset) - 1
    for set_, expected in ((dataset, 1), (fewer, 0 if dataset[0]["source"] == "DME/D0/0.png" else 1)):
        found = search(set_, copies_only=True).pairs
        assert len(found) == expected
    for a, b, *_ in search(fewer, copies_only=True).pairs:
        assert {source[a], source[b]} == {"DME/D0/0.png", "DME/D5/9.jpeg"}
