"""Knowledge distillation: a student learns from a teacher's features and logits, on pictures that need no label.

Teacher and student see the very same augmented picture (Beyer et al., "Knowledge distillation: a good teacher is
patient and consistent", CVPR 2022), so phantoms and unlabelled B-scans teach as well as labelled ones. The layer that
maps features to features belongs to the Trainer: no checkpoint that is loaded as a model holds it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from oct_hf.data import duplicates, phantom
from oct_hf.data.pixels import PixelFile, Pixels
from oct_hf.data.rows import sha256
from oct_hf.data.sources import open_source
from oct_hf.errors import DataError, ModelError, RecipeError
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.labels import COARSER
from oct_hf.parallel import in_order
from oct_hf.training.recipe import TeacherRecipe
from oct_hf.training.trainer import OCTTrainer

PROJECTION_FILE = "projection.safetensors"
NO_LABEL = -100  # what cross-entropy leaves out
_DRAWN = 248, 256  # height and width of a phantom before it is resized as a B-scan is


# --- the loss --------------------------------------------------------------------------------------------------------


def logit_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of softened answers, times T², which keeps its gradients' size over temperatures.

    Hinton et al., "Distilling the knowledge in a neural network" (2015).

    Args:
        student, teacher: logits `(N, classes)`.
        temperature: T, above 0.

    Returns:
        mean over the batch, in nats.
    """
    answer = functional.log_softmax(student / temperature, -1)
    told = functional.log_softmax(teacher / temperature, -1)
    return functional.kl_div(answer, told, reduction="batchmean", log_target=True) * temperature**2


def feature_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine between a student's features, already projected, and a teacher's: `(N, features)`, mean over N.

    The cosine leaves out how long features are, which means nothing across networks; projecting first follows Romero
    et al., "FitNets" (ICLR 2015).
    """
    return 1 - functional.cosine_similarity(student, teacher, dim=-1).mean()


@contextmanager
def entering_classifier(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects what a timm network's classifier is given inside the block: pooled features, `(N, features)`."""
    seen: list[torch.Tensor] = []
    handle = network.get_classifier().register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    try:
        yield seen
    finally:
        handle.remove()


def width(network: nn.Module) -> int:
    """How many features a timm network's classifier is given.

    Raises:
        ModelError: the classifier isn't one linear layer (or a convolution of one pixel).
    """
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        kind = type(classifier).__name__
        raise ModelError(f"teacher: features are compared before one linear classifier, and this network's is a {kind}")
    return classifier.weight.shape[1]


