"""Verify: a repository as it was written holds, and each untrue number, figure, split, weight or file is named."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image, ImageOps

from oct_hf import OCTForImageClassification, finetune
from oct_hf.errors import DataError
from oct_hf.hub import verify as module
from oct_hf.hub.card import render_card
from oct_hf.hub.download import download
from oct_hf.hub.files import file_faults
from oct_hf.hub.repository import checksums
from oct_hf.hub.verify import verify
from oct_hf.runs.again import explain_again, predict_again, search_again
from oct_hf.training.recipe_file import make_recipe


@pytest.fixture
def repository(finished_run, tmp_path) -> Path:
    """A copy of a finished run's repository, to be tampered with."""
    return shutil.copytree(finished_run / "model", tmp_path / "repository")


def faults(repository: Path, predict=None, search=None) -> dict[str, tuple[str, ...]]:
    return {check.name: check.faults for check in verify(download(str(repository)), predict, search) if check.faults}


def forge(repository: Path) -> None:
    """Gives run.json the checksums of the files as they are now, as whoever tampers would."""
    run = json.loads((repository / "run.json").read_text())
    (repository / "run.json").write_text(json.dumps(run | {"files": checksums(repository)}))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_repository_as_it_was_written_holds_and_nothing_is_skipped(repository):
    checks = verify(download(str(repository)), predict_again(None), search_again(None), explain_again(None))
    assert [check.faults for check in checks] == [()] * len(checks)
    assert not any(check.skipped for check in checks)


def test_a_card_whose_run_json_was_changed_with_it_is_still_caught(repository):
    run = json.loads((repository / "run.json").read_text())
    run["results"]["test"]["balanced_accuracy"] = 0.987
    (repository / "run.json").write_text(json.dumps(run))
    (repository / "README.md").write_text(render_card(run))
    found = faults(repository)
    assert any("results.test.balanced_accuracy is 0.987" in fault for fault in found["numbers"])
    assert any("Results, Balanced accuracy, test says 0.987" in fault for fault in found["card"])
    assert any("metadata, Balanced accuracy" in fault for fault in found["card"])
    assert any("balanced accuracy" in fault and "**0.987**" in fault for fault in found["card"])


def test_a_licence_that_the_recipe_does_not_have_is_caught(repository):
    run = json.loads((repository / "run.json").read_text())
    run["data"] |= {"license": "mit", "title": "A larger set"}
    (repository / "run.json").write_text(json.dumps(run))
    (repository / "README.md").write_text(render_card(run))
    found = faults(repository)
    assert any("data.license is mit" in fault for fault in found["numbers"])
    assert any("A larger set" in fault for fault in found["card"])
    assert any("metadata.license" in fault for fault in found["card"])


def test_a_swapped_figure_is_caught_even_with_its_checksum_forged(repository):
    figure = repository / "figures" / "confusion_matrix.png"
    with Image.open(figure) as image:
        swapped = ImageOps.mirror(image.convert("RGB"))
    swapped.save(figure)
    assert any("confusion_matrix.png: changed since" in fault for fault in faults(repository)["checksums"])
    forge(repository)
    assert faults(repository) == {
        "figures": ("figures/confusion_matrix.png: shows something else than run.json's numbers",)
    }


@pytest.mark.parametrize("side", ["train", "validation", "unused"])
def test_a_changed_split_is_caught_even_with_its_checksum_forged(repository, side):
    split = repository / "split.csv"
    rows = split.read_text().splitlines()
    index = next(i for i, row in enumerate(rows) if row.endswith(",test"))
    rows[index] = rows[index].removesuffix("test") + side
    split.write_text("\n".join(rows) + "\n")
    forge(repository)
    found = faults(repository)
    assert any("is not so in split.csv" in fault for fault in found["split"])
    assert any("split.sides" in fault for fault in found["numbers"])
    if side != "unused":
        assert any("is on" in fault and side in fault for fault in found["split"])


