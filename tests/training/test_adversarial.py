import math
from functools import partial

import numpy as np
import pytest
import small
import torch
from safetensors.torch import load_file
from small import NAMES, assert_same, pixels, stopped_and_resumed

from oct_hf import OCTForImageClassification, Preprocessing
from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import RecipeError
from oct_hf.training.adversarial import (
    GENERATOR_FILE,
    AdversarialTrainer,
    Generator,
    matching_loss,
    normalised_by,
    real_or_generated_loss,
    recording_statistics,
)
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.distillation import NO_LABEL
from oct_hf.training.recipe import AdversarialRecipe
from oct_hf.training.recipe_file import load_recipe

SMALL = Preprocessing(64, 64)


def unlabelled(count: int = 20) -> Pixels:
    own = pixels(count, seed=3)
    return Pixels(own.images, [NO_LABEL] * count, [f"other {i}" for i in range(count)], Augmentation("light", 1))


def trainer(folder, callbacks=(), others=(), section=None, **settings) -> AdversarialTrainer:
    more = {"settings": section or AdversarialRecipe(latent=16, width=2), "others": others}
    return small.trainer(folder, callbacks, AdversarialTrainer, more, **settings)


def batch_of(run: AdversarialTrainer, labels: list[int]) -> dict:
    images = torch.from_numpy(pixels().images[: len(labels)])
    return run._prepare_inputs({"pixel_values": images, "labels": torch.tensor(labels)})


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_of_real_or_generated_is_the_papers_by_hand():
    # Z = 2 + 1 = 3, so D = 3/4 of the one and, with Z = 1/4 + 1/12 = 1/3, 1/4 of the other real picture; a generated
    # one has Z = 1, so D = 1/2.
    real = torch.tensor([[math.log(2), 0.0], [-math.log(4), -math.log(12)]])
    generated = torch.tensor([[-math.log(2), -math.log(2)]])
    by_hand = -(math.log(3 / 4) + math.log(1 / 4)) / 2 - math.log(1 - 1 / 2)
    assert real_or_generated_loss(real, generated).item() == pytest.approx(by_hand, rel=1e-6)


def test_it_is_the_cross_entropy_of_k_plus_1_classes_whose_last_logit_is_0():
    rng = np.random.default_rng(0)
    real, generated = (torch.from_numpy(rng.normal(0, 3, (n, 4))) for n in (6, 5))
    p_real, p_generated = (
        torch.cat([logits, torch.zeros(len(logits), 1)], 1).softmax(-1)[:, -1] for logits in (real, generated)
    )
    expected = -(1 - p_real).log().mean() - p_generated.log().mean()
    assert real_or_generated_loss(real, generated).item() == pytest.approx(expected.item())
    sure = torch.full((1, 4), 500.0)  # where a plain log would be infinite
    assert real_or_generated_loss(sure, -sure).item() == pytest.approx(0.0, abs=1e-9)


def test_the_generators_loss_is_the_squared_distance_of_mean_features_by_hand():
    generated = torch.tensor([[1.0, 0.0, 2.0], [3.0, 4.0, 0.0]])  # mean 2, 2, 1
    assert matching_loss(torch.tensor([1.0, 0.0, 1.0]), generated).item() == pytest.approx((1 + 4 + 0) / 3)


@pytest.mark.parametrize("labels", [[0, 1, NO_LABEL, NO_LABEL], [NO_LABEL] * 4])
def test_the_loss_of_a_batch_is_both_parts_and_only_labelled_pictures_have_the_first(tmp_path, labels):
    run = trainer(tmp_path, section=AdversarialRecipe(latent=16, width=2, weight=0.25), label_smoothing=0.1)
    inputs = batch_of(run, labels)
    model = run.model.train()
    model.timm_model.drop_rate = 0.0
    torch.manual_seed(5)
    loss = run.compute_loss(model, inputs).item()
    torch.manual_seed(5)
    with torch.no_grad():
        drawn = run._drawn(4)
        with recording_statistics(model) as statistics:
            real = model(pixel_values=inputs["pixel_values"]).logits
        with normalised_by(statistics):
            generated = model(pixel_values=drawn).logits
    known = [label for label in labels if label != NO_LABEL]
    crossed = torch.nn.functional.cross_entropy(real[:2], torch.tensor(known), label_smoothing=0.1) if known else 0.0
    assert loss == pytest.approx(float(crossed + 0.25 * real_or_generated_loss(real, generated)), rel=1e-5)


def test_while_evaluating_the_loss_is_plain_cross_entropy(tmp_path):
    run = trainer(tmp_path, label_smoothing=0.3)
    inputs = batch_of(run, [0, 1] * 4)
    loss, outputs = run.compute_loss(run.model.eval(), inputs, return_outputs=True)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"]).item())


# --- what learns from what -------------------------------------------------------------------------------------------


def test_generated_pictures_are_normalised_as_the_real_ones_and_leave_no_trace_in_the_statistics():
    torch.manual_seed(0)
    network = OCTForImageClassification.from_timm("test_efficientnet", NAMES, image_size=64).train()
    real, others = torch.randn(6, 3, 64, 64), 3 + torch.randn(4, 3, 64, 64)
    network(pixel_values=real)
    with recording_statistics(network) as statistics:
        logits = network(pixel_values=real).logits
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with normalised_by(statistics):
        assert torch.allclose(network(pixel_values=real).logits, logits, atol=1e-6)
        network(pixel_values=others)
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(value, before[key]) for key, value in after.items())
    assert all(module.training for module in network.modules())


