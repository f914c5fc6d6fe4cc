"""Publishing data sets and loading them: the real clients, in processes of their own, against the loopback Hub."""

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_sets import NAME, PHANTOMS, rows_of
from PIL import Image

from oct_hf.data.splits import read_split
from oct_hf.images import read_image
from oct_hf.runs import data_set
from oct_hf.training.recipe_file import make_recipe

PUBLISH = """
import json, sys
from huggingface_hub import HfApi
from oct_hf import cli, publish_data
from oct_hf.errors import OCTError
from oct_hf.training.recipe_file import make_recipe
phantoms, clinic = (make_recipe(json.loads(text)) for text in sys.argv[1:])
said = {}
def attempt(name, recipe=phantoms, repo="clinic/refused", **options):
    try:
        done = publish_data(recipe, repo, **options)
        said[name] = [done.commit, done.tag, list(done.files)]
    except OCTError as error:
        said[name] = str(error)
api = HfApi()
attempt("first", repo="clinic/phantoms")
attempt("second", repo="clinic/phantoms")
attempt("private", clinic, "clinic/secret", private=True)
attempt("public already", repo="clinic/phantoms", private=True)
attempt("read only", token="hf_reader")
attempt("another's name", token="hf_other")
api.create_repo("clinic/others", repo_type="dataset")
api.upload_file(path_or_fileobj=b"x", path_in_repo="data/train-00000-of-00001.parquet", repo_id="clinic/others",
                repo_type="dataset")
attempt("another data set", repo="clinic/others")
api.upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id="clinic/secret", repo_type="dataset")
attempt("a file beside ours", clinic, "clinic/secret")
api.delete_file("notes.txt", "clinic/secret", repo_type="dataset")
said["left"] = {name: sorted(api.list_repo_files("clinic/" + name, repo_type="dataset"))
                for name in ("phantoms", "secret", "others")}
sys.argv = ["oct-hf", "publish-data", "demo", "--repo", "clinic/phantoms", "data.patients=7", "data.scans=2",
            "data.height=96", "data.width=96"]
try:
    cli.main()
except SystemExit as end:
    said["exit"] = end.code
said["commits"] = [commit.title for commit in api.list_repo_commits("clinic/phantoms", repo_type="dataset")]
print(json.dumps(said))
"""

LOAD = """
import json, os, re, sys
sys.modules["oct_hf"] = None
import datasets, huggingface_hub
first, public, private = sys.argv[1:]
streamed = datasets.load_dataset(public, revision=first, split="train", streaming=True)
rows = [row["content_hash"] for row in streamed.take(3)]
huggingface_hub.whoami()  # in the server's log, the end of what streaming asked for
card = huggingface_hub.DatasetCard.load(public)
for block in re.findall(r"```python\\n(.*?)```", card.text, re.DOTALL):
    exec(block, {})
data = datasets.load_dataset(public, revision=first)
try:
    huggingface_hub.HfApi(token="hf_other").dataset_info(private)
    seen = "public"
except huggingface_hub.errors.RepositoryNotFoundError:
    seen = "absent"
print(json.dumps({
    "features": {name: repr(feature) for name, feature in data["train"].features.items()},
    "streamed features": {name: repr(feature) for name, feature in streamed.features.items()},
    "rows": {
        side: [
            [row["content_hash"], data[side].features["label"].int2str(row["label"]), row["patient_id"], row["source"],
             row["image"].mode, row["image"].tobytes().hex()]
            for row in data[side]
        ]
        for side in data
    },
    "streamed": rows,
    "private seen by others": seen,
    "private": {side: len(rows) for side, rows in datasets.load_dataset(private).items()},
    "snapshots": {
        name: huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision)
        for name, revision in ((public, first), (private, "main"))
    },
}), flush=True)
os._exit(0)  # pyarrow may hang at exit where a stream wasn't read to its end (apache/arrow issue 45214)
"""

TRAIN = """
import json, sys
from oct_hf import finetune, prepare
from oct_hf.training.recipe_file import make_recipe
repo, out = sys.argv[1:]
recipe = {
    "data": {"name": "parquet", "path": repo, "stream": True, "public": True},
    "split": {"by": "published"},
    "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64},
    "train": {"epochs": 2, "batch_size": 8, "workers": 2},
}
facts = finetune(make_recipe(recipe), out)
whole, _ = prepare("parquet", repo)
print(json.dumps({
    "sides": {side: about["images"] for side, about in facts["split"]["sides"].items()},
    "steps": facts["training"]["steps"],
    "columns": whole.column_names,
    "hashes": sorted(whole["content_hash"][:]),
}))
"""


