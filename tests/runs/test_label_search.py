"""The whole loop on a small clinic: search, page, corrections, and a published run that a stranger can check."""

import csv
import dataclasses
import json
import re

import pytest

from oct_hf import finetune
from oct_hf.data.corrections import LEAVE_OUT
from oct_hf.errors import DataError
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.runs.again import check_same_data, predict_again, rerun_recipe
from oct_hf.runs.label_search import find_label_errors
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.training.recipe_file import make_recipe


@pytest.fixture
def recipe(clinic):
    return make_recipe(
        {
            "name": "clinic",
            "data": {"name": "folder", "path": str(clinic)},
            "split": {"validation": 0.3, "test": 0.3},
            "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64},
            "train": {"epochs": 1, "batch_size": 8, "workers": 0},
        }
    )


def corrected(recipe, path):
    """The recipe with three decisions: one label changed, one confirmed, one image left out."""
    dataset, _ = load_data(recipe.data)
    names = dataset.features["label"].names
    rows = [(dataset["content_hash"][i], names[dataset["label"][i]]) for i in (0, 1, len(dataset) - 1)]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["content_hash", "label", "given_label", "decision", "reviewer", "note"])
        writer.writerow([rows[0][0], "NORMAL", rows[0][1], "change", "Dr. Reader", "a remark"])
        writer.writerow([rows[1][0], rows[1][1], rows[1][1], "keep", "Dr. Reader", ""])
        writer.writerow([rows[2][0], LEAVE_OUT, rows[2][1], LEAVE_OUT, "Dr. Reader", ""])
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, corrections=str(path))), rows


def test_the_search_leaves_a_page_and_a_table_and_passes_over_what_was_looked_at(recipe, clinic, tmp_path):
    wanted, decided = corrected(recipe, tmp_path / "corrections.csv")
    found = find_label_errors(wanted, tmp_path / "run", folds=2)
    assert len(found.predictions.hashes) == 23
    assert not {s.content_hash for s in found.suspects} & {value for value, _ in decided}
    with open(tmp_path / "run" / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["content_hash"] for row in rows] == [s.content_hash for s in found.suspects]
    page = found.page.read_text()
    assert page.count("<article") == len(found.suspects) and "a remark" in page
    shown = re.findall(r"patient (\w+)[,;]", page)
    assert len(shown) == len(found.suspects) and all(re.fullmatch("[0-9a-f]{16}", one) for one in shown)
    assert str(clinic) not in page and ".png" not in page  # a private set's patients and file names stay unseen
    assert not list((tmp_path / "run").glob("fold-*/model/labels.html"))


def test_a_published_run_says_what_was_corrected_and_can_be_checked_and_done_again(recipe, clinic, tmp_path):
    wanted, _ = corrected(recipe, tmp_path / "mine.csv")
    run = finetune(wanted, tmp_path / "run")
    told = run["data"]["corrections"]
    assert (told["relabelled"], told["confirmed"], told["left_out"]) == (1, 1, 1)
    model = tmp_path / "run" / "model"
    published = (model / "corrections.csv").read_text()
    assert published.splitlines()[0] == "content_hash,label,given_label" and "Reader" not in published
    assert "changed 1, confirmed 1 and left out 1" in (model / "README.md").read_text()
    here = download(str(model))
    for check in verify(here, predict_again(clinic)):
        assert not check.faults, check
    again = rerun_recipe(here, [f"data.path={json.dumps(str(clinic))}"])
    dataset, _ = load_data(again.data)
    check_same_data(here, assign_sides(dataset, again))


def test_a_changed_count_of_corrections_is_found(recipe, tmp_path):
    wanted, _ = corrected(recipe, tmp_path / "mine.csv")
    finetune(wanted, tmp_path / "run")
    path = tmp_path / "run" / "model" / "run.json"
    content = json.loads(path.read_text())
    content["data"]["corrections"]["relabelled"] = 0
    path.write_text(json.dumps(content))
    faults = [fault for check in verify(download(str(path.parent))) for fault in check.faults]
    assert any("data.corrections.relabelled" in fault for fault in faults)


def test_outdated_corrections_stop_a_run_before_it_begins(recipe, tmp_path):
    wanted, _ = corrected(recipe, tmp_path / "mine.csv")
    text = (tmp_path / "mine.csv").read_text().replace("NORMAL,DME,change", "DME,NORMAL,change")
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(DataError, match="is outdated"):
        finetune(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()