def test_a_card_of_another_version_is_compared_by_its_tables_and_metadata(repository):
    run = json.loads((repository / "run.json").read_text())
    run["package"], run["versions"]["matplotlib"] = "0.0.9", "3.0"
    (repository / "run.json").write_text(json.dumps(run))
    edit(repository / "README.md", "## Limits", "Its author was proud.\n\n## Limits")
    edit(repository / "README.md", "matplotlib ", "matplotlib (plots) ")
    checks = {check.name: check for check in verify(download(str(repository)))}
    assert not any(check.faults for check in checks.values())
    assert "its text is of oct-hf 0.0.9" in checks["card"].note
    assert checks["figures"].skipped and "drawn by matplotlib 3.0" in checks["figures"].note
    score = f"{run['results']['test']['log_loss']:.3f}"
    edit(repository / "README.md", f"| Log loss | {score} |", "| Log loss | 0.001 |")
    assert faults(repository)["card"] == (f"README.md: Results, Log loss, test says 0.001, it is {score}",)


def test_changed_predictions_are_caught_even_with_their_checksum_forged(repository):
    path = repository / "predictions.parquet"
    predictions = module.Predictions.read(path)
    predictions.probabilities[:] = predictions.probabilities[:, ::-1]
    predictions.write(path)
    forge(repository)
    found = faults(repository, predict_again(None))
    assert {"numbers", "card", "figures", "images"} <= found.keys()


def test_one_changed_weight_is_caught_and_a_changed_network_even_with_its_checksum_forged(repository):
    model = OCTForImageClassification.from_pretrained(repository)
    classifier = model.timm_model.get_classifier()
    with torch.no_grad():
        classifier.weight[0, 0] += 1e-4
    model.save_pretrained(repository)
    assert any("model.safetensors: changed since" in fault for fault in faults(repository)["checksums"])
    with torch.no_grad():
        classifier.weight.mul_(300)
    model.save_pretrained(repository)
    forge(repository)
    found = faults(repository, predict_again(None))
    assert found.keys() == {"reference answers", "loaders", "fast files", "images"}  # ONNX still has the old weights
    assert any("examples/DME.png: the weights answer" in fault for fault in found["reference answers"])


