"""What a published data set consists of: shards, card and Croissant metadata, built in a folder without a Hub."""

import hashlib
import io
import json
import re
import resource
import shutil

import mlcroissant
import pytest
import yaml
from data_sets import PHANTOMS, build, rows_of
from markdown_it import MarkdownIt
from PIL import Image

from oct_hf.errors import DataError
from oct_hf.hub.licences import REDISTRIBUTABLE, require_redistributable
from oct_hf.runs import data_set
from oct_hf.training.recipe_file import make_recipe


def test_the_same_data_gives_the_same_files_to_the_byte(tmp_path, clinic_recipe):
    moved = tmp_path / "elsewhere" / "clinic"
    shutil.copytree(clinic_recipe["data"]["path"], moved)
    build(clinic_recipe, tmp_path / "one")
    previous = json.loads((tmp_path / "one" / "croissant.json").read_text())
    previous["datePublished"] = "2001-01-01"
    again = clinic_recipe | {"data": clinic_recipe["data"] | {"path": str(moved)}}
    build(again, tmp_path / "two", previous=previous)
    for path in (tmp_path / "one").rglob("*"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        if path.is_file() and path.name != "croissant.json":
            assert path.read_bytes() == other.read_bytes(), path.name
    assert json.loads((tmp_path / "two" / "croissant.json").read_text()) == previous


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Croissant library
def test_real_bscans_go_out_as_published_and_croissant_reads_them(samples, tmp_path):
    folder = tmp_path / "set"
    recipe = {
        "data": {
            "name": "oct2017",
            "path": str(samples / "oct2017_sample"),
            "public": True,
            "title": "OCT2017 sample",
            "license": "cc-by-4.0",
            "homepage": "https://data.mendeley.com/datasets/rscbjbr9sj",
            "citation": "Kermany et al., Cell 172(5), 2018",
        },
        "split": {"by": "fold", "test_fold": "test"},
    }
    facts = build(recipe, folder, shard_bytes=500_000)
    assert facts["pictures"]["original"] == facts["images"] == 80 and len(facts["shards"]) > 6
    sides = rows_of(folder)
    for side, rows in sides.items():
        assert facts["sides"][side]["images"] == len(rows)
        for row in rows:
            assert row["image"]["bytes"] == (samples / "oct2017_sample" / row["source"]).read_bytes()
            assert row["source"].split("-")[1] == row["patient_id"]

    described = mlcroissant.Dataset(folder / "croissant.json")
    issues = described.metadata.ctx.issues
    assert not issues.errors and not issues.warnings, issues.report()
    files = {f.id: f for f in described.metadata.distribution if type(f).__name__ == "FileObject"}
    assert set(files) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")}
    for name, file in files.items():
        data = (folder / name).read_bytes()
        assert file.sha256 == hashlib.sha256(data).hexdigest() and file.content_size == f"{len(data)} B"
    records = list(described.records("default"))
    assert len(records) == 80
    for record in records:
        row = next(
            r
            for r in sides[record["default/split"].decode()]
            if bytes(r["content_hash"], "ascii") == record["default/content_hash"]
        )
        assert record["default/label"] == row["label"]
        assert record["default/image"].tobytes() == Image.open(io.BytesIO(row["image"]["bytes"])).tobytes()
    assert [r["labels/name"] for r in described.records("labels")] == facts["labels"]


def test_guards_go_into_a_side_that_the_card_keeps_out_of_training(samples, tmp_path):
    recipe = {
        "data": {
            "name": "folder",
            "path": str(samples / "neh_sample"),
            "csv": "groups.csv",
            "columns": {"patient": "eye", "fold": "fold", "guard": "guard"},
            "grouped_by": "eye",
            "public": True,
            "license": "cc-by-4.0",
        },
        "split": {"by": "fold", "test_fold": "4"},
    }
    facts = build(recipe, tmp_path / "neh")
    assert list(facts["sides"]) == ["train", "validation", "test", "unused"] and "guard" in facts["folds"]
    card = (tmp_path / "neh" / "README.md").read_text()
    assert "**`unused` is for neither training nor testing" in card and "so one patient may be on two sides" in card
    assert f"| unused | {facts['sides']['unused']['images']} (" in card


def test_the_cards_metadata_is_what_the_hub_reads_and_its_counts_are_the_rows(tmp_path):
    facts = build(PHANTOMS, tmp_path / "set")
    header, body = (tmp_path / "set" / "README.md").read_text()[4:].split("\n---\n", 1)
    header = yaml.safe_load(header)
    assert header["license"] == "apache-2.0" and header["task_categories"] == ["image-classification"]
    assert header["size_categories"] == ["n<1K"] and header["pretty_name"] == "OCT phantoms (drawn)"
    assert [f["split"] for f in header["configs"][0]["data_files"]] == ["train", "validation", "test"]
    rows = rows_of(tmp_path / "set")
    for split in header["dataset_info"]["splits"]:
        side = split["name"]
        assert split["num_examples"] == len(rows[side])
        cells = [f"{len(rows[side])} ({len({r['patient_id'] for r in rows[side]})})"]
        for label in range(4):
            mine = [r["patient_id"] for r in rows[side] if r["label"] == label]
            cells.append(f"{len(mine)} ({len(set(mine))})")
        assert f"| {side} | " + " | ".join(cells) + " |" in body
    assert "None: no person was imaged." in body and facts["left_out"] == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Croissant library
def test_text_from_outside_can_not_break_the_card(tmp_path, clinic_recipe):
    outside = {
        "title": "Clinic | <script>alert(1)</script>\n---\nlicense: mit",
        "homepage": "https://x.example/ [a](javascript:alert(1))",
        "citation": "# Heading\n\n<img src=x>",
    }
    build(clinic_recipe | {"data": clinic_recipe["data"] | outside}, tmp_path / "set")
    header, body = (tmp_path / "set" / "README.md").read_text()[4:].split("\n---\n", 1)
    assert yaml.safe_load(header)["license"] == "cc-by-nc-4.0"
    page = MarkdownIt("gfm-like", {"linkify": False}).render(body)
    assert "<script" not in page and "<img" not in page and "javascript" not in "".join(re.findall("<[^>]*>", page))
    assert page.count("<h1>") == 1 and "Clinic |" in page
    assert not mlcroissant.Dataset(tmp_path / "set" / "croissant.json").metadata.ctx.issues.errors


@pytest.mark.parametrize(
    "licence, text",
    [
        (None, "isn't known"),
        ("other", "not known to allow"),
        ("cc-by-nd-4.0", "no derivatives"),
        ("cc-by-nc-nd-4.0", "no derivatives"),
        ("cc-by-4", 'did you mean "cc-by-4.0"'),
        ("all rights reserved", "not known to allow"),
    ],
)
def test_a_licence_that_does_not_allow_it_is_refused_before_any_file_is_read(licence, text):
    recipe = make_recipe({"data": {"name": "folder", "path": "/nowhere", "license": licence}})
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        data_set.load_for_publishing(recipe)
    assert "data.license=cc-by-4.0" in str(refusal.value) and "\n" not in str(refusal.value)


def test_licences_are_those_that_permit_and_each_says_where_it_stands():
    for licence, (title, address) in REDISTRIBUTABLE.items():
        require_redistributable(licence)
        assert title and address.startswith("https://") and "-nd" not in licence


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    recipe = make_recipe(PHANTOMS)
    data, skipped = data_set.load_for_publishing(recipe)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a disk with 20 kB left
        with (
            pytest.raises(DataError, match="no room to build the data set") as full,
            data_set.building_folder() as folder,
        ):
            data_set.write_data_set(data, recipe, skipped, folder, "you/data", "https://hub.example")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(full.value) and not folder.exists()
