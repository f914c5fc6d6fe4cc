"""A training small enough for tests: noise whose mean tells the label, and a network of a few thousand weights."""

from pathlib import Path

import numpy as np
import torch

from oct_hf import OCTForImageClassification, Preprocessing
from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.training.callbacks import StopOnSignal
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.recipe import TrainRecipe
from oct_hf.training.trainer import OCTTrainer

NAMES = ["A", "B"]


def pixels(count: int = 24, seed: int = 0) -> Pixels:
    """Noise whose mean tells the label: learnable in a few steps."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = np.clip(rng.normal(90 + 60 * labels[:, None, None], 40, (count, 64, 64)), 0, 255).astype(np.uint8)
    return Pixels(images, labels, [f"{seed} {i}" for i in range(count)], Augmentation("light", 1))


def network(seed: int = 0) -> OCTForImageClassification:
    torch.manual_seed(seed)
    return OCTForImageClassification.from_timm("test_efficientnet", NAMES, image_size=64, drop_rate=0.2)


def trainer(folder, callbacks=(), kind=OCTTrainer, more=None, **settings) -> OCTTrainer:
    """An `OCTTrainer`, or another kind with what it is given more."""
    settings = {"epochs": 3, "batch_size": 8, "workers": 0, "bf16": False, "learning_rate": 3e-3, **settings}
    return kind(
        network(),
        TrainRecipe(**settings),
        Preprocessing(64, 64),
        pixels(),
        pixels(16, seed=9),
        folder,
        lambda probabilities, labels: measure(probabilities, labels, NAMES),
        callbacks,
        **(more or {}),
    )


class StopAtStep(StopOnSignal):
    """Stops as a signal would, after a step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        self.stopped = 2 if state.global_step == self.step else None
        super().on_step_end(args, state, control, **kwargs)


def stopped_and_resumed(make, folder: Path, step: int) -> tuple[OCTTrainer, OCTTrainer]:
    """A whole training, and one that was stopped after a step and taken up again, of `make(folder, callbacks)`."""
    whole = make(folder / "whole", [])
    whole.train()
    make(folder / "cut", [StopAtStep(step)]).train()
    checkpoint = last_checkpoint(folder / "cut")
    assert checkpoint.name == f"checkpoint-{step}"
    again = make(folder / "cut", [])
    torch.manual_seed(77)  # whatever was drawn before
    again.train(resume_from_checkpoint=checkpoint)
    return whole, again


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Their weights and buffers are the same to the last bit."""
    for (name, value), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, theirs), name


def gradients_of_two_steps(run: OCTTrainer, module: torch.nn.Module, weight: torch.nn.Parameter) -> list[torch.Tensor]:
    """Of a weight of a module beside the model, after each of two steps on the same batch without dropout."""
    for network in (run.model, module):
        if hasattr(network, "timm_model"):
            network.timm_model.drop_rate = 0.0
    items = [run.train_dataset[i] for i in range(8)]
    batch = {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in ("pixel_values", "labels")}
    gradients = []
    for _ in range(2):
        run.state.global_step += 1  # else it would be one more pass of the same step
        run.training_step(run.model, dict(batch))
        gradients.append(weight.grad.clone())
    return gradients
