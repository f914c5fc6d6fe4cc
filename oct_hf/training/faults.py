"""What ends a training before its time, said in one line: a loss that is no number, memory that is too small."""

import gc
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size

from oct_hf.errors import TrainingError

BATCH_FILE = "stopped_batch.txt"  # beside the checkpoints: the files of the batch that ended a training
_SHOWN = 3
_ON_CPU = ("can't allocate memory", "not enough memory")


def no_number(step: int, files: list[str], checkpoint: Path | None, folder: Path) -> TrainingError:
    """The error of a loss that is NaN or infinite.

    Args:
        step: the optimiser's step, counted from 0.
        files: of the batch, or none where the validation found it.
        checkpoint: the last good one.
        folder: of the checkpoints; the whole list of files is written there.
    """
    text = f"step {step + 1}: the {'' if files else 'validation '}loss is no number"
    if files:
        (folder / BATCH_FILE).write_text("\n".join(files) + "\n", encoding="utf-8")
        more = f" and {len(files) - _SHOWN} more, all in {folder / BATCH_FILE}" if len(files) > _SHOWN else ""
        text += f"; its batch is {', '.join(files[:_SHOWN])}{more}"
    text += "; try a lower train.learning_rate or bf16=false"
    if checkpoint:
        text += f", from the last good weights with model.base={checkpoint} and another --out"
    return TrainingError(text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of the CPU or of the accelerator is too small."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _ON_CPU):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)


def out_of_memory(trainer) -> TrainingError:
    """The error that names how many images fit, found by halving: a whole step of each size is tried.

    The trainer's weights are of no use afterwards. It is tried as the last step of the training would be: the whole
    network trains, on pictures of the full size.
    """
    step, batch = trainer.state.global_step, trainer.batch
    trainer.state.global_step = max(0, trainer.state.max_steps - 1)
    trainer.thawing.set_epoch(trainer.recipe.epochs)
    asked = len(batch["labels"])
    size = asked // 2
    while size and not _fits(trainer, {key: value[:size] for key, value in batch.items()}):
        size //= 2
    recipe = trainer.recipe
    parts = f", train.accumulate={recipe.accumulate}" if recipe.accumulate > 1 else ""
    text = f"step {step + 1}: out of memory with train.batch_size={recipe.batch_size}{parts}"
    if not size:
        return TrainingError(f"{text}, and one image doesn't fit either; take a smaller model.image_size or model.base")
    passes = next(n for n in range(-(-recipe.batch_size // size), recipe.batch_size + 1) if recipe.batch_size % n == 0)
    return TrainingError(f"{text}; {size} fit: train.accumulate={passes} takes the same steps")


def _fits(trainer, batch: dict) -> bool:
    """Whether one step of a batch fits into memory."""
    trainer.model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        trainer.try_step(batch)
    except (MemoryError, RuntimeError, ValueError) as error:
        if not is_out_of_memory(error) and not isinstance(error, ValueError):  # batch norm refuses a single value
            raise
        return False
    return True
