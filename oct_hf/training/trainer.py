"""OCTTrainer: transformers' Trainer with what fine-tuning on B-scans needs, and no second training loop.

Its data are `Pixels`; the random order and the augmentation come from (seed, epoch), so a resumed run sees what the
whole run would have seen. Averaged weights (EMA) are what is evaluated, compared and kept; the raw ones go on training.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.nn import functional
from torch.utils.data import Sampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from oct_hf.data.pixels import Pixels
from oct_hf.errors import RecipeError, did_you_mean
from oct_hf.images import Preprocessing
from oct_hf.training import processes
from oct_hf.training.callbacks import MovingAverage, selection
from oct_hf.training.recipe import TrainRecipe

EMA_FILE = "ema.safetensors"
SELECTION = "selection"  # what the best checkpoint is chosen by


class OCTTrainer(Trainer):
    """Fine-tunes a timm-backed classifier on `Pixels`.

    Args:
        model: an `OCTForImageClassification`.
        recipe: the fine-tuning's settings.
        preprocessing: normalisation of the model's input; batches arrive as uint8 `(N, height, width)`.
        train, validation: the two sides; the test side is not the Trainer's business.
        output_dir: for checkpoints.
        metrics: `(probabilities (n, classes), labels (n,)) -> dict` with `balanced_accuracy` and `log_loss` at least.
        callbacks: further callbacks, such as a progress display.

    Raises:
        RecipeError: class weights for labels that the model doesn't have.
    """

    def __init__(
        self,
        model,
        recipe: TrainRecipe,
        preprocessing: Preprocessing,
        train: Pixels,
        validation: Pixels,
        output_dir: str | Path,
        metrics: Callable[[np.ndarray, np.ndarray], dict],
        callbacks: Sequence = (),
    ):
        self.recipe = recipe
        self.preprocessing = preprocessing
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.class_weights = class_weights(recipe.class_weights, train.labels, names)
        self._metrics = metrics
        self._frozen = False
        self._passes = (-1, 0)  # the step that is being taken, and its passes so far
        stopping = [EarlyStoppingCallback(recipe.patience)] if recipe.patience else []
        super().__init__(
            model=model.to(memory_format=torch.channels_last),
            args=training_arguments(recipe, output_dir),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=collate,
            compute_metrics=self._compute_metrics,
            callbacks=[*stopping, *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.ema = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        if self.ema:
            self.add_callback(MovingAverage(self.ema))

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs):
        """Trains to the end or from a checkpoint on; afterwards the model holds the best weights."""
        if resume_from_checkpoint and self.ema:
            self.ema.module.load_state_dict(load_file(Path(resume_from_checkpoint) / EMA_FILE))
        return super().train(resume_from_checkpoint=str(resume_from_checkpoint or "") or None, **kwargs)

    def restore_best(self, checkpoint: str | Path) -> None:
        """Takes up a finished training: the state of its last checkpoint and the weights of its best one."""
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        self._load_best_model()

    # --- batches ---

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return EpochSampler(len(self.train_dataset), self.recipe.seed)

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        if inputs["pixel_values"].dtype == torch.uint8:
            inputs["pixel_values"] = normalise(inputs["pixel_values"], self.preprocessing)
        return inputs

    # --- loss ---

    def training_step(self, model, inputs, num_items_in_batch=None):
        steps_an_epoch = self.state.max_steps / self.state.num_train_epochs
        self._freeze(self.state.global_step < self.recipe.freeze_epochs * steps_an_epoch)
        # Dropout, too, depends on the step and the part of its batch alone: not on how often workers or a resumed run
        # drew before, nor on which process takes the part.
        step, done = self._passes
        done = done + 1 if step == self.state.global_step else 0
        self._passes = (self.state.global_step, done)
        part = done * self.args.world_size + self.args.process_index
        torch.manual_seed(hash((self.recipe.seed, self.state.global_step, part)) % 2**63)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy; weighted and smoothed while training, plain while evaluating."""
        if self._frozen and model.training:
            # A frozen backbone also keeps its batch-norm statistics.
            self.model.timm_model.eval()
            self.model.timm_model.get_classifier().train()
        outputs = model(pixel_values=inputs["pixel_values"])
        logits = outputs.logits.float()
        if model.training:
            weights = None if self.class_weights is None else self.class_weights.to(logits.device)
            smoothing = self.recipe.label_smoothing
            loss = functional.cross_entropy(logits, inputs["labels"], weight=weights, label_smoothing=smoothing)
        else:
            loss = functional.cross_entropy(logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def _freeze(self, frozen: bool) -> None:
        if frozen == self._frozen:
            return
        head = {id(p) for p in self.model.timm_model.get_classifier().parameters()}
        for parameter in self.model.parameters():
            parameter.requires_grad_(not frozen or id(parameter) in head)
        self._frozen = frozen

    # --- optimiser ---

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW without decay on norms and biases; learning rates fall layer by layer where the recipe asks for it."""
        if self.optimizer is None:
            network, decay = self.model.timm_model, self.recipe.weight_decay
            if self.recipe.layer_decay < 1:
                groups = param_groups_layer_decay(network, decay, layer_decay=self.recipe.layer_decay)
            else:
                groups = param_groups_weight_decay(network, decay)
            for group in groups:
                group["lr"] = self.args.learning_rate * group.pop("lr_scale", 1.0)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    # --- averaged weights ---

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds the averaged weights inside the block, the raw ones after it."""
        if self.ema is None or not self.is_in_train:
            yield
            return
        raw = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(raw)

    def evaluation_loop(self, *args, **kwargs):
        with self.averaged():
            processes.take_buffers_of_main(self.model)
            return super().evaluation_loop(*args, **kwargs)

    def _compute_metrics(self, prediction) -> dict:
        probabilities = softmax(prediction.predictions)
        measured = self._metrics(probabilities, prediction.label_ids)
        return {**measured, SELECTION: selection(measured)}

    # --- checkpoints ---

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.ema is not None and self.is_in_train and output_dir and self.args.should_save:
            tensors = {key: value.contiguous() for key, value in self.ema.module.state_dict().items()}
            save_file(tensors, Path(output_dir) / EMA_FILE)

    def _load_best_model(self) -> None:
        # By step and not by the stored path, which is wrong once the run's folder has been moved.
        best = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best)
        if self.ema is None:
            super()._load_best_model()
        else:
            self.model.load_state_dict(load_file(best / EMA_FILE))