def call(environment, *command) -> dict:
    """The JSON in the last line that a command prints."""
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def published(site, clinic_recipe) -> tuple[dict, list]:
    """What publishing phantoms and a private clinic said, and what the server was asked."""
    said = call(site.environment, sys.executable, "-c", PUBLISH, json.dumps(PHANTOMS), json.dumps(clinic_recipe))
    return said, list(site.log)


@pytest.fixture(scope="module")
def loaded(site, published) -> dict:
    first = published[0]["first"][0]
    site.log.clear()
    return call(site.environment, sys.executable, "-c", LOAD, first, "clinic/phantoms", "clinic/secret")


def test_a_push_is_one_commit_and_a_second_one_sends_nothing(published):
    said, log = published
    commit, tag, files = said["first"]
    assert (
        commit
        and tag is None
        and files
        == [
            "README.md",
            "croissant.json",
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00001.parquet",
            "data/validation-00000-of-00001.parquet",
            "oct-hf.json",
        ]
    )
    starts = [number for number, entry in enumerate(log) if entry[1] == "/api/repos/create"]
    first, second = log[starts[0] : starts[1]], log[starts[1] : starts[2]]
    commits = [path for method, path, _ in first if method == "POST" and "/commit/" in path]
    assert commits == ["/api/datasets/clinic/phantoms/commit/main"]
    assert len([entry for entry in first if entry[0] == "PUT"]) == 3
    assert said["second"] == [None, None, []]
    assert not [entry for entry in second if entry[0] == "PUT" or "/commit/" in entry[1]]
    assert said["left"]["phantoms"] == [".gitattributes", *files]


def test_the_command_publishes_a_larger_set_over_the_smaller_one(published):
    titles = published[0]["commits"]
    assert titles[:2] == [f"OCT phantoms (drawn): {n} B-scans of {n // 2} patients" for n in (56, 48)]


def test_what_is_refused_is_one_line_and_leaves_the_repository_as_it_was(published):
    said, _ = published
    for name, text in {
        "public already": "clinic/phantoms is public already",
        "read only": "needs write access",
        "another's name": "needs write access",
        "another data set": "holds something else (data/train-00000-of-00001.parquet",
        "a file beside ours": "holds something else (notes.txt",
    }.items():
        assert text in said[name] and "\n" not in said[name] and "hf_" not in said[name], said[name]
    assert said["left"]["others"] == [".gitattributes", "data/train-00000-of-00001.parquet"]


def test_load_dataset_gives_images_and_classes_with_nothing_installed(loaded):
    features = loaded["features"]
    assert features["label"] == "ClassLabel(names=['CNV', 'DME', 'DRUSEN', 'NORMAL'])"
    assert features["image"].startswith("Image(") and loaded["streamed features"] == features
    assert list(loaded["rows"]) == ["train", "validation", "test"]
    assert loaded["streamed"] == [row[0] for row in loaded["rows"]["train"][:3]]


def test_the_first_rows_of_a_stream_need_nothing_of_the_other_sides(loaded, site):
    log = site.log
    asked = log[: next(number for number, entry in enumerate(log) if entry[1] == "/api/whoami-v2")]
    large = {(path, status) for method, path, status in asked if method == "GET" and path.startswith("/large/")}
    facts = json.loads((Path(loaded["snapshots"]["clinic/phantoms"]) / "oct-hf.json").read_text())
    train = next(shard["sha256"] for shard in facts["shards"] if shard["side"] == "train")
    assert large == {(f"/large/{train}", 206)}  # by ranges, not whole


def test_rows_are_the_sources_pixels_and_the_finetunings_split(loaded):
    recipe = make_recipe(PHANTOMS)
    data, _ = data_set.load_for_publishing(recipe)
    expected = {}
    for number, row in enumerate(data.dataset):
        pixels = row["image"].tobytes().hex()
        who = [data.labels[number], row["patient_id"], row["source"], row["image"].mode, pixels]
        expected.setdefault(str(data.sides[number]), {})[row["content_hash"]] = who
    assert {side: {row[0]: row[1:] for row in rows} for side, rows in loaded["rows"].items()} == expected