def test_pictures_far_from_the_real_ones_are_bounded_and_others_keep_their_mean_and_contrast():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(3).train()
    real = 5 + 2 * torch.randn(8, 3, 16, 16)
    with recording_statistics(norm) as statistics:
        norm(real)
    pale, far = 7 + 2 * torch.randn(4, 3, 16, 16), 5 + 2000 * torch.randn(4, 3, 16, 16)
    mean, variance = real.mean((0, 2, 3), keepdim=True), real.var((0, 2, 3), keepdim=True, correction=0)
    with normalised_by(statistics):
        assert torch.allclose(norm(pale), (pale - mean) / (variance + norm.eps).sqrt(), atol=1e-5)
        assert torch.allclose(norm(far).square().mean((0, 2, 3)), torch.full((3,), 9.0), atol=1e-3)
        assert torch.allclose(norm(real).mean((0, 2, 3)), torch.zeros(3), atol=1e-5)  # the far ones left nothing


def test_each_network_gets_the_gradient_of_its_own_loss_alone(tmp_path):
    run = trainer(tmp_path, max_grad_norm=1e9)
    run.train()
    run.model.timm_model.drop_rate = 0.0
    items = [run.train_dataset[i] for i in range(8)]
    batch = {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in ("pixel_values", "labels")}
    run.model.zero_grad()
    run.training_step(run.model, dict(batch))
    model, generator = (
        [p.grad.clone() for p in network.parameters() if p.grad is not None] for network in (run.model, run.generator)
    )
    torch.manual_seed(0)
    run.seed_step(run.state.global_step, run._passes[1])
    run.model.zero_grad()
    loss = run.compute_loss(run.model.train(), run._prepare_inputs(dict(batch)))
    for parameter in run.generator.parameters():
        parameter.grad = None
    loss.backward()
    assert all(p.grad is None for p in run.generator.parameters())  # the classifier's loss stops at the pictures
    again = [p.grad for p in run.model.parameters() if p.grad is not None]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(model, again, strict=True))
    assert generator and all(torch.isfinite(gradient).all() for gradient in generator)
    assert any(gradient.abs().max() > 0 for gradient in generator)


def test_a_generator_comes_to_the_gray_level_of_real_pictures(tmp_path):
    section = AdversarialRecipe(latent=16, width=2, learning_rate=1e-2)
    run = trainer(tmp_path, section=section, epochs=10)
    run.train_dataset.images[:] = np.clip(run.train_dataset.images // 4, 0, 255)  # dark: about 30
    before = run.generator.pictures(64).mean()
    run.train()
    after, real = run.generator.pictures(64).mean(), run.train_dataset.images.mean()
    assert abs(after - real) < abs(before - real) / 2


def test_a_checkpoint_loads_as_any_other_and_the_generator_lies_beside(tmp_path):
    run = trainer(tmp_path, epochs=1)
    start = {key: value.clone() for key, value in run.generator.state_dict().items()}
    run.train()
    saved = load_file(last_checkpoint(tmp_path) / "model.safetensors")
    assert saved.keys() == run.model.timm_model.state_dict().keys()
    kept = load_file(last_checkpoint(tmp_path) / GENERATOR_FILE)
    assert all(torch.equal(kept[key], value) for key, value in run.generator.state_dict().items())
    assert not torch.equal(kept["start.weight"], start["start.weight"])


@pytest.mark.parametrize("count", [0, 20])
def test_a_resumed_training_ends_with_the_same_weights_of_both_networks(tmp_path, count):
    settings = {"ema": 0.9, "others": [unlabelled(count)] if count else []}
    whole, again = stopped_and_resumed(partial(trainer, **settings), tmp_path, 5)
    assert_same(whole.model, again.model)
    assert_same(whole.generator, again.generator)


# --- the generator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(64, 64), (96, 70), (32, 200)])
def test_pictures_have_the_size_of_the_classifiers_and_repeat_by_their_seed(height, width):
    section, size = AdversarialRecipe(latent=8, width=4), Preprocessing(height, width)

    def started(seed: int) -> Generator:
        generator, random = Generator.of(section, size, seed), torch.Generator().manual_seed(0)
        with torch.no_grad():  # far enough from the start that pictures differ
            for parameter in generator.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=random))
        return generator

    one, other, another = started(4), started(4), started(5)
    drawn = one.pictures(70, seed=1)
    assert drawn.shape == (70, height, width) and drawn.dtype == np.uint8 and drawn.std() > 1
    assert (drawn == other.pictures(70, seed=1)).all()
    assert (drawn != one.pictures(70, seed=2)).any() and (drawn != another.pictures(70, seed=1)).any()


# --- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, text",
    [
        ("teacher.base=pip:efficientnet_lite0", "teacher and adversarial"),
        ("train.mixup=0.2", "neither mixup"),
        ("train.loss=elr", "nor the loss elr"),
        ("train.accumulate=2", "train.accumulate"),
        ("train.learning_rate=find", "range test"),
        ("train.optimizer=sgd", "train.optimizer: a generator doesn't learn by sgd"),
        ("data.stream=true", "streamed data"),
    ],
)
def test_what_does_not_go_with_a_generator_is_refused_when_the_recipe_is_read(override, text):
    with pytest.raises(RecipeError, match=text):
        load_recipe("gan_semi_supervised", [override])
    assert load_recipe("gan_semi_supervised", ["adversarial=null", override])


def test_a_share_that_leaves_no_room_for_one_kind_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"adversarial.share: 0.01 of a batch of 8"):
        trainer(tmp_path, others=[unlabelled()], section=AdversarialRecipe(share=0.01, latent=16, width=2))
