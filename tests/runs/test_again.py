"""A published model trained again: identical where nothing has changed, refused on other images."""

import dataclasses
import json
import shutil

import pytest

from oct_hf.errors import DataError, ModelError
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.runs.again import Rerun, compare, predict_again, rerun, rerun_recipe
from oct_hf.runs.run import finetune
from oct_hf.training.recipe_file import make_recipe


@pytest.mark.parametrize("of", ["finished_run", "finished_signs_run"])
def test_a_rerun_on_the_same_machine_has_the_same_weights_to_the_last_bit(request, of, tmp_path):
    published = download(str(request.getfixturevalue(of)))
    _, difference = rerun(published, rerun_recipe(published, []), tmp_path / "again")
    assert difference.identical and difference.agrees and difference.furthest == 0 and difference.changed == {}
    assert difference.metrics and all(then == now for _, then, now, _ in difference.metrics)


def test_a_rerun_that_differs_says_how_and_what_has_changed(finished_run, tmp_path):
    published = download(str(finished_run))
    recipe = rerun_recipe(published, [])
    other = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=5, learning_rate=0.02))
    rerun(published, other, tmp_path / "again")
    run = json.loads((tmp_path / "again/model/run.json").read_text())
    run["versions"]["torch"] = "2.0"
    (tmp_path / "again/model/run.json").write_text(json.dumps(run))
    difference = compare(published.folder, tmp_path / "again" / "model")
    assert not difference.identical and difference.furthest > 0
    assert difference.changed.keys() == {"torch"} and difference.changed["torch"][1] == "2.0"
    spans = {name: span for name, _, _, span in difference.metrics}
    said = json.loads((published.folder / "run.json").read_text())["intervals"]["metrics"]
    assert spans == {name: (said[name]["low"], said[name]["high"]) for name in spans}


def test_other_images_or_another_split_are_refused_before_anything_is_written(finished_run, tmp_path):
    published = download(str(finished_run))
    with pytest.raises(DataError, match="48 of its 48 are missing here, and 48 are new"):
        rerun(published, rerun_recipe(published, ["data.seed=9"]), tmp_path / "again")
    with pytest.raises(DataError, match="are on another side than in"):
        rerun(published, rerun_recipe(published, ["split.seed=9"]), tmp_path / "again")
    assert not (tmp_path / "again").exists()
    split = str(published.folder / "split.csv")
    recipe = rerun_recipe(published, ["split.by=file", f"split.path={split}", "train.epochs=1"])
    rerun(published, recipe, tmp_path / "again")


def test_the_base_weights_must_be_the_published_file(finished_run, tmp_path):
    folder = shutil.copytree(finished_run / "model", tmp_path / "published")
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("weights: random", "weights: base.safetensors"))
    run = json.loads((folder / "run.json").read_text())
    run["model"]["weights_sha256"] = "ab" * 32
    (folder / "run.json").write_text(json.dumps(run))
    published = download(str(folder))
    with pytest.raises(ModelError, match=r"base.safetensors is not here; .* SHA-256 abab"):
        rerun_recipe(published, [])
    (tmp_path / "other.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="is another file"):
        rerun_recipe(published, [f"model.weights={tmp_path / 'other.safetensors'}"])


def test_a_folder_without_a_recipe_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no recipe.yaml and split.csv"):
        rerun_recipe(download(str(tmp_path)), [])


def test_a_private_fold_is_not_named_and_a_rerun_takes_the_published_split(clinic, tmp_path):
    rows = [f"{p.relative_to(clinic).as_posix()},{p.parent.name},{p.parent.name}" for p in clinic.rglob("*.png")]
    rows = [row.rpartition(",")[0] + "," + {"0": "SECRET", "1": "B"}.get(row[-1], "C") for row in sorted(rows)]
    (clinic / "patients.csv").write_text("\n".join(["file,patient,fold", *rows]) + "\n")
    recipe = {
        "name": "clinic",
        "data": {"name": "folder", "path": str(clinic), "csv": "patients.csv"},
        "split": {"by": "fold", "test_fold": "SECRET", "validation_fold": "B"},
        "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64},
        "train": {"epochs": 1, "batch_size": 8, "workers": 0},
    }
    finetune(make_recipe(recipe), tmp_path / "run")
    published = download(str(tmp_path / "run"))
    for file in ("README.md", "run.json", "recipe.yaml", "split.csv"):
        assert "SECRET" not in (published.folder / file).read_text()
    assert [c.faults for c in verify(published, predict_again(clinic)) if c.faults] == []
    path = f"data.path={json.dumps(str(clinic))}"
    _, difference = rerun(published, rerun_recipe(published, [path]), tmp_path / "again")
    assert difference.identical


def test_a_metric_that_is_no_longer_defined_does_not_agree():
    there, gone = ("auroc", 0.9, 0.91, (0.8, 0.95)), ("auroc", 0.9, None, (0.8, 0.95))
    assert Rerun(False, 0.1, (there,), {}).agrees
    assert not Rerun(False, 0.1, (there, gone), {}).agrees
