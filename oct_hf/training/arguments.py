"""The Trainer's own settings, out of a recipe: what doesn't change how it learns is decided here, by the machine."""

import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from oct_hf.errors import RecipeError
from oct_hf.training import processes
from oct_hf.training.recipe import TrainRecipe

SELECTION = "selection"  # what the best checkpoint is chosen by


def bf16_is_faster() -> bool:
    """Whether this machine trains faster in bf16. By its kind and not by a timing, so that a run repeats exactly."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    if torch.backends.mps.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def repeat_exactly() -> None:
    """The same seed gives the same weights to the last bit.

    Torch would also fill all fresh memory, to show up kernels that read it unwritten; that took a seventh of a step.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    # torch makes the module's attribute when it is imported
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def training_arguments(recipe: TrainRecipe, output_dir: str | Path) -> TrainingArguments:
    """The Trainer's own settings, out of the recipe."""
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    # Beside a network that has all cores, a worker process costs far more than the half millisecond an image takes.
    images, passes = images_a_pass(recipe)
    workers = recipe.workers if recipe.workers != "auto" else 0 if on_cpu else min(8, os.cpu_count() or 1)
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=images,
        gradient_accumulation_steps=passes,
        per_device_eval_batch_size=recipe.batch_size,
        learning_rate=1.0 if recipe.learning_rate == "find" else recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=bf16_is_faster() if recipe.bf16 == "auto" else recipe.bf16,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and processes.count() > 1 else None,
        ddp_find_unused_parameters=recipe.freeze_epochs > 0,
        seed=recipe.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=SELECTION,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
    )


def images_a_pass(recipe: TrainRecipe) -> tuple[int, int]:
    """How many images one pass through the network takes, and how many passes a process makes for a step.

    Raises:
        RecipeError: the images of a step can't be divided so.
    """
    together = processes.count()
    passes = -(-max(recipe.accumulate, together) // together)
    if recipe.batch_size % (passes * together):
        raise RecipeError(
            f"train.batch_size: the {recipe.batch_size} images of a step can't be divided into {passes * together} "
            f"equal passes (train.accumulate={recipe.accumulate}, processes: {together})"
        )
    return recipe.batch_size // (passes * together), passes
