"""The training losses, made by `make_loss` from a recipe: one small module each, called with logits and labels.

Labels may be numbers or shares (after mixup, or several at once), so each formula is written for shares: of a loss
l(c) for class c it is the sum of y_c l(c). What a loss remembers of each image is a buffer, so checkpoints keep it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from oct_hf.errors import RecipeError, did_you_mean
from oct_hf.training.recipe import LOSSES, TrainRecipe


class TrainingLoss(nn.Module):
    """Cross-entropy, weighted and smoothed; the base of the others.

    Args:
        options: the loss's own numbers.
        counts: images of each class on the training side, `(classes,)`.
        weights: weight of each class, float32 `(classes,)`, or None.
        smoothing: label smoothing, share of a label that goes to all classes alike (Szegedy et al. 2016).
        images: count of images on the training side.
    """

    counts: Tensor
    weights: Tensor | None

    def __init__(
        self, options: dict[str, float], counts: Tensor, weights: Tensor | None, smoothing: float, images: int
    ):
        super().__init__()
        self.options, self.smoothing = options, smoothing
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor | None = None, progress: float = 0.0) -> Tensor:
        """The mean loss of a batch.

        Args:
            logits: float `(N, classes)`.
            labels: int64 `(N,)`, or shares, float `(N, classes)`.
            index: int64 `(N,)`, which images these are; only a loss that remembers images needs it.
            progress: share of the training that is done, 0 to 1; only a loss that changes needs it.
        """
        return functional.cross_entropy(logits, labels, weight=self.weights, label_smoothing=self.smoothing)

    def shares(self, labels: Tensor) -> Tensor:
        """float `(N, classes)`, smoothed, of labels in either form."""
        classes = len(self.counts)
        dense = functional.one_hot(labels, classes).float() if labels.ndim == 1 else labels.float()
        return dense * (1 - self.smoothing) + self.smoothing / classes

    def mean(self, by_class: Tensor, shares: Tensor) -> Tensor:
        """The mean over the batch of `(N, classes)` losses, by shares and class weights as cross-entropy does it."""
        weighted = shares if self.weights is None else shares * self.weights
        return (weighted * by_class).sum() / weighted.sum()


class Focal(TrainingLoss):
    """(1 - p)^gamma * -log p: what is already sure counts little. Lin et al., "Focal loss for dense object detection"
    (2017), eq. 4, over softmax probabilities; with `class_weights: effective` it is Cui's class-balanced focal loss."""

    def forward(self, logits, labels, index=None, progress=0.0):
        log_p = functional.log_softmax(logits, -1)
        unsure = (-torch.expm1(log_p)).clamp(min=1e-8)  # at 0 a gamma below 1 has no gradient
        return self.mean(-(unsure ** self.options["gamma"]) * log_p, self.shares(labels))


class LDAM(TrainingLoss):
    """Margins that grow as a class gets rare, C / n^(1/4), and class weights only in the last part of the training.

    Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019), with deferred
    re-weighting by effective numbers. The paper's cosine classifier with scale 30 isn't one that every loader reads;
    a linear classifier has logits of its own scale, so `scale` is 1.
    """

    margins: Tensor
    late: Tensor | None

    def __init__(self, options, counts, weights, smoothing=0.0, images=0):
        super().__init__(options, counts, weights, smoothing, images)
        margins = counts.clamp(min=1) ** -0.25
        self.register_buffer("margins", margins * options["margin"] / margins.max(), persistent=False)
        late = effective_weights(counts, options["beta"]) if weights is None else weights
        self.register_buffer("late", late, persistent=False)

    def forward(self, logits, labels, index=None, progress=0.0):
        weights = self.late if progress >= self.options["reweight_from"] else None
        shares = self.shares(labels)
        logits = self.options["scale"] * (logits - shares * self.margins)
        weighted = shares if weights is None else shares * weights
        return -(weighted * functional.log_softmax(logits, -1)).sum() / weighted.sum()


class GCE(TrainingLoss):
    """(1 - p^q) / q, between cross-entropy (q to 0) and the mean absolute error (q = 1), which wrong labels pull less.
    Zhang & Sabuncu, "Generalized cross entropy loss for training deep neural networks with noisy labels" (2018)."""

    def forward(self, logits, labels, index=None, progress=0.0):
        q = self.options["q"]
        return self.mean((1 - (q * functional.log_softmax(logits, -1)).exp()) / q, self.shares(labels))


class Symmetric(TrainingLoss):
    """alpha * CE + beta * reverse CE, where log 0 is `log_zero`. Wang et al., "Symmetric cross entropy for robust
    learning with noisy labels" (2019)."""

    def forward(self, logits, labels, index=None, progress=0.0):
        forward = super().forward(logits, labels)
        log_y = self.shares(labels).log().clamp(min=self.options["log_zero"])
        reverse = -(logits.softmax(-1) * log_y).sum(-1).mean()
        return self.options["alpha"] * forward + self.options["beta"] * reverse