class EpochSampler(Sampler):
    """`(epoch, index)` pairs in an order that depends on seed and epoch alone."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch, a resumed one too."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        return ((self.epoch, int(index)) for index in order)

    def __len__(self) -> int:
        return self.count


def collate(items: list[dict]) -> dict:
    """A batch: uint8 `(N, height, width)` and int64 `(N,)`."""
    return {
        "pixel_values": torch.from_numpy(np.stack([item["pixel_values"] for item in items])),
        "labels": torch.from_numpy(np.array([item["labels"] for item in items], np.int64)),
    }


def normalise(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """float32 `(N, 3, height, width)` in channels-last memory of uint8 `(N, height, width)`, on their device."""
    mean = torch.tensor(preprocessing.mean, device=images.device)
    std = torch.tensor(preprocessing.std, device=images.device)
    # (v / 255 - mean) / std, in one pass
    return torch.addcmul(-mean / std, images[..., None].float(), 1 / (255 * std)).permute(0, 3, 1, 2)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities `(n, classes)` of logits of that shape."""
    return torch.from_numpy(np.asarray(logits)).double().softmax(-1).numpy()


def class_weights(setting: str | dict | None, labels: np.ndarray, names: Sequence[str]) -> torch.Tensor | None:
    """Weight of each class in the loss.

    Args:
        setting: None; "auto" for n / (classes * n_class), as scikit-learn's "balanced" has it; or one weight a label.
        labels: int `(n,)`, of the training side.
        names: the labels' names.

    Raises:
        RecipeError: the mapping's labels aren't the model's.
    """
    if setting is None:
        return None
    if setting == "auto":
        counts = np.bincount(labels, minlength=len(names))
        return torch.tensor(len(labels) / (len(names) * np.maximum(counts, 1)), dtype=torch.float32)
    for name in [*setting, *names]:
        if name not in names:
            raise RecipeError(f'train.class_weights: no label "{name}"{did_you_mean(name, names)}')
        if name not in setting:
            raise RecipeError(f"train.class_weights: no weight for {name}")
    return torch.tensor([float(setting[name]) for name in names])


def bf16_is_faster() -> bool:
    """Whether this machine trains faster in bf16. By its kind and not by a timing, so that a run repeats exactly."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    if torch.backends.mps.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
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
        save_total_limit=2,
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


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint; a half-written one is removed. The Trainer's state is the last file written."""
    found = [p for p in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.split("-")[-1].isdigit()]
    for checkpoint in sorted(found, key=lambda p: int(p.name.split("-")[-1]), reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return None
