import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import ModelError, TrainingError
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.diffusion import (
    DiffusionGenerator,
    DiffusionSettings,
    DiffusionTrainer,
    as_input,
    build_unet,
    make_scheduler,
)
from oct_hf.training.trainer import EMA_FILE
from tests.training.small import StopAtStep

QUICK = {"image_size": 32, "epochs": 2, "batch_size": 8, "width": 8, "ema": 0.9, "steps": 3}


def scans(count: int = 24) -> Pixels:
    """Dark pictures of label 0 and bright ones of label 1."""
    labels = np.arange(count) % 2
    images = np.random.default_rng(0).normal(60 + 120 * labels[:, None, None], 10, (count, 32, 32))
    return Pixels(images.astype(np.uint8), labels, [f"scan {i}" for i in range(count)], Augmentation(["flip"], 1))


def trainer(folder, callbacks=(), train=None, **settings) -> DiffusionTrainer:
    given = DiffusionSettings(**QUICK | settings)
    return DiffusionTrainer(build_unet(given, 2), given, train or scans(), folder, callbacks)


def test_the_loss_is_the_squared_error_of_the_velocity(tmp_path):
    run = trainer(tmp_path)
    images, labels = torch.from_numpy(scans().images[:6]), torch.tensor([0, 1] * 3)
    given = []

    def network(noisy, times, told):
        given.append((noisy, times, told))
        return torch.zeros_like(noisy)

    torch.manual_seed(3)
    loss = run.compute_loss(network, {"pixel_values": images, "labels": labels})
    torch.manual_seed(3)
    noise = torch.randn(6, 1, 32, 32)
    (noisy, times, told), kept = given[0], make_scheduler().alphas_cumprod
    clean = images[:, None].float() / 127.5 - 1
    share = kept[times][:, None, None, None]
    velocity = share.sqrt() * noise - (1 - share).sqrt() * clean  # Salimans & Ho, appendix D
    assert loss.item() == pytest.approx(velocity.square().mean().item(), rel=1e-5)
    assert torch.allclose(noisy, share.sqrt() * clean + (1 - share).sqrt() * noise, atol=1e-5)  # Ho et al., eq. 4
    assert set(told.tolist()) <= {0, 1, 2} and ((told == labels) | (told == 2)).all()


def test_the_wanted_share_of_labels_is_hidden(tmp_path):
    run, told = trainer(tmp_path, hidden=0.25), []
    images = torch.zeros(2000, 32, 32, dtype=torch.uint8)
    network = lambda noisy, times, labels: told.append(labels) or noisy  # noqa: E731
    torch.manual_seed(0)
    run.compute_loss(network, {"pixel_values": images, "labels": torch.zeros(2000, dtype=torch.int64)})
    assert (told[0] == 2).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_pixels_go_in_from_minus_1_to_1():
    assert as_input(torch.tensor([[[0, 255]]], dtype=torch.uint8)).tolist() == [[[[-1.0, 1.0]]]]


def test_what_two_epochs_write_is_loaded_and_draws_the_same_whatever_the_batches(tmp_path):
    run = trainer(tmp_path / "run")
    run.train()
    assert run.state.global_step == 6
    run.save_generator(tmp_path / "generator")
    generator = DiffusionGenerator(tmp_path / "generator")
    state = run.ema.module.unet.state_dict()  # the averaged weights
    assert all(torch.equal(value, state[key]) for key, value in generator.unet.state_dict().items())
    drawn = generator.pictures([0, 1, 0], steps=3)
    assert drawn.shape == (3, 32, 32) and drawn.dtype == np.uint8
    assert np.abs(drawn.astype(int) - generator.pictures([0, 1, 0], steps=3, batch_size=1)).max() <= 1
    assert (drawn[0] != drawn[2]).any() and (drawn != generator.pictures([0, 1, 0], steps=3, seed=1)).any()
    with pytest.raises(ModelError, match="no generator that can be loaded"):
        DiffusionGenerator(tmp_path / "run")


def test_guidance_moves_along_what_the_class_adds(tmp_path):
    trained = trainer(tmp_path / "run")
    trained.train()
    trained.save_generator(tmp_path / "generator")
    generator = DiffusionGenerator(tmp_path / "generator")
    values, time, labels = torch.randn(2, 1, 32, 32), torch.tensor(500), torch.tensor([0, 1])
    with torch.no_grad():
        plain, none, twice = (generator._predicted(values, time, labels, weight) for weight in (1, 0, 2))
        hidden = generator.unet(values, time, class_labels=torch.tensor([2, 2])).sample
    assert torch.allclose(none, hidden, atol=1e-5) and not torch.allclose(plain, hidden, atol=1e-5)
    assert torch.allclose(twice, 2 * plain - hidden, atol=1e-5)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "cut", [StopAtStep(4)]).train()
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint.name == "checkpoint-4" and (checkpoint / EMA_FILE).is_file()
    torch.manual_seed(77)  # whatever was drawn before
    again = trainer(tmp_path / "cut")
    again.train(resume_from_checkpoint=checkpoint)
    for one, other in ((whole.model, again.model), (whole.ema.module, again.ema.module)):
        for (name, value), repeated in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(value, repeated), name


def test_a_loss_that_is_no_number_ends_the_training_with_one_line(tmp_path):
    run = trainer(tmp_path)
    with torch.no_grad():
        run.model.unet.conv_in.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="step 1: the generator's loss is no number"):
        run.train()


def test_a_generator_learns_which_class_is_bright(tmp_path):
    run = trainer(tmp_path / "run", epochs=150, learning_rate=1e-3, ema=0.98)
    run.train()
    run.save_generator(tmp_path / "generator")
    drawn = DiffusionGenerator(tmp_path / "generator").pictures([0] * 6 + [1] * 6, steps=20)
    dark, bright = drawn[:6].mean(), drawn[6:].mean()
    assert abs(dark - 60) < 25 and abs(bright - 180) < 25
    weights = load_file(last_checkpoint(tmp_path / "run") / EMA_FILE)
    assert all(torch.isfinite(value).all() for value in weights.values())
