"""Knowledge distillation: a student learns from a teacher's features and logits, on pictures that need no label.

Teacher and student see the very same augmented picture (Beyer et al., "Knowledge distillation: a good teacher is
patient and consistent", CVPR 2022), so phantoms and unlabelled B-scans teach as well as labelled ones. The layer that
maps features to features belongs to the Trainer: no checkpoint that is loaded as a model holds it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from oct_hf.data import phantom
from oct_hf.data.pixels import PixelFile, Pixels
from oct_hf.errors import ModelError
from oct_hf.images import Preprocessing
from oct_hf.labels import COARSER
from oct_hf.model.combined import Renormalised
from oct_hf.parallel import in_order
from oct_hf.training.batches import normalise
from oct_hf.training.feature_maps import FeatureMaps
from oct_hf.training.recipe import TeacherRecipe
from oct_hf.training.unlabelled import NO_LABEL, MixedTrainer

PROJECTION_FILE, HINTS_FILE = "projection.safetensors", "hints.safetensors"
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


def maps_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The share of a teacher's feature map that a student's, already projected, doesn't explain; 0 where both are one.

    Mean square between the student's map and the teacher's at the student's grid, each channel of the latter with mean
    0 and variance 1 over the batch. FitNets' hints (Romero et al., ICLR 2015), at a scale that no network chooses.

    Args:
        student, teacher: `(N, channels, h, w)` each; the teacher's `h` and `w` may be others.
    """
    told = functional.adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[3]))
    return functional.mse_loss(student, functional.batch_norm(told, None, None, training=True))


@contextmanager
def entering_classifier(network: Any) -> Iterator[list[torch.Tensor]]:
    """Collects what a timm network's classifier is given inside the block: pooled features, `(N, features)`."""
    seen: list[torch.Tensor] = []
    handle = network.get_classifier().register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    try:
        yield seen
    finally:
        handle.remove()


def width(network: Any, section: str = "teacher") -> int:
    """How many features a timm network's classifier is given.

    Args:
        network: whose.
        section: of the recipe that needs to know, for the error.

    Raises:
        ModelError: the classifier isn't one linear layer (or a convolution of one pixel).
    """
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        kind = type(classifier).__name__
        raise ModelError(
            f"{section}: features are compared before one linear classifier, and this network's is a {kind}"
        )
    return classifier.weight.shape[1]


