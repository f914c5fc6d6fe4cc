"""OCTTrainer: transformers' Trainer with what fine-tuning on B-scans needs, and no second training loop.

Its data are `Pixels`; the random order and the augmentation come from (seed, epoch), so a resumed run sees what the
whole run would have seen. Averaged weights (EMA, SWA) are what is evaluated, compared and kept; the raw ones go on
training. A trainer with another loss overrides `compute_loss`, calls `thawing.hold()` before a training forward, and
finds the recipe's own loss in `training_loss`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerState

from oct_hf.data.pixels import LabelledPictures, Pictures
from oct_hf.data.stream import StreamedPixels
from oct_hf.errors import RecipeError
from oct_hf.images import Preprocessing
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.parallel import kept_memory
from oct_hf.training import processes
from oct_hf.training.arguments import SELECTION, training_arguments
from oct_hf.training.averages import make_average, measure_statistics
from oct_hf.training.batches import EpochSampler, collate, make_mixing, normalise, shrink, training_size
from oct_hf.training.callbacks import selection, steps_an_epoch
from oct_hf.training.checkpoints import WholeCheckpoints, checkpoint_of, last_checkpoint
from oct_hf.training.contradictions import training_contradictions
from oct_hf.training.faults import is_out_of_memory, no_number, out_of_memory
from oct_hf.training.losses import make_loss, plain_loss
from oct_hf.training.optimisers import make_optimizer, make_schedule, parameter_groups
from oct_hf.training.range_test import range_test
from oct_hf.training.recipe import TrainRecipe
from oct_hf.training.thawing import Thawing
from oct_hf.whole import write_json

EMA_FILE = "ema.safetensors"  # the averaged weights
LOSS_FILE = "loss.safetensors"  # what the loss remembers of each image
RATE_FILE = "learning_rate.json"  # what the range test found
STATISTICS = 50  # batches for batch norm's statistics, as many as schedulefree's authors take


class OCTTrainer(WholeCheckpoints):
    """Fine-tunes a timm-backed classifier on `Pixels`.

    Args:
        model: an `OCTForImageClassification`.
        recipe: the fine-tuning's settings.
        preprocessing: normalisation of the model's input; batches arrive as uint8 `(N, height, width)`.
        train, validation: the two sides; the test side is not the Trainer's business.
        output_dir: for checkpoints.
        metrics: `(probabilities (n, classes), labels (n,)) -> dict` with `balanced_accuracy` and `log_loss` at least.
        callbacks: further callbacks, such as a progress display.

    Attributes:
        loss: the training loss, a `losses.TrainingLoss`.
        answers: probabilities `(n, classes)` and labels of the validation side, as measured last; None before.
        several: whether a picture may have several labels; probabilities are then sigmoids, labels `(n, classes)`.
        ema: the averaged weights, or None.
        thawing: which part of the network trains.
        range_test: what `learning_rate: find` found, or None.
        batch: the batch of the running step, as it came from the workers.
        companions: by file in a checkpoint, modules that learn beside the model and are no part of it. The Trainer sees
            to its own model alone: here they are kept and taken up, and their gradients cleared and clipped.

    Raises:
        RecipeError: class weights for labels that the model doesn't have, or settings that don't go together.
    """

    # What is known here of what the Trainer's own types leave open.
    model: OCTForImageClassification
    train_dataset: Any  # `Pictures` or `StreamedPixels`
    optimizer: Any  # with `train` and `eval` where it is schedulefree's

    def __init__(
        self,
        model,
        recipe: TrainRecipe,
        preprocessing: Preprocessing,
        train: LabelledPictures | StreamedPixels,
        validation: Pictures,
        output_dir: str | Path,
        metrics: Callable[[np.ndarray, np.ndarray], dict],
        callbacks: Sequence = (),
    ):
        if faults := training_contradictions(recipe):
            raise RecipeError("; ".join(faults))
        if recipe.start_size and model.config.pretrained_cfg.get("fixed_input_size"):
            raise RecipeError(f"train.start_size: {model.config.architecture} takes pictures of one size only")
        self.recipe = recipe
        self.preprocessing = preprocessing
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.several = model.config.several
        self.loss = make_loss(recipe, train.labels, names, self.several)
        self.range_test: dict | None = None
        self.batch: dict | None = None
        self.answers: tuple[np.ndarray, np.ndarray] | None = None
        self.companions: dict[str, torch.nn.Module] = {}
        self._mixing = make_mixing(recipe, len(names))
        self._metrics = metrics
        self.thawing = Thawing(model.timm_model, recipe)
        self._passes = (-1, 0)  # the step that is being taken, and its passes so far
        stopping = [EarlyStoppingCallback(recipe.patience)] if recipe.patience else []
        # `Pixels` are no Dataset of torch's, which nothing needs.
        sides: dict[str, Any] = {"train_dataset": train, "eval_dataset": validation}
        super().__init__(
            model=model.to(memory_format=torch.channels_last),
            args=training_arguments(recipe, output_dir),
            data_collator=collate,
            compute_metrics=self._compute_metrics,
            callbacks=[*stopping, *callbacks],
            **sides,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.loss.to(self.args.device)
        if self.args.world_size > 1 and (recipe.loss == "elr" or recipe.learning_rate == "find"):
            raise RecipeError("train.loss elr and train.learning_rate find need one process, not several")
        self.ema = make_average(self.model, recipe)
        if self.ema:
            self.add_callback(self.ema)

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs):
        """Trains to the end or from a checkpoint on; afterwards the model holds the best weights.

        Raises:
            TrainingError: the loss is no number (the last good checkpoint stays), or memory is too small.
        """
        if self.recipe.learning_rate == "find":
            self._find_rate()
        if resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            if self.ema:
                self.ema.module.load_state_dict(load_file(checkpoint / EMA_FILE))
                self.ema.resume(TrainerState.load_from_json(str(checkpoint / "trainer_state.json")))
            if self.loss.state_dict():
                self.loss.load_state_dict(load_file(checkpoint / LOSS_FILE))
            for file, companion in self.companions.items():
                companion.load_state_dict(load_file(checkpoint / file))
        try:
            with kept_memory():
                return super().train(resume_from_checkpoint=str(resume_from_checkpoint or "") or None, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or self.batch is None:
                raise
        raise out_of_memory(self)  # here, where the failed step's tensors are gone

    def _find_rate(self) -> None:
        file = self.folder / RATE_FILE
        if file.exists():
            found = json.loads(file.read_text())
        else:
            found = range_test(self)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found)
        self.range_test = found
        self.args.learning_rate = found["learning_rate"]

    def restore_best(self, checkpoint: str | Path) -> None:
        """Takes up a finished training: the state of its last checkpoint and the weights of its best one."""
        if self.recipe.learning_rate == "find":
            self._find_rate()
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        self._load_best_model()

    # --- batches ---

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return EpochSampler(len(self.train_dataset), self.recipe.seed)

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        images = inputs["pixel_values"]
        if images.dtype == torch.uint8:
            inputs["pixel_values"] = self.normalised(images)
        if self.model.training and self._mixing:
            inputs["pixel_values"], inputs["labels"] = self._mixing(inputs["pixel_values"], inputs["labels"])
        return inputs

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """The network's input of uint8 pictures, in training at the size of the epoch."""
        start = self.recipe.start_size
        if self.model.training and start:
            images = shrink(images, *self._training_size(start))
        return normalise(images, self.preprocessing)

    def _training_size(self, start: int) -> tuple[int, int]:
        epochs = self.recipe.epochs
        epoch = int(self._progress() * epochs + 1e-6)
        height, width = self.preprocessing.height, self.preprocessing.width
        return training_size(start, height, epoch, epochs), training_size(start, width, epoch, epochs)

    def endless_batches(self) -> Iterator[dict]:
        """Batches of the training side as its epochs have them, one epoch after the other, read in this process."""
        train = self.train_dataset
        for epoch in count():
            if hasattr(train, "set_epoch"):
                train.set_epoch(epoch)
                items = iter(train)
            else:
                sampler: Any = self._get_train_sampler()
                sampler.set_epoch(epoch)
                items = (train[key] for key in sampler)
            while some := list(islice(items, self.recipe.batch_size)):
                yield collate(some)

    # --- loss ---

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.thawing.set_epoch(self.epoch)
        self.batch = inputs
        step, done = self.state.global_step, self._passes[1] + 1
        if self._passes[0] != step:
            done = 0
            for companion in self.companions.values():
                companion.zero_grad()
        self._passes = (step, done)
        self.seed_step(step, self._passes[1] * self.args.world_size + self.args.process_index)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise self._no_number(inputs)
        if self.accelerator.sync_gradients:
            for companion in self.companions.values():
                torch.nn.utils.clip_grad_norm_(companion.parameters(), self.args.max_grad_norm)
        return loss

    @property
    def epoch(self) -> int:
        """The epoch of the running step, counted from 0."""
        return self.state.global_step // steps_an_epoch(self.state)

    def seed_step(self, step: int, part: int = 0) -> None:
        """Seeds dropout and mixing by the step and the part of its batch alone.

        Not by what workers or a resumed run drew before, nor by which process takes the part.
        """
        torch.manual_seed(hash((self.recipe.seed, step, part)) % 2**63)

    def try_step(self, batch: dict) -> float:
        """One step on a batch outside of the training, with the optimiser as it is; its loss."""
        self.model.train()
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        with self.compute_loss_context_manager():
            loss = self.compute_loss(self.model, self._prepare_inputs(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        return loss.item()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Any:
        """The recipe's loss while training; plain cross-entropy while evaluating."""
        if model.training:
            self.thawing.hold()
        outputs = model(pixel_values=inputs["pixel_values"])
        logits = outputs.logits.float()
        loss = self.training_loss(logits, inputs) if model.training else plain_loss(logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def training_loss(self, logits: torch.Tensor, inputs: dict) -> torch.Tensor:
        """The recipe's loss of float logits `(N, classes)` on a batch that `_prepare_inputs` gave."""
        return self.loss(logits, inputs["labels"], inputs.get("index"), self._progress())

    def _progress(self) -> float:
        """Share of the training that is done."""
        return self.state.global_step / self.state.max_steps if self.state.max_steps else 0.0

    def _no_number(self, inputs: dict | None):
        indices = inputs["index"].tolist() if inputs and "index" in inputs else []
        files = [self.train_dataset.file_of(index) for index in indices]
        self.folder.mkdir(parents=True, exist_ok=True)
        step = self.state.global_step - (inputs is None)  # the validation's step is over
        return no_number(step, files, last_checkpoint(self.folder), self.folder)

    # --- optimiser ---

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The recipe's optimiser, without decay on norms and biases; the Trainer's own AdamW where it is that."""
        if self.optimizer is None:
            rate = self.args.learning_rate
            groups = parameter_groups(self.model.timm_model, self.recipe, rate)
            if self.recipe.optimizer == "adamw":
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = kind(groups, **options)
            else:
                self.optimizer = make_optimizer(groups, self.recipe, rate)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The recipe's schedule of the learning rates."""
        if self.lr_scheduler is None:
            self.lr_scheduler = make_schedule(optimizer or self.optimizer, self.recipe, num_training_steps)
        return self.lr_scheduler

    # --- averaged weights ---

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds the averaged weights inside the block, the raw ones after it."""
        if self.ema is None or not self.ema.started or not self.is_in_train:
            yield
            return
        raw = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(raw)

    def evaluation_loop(self, *args, **kwargs):
        self._measure_statistics()
        with self.averaged():
            processes.take_buffers_of_main(self.model)
            return super().evaluation_loop(*args, **kwargs)

    def _measure_statistics(self) -> None:
        """Batch norm's statistics of weights that no batch has passed: an average's, or schedulefree's."""
        if not self.is_in_train or not (self.recipe.swa_epochs or self.recipe.optimizer == "schedule_free"):
            return
        if self.recipe.optimizer == "schedule_free":
            self.optimizer.eval()
        elif self.ema is None or not self.ema.started:
            return
        if self.thawing.frozen:
            return  # what is frozen keeps its statistics
        model = self.ema.module if self.ema else self.model
        batches = islice(self.endless_batches(), min(STATISTICS, steps_an_epoch(self.state)))
        pixels = (normalise(b["pixel_values"].to(self.args.device), self.preprocessing) for b in batches)
        measure_statistics(model, pixels)

    def _compute_metrics(self, prediction) -> dict:
        if not np.isfinite(prediction.predictions).all():
            raise self._no_number(None)  # before it becomes a checkpoint
        probabilities = (sigmoid if self.several else softmax)(prediction.predictions)
        measured = self._metrics(probabilities, prediction.label_ids)
        self.answers = probabilities, prediction.label_ids
        return {**measured, SELECTION: selection(measured)}

    # --- checkpoints ---

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.is_in_train or not output_dir or not self.args.should_save:
            return
        if self.ema is not None:
            save_weights(self.ema.module if self.ema.started else self.model, Path(output_dir) / EMA_FILE)
        if remembered := self.loss.state_dict():
            save_file(remembered, Path(output_dir) / LOSS_FILE)
        for file, companion in self.companions.items():
            save_weights(companion, Path(output_dir) / file)

    def _load_best_model(self) -> None:
        step = self.state.best_global_step
        assert step is not None  # asked for where there is a best one
        best = checkpoint_of(self.folder, step)
        self.state.best_model_checkpoint = str(best)
        if self.ema is None:
            super()._load_best_model()
        else:
            self.model.load_state_dict(load_file(best / EMA_FILE))


def save_weights(module: torch.nn.Module, file: Path) -> None:
    """A module's weights and buffers as safetensors."""
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, file)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities `(n, classes)` of logits of that shape."""
    return torch.from_numpy(np.asarray(logits)).double().softmax(-1).numpy()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities `(n, classes)`, each label's on its own, of logits of that shape."""
    return torch.from_numpy(np.asarray(logits)).double().sigmoid().numpy()
