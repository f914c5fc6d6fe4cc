"""Optimisers and schedules by the names a recipe uses: torch's, timm's and schedulefree's, none of our own."""

# pyright: reportPrivateImportUsage=false
# timm.optim is where timm documents its names; it takes them from files that are its own.

import math

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from transformers import get_scheduler

from oct_hf.errors import RecipeError
from oct_hf.training.recipe import TrainRecipe

_OPTIONS = {
    "lamb": {"max_grad_norm": None},  # the Trainer has clipped already
    # Jordan et al. 2024; steps as long as AdamW's (Liu et al. 2025), which takes what is no matrix
    "muon": {"nesterov": True},
}


def parameter_groups(network: torch.nn.Module, recipe: TrainRecipe, learning_rate: float) -> list[dict]:
    """Parameters with their rate and decay: none on norms and biases, rates falling layer by layer to the stem.

    Layer-wise decay after Clark et al., "ELECTRA" (2020), as timm has it.
    """
    if recipe.layer_decay < 1:
        groups = param_groups_layer_decay(network, recipe.weight_decay, layer_decay=recipe.layer_decay)
    else:
        groups = param_groups_weight_decay(network, recipe.weight_decay)
    for group in groups:
        group["lr"] = learning_rate * group.pop("lr_scale", 1.0)
    return groups


def make_optimizer(groups: list[dict], recipe: TrainRecipe, learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser of a recipe, but for AdamW, which the Trainer makes.

    Args:
        groups: of `parameter_groups`.
        recipe: its `optimizer`.
        learning_rate: of groups without one of their own.

    Raises:
        RecipeError: schedulefree isn't installed.
    """
    if recipe.optimizer == "schedule_free":
        try:
            from schedulefree import AdamWScheduleFree
        except ImportError:
            raise RecipeError('train.optimizer: schedule_free needs pip install "oct-hf[schedulefree]"') from None
        return AdamWScheduleFree(groups, lr=learning_rate)
    return create_optimizer_v2(groups, recipe.optimizer, lr=learning_rate, **_OPTIONS.get(recipe.optimizer, {}))


def make_schedule(optimizer: torch.optim.Optimizer, recipe: TrainRecipe, steps: int) -> LRScheduler | ReduceLROnPlateau:
    """How the learning rates change over `steps` steps.

    "one_cycle" rises for the share `warmup` of the steps (Smith & Topin, "Super-convergence", 2018); the others are
    transformers' own; snapshots have a cosine each, without warm-up (Huang et al. 2017, equation 2). schedulefree needs
    a constant rate: Defazio et al., "The road less scheduled" (2024).
    """
    warmup = math.ceil(recipe.warmup * steps)
    if recipe.optimizer == "schedule_free":
        for group in optimizer.param_groups:
            group["warmup_steps"] = warmup  # it warms up by itself
        return get_scheduler("constant", optimizer)
    if recipe.snapshots:
        length = max(1, steps // recipe.snapshots)
        return LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * (step % length) / length))
    if recipe.schedule == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        rising = min(1.0, max(recipe.warmup, 2 / steps))  # torch divides by zero where one step is all
        return OneCycleLR(optimizer, rates, total_steps=max(2, steps), pct_start=rising)
    if recipe.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, mode="max", patience=3)
    options = {"min_lr_rate": recipe.final_rate} if recipe.schedule == "cosine_with_min_lr" else {}
    return get_scheduler(
        recipe.schedule,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=options,
    )