class Teacher:
    """A trained network that is only asked.

    Args:
        model: an `OCTForImageClassification` with the student's labels in the student's order. An ensemble's features
            are those of its members, each of length 1, joined.
        preprocessing: of its input.
        student: preprocessing of the student's input, in which batches arrive.
        with_maps: whether what its stages give is asked too.

    Attributes:
        maps: of each network, its `FeatureMaps`, whose last maps are there to be taken; none unless `with_maps`.
    """

    def __init__(self, model, preprocessing: Preprocessing, student: Preprocessing, with_maps: bool = False):
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.networks = list(getattr(model.timm_model, "members", [model.timm_model]))
        self.features = sum(map(width, self.networks))
        size, given = (preprocessing.height, preprocessing.width), (student.mean, student.std)
        self.renormalised = Renormalised(preprocessing.mean, preprocessing.std, size, given)
        self.maps = [FeatureMaps(network, *size) for network in self.networks] if with_maps else []

    def to(self, device: torch.device) -> "Teacher":
        """Moves it, in place."""
        self.model.to(device)
        self.renormalised.to(device)
        return self

    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `(N, features)` and logits `(N, classes)`, float32, of a batch as the student gets it."""
        with torch.no_grad(), ExitStack() as hooks:
            seen = [hooks.enter_context(entering_classifier(network)) for network in self.networks]
            logits = self.model(pixel_values=self.renormalised(pixel_values)).logits
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


# --- the training ----------------------------------------------------------------------------------------------------


class DistillingTrainer(MixedTrainer):
    """`OCTTrainer` whose loss also holds a teacher's features and logits.

    Where the student's pictures grow (`start_size`), the teacher sees them whole from the first step on.

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
        setting = f"teacher.share: {settings.share}"
        super().__init__(*args, others=others, share=settings.share, setting=setting, **kwargs)
        self.teacher, self.settings = teacher, settings
        teacher.to(self.args.device)
        self.projection = _projection(self.model.timm_model, teacher.features, self.recipe.seed).to(self.args.device)
        self.companions[PROJECTION_FILE] = self.projection
        self.hints = (
            Hints(self.model.timm_model, teacher, self.preprocessing, self.recipe.seed) if settings.maps else None
        )
        if self.hints:
            self.companions[HINTS_FILE] = self.hints.to(self.args.device)

    def train(self, *args, **kwargs):
        """`OCTTrainer.train`; no hook stays on the student."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.hints:
                self.hints.student.remove()

    def _prepare_inputs(self, inputs: dict) -> dict:
        # Pictures grow for what a student's step costs; what the teacher says of small ones is worth less.
        images = inputs["pixel_values"]
        inputs = super()._prepare_inputs(inputs)
        whole = self.preprocessing.height, self.preprocessing.width
        if self.model.training and images.dtype == torch.uint8 and inputs["pixel_values"].shape[2:] != whole:
            inputs["whole"] = normalise(images.to(self.args.device), self.preprocessing)
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """labels * OCTTrainer's loss + logits * `logit_loss` + features * `feature_loss` + maps * the mean `maps_loss`.

        Plain while evaluating.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with entering_classifier(self.model.timm_model) as seen:
            labelled, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with self.accelerator.autocast():  # the Trainer sees to that for its own model alone
            features, logits = self.teacher(inputs.get("whole", inputs["pixel_values"]))
        weights = self.settings
        loss = (
            weights.labels * labelled
            + weights.logits * logit_loss(outputs.logits.float(), logits, weights.temperature)
            + weights.features * feature_loss(self.projection(seen[0].float()).float(), features)
        )
        if self.hints:
            loss = loss + weights.maps * self.hints()
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`OCTTrainer`'s, with each companion as one group more."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        rate, decay = self.args.learning_rate, self.recipe.weight_decay
        for companion in self.companions.values():
            optimizer.add_param_group({"params": list(companion.parameters()), "lr": rate, "weight_decay": decay})
        return optimizer


class Hints(nn.Module):
    """Maps a student's feature maps to its teacher's, at each stride that both have.

    Args:
        network: the student, a timm network.
        teacher: with its maps.
        preprocessing: of the student's input.
        seed: of the start, the same whatever was drawn before.

    Raises:
        ModelError: no stride has maps of both.
    """

    projections: Any  # a list, of each teacher network its layers by stride

    def __init__(self, network: nn.Module, teacher: Teacher, preprocessing: Preprocessing, seed: int):
        super().__init__()
        self.student, self.teachers = FeatureMaps(network, preprocessing.height, preprocessing.width), teacher.maps
        given = dict(zip(self.student.strides, self.student.channels, strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projections = nn.ModuleList(
                nn.ModuleDict(
                    {
                        str(stride): nn.Conv2d(given[stride], channels, 1)
                        for stride, channels in zip(maps.strides, maps.channels, strict=True)
                        if stride in given
                    }
                )
                for maps in self.teachers
            )
        if not any(self.projections):
            raise ModelError("teacher.maps: student and teacher have no feature maps in common; set it to 0")

    def forward(self) -> torch.Tensor:
        """Mean of `maps_loss` over strides and teachers, of the last pass of both."""
        student = dict(zip(self.student.strides, self.student.take(), strict=True))
        losses = [
            maps_loss(projections[str(stride)](student[stride]), told)
            for projections, maps in zip(self.projections, self.teachers, strict=True)
            for stride, told in zip(maps.strides, maps.take(), strict=True)
            if str(stride) in projections
        ]
        return torch.stack(losses).mean()


def _projection(network: nn.Module, features: int, seed: int) -> nn.Linear:
    """From the student's features to the teacher's, the same start for the same seed whatever was drawn before."""
    given = width(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(given, features)