class ELR(TrainingLoss):
    """CE + lambda * log(1 - <p, t>), where t is the running mean of the network's own answers for that image: what it
    believed before it began to learn wrong labels by heart. Liu et al., "Early-learning regularization prevents
    memorization of noisy labels" (2020)."""

    targets: Tensor

    def __init__(self, options, counts, weights, smoothing=0.0, images=0):
        super().__init__(options, counts, weights, smoothing, images)
        self.register_buffer("targets", torch.zeros(images, len(counts)))

    def forward(self, logits, labels, index=None, progress=0.0):
        if index is None:
            return super().forward(logits, labels)  # of unknown images nothing is remembered
        p = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
        now = p.detach() / p.detach().sum(-1, keepdim=True)
        target = self.options["beta"] * self.targets[index] + (1 - self.options["beta"]) * now
        self.targets[index] = target
        return super().forward(logits, labels) + self.options["lambda"] * (1 - (target * p).sum(-1)).log().mean()


class Asymmetric(TrainingLoss):
    """Negatives that are already low count little, and those below `clip` nothing. Ben-Baruch et al., "Asymmetric loss
    for multi-label classification" (2021), as timm has it. Of one label the negatives count by label smoothing alone,
    0.1 in its authors' code; without it this is the focal loss of `gamma_pos`."""

    def __init__(self, options, counts, weights, smoothing=0.0, images=0):
        super().__init__(options, counts, weights, smoothing, images)
        focus: dict[str, Any] = {key: options[key] for key in ("gamma_pos", "gamma_neg")}
        self.one = AsymmetricLossSingleLabel(**focus, eps=smoothing, reduction="none")
        self.many = AsymmetricLossMultiLabel(**focus, clip=options["clip"], weight=weights, smoothing=smoothing)

    def forward(self, logits, labels, index=None, progress=0.0):
        if labels.ndim == 2:
            return self.many(logits, labels.float())
        each = self.one(logits, labels)
        weights = torch.ones_like(each) if self.weights is None else self.weights[labels]
        return (weights * each).sum() / weights.sum()


class ManyLabels(TrainingLoss):
    """Binary cross-entropy of each label on its own; focal where `gamma` is given (torchvision's)."""

    def forward(self, logits, labels, index=None, progress=0.0):
        shares = labels.float() * (1 - self.smoothing) + self.smoothing / 2
        if gamma := self.options.get("gamma"):
            each = sigmoid_focal_loss(logits, shares, alpha=-1, gamma=gamma)
        else:
            each = functional.binary_cross_entropy_with_logits(logits, shares, reduction="none")
        return (each if self.weights is None else each * self.weights).mean()


_LOSSES: dict[str, type[TrainingLoss]] = {
    "cross_entropy": TrainingLoss,
    "focal": Focal,
    "ldam": LDAM,
    "asymmetric": Asymmetric,
    "gce": GCE,
    "symmetric": Symmetric,
    "elr": ELR,
}
_MANY_LABELS = {"cross_entropy": ManyLabels, "focal": ManyLabels, "asymmetric": Asymmetric}


def make_loss(recipe: TrainRecipe, labels: np.ndarray, names: Sequence[str], several: bool = False) -> TrainingLoss:
    """The training loss that a recipe names.

    Args:
        recipe: its `loss`, `loss_options`, `class_weights` and `label_smoothing`.
        labels: of the training side, int `(n,)`; or 0 and 1, `(n, classes)`, where an image may have several.
        names: the labels' names.
        several: whether an image may have several labels at once.

    Raises:
        RecipeError: class weights for other labels, or a loss that isn't one for several labels.
    """
    kinds = _MANY_LABELS if several else _LOSSES
    if recipe.loss not in kinds:
        raise RecipeError(f"train.loss: {recipe.loss} is for one label an image; for several: {', '.join(kinds)}")
    labels = np.asarray(labels)
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
    weights = class_weights(recipe.class_weights, labels, names, recipe.class_weights_beta)
    options = LOSSES[recipe.loss] | recipe.loss_options
    counts = torch.as_tensor(counts, dtype=torch.float32)
    return kinds[recipe.loss](options, counts, weights, recipe.label_smoothing, len(labels))


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """What validation reports whatever trains: cross-entropy, or a binary one of several labels `(N, classes)`."""
    if labels.ndim == 2:
        return functional.binary_cross_entropy_with_logits(logits, labels.float())
    return functional.cross_entropy(logits, labels)


def class_weights(
    setting: str | dict | None, labels: np.ndarray, names: Sequence[str], beta: float = 0.999
) -> Tensor | None:
    """Weight of each class in the loss, float32 `(classes,)`.

    Args:
        setting: None; "auto" for n / (classes * n_class), as scikit-learn's "balanced" has it; "effective" for Cui's;
            or one weight a label.
        labels: int `(n,)` or 0 and 1 `(n, classes)`, of the training side.
        names: the labels' names.
        beta: of "effective".

    Raises:
        RecipeError: the mapping's labels aren't the model's.
    """
    if setting is None:
        return None
    if isinstance(setting, str):
        counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
        if setting == "effective":
            return effective_weights(torch.as_tensor(counts), beta)
        return torch.tensor(len(labels) / (len(names) * np.maximum(counts, 1)), dtype=torch.float32)
    for name in [*setting, *names]:
        if name not in names:
            raise RecipeError(f'train.class_weights: no label "{name}"{did_you_mean(name, names)}')
        if name not in setting:
            raise RecipeError(f"train.class_weights: no weight for {name}")
    return torch.tensor([float(setting[name]) for name in names])


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n) of each class, scaled to the mean 1, float32 `(classes,)`.

    Cui et al., "Class-balanced loss based on effective number of samples" (2019).
    """
    weights = (1 - beta) / (1 - beta ** counts.double().clamp(min=1))
    return (weights / weights.mean()).float()
