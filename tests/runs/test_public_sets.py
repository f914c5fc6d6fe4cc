"""Every public set through the whole command line, on tiny copies of their layouts: prepared, checked, trained on."""

import json

import pytest

import oct_hf
from oct_hf.data.catalog import CATALOG
from tests.data.test_catalog import LAYOUTS, octmnist

QUICK = ("model.base=test_efficientnet", "model.weights=random", "image_size=32", "epochs=1", "batch_size=16")
SHARES = ("validation=0.3", "test=0.3")
SIZES = (28, 64, 128, 224)


@pytest.fixture(params=[*LAYOUTS, *(f"octmnist {size}" for size in SIZES)])
def given(request, tmp_path):
    """A set's name, and what the command line is told of it."""
    name, _, size = request.param.partition(" ")
    if size:
        path = octmnist(tmp_path / f"octmnist{f'_{size}' if size != '28' else ''}.npz", int(size))
        return name, ["--data", path, f"data.size={size}"]
    LAYOUTS[name](tmp_path / "set")
    by = ["split.by=patient"] if name == "neh_2018" else []  # its recipe holds out a fold of a groups.csv
    return name, ["--data", tmp_path / "set", *by, *(() if "oct2017" in name else SHARES)]


def test_a_set_is_prepared_and_checked_by_name(given, run):
    name, told = given
    code, text, said = run("data", "prepare", name, *told, "--json")
    facts = json.loads(text)
    assert code == 0, said
    assert list(facts["classes"]) == list(CATALOG[name].labels) and min(facts["classes"].values()) > 0
    assert bool(facts["patients"]) == CATALOG[name].patients and facts["skipped"] == []
    code, text, said = run("data", "check", name, *told, "--json")
    checked = json.loads(text)
    assert code == 0 and checked["clean"], said
    dataset, _ = oct_hf.prepare(name, told[1], **({"size": int(told[2][10:])} if name == "octmnist" else {}))
    assert len(dataset) == facts["images"] == checked["images"]


@pytest.mark.parametrize("given", [*LAYOUTS, "octmnist 28"], indirect=True)
def test_a_set_is_trained_on_by_name(given, run, tmp_path):
    name, told = given
    code, _, said = run("finetune", name, *told, *QUICK, "--out", tmp_path / "run")
    assert code == 0, said
    facts = json.loads((tmp_path / "run/model/run.json").read_text())
    assert facts["labels"] == list(CATALOG[name].labels) and facts["data"]["title"] == CATALOG[name].title
    counted = facts["split"]["certificate"]
    assert counted["patients_on_two_sides"] == counted["near_duplicates"]["pairs_on_two_sides"] == 0
    assert set(facts["split"]["sides"]) >= {"train", "validation", "test"}
    assert "leakage certificate" in (tmp_path / "run/model/README.md").read_text()
