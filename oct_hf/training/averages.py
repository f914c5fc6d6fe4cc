"""Averages of the weights that a training passes through: what is evaluated and kept in their place.

An exponential moving average takes every step; SWA takes the end of each of the last epochs alike. Batch norm's
statistics belong to weights, and those of a mean were never measured: they are, before it is evaluated.
"""

from collections.abc import Iterable
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, update_bn
from transformers import TrainerCallback, TrainerState

from oct_hf.training.callbacks import steps_an_epoch
from oct_hf.training.recipe import TrainRecipe


class MovingAverage(TrainerCallback):
    """The exponential moving average of each step's weights and statistics (timm's ModelEmaV3; its decay warms up).

    Attributes:
        module: a model of the averaged weights.
        started: whether it holds an average yet.
    """

    started = True

    def __init__(self, model: torch.nn.Module, decay: float):
        self._average = ModelEmaV3(model, decay=decay, use_warmup=True)
        self.module = self._average.module

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._average.update(model, step=state.global_step)

    def resume(self, state: TrainerState) -> None:
        """Nothing beside the weights has to be known."""


class EpochAverage(TrainerCallback):
    """The mean of the weights at the end of each of the last epochs: Izmailov et al., "Averaging weights leads to wider
    optima and better generalization" (2018), through torch's AveragedModel. Attributes as `MovingAverage` has them."""

    def __init__(self, model: torch.nn.Module, epochs: int):
        self._average = AveragedModel(model)
        self.module, self.epochs = self._average.module, epochs

    @property
    def started(self) -> bool:
        return bool(self._average.n_averaged > 0)

    def on_step_end(self, args, state, control, model: Any = None, **kwargs):
        if state.global_step % steps_an_epoch(state) == 0 and self._taken(state) > 0:
            self._average.update_parameters(model)

    def resume(self, state: TrainerState) -> None:
        """Counts how many epochs the weights of a checkpoint, already in `module`, are the mean of."""
        self._average.n_averaged.fill_(max(0, self._taken(state)))

    def _taken(self, state: TrainerState) -> int:
        return state.global_step // steps_an_epoch(state) - (round(state.num_train_epochs) - self.epochs)


def make_average(model: torch.nn.Module, recipe: TrainRecipe) -> MovingAverage | EpochAverage | None:
    """The average that a recipe asks for."""
    if recipe.swa_epochs:
        return EpochAverage(model, recipe.swa_epochs)
    return MovingAverage(model, recipe.ema) if recipe.ema else None


def measure_statistics(model: torch.nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Batch norm's mean and variance anew, over batches as the training sees them, for weights that none were taken of.

    The random numbers that dropout draws meanwhile leave the global generator as it was.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        update_bn(batches, model)
