import numpy as np

from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.subgroups import COMMON, subgroups


def made(n=240, patients=60, seed=0, **traits):
    rng = np.random.default_rng(seed)
    labels = np.array(["A", "B"], dtype=object)[np.arange(n) % 2]
    right = rng.random(n) < 0.8
    p = np.where((labels == "A") == right, 0.8, 0.2)
    hashes = np.array([f"h{i}" for i in range(n)], dtype=object)
    groups = np.array([f"p{i * patients // n}" for i in range(n)], dtype=object)
    sides = np.array(["test"] * n, dtype=object)
    eyes = traits.pop("eyes", None)
    probabilities = np.stack([p, 1 - p], 1).astype(np.float32)
    return Predictions(("A", "B"), hashes, groups, labels, sides, probabilities, eyes, traits)


def test_each_part_has_the_scores_of_its_rows_and_their_interval():
    eyes = np.array(["OD", "OS", ""] * 80, dtype=object)
    predictions = made(eyes=eyes)
    parts = subgroups(predictions)
    assert [(part["by"], part["value"], part["n"]) for part in parts] == [("eye", "OD", 80), ("eye", "OS", 80)]
    for part in parts:
        expected = predictions.rows(eyes == part["value"]).measure()
        found = part["balanced_accuracy"]
        assert found["value"] == expected["balanced_accuracy"] and part["groups"] == expected["groups"]
        assert found["interval"]["low"] < found["value"] < found["interval"]["high"] and part["unsure"] == ""


def test_a_part_with_few_patients_or_without_a_class_is_marked():
    width = np.where(np.arange(240) < 40, 768, 512).astype(np.int32)
    parts = subgroups(made(width=width, height=np.full(240, 496, np.int32)))
    assert {p["value"]: p["unsure"] for p in parts} == {
        "512x496 pixels": "",
        "768x496 pixels": "10 of at least 20 patients",
    }
    alone = made(eyes=np.where(np.arange(240) % 2 == 0, "OD", "OS").astype(object))
    assert [part["unsure"] for part in subgroups(alone)] == ["no B", "no A"]
    assert subgroups(alone)[0]["auroc"]["value"] is None


def test_rare_sizes_stand_together_and_bands_of_quality_hold_their_lower_edge():
    width = np.full(240, 512, np.int32)
    width[: int(240 * COMMON) - 1] = np.arange(int(240 * COMMON) - 1) + 100
    values = {part["value"]: part["n"] for part in subgroups(made(width=width, height=width))}
    assert values == {"512x512 pixels": 217, "other sizes": 23}
    quality = np.repeat([0.0, 0.25, 0.4999, 1.0], 60).astype(np.float32)
    values = {part["value"]: part["n"] for part in subgroups(made(quality=quality))}
    assert values == {"0 to 0.25": 60, "0.25 to 0.5": 120, "0.75 to 1": 60}


def test_nothing_is_told_apart_where_nothing_differs_or_is_recorded():
    assert subgroups(made()) == [] and subgroups(made(quality=np.full(240, 0.9, np.float32))) == []