@pytest.mark.promise("No file that is read as a model or as data can run code.")
def test_code_and_pickles_are_named_whatever_they_are_called_and_nothing_is_loaded_after_them(repository):
    (repository / "modeling.py").write_text("print('hello')")
    (repository / "training_args.bin").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.zeros(2)}, repository / "optimizer.bin")
    (repository / "old.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (repository / "weights.json").write_bytes(pickle.dumps([1]))
    (repository / "outside.csv").symlink_to("/etc/hostname")
    edit(repository / "config.json", "{", '{"auto_map": {"AutoConfig": "modeling.C"},')
    checks = verify(download(str(repository)))
    assert [check.name for check in checks] == ["no code, no pickle"]
    said = "\n".join(checks[0].faults)
    for part in (
        "modeling.py: a kind of file",
        "training_args.bin: a pickle",
        "optimizer.bin: a pickle",
        "old.bin: a pickle",
        "weights.json: is no json text",
        "outside.csv: a link that leaves",
        "config.json: auto_map asks",
    ):
        assert part in said


@pytest.mark.promise("No file that is read as a model or as data can run code.")
def test_files_that_are_not_what_they_are_called_are_named(repository):
    safetensors = repository / "model.safetensors"
    original = safetensors.read_bytes()
    for damaged in (original[:-4], original + b"behind", b"\xff" * 8 + original[8:], b"{}"):
        safetensors.write_bytes(damaged)
        assert "model.safetensors: is no safetensors" in file_faults(repository, ["model.safetensors"])[0]
    (repository / "figures" / "training.png").write_bytes(b"<script>")
    assert file_faults(repository, ["figures/training.png"]) == ["figures/training.png: is no png file"]
    graph = onnx.load(repository / "onnx" / "model.onnx")
    onnx.save(graph, repository / "onnx" / "model.onnx", save_as_external_data=True, location="weights.bin")
    assert file_faults(repository, ["onnx/model.onnx"]) == ["onnx/model.onnx: its weights lie in another file"]


def test_another_data_set_is_not_taken_for_the_published_one(repository, clinic):
    edit(repository / "recipe.yaml", "name: phantom", "name: folder")
    forge(repository)
    with pytest.raises(DataError, match="none of the 24 images is one that was predicted"):
        faults(repository, predict_again(clinic))


def test_a_private_folder_is_predicted_again_image_by_image(clinic, tmp_path):
    recipe = {
        "name": "clinic",
        "data": {"name": "folder", "path": str(clinic)},
        "split": {"validation": 0.25, "test": 0.25},
        "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64},
        "train": {"epochs": 1, "batch_size": 8, "workers": 0},
    }
    finetune(make_recipe(recipe), tmp_path / "run")
    repository = tmp_path / "run" / "model"
    assert faults(repository, predict_again(clinic)) == {}
    tested = module.Predictions.read(repository / "predictions.parquet").of("test").hashes
    gone = next(file for file in clinic.rglob("*.png") if hashlib.sha256(file.read_bytes()).hexdigest() in tested)
    gone.unlink()
    assert faults(repository, predict_again(clinic)) == {
        "images": ("1 of the 12 predicted images are not in the data given",)
    }


def test_near_duplicates_are_searched_for_again_with_the_data_at_hand(clinic, tmp_path):
    image = np.asarray(Image.open(clinic / "DME/D0/0.png"))
    Image.fromarray(np.roll(image, 4, axis=1)).save(clinic / "DME/D5/9.jpeg", quality=80)
    recipe = {
        "name": "clinic",
        "data": {"name": "folder", "path": str(clinic)},
        "split": {"validation": 0.25, "test": 0.25},
        "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64},
        "train": {"epochs": 1, "batch_size": 8, "workers": 0},
    }
    finetune(make_recipe(recipe), tmp_path / "run")
    repository = tmp_path / "run" / "model"
    links = repository / "near_duplicates.csv"
    honest = links.read_text()
    assert len(honest.splitlines()) == 2 and faults(repository, search=search_again(clinic)) == {}
    hashes = [line.split(",")[0] for line in (repository / "split.csv").read_text().splitlines()[1:3]]
    for text, said in (
        (honest.splitlines()[0] + "\n", ("near_duplicates.csv: lacks 1 pairs of near-duplicates that the data have",)),
        (
            f"{honest}{','.join(hashes)},0.9900,0.9900\n",
            ("near_duplicates.csv: 1 of its 2 pairs are no near-duplicates in the data",),
        ),
    ):
        links.write_text(text)
        forge(repository)
        assert faults(repository, search=search_again(clinic))["near-duplicates"] == said
    links.write_text(honest)
    forge(repository)
    (clinic / "DME/D5/9.jpeg").unlink()  # of fewer images, nobody can say that a pair is none
    assert faults(repository, search=search_again(clinic)) == {}


def test_verify_by_repository_id_and_exit_code_one_for_a_number_changed_on_the_hub(site, finished_run, tmp_path):
    def call(*command) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "oct_hf.cli", *map(str, command)]
        return subprocess.run(command, env=site.environment, capture_output=True, text=True)

    assert call("publish", finished_run, "--repo", "clinic/checked").returncode == 0
    for revision in ("", "@v1", "@remote-code"):
        done = call("verify", f"clinic/checked{revision}")
        assert done.returncode == 0 and "everything that was checked holds" in done.stdout, done.stdout + done.stderr
    script = Path(__file__).parents[2] / "scripts" / "finetune.py"
    again = [sys.executable, script, "--rerun", "clinic/checked", "--out", tmp_path / "again"]
    done = subprocess.run([*map(str, again)], env=site.environment, capture_output=True, text=True)
    assert done.returncode == 0 and "the same to the last bit" in done.stdout, done.stdout + done.stderr
    tamper = """
import sys
from huggingface_hub import HfApi, hf_hub_download
text = open(hf_hub_download("clinic/checked", "README.md")).read()
line = next(line for line in text.splitlines() if line.startswith("| Balanced accuracy |"))
text = text.replace(line, "| Balanced accuracy | 0.999 | 0.990–1.000 | 0.999 |").encode()
HfApi().upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id="clinic/checked")
"""
    subprocess.run([sys.executable, "-c", tamper], env=site.environment, check=True, capture_output=True)
    done = call("verify", "clinic/checked", "--json")
    assert done.returncode == 1
    card = next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "card")
    assert [fault.split(" says ")[0] for fault in card["faults"]] == [
        "README.md: Results, Balanced accuracy, test",
        "README.md: Results, Balanced accuracy, 95 % interval",
        "README.md: Results, Balanced accuracy, validation",
    ]
    for name, said in (("clinic/absent", "can't be had"), ("no such", "no such folder"), ("clinic/checked@v9", "v9")):
        done = call("verify", name)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
