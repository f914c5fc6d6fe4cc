"""The recipes of published systems: each trains its network, and each network can learn 32 B-scans by heart."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import TrainerCallback

from oct_hf import OCTForImageClassification, Predictor, Preprocessing
from oct_hf.data.phantom import LABELS, draw
from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.evaluation.signs import sign_scores
from oct_hf.model.pip_bases import backbones_of, pip_base
from oct_hf.runs.head import features_of, make_machine, put_on
from oct_hf.runs.training import build_model
from oct_hf.training.adversarial import AdversarialTrainer
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import load_recipe
from oct_hf.training.trainer import OCTTrainer

NAMES = list(LABELS)[:4]
SLOW = pytest.mark.slow
# Recipe, pixels of an image here; Inception-v3 needs 75 of them.
RECIPES = (
    ("custom_cnn", 32),
    ("denoising_autoencoder", 32),  # its fine-tuning; test_denoising.py has what comes before
    ("efficientnetv2_b0", 32),
    ("gan_semi_supervised", 32),
    ("limited_noisy", 32),
    ("retfound_linear", 32),
    pytest.param("densenet121_binary", 32, marks=SLOW),
    pytest.param("kermany_inceptionv3", 96, marks=SLOW),
    pytest.param("roct_net", 32, marks=SLOW),
    pytest.param("efficientnetv2_s", 32, marks=SLOW),
    pytest.param("vgg16", 32, marks=SLOW),
    pytest.param("key_signs", 32, marks=SLOW),
    pytest.param("hybrid_aco", 96, marks=SLOW),
    pytest.param("hybrid_aco_offline", 32, marks=SLOW),
)
# Recipes that train no network, and the pixels of an image here.
MACHINES = (("hybrid_aco", 96), ("hybrid_aco_offline", 64))
# Recipe, pixels, learning rate; from random weights, so not always the recipe's own, which is for ImageNet's.
LEARNERS = (
    ("custom_cnn", 64, 1e-3),
    ("limited_noisy", 64, 1e-3),
    ("retfound_linear", 64, 1e-3),
    ("stock", 64, 2e-3),
    ("efficientnetv2_b0", 64, 2e-3),
    ("gan_semi_supervised", 64, 2e-3),
    ("densenet121_binary", 64, 1e-3),
    ("kermany_inceptionv3", 96, 1e-3),
    ("roct_net", 64, 1e-3),
    ("efficientnetv2_s", 64, 1e-3),
    ("denoising_autoencoder", 64, 2e-3),
    ("vgg16", 64, 1e-4),
    ("key_signs", 64, 1e-4),
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A small vision transformer in timm's layout, as a foundation model's encoder lies on the Hub: without a head."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    save_for_hf(timm.create_model("vit_tiny_patch16_224", num_classes=0), folder, safe_serialization=True)
    return folder


def recipe_of(name: str, size: int, encoder: Path, *overrides: str) -> Recipe:
    """The recipe with a small image and without a download."""
    start = [f"model.base={encoder}"] if name == "retfound_linear" else ["model.weights=random"]
    return load_recipe(name, [f"image_size={size}", *start, *overrides])


def scans(count: int, size: int, augment="none") -> Pixels:
    """Phantoms, each of another patient, all four labels alike."""
    labels = np.arange(count) % len(NAMES)
    images = [draw(NAMES[label], 7, number, 0, 96, 96).image for number, label in enumerate(labels)]
    shrunk = np.stack([Preprocessing(size, size).resize(image) for image in images])
    return Pixels(shrunk, labels, [str(number) for number in range(count)], Augmentation(augment, 0))


def trainer_of(recipe: Recipe, model, train: Pixels, folder: Path, callbacks=(), **settings) -> OCTTrainer:
    settings = {"batch_size": 8, "workers": 0, "bf16": False, **settings}
    preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
    score = lambda probabilities, labels: measure(probabilities, labels, NAMES)  # noqa: E731
    if recipe.data.signs:  # each label a sign of its own
        score, train.labels = sign_scores, np.eye(len(NAMES), dtype=np.int64)[train.labels]
    train_recipe = dataclasses.replace(recipe.train, **settings)
    kind, more = (AdversarialTrainer, {"settings": recipe.adversarial}) if recipe.adversarial else (OCTTrainer, {})
    return kind(model, train_recipe, preprocessing, train, train, folder, score, callbacks, **more)


@pytest.mark.parametrize("name, size", RECIPES)
def test_two_steps_of_a_recipe_and_what_they_write_loads(name, size, encoder, tmp_path):
    recipe = recipe_of(name, size, encoder)
    torch.manual_seed(0)
    model = build_model(recipe, NAMES)
    stem = next(iter(model.timm_model.parameters()))
    before, head = stem.detach().clone(), model.timm_model.get_classifier().weight.detach().clone()
    trainer = trainer_of(recipe, model, scans(16, size, recipe.augment), tmp_path / "run", epochs=1)
    trainer.train()
    assert trainer.state.global_step == 2 and np.isfinite(trainer.state.log_history[0]["loss"])
    assert torch.equal(stem, before) == (recipe.train.freeze_epochs > 0)
    assert not torch.equal(model.timm_model.get_classifier().weight, head)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    trainer.preprocessing.save(folder)
    image = draw("DME", 3).image
    again, here = Predictor(folder, device="cpu"), Predictor(model, trainer.preprocessing, device="cpu")
    pixels = [here.read(image)]
    assert np.array_equal(again.read(image), pixels[0])
    assert np.abs(again.logits(pixels) - here.logits(pixels)).max() <= 1e-5


def test_a_foundation_models_encoder_arrives_whole_and_at_another_size(encoder):
    recipe = recipe_of("retfound_linear", 224, encoder)
    given = timm.create_model(f"local-dir:{encoder}", pretrained=True)
    model = build_model(recipe, NAMES)
    ours = model.timm_model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in given.state_dict().items())
    smaller = build_model(recipe_of("retfound_linear", 64, encoder), NAMES)
    assert smaller.timm_model.pos_embed.shape[1] < model.timm_model.pos_embed.shape[1]
    assert torch.equal(smaller.timm_model.blocks[0].attn.qkv.weight, ours["blocks.0.attn.qkv.weight"])


def test_a_recipe_that_trains_the_head_alone_does_so_in_all_its_epochs():
    for name in ("densenet121_binary", "kermany_inceptionv3", "retfound_linear"):
        recipe = load_recipe(name)
        assert recipe.train.freeze_epochs == recipe.train.epochs


def test_the_table_of_systems_names_the_recipes_and_counts_their_parameters():
    text = (Path(__file__).parents[2] / "docs" / "systems.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*?\| .*?([\d,]{9,}) \((\d)", text, re.MULTILINE)
    assert {name for name, *_ in rows} == {name for name, *_ in (*LEARNERS, *MACHINES)}
    for name, parameters, classes in rows:
        names = [
            pip.architecture if (pip := pip_base(one)) else one for one in backbones_of(load_recipe(name).model.base)
        ]
        joined = {"backbones": names} if len(names) > 1 else {}
        base = "joined" if joined else load_recipe(name).model.base.removeprefix("timm/")
        with torch.device("meta"):
            network = timm.create_model(base, num_classes=int(classes), **joined)
        assert f"{sum(p.numel() for p in network.parameters()):,}" == parameters, name


class StopWhenLearned(TrainerCallback):
    """Ends the training once the training scans themselves are told apart."""

    def __init__(self):
        self.best = 0.0

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.best = max(self.best, metrics["eval_accuracy"])
        control.should_training_stop = self.best >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name, size, rate", LEARNERS)
def test_a_network_learns_32_scans_by_heart(name, size, rate, encoder, tmp_path):
    recipe = recipe_of(name, size, encoder, "model.dropout=0")
    torch.manual_seed(0)
    model: OCTForImageClassification = build_model(recipe, NAMES)
    learned = StopWhenLearned()
    settings = {"epochs": 80, "freeze_epochs": 0, "learning_rate": rate, "weight_decay": 0.0, "label_smoothing": 0.0}
    settings |= {"schedule": "constant_with_warmup", "ema": 0.0, "class_weights": None}
    trainer_of(recipe, model, scans(32, size), tmp_path, [learned], **settings).train()
    assert learned.best >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["svm", "knn"])
@pytest.mark.parametrize("name, size", MACHINES)
def test_a_machine_on_a_networks_features_learns_32_scans_by_heart(name, size, machine, encoder):
    recipe = recipe_of(name, size, encoder, f"head.machine={machine}", "head.neighbours=1")
    torch.manual_seed(0)
    model, pixels = build_model(recipe, NAMES), scans(32, size)
    preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
    features = features_of(model, pixels, preprocessing, 8)
    choice = features.std(0) > 0
    fitted = make_machine(recipe.head, 32, 0).fit(features[:, choice], pixels.labels)
    whole = put_on(model, fitted, choice, features, pixels.labels, recipe.head)
    answers = Predictor(whole, preprocessing, device="cpu").predict(pixels.images)
    said = [NAMES.index(answer.predicted) for answer in answers]
    assert np.mean(np.array(said) == pixels.labels) >= 0.95
