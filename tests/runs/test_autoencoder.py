"""A denoising autoencoder before a classifier: one network, which every loader has whole."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from oct_hf import OCTForImageClassification, Predictor, finetune
from oct_hf.data.phantom import draw
from oct_hf.data.pixels import Pixels
from oct_hf.errors import DataError, RecipeError
from oct_hf.hub.card import model_licence, render_card
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.images import Preprocessing
from oct_hf.runs.autoencoder import behind_autoencoder
from oct_hf.runs.facts import public_recipe
from oct_hf.training.batches import normalise
from oct_hf.training.denoising import NoisyPictures
from oct_hf.training.pretrain import pretrain
from oct_hf.training.recipe import PretrainRecipe, TrainRecipe
from oct_hf.training.recipe_file import load_recipe

NAMES = ["CNV", "DME", "DRUSEN", "NORMAL"]
SETTINGS = PretrainRecipe(task="denoise", epochs=5, batch_size=8, learning_rate=3e-3, augment="none", looks=(1, 3))


def network() -> OCTForImageClassification:
    torch.manual_seed(1)
    return OCTForImageClassification.from_timm("test_efficientnet", NAMES, image_size=64)


def drawn(numbers) -> Pixels:
    images = [draw(NAMES[n % 4], 3, n, 0, 64, 64).image for n in numbers]
    return Pixels(np.stack(images), [0] * len(images), [f"{n}" for n in numbers])


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder of a small autoencoder that was trained on phantoms."""
    folder = tmp_path_factory.mktemp("autoencoder")
    pictures = lambda _: (drawn(range(40)), drawn(range(100, 112)), ["0"], {"training_side": 40, "unlabelled": 0})  # noqa: E731
    pretrain(network(), SETTINGS, TrainRecipe(workers=0, bf16=False), folder, None, (), lambda: False, pictures)
    return folder


def test_the_network_cleans_as_the_pretraining_measured(autoencoder):
    model = behind_autoencoder(network(), autoencoder).eval()
    noisy = NoisyPictures(drawn(range(100, 112)), SETTINGS.looks, SETTINGS.seed)
    preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
    items = [noisy[n] for n in range(len(noisy))]
    pixels = normalise(torch.from_numpy(np.stack([item["pixel_values"] for item in items])), preprocessing)
    clean = torch.from_numpy(np.stack([item["clean"] for item in items])).float() / 255
    with torch.inference_mode():
        found = model.timm_model.clean(pixels)
    gray = found[:, 0] * preprocessing.std[0] + preprocessing.mean[0]
    facts = json.loads((autoencoder / "facts.json").read_text())["facts"]
    assert (gray - clean).square().mean().item() == pytest.approx(facts["mse"], rel=1e-3)
    assert facts["mse"] < facts["mse_noisy"] and found.shape == pixels.shape
    # A classifier that wants its pictures normalised otherwise has them cleaned as well.
    other = network()
    other.config.pretrained_cfg |= {"mean": (0.3, 0.4, 0.5), "std": (0.6, 0.7, 0.8)}
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    as_others = (pixels * std + mean - torch.tensor([0.3, 0.4, 0.5])[:, None, None]) / torch.tensor([0.6, 0.7, 0.8])[
        :, None, None
    ]
    with torch.inference_mode():
        theirs = behind_autoencoder(other, autoencoder).eval().timm_model.clean(as_others)
    assert torch.allclose(theirs[:, 1] * 0.7 + 0.4, gray, atol=1e-4)
    # What the classifier answers is its answer on the cleaned picture.
    with torch.inference_mode():
        alone = network().eval()(pixel_values=found).logits
        assert torch.allclose(model(pixel_values=pixels).logits, alone, atol=1e-5)


def test_training_changes_the_classifier_and_never_the_autoencoder(autoencoder):
    model = behind_autoencoder(network(), autoencoder).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # as thawing leaves them
    model(pixel_values=torch.randn(4, 3, 64, 64)).logits.square().sum().backward()
    optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("timm_model.network.") for key in moved)


def test_a_run_behind_it_publishes_it_whole_says_so_and_holds(autoencoder, tiny, tmp_path):
    recipe = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, denoise=str(autoencoder)),
        train=dataclasses.replace(tiny.train, epochs=2),
        evaluation=dataclasses.replace(tiny.evaluation, explain=0),
    )
    facts = finetune(recipe, tmp_path / "run")
    folder = tmp_path / "run" / "model"
    weights, kept = load_file(folder / "model.safetensors"), load_file(autoencoder / "weights.safetensors")
    assert torch.equal(weights["cleaner.conv_stem.weight"], kept["conv_stem.weight"])
    assert torch.equal(weights["cleaner.bn1.running_mean"], kept["bn1.running_mean"])
    assert facts["model"]["denoise"]["mse"] < facts["model"]["denoise"]["mse_noisy"]
    card = (folder / "README.md").read_text()
    assert "Pictures are cleaned inside the network, by a denoising autoencoder" in card
    assert "timm.create_model" not in render_card(facts, "clinic/model")
    # Nobody knows what the autoencoder started from, so nobody can say under which licence it may be passed on.
    assert tiny.data.license is None or model_licence(facts) is None
    known = {"weights": "hub", "licenses": {"weights": "cc-by-nc-4.0", "data": "mit"}}
    licensed = facts | {"data": facts["data"] | {"license": "cc-by-4.0"}, "model": facts["model"] | {"denoise": known}}
    assert model_licence(licensed) == "cc-by-nc-4.0"
    assert public_recipe(recipe).model.denoise == autoencoder.name
    checks = {check.name: check for check in verify(download(str(tmp_path / "run")))}
    assert [check.faults for check in checks.values()] == [()] * len(checks)
    assert "onnxruntime" in checks["loaders"].note  # the cleaning is in that file too
    image = draw("DME", 9).image
    again = Predictor(folder, device="cpu")
    assert again.model.timm_model.cleaner is not None
    assert sum(next(again.predict([image])).probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_one_that_saw_what_is_held_out_or_is_none_or_of_another_size_is_refused(autoencoder, tiny, tmp_path):
    model = dataclasses.replace(tiny.model, denoise=str(autoencoder))
    recipe = dataclasses.replace(tiny, model=model)
    seen = (autoencoder / "pictures.txt").read_text()
    try:
        from oct_hf.runs.labelled import assign_sides, load_data

        data = assign_sides(load_data(tiny.data)[0], tiny)
        held_out = next(h for h, side in zip(data.hashes, data.sides, strict=True) if side == "test")
        (autoencoder / "pictures.txt").write_text(f"{held_out}\n")
        with pytest.raises(DataError, match="learned on 1 of the B-scans that this split holds out"):
            finetune(recipe, tmp_path / "run")
    finally:
        (autoencoder / "pictures.txt").write_text(seen)
    assert not (tmp_path / "run").exists()
    larger = dataclasses.replace(recipe, model=dataclasses.replace(model, image_size=96))
    with pytest.raises(RecipeError, match="it cleans pictures of 64 pixels, the model sees 96"):
        finetune(larger, tmp_path / "run")
    none = dataclasses.replace(recipe, model=dataclasses.replace(model, denoise=str(tmp_path)))
    with pytest.raises(RecipeError, match="holds no denoising autoencoder"):
        finetune(none, tmp_path / "run")
    with pytest.raises(RecipeError, match="cleans pictures of one size only"):
        load_recipe("demo", ["model.denoise=x", "train.start_size=64"])
    with pytest.raises(RecipeError, match="would measure its batch norm anew"):
        load_recipe("demo", ["model.denoise=x", "train.ema=0", "train.swa_epochs=2"])
