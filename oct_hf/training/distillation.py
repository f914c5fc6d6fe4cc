"""Knowledge distillation: a student learns from a teacher's features and logits, on pictures that need no label.

Teacher and student see the very same augmented picture (Beyer et al., "Knowledge distillation: a good teacher is
patient and consistent", CVPR 2022), so phantoms and unlabelled B-scans teach as well as labelled ones. The layer that
maps features to features belongs to the Trainer: no checkpoint that is loaded as a model holds it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

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
from oct_hf.training.recipe import TeacherRecipe
from oct_hf.training.unlabelled import NO_LABEL, MixedTrainer

PROJECTION_FILE = "projection.safetensors"
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


def width(network: nn.Module, section: str = "teacher") -> int:
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
    """

    def __init__(self, model, preprocessing: Preprocessing, student: Preprocessing):
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.networks = list(getattr(model.timm_model, "members", [model.timm_model]))
        self.features = sum(map(width, self.networks))
        size, given = (preprocessing.height, preprocessing.width), (student.mean, student.std)
        self.renormalised = Renormalised(preprocessing.mean, preprocessing.std, size, given)

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

    def _prepare_inputs(self, inputs: dict) -> dict:
        # Pictures grow for what a student's step costs; what the teacher says of small ones is worth less.
        images = inputs["pixel_values"]
        inputs = super()._prepare_inputs(inputs)
        whole = self.preprocessing.height, self.preprocessing.width
        if self.model.training and images.dtype == torch.uint8 and inputs["pixel_values"].shape[2:] != whole:
            inputs["whole"] = normalise(images.to(self.args.device), self.preprocessing)
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """labels * OCTTrainer's loss + logits * `logit_loss` + features * `feature_loss`; plain while evaluating."""
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
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`OCTTrainer`'s, with the projection as one group more."""
        if self.optimizer is None:
            super().create_optimizer(model)
            rate, decay = self.args.learning_rate, self.recipe.weight_decay
            self.optimizer.add_param_group(
                {"params": list(self.projection.parameters()), "lr": rate, "weight_decay": decay}
            )
        return self.optimizer


def _projection(network: nn.Module, features: int, seed: int) -> nn.Linear:
    """From the student's features to the teacher's, the same start for the same seed whatever was drawn before."""
    given = width(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(given, features)
