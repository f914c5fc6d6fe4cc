import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from oct_hf import adapt_model, evaluate_model
from oct_hf.data.phantom import draw
from oct_hf.errors import DataError, ModelError, RunError
from oct_hf.inference.predictor import Predictor
from oct_hf.training.recipe import DataRecipe

LABELS = ("CNV", "DME", "DRUSEN", "NORMAL")


@pytest.fixture(scope="module")
def dark(tmp_path_factory):
    """Forty phantoms as a device would give them whose pictures are dark and flat, in folders of classes."""
    home = tmp_path_factory.mktemp("dark")
    for number in range(40):
        label = LABELS[number % 4]
        (home / label).mkdir(exist_ok=True)
        image = draw(label, 11, number, 0, 96, 96).image
        Image.fromarray((30 + image * 0.3).astype(np.uint8)).save(home / label / f"{number}_0.png")
    return home


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_nothing_but_the_statistics_changes_and_they_are_mixed_as_told(finished_run, dark, tmp_path):
    facts = adapt_model(finished_run, dark, tmp_path / "all", prior=0)
    adapt_model(finished_run, dark, tmp_path / "some", prior=120)
    trained, whole, mixed = (weights(f) for f in (finished_run / "model", tmp_path / "all", tmp_path / "some"))
    statistics = [name for name in trained if name.endswith(("running_mean", "running_var"))]
    assert facts["layers"] == len(statistics) / 2 and facts["bscans"] == 40
    for name, value in trained.items():
        if name in statistics:
            assert not torch.equal(value, whole[name])
            assert torch.allclose(mixed[name], 0.75 * value + 0.25 * whole[name], atol=1e-5, rtol=1e-4)
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(value, whole[name])


def test_the_first_layer_goes_by_what_the_new_bscans_give_it(finished_run, dark, tmp_path):
    adapt_model(finished_run, dark, tmp_path / "all", prior=0)
    predictor = Predictor(finished_run, backend="torch")
    network = predictor.model.timm_model
    pixels = torch.from_numpy(np.stack([predictor.read(path) for path in sorted(dark.rglob("*.png"))]))
    with torch.no_grad():
        given = network.conv_stem(pixels)
    assert torch.allclose(weights(tmp_path / "all")["bn1.running_mean"], given.mean((0, 2, 3)), atol=1e-4)


def test_the_folder_predicts_is_measured_and_names_no_file(finished_run, dark, tmp_path):
    facts = adapt_model(finished_run, dark, tmp_path / "adapted")
    assert json.loads((tmp_path / "adapted/adapted.json").read_text()) == facts
    answers = list(Predictor(tmp_path / "adapted").predict(sorted(dark.rglob("*.png"))))
    predicted = [answer.predicted for answer in answers]
    assert {label: predicted.count(label) for label in facts["after"]} == facts["after"]
    before = [answer.predicted for answer in Predictor(finished_run).predict(sorted(dark.rglob("*.png")))]
    assert sum(one != other for one, other in zip(before, predicted, strict=True)) == facts["changed"]
    data = DataRecipe(name="folder", path=str(dark), pattern=r"(?P<patient>\d+)_\d+")
    assert evaluate_model(tmp_path / "adapted", data)["results"]["n"] == 40
    written = "".join(path.read_text() for path in (tmp_path / "adapted").iterdir() if path.suffix != ".safetensors")
    assert str(dark) not in written and "_0.png" not in written and "neither calibrated nor measured" in written


def test_the_same_again_is_the_same_to_the_last_bit_and_some_may_be_drawn(finished_run, dark, tmp_path):
    for name in ("one", "two"):
        assert adapt_model(finished_run, dark, tmp_path / name, most=20)["bscans"] == 20
    first, second = (weights(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_adapted_is_refused_and_leaves_nothing(finished_run, dark, tmp_path, run):
    few = tmp_path / "few"
    few.mkdir()
    (few / "cut.png").write_bytes(b"\x89PNG")
    os.mkfifo(few / "pipe.png")
    for path in sorted(dark.rglob("*.png"))[:15]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="15 B-scans can be read, and statistics need 16"):
        adapt_model(finished_run, few, tmp_path / "out")
    with pytest.raises(RunError, match="few is there"):
        adapt_model(finished_run, dark, few)
    assert not (tmp_path / "out").exists()
    (few / "another.png").write_bytes(sorted(dark.rglob("*.png"))[20].read_bytes())
    code, out, said = run("adapt", finished_run, "--data", few, "--out", tmp_path / "out")
    assert code == 0 and "16 B-scans" in out and "2 file(s) couldn't be read" in out and "oct-hf evaluate" in said


def test_a_network_without_batch_normalisation_is_refused(tmp_path, dark):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    about = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="no batch normalisation"):
        adapt_model(tmp_path / "vit", dark, tmp_path / "out")