class Teacher:
    """A trained network that is only asked.

    Args:
        model: an `OCTForImageClassification` with the student's labels in the student's order. An ensemble's features
            are those of its members, each of length 1, joined.
        preprocessing: of its input.
        student: preprocessing of the student's input, in which batches arrive.
    """

    def __init__(self, model, preprocessing: Preprocessing, student: Preprocessing):
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.networks = list(getattr(model.timm_model, "members", [model.timm_model]))
        self.features = sum(map(width, self.networks))
        self.size = (preprocessing.height, preprocessing.width)
        mean, std, own_mean, own_std = (
            torch.tensor(values)[:, None, None]
            for values in (student.mean, student.std, preprocessing.mean, preprocessing.std)
        )
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `(N, features)` and logits `(N, classes)`, float32, of a batch as the student gets it."""
        with torch.no_grad(), ExitStack() as hooks:
            seen = [hooks.enter_context(entering_classifier(network)) for network in self.networks]
            pixels = pixel_values * self.scale.to(pixel_values.device) + self.shift.to(pixel_values.device)
            if pixels.shape[2:] != self.size:
                pixels = functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)
            logits = self.model(pixel_values=pixels).logits
        features = [of_one[0].float() for of_one in seen]
        if len(features) > 1:
            features = [functional.normalize(of_one) for of_one in features]
        return torch.cat(features, 1), logits.float()


# --- what it learns from ---------------------------------------------------------------------------------------------


def draw_phantoms(
    count: int, preprocessing: Preprocessing, names: list[str] | None = None, seed: int = 0, augmentation=None
) -> Pixels:
    """Phantoms of so many patients, one each, all four classes in turn, as the student's pixels.

    Args:
        count: how many.
        preprocessing: of the student's input.
        names: the student's labels; a phantom of CNV or DRUSEN is AMD where that is one. Without them, or where
            a phantom's label has no counterpart, it has none (`NO_LABEL`).
        seed, augmentation: of the drawing, and for training.
    """
    labels = [phantom.LABELS[i % len(phantom.LABELS)] for i in range(count)]

    def small(number: int) -> np.ndarray:
        return preprocessing.resize(phantom.draw(labels[number], seed, number, 0, *_DRAWN).image)

    images = PixelFile(count, preprocessing.height, preprocessing.width)
    images.write(image for _, image in in_order(small, range(count)))
    numbers = {label: _number_of(label, names or []) for label in phantom.LABELS}
    return Pixels(
        images, [numbers[label] for label in labels], [f"phantom {seed} {i}" for i in range(count)], augmentation
    )


def _number_of(label: str, names: list[str]) -> int:
    known = [name for name in (label, *COARSER.get(label, ())) if name in names]
    return names.index(known[0]) if known else NO_LABEL


def read_unlabelled(
    path: str | Path, preprocessing: Preprocessing, hashes: set[str], thumbnails: np.ndarray, augmentation=None
) -> tuple[Pixels, int]:
    """The pictures below a folder or in an archive, whatever its folders are called, as the student's pixels.

    Args:
        path: folder or archive.
        preprocessing: of the student's input.
        hashes: content hashes of what is held out; files that are one of these are left out.
        thumbnails: uint8 `(n, SIDE, SIDE)` of the same; near-duplicates and neighbours of them are left out too.
        augmentation: for training.

    Returns:
        the pictures, and how many were left out: held out, or there before.

    Raises:
        DataError: no folder or archive there, nothing in it that may be taken, or a picture that can't be read.
    """
    source = open_source(path)
    names = sorted(str(name) for name in source.files)

    def glance(name: str) -> tuple[str, bytes]:
        content = source.read(name)
        return sha256(content), duplicates.thumbnail(to_gray(read_image(content, name)))

    looks = dict(in_order(glance, names))
    own = np.frombuffer(b"".join(look for _, look in looks.values()), np.uint8).reshape(-1, *thumbnails.shape[1:])
    near = duplicates.find(np.concatenate([thumbnails, own]))
    held_out = near.second[(near.first < len(thumbnails)) & (near.second >= len(thumbnails))] - len(thumbnails)
    taken, left_out = {}, set(held_out.tolist())
    for row, (name, (digest, _)) in enumerate(looks.items()):
        if row not in left_out and digest not in hashes:
            taken.setdefault(digest, name)
    if not taken:
        raise DataError(f"teacher.unlabelled: every picture of {path} is one of the B-scans held out, or near one")

    def small(name: str) -> np.ndarray:
        return preprocessing.resize(to_gray(read_image(source.read(name), name)))

    images = PixelFile(len(taken), preprocessing.height, preprocessing.width)
    images.write(image for _, image in in_order(small, taken.values()))
    return Pixels(images, [NO_LABEL] * len(taken), list(taken), augmentation), len(names) - len(taken)


class Together(Dataset):
    """Several `Pixels` one after the other; `(epoch, index)` counts through them."""

    def __init__(self, *parts: Pixels):
        self.parts = [part for part in parts if len(part)]
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        part, inside = self._place(index)
        item = self.parts[part][inside if epoch is None else (epoch, inside)]
        return item | {"index": np.int64(index)}

    def file_of(self, index: int) -> str:
        """Which picture it is, for messages."""
        part, inside = self._place(index)
        return self.parts[part].file_of(inside)

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return part, index - int(self.starts[part])


class MixedSampler(Sampler):
    """`(round, index)` pairs, every batch with the same shares of labelled and other pictures, labelled ones first.

    An epoch ends when each picture came at least once; the smaller part comes round again meanwhile, in another order
    and, since the round goes into it, with another augmentation. All follows from seed and epoch alone.

    Args:
        labelled, others: how many pictures there are of each; labelled ones have the lower indices.
        batch_size: of which `others_a_batch` are not labelled.
        seed: of the run.
    """

    def __init__(self, labelled: int, others: int, batch_size: int, others_a_batch: int, seed: int):
        self.parts = ((0, labelled, batch_size - others_a_batch), (labelled, others, others_a_batch))
        self.steps = max(math.ceil(count / a_batch) for _, count, a_batch in self.parts)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch, a resumed one too."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        streams = [(a_batch, self._endless(first, count, a_batch)) for first, count, a_batch in self.parts]
        return (next(stream) for _ in range(self.steps) for a_batch, stream in streams for _ in range(a_batch))

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def _endless(self, first: int, count: int, a_batch: int) -> Iterator[tuple[int, int]]:
        rounds = math.ceil(self.steps * a_batch / count)
        for number in range(rounds):
            order = np.random.default_rng([self.seed, self.epoch, first, number]).permutation(count)
            yield from ((self.epoch * rounds + number, first + int(index)) for index in order)


# --- the training ----------------------------------------------------------------------------------------------------


def others_a_batch(settings: TeacherRecipe, batch_size: int) -> int:
    """How many pictures of a batch aren't labelled B-scans.

    Raises:
        RecipeError: a batch has no room for both kinds of pictures.
    """
    others = round(settings.share * batch_size)
    if not 0 < others < batch_size:
        raise RecipeError(f"teacher.share: {settings.share} of a batch of {batch_size} leaves no picture of one kind")
    return others


class DistillingTrainer(OCTTrainer):
    """`OCTTrainer` whose loss also holds a teacher's features and logits.

    Args:
        teacher: what to learn from.
        settings: the recipe's section `teacher`.
        others: pictures without labels (or with, where `settings.phantom_labels`), if any.
        args, kwargs: of `OCTTrainer`.

    Raises:
        ModelError: as `width`.
        RecipeError: as `others_a_batch`.
    """

    def __init__(self, *args, teacher: Teacher, settings: TeacherRecipe, others: Sequence[Pixels] = (), **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher, self.settings = teacher, settings
        teacher.model.to(self.args.device)
        self.projection = _projection(self.model.timm_model, teacher.features, self.recipe.seed).to(self.args.device)
        self.labelled = self.train_dataset
        if not others:
            return
        self.others_a_batch = others_a_batch(settings, self.recipe.batch_size)
        self.train_dataset = Together(self.labelled, *others)

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs):
        """As `OCTTrainer`'s; the projection goes on too."""
        if resume_from_checkpoint:
            self.projection.load_state_dict(load_file(Path(resume_from_checkpoint) / PROJECTION_FILE))
        return super().train(resume_from_checkpoint, **kwargs)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        if self.train_dataset is self.labelled:
            return super()._get_train_sampler(train_dataset)
        labelled = len(self.labelled)
        others = len(self.train_dataset) - labelled
        return MixedSampler(labelled, others, self.recipe.batch_size, self.others_a_batch, self.recipe.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """labels * OCTTrainer's loss + logits * `logit_loss` + features * `feature_loss`; plain while evaluating."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with entering_classifier(self.model.timm_model) as seen:
            labelled, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with self.accelerator.autocast():  # the Trainer sees to that for its own model alone
            features, logits = self.teacher(inputs["pixel_values"])
        weights = self.settings
        loss = (
            weights.labels * labelled
            + weights.logits * logit_loss(outputs.logits.float(), logits, weights.temperature)
            + weights.features * feature_loss(self.projection(seen[0].float()).float(), features)
        )
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        # The Trainer looks after the model's gradients alone: those of the projection are cleared and
        # clipped here.
        if self._passes[0] != self.state.global_step:
            self.projection.zero_grad()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            nn.utils.clip_grad_norm_(self.projection.parameters(), self.args.max_grad_norm)
        return loss

    def training_loss(self, logits: torch.Tensor, inputs: dict) -> torch.Tensor:
        """The recipe's loss of the pictures that have a label."""
        kept = inputs["labels"] != NO_LABEL
        if not kept.any():
            return logits.sum() * 0.0
        return super().training_loss(logits[kept], {"labels": inputs["labels"][kept]})

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`OCTTrainer`'s, with the projection as one group more."""
        if self.optimizer is None:
            super().create_optimizer(model)
            rate, decay = self.args.learning_rate, self.recipe.weight_decay
            self.optimizer.add_param_group(
                {"params": list(self.projection.parameters()), "lr": rate, "weight_decay": decay}
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.is_in_train and output_dir:
            tensors = {key: value.contiguous() for key, value in self.projection.state_dict().items()}
            save_file(tensors, Path(output_dir) / PROJECTION_FILE)


def _projection(network: nn.Module, features: int, seed: int) -> nn.Linear:
    """From the student's features to the teacher's, the same start for the same seed whatever was drawn before."""
    given = width(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(given, features)