def test_a_private_data_set_is_absent_for_others(loaded):
    assert loaded["private seen by others"] == "absent" and sum(loaded["private"].values()) == 24


def test_no_patient_is_on_two_sides_and_classes_come_mixed(loaded):
    sides = {side: {row[2] for row in rows} for side, rows in loaded["rows"].items()}
    assert not sides["train"] & sides["test"] and not sides["train"] & sides["validation"]
    assert not sides["validation"] & sides["test"] and len(set.union(*sides.values())) == 24
    assert len({row[1] for row in loaded["rows"]["train"][:12]}) > 2


def test_nothing_of_a_clinics_patient_names_goes_up(loaded, clinic_recipe):
    folder = Path(loaded["snapshots"]["clinic/secret"])
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".parquet", ".md", ".json", ""}
    for path in files:
        assert NAME.encode().lower() not in path.read_bytes().lower(), path.name
    files = [path.read_bytes() for path in Path(clinic_recipe["data"]["path"]).rglob("*.*g")]
    originals = {hashlib.sha256(data).hexdigest(): data for data in files}
    rows = [row for side in rows_of(folder).values() for row in side]
    assert NAME not in repr([{name: value for name, value in row.items() if name != "image"} for row in rows])
    assert {row["content_hash"] for row in rows} == set(originals)
    for row in rows:
        original = originals[row["content_hash"]]
        assert NAME.encode() in original and row["image"]["path"] is None
        assert np.array_equal(read_image(row["image"]["bytes"]), read_image(original))
        assert re.fullmatch("[0-9a-f]{16}", row["patient_id"]) and row["eye"] in ("OD", "OS")
        assert row["fold"].isdigit() and row["volume"].isdigit() and "source" not in row
        assert row["device"] == "Spectralis"
    assert len({row["patient_id"] for row in rows}) == 12
    assert len({(row["patient_id"], row["volume"]) for row in rows}) == len({row["volume"] for row in rows}) == 12
    kinds = {Image.open(io.BytesIO(row["image"]["bytes"])).format for row in rows}
    assert kinds == {"JPEG", "PNG"}


def test_the_split_csv_of_a_model_still_finds_its_bscans(loaded, clinic_recipe, tmp_path):
    from oct_hf.data.splits import write_split

    data, _ = data_set.load_for_publishing(make_recipe(clinic_recipe))
    write_split(tmp_path / "split.csv", data.hashes, data.patients, data.labels, data.sides)
    for side, rows in rows_of(Path(loaded["snapshots"]["clinic/secret"])).items():
        known = read_split(tmp_path / "split.csv", data.hashes)
        assert {row["content_hash"] for row in rows} == set(np.array(data.hashes)[known == side])


def test_a_dry_run_lists_everything_sends_nothing_and_leaves_what_was_asked(site, tmp_path, monkeypatch, capsys):
    import datasets

    from oct_hf import cli

    sizes = ["data.patients=5", "data.scans=1", "data.height=96", "data.width=96"]
    monkeypatch.setattr(sys, "argv", ["oct-hf", "publish-data", "demo", "--repo", "you/dry", "--dry-run", *sizes])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--out", str(tmp_path / "look")])
    site.log.clear()
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert not end.value.code and "data/train-00000-of-00001.parquet" in said.out and "pseudonym" not in said.err
    assert 'load_dataset("you/dry")' in (tmp_path / "look" / "README.md").read_text() and site.log == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["look"]
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).glob("publish-*"))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "is there already" in capsys.readouterr().err


def test_a_published_set_trains_a_model_straight_from_the_hub(site, published, tmp_path):
    said = call(site.environment, sys.executable, "-c", TRAIN, "clinic/phantoms", tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run/model/split.csv").open()))
    assert said["hashes"] == sorted(row["content_hash"] for row in rows) and "image" in said["columns"]
    assert sum(said["sides"].values()) == len(rows) == len(said["hashes"])
    assert said["steps"] == 2 * -(-said["sides"]["train"] // 8)
    card = (tmp_path / "run/model/README.md").read_text()
    assert "| patients on two sides | 0 |" in card
