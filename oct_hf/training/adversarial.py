"""A semi-supervised GAN: the classifier is also the discriminator, and learns from B-scans that have no label.

Salimans et al., "Improved techniques for training GANs" (2016), section 5; on B-scans doi 10.1007/s00521-021-05826-w.
Of K + 1 classes the last one, "generated", has its logit fixed at 0, so the classifier keeps its K outputs and any
timm network will do. The generator belongs to the Trainer: no checkpoint that is loaded as a model holds it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from oct_hf.images import Preprocessing
from oct_hf.training.batches import normalise, shrink
from oct_hf.training.distillation import entering_classifier, width
from oct_hf.training.recipe import AdversarialRecipe
from oct_hf.training.trainer import save_weights
from oct_hf.training.unlabelled import MixedTrainer

GENERATOR_FILE = "generator.safetensors"
_DOUBLINGS = 5  # of the generator's map, so that its first one has the classifier's last one's size
_BETAS = 0.5, 0.999  # of the generator's Adam, Radford et al.
_BATCH = 64  # pictures drawn at once
_FAR = 3.0


# --- the loss --------------------------------------------------------------------------------------------------------


def real_or_generated_loss(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """-E log D(x) - E log(1 - D(G(z))) with D(x) = Z / (Z + 1) and Z the sum of exp(logit) over the K classes.

    Salimans et al., section 5: log D is -softplus(-log Z), and log(1 - D) is -softplus(log Z).

    Args:
        real, generated: logits of the K classes, `(N, K)` and `(M, K)`.

    Returns:
        in nats.
    """
    return functional.softplus(-real.logsumexp(-1)).mean() + functional.softplus(generated.logsumexp(-1)).mean()


def matching_loss(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Feature matching, the generator's loss: the squared distance of mean features (Salimans et al., section 3.1),
    over the number of features, so that it has one scale for all networks.

    Args:
        real: mean features of real pictures, `(features,)`.
        generated: features, `(N, features)`.
    """
    return (real - generated.mean(0)).square().mean()


Statistics = dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]  # mean and variance of a layer's input, a channel


def _but_channels(batch: torch.Tensor) -> list[int]:
    return [dim for dim in range(batch.ndim) if dim != 1]


@contextmanager
def recording_statistics(network: nn.Module) -> Iterator[Statistics]:
    """Collects by what batch norm, where it trains, normalises the batch that passes the network inside the block."""
    seen: Statistics = {}

    def look(norm: nn.Module, given: tuple[torch.Tensor]) -> None:
        if norm.training:
            variance, mean = torch.var_mean(given[0].detach().float(), _but_channels(given[0]), correction=0)
            seen[norm] = mean, variance

    handles = [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, _BatchNorm)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def normalised_by(statistics: Statistics) -> Iterator[None]:
    """Batch norm normalises by given statistics inside the block, and its own stay as they are.

    By its own batch's a generated picture would get the mean and contrast of a real one, whatever it was. By real
    ones' alone nothing would bound what far-off pictures become from layer to layer, nor their gradients; so a channel
    that lies further from the given mean than `_FAR` given standard deviations (root mean square) is brought to that.
    """
    kept = {norm: (norm.running_mean, norm.running_var) for norm in statistics}

    def bound(norm: nn.Module, given: tuple[torch.Tensor]) -> None:
        (batch,), (mean, variance) = given, statistics[norm]
        centred = batch.detach().float() - mean.view(-1, *[1] * (batch.ndim - 2))
        norm.running_var = torch.maximum(variance, centred.square().mean(_but_channels(batch)) / _FAR**2)

    handles = [norm.register_forward_pre_hook(bound) for norm in statistics]
    for norm, (mean, variance) in statistics.items():
        norm.running_mean, norm.running_var = mean, variance
        norm.eval()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, (mean, variance) in kept.items():
            norm.running_mean, norm.running_var = mean, variance
            norm.train()


# --- the generator ---------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """Gray B-scans from noise: Radford et al., "DCGAN" (2016), with nearest-neighbour doubling and a convolution in
    place of a transposed one, which leaves a checkerboard (Odena et al., "Deconvolution and checkerboard artifacts",
    2016).

    Args:
        latent: numbers that a picture is made of.
        height, width: of a picture, in pixels.
        channels: of the finest feature map.

    Shape:
        noise `(N, latent)` to gray levels from 0 to 1, `(N, height, width)`.
    """

    def __init__(self, latent: int, height: int, width: int, channels: int):
        super().__init__()
        self.latent, self.size = latent, (height, width)
        self.grid = tuple(math.ceil(side / 2**_DOUBLINGS) for side in self.size)
        counts = [channels * 2**level for level in reversed(range(_DOUBLINGS + 1))]
        self.start = nn.Linear(latent, counts[0] * self.grid[0] * self.grid[1])
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.BatchNorm2d(given),
                    nn.ReLU(),
                    nn.Upsample(scale_factor=2),
                    nn.Conv2d(given, made, 3, padding=1, bias=False),
                )
                for given, made in pairwise(counts)
            ),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 3, padding=1),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    @classmethod
    def of(cls, settings: AdversarialRecipe, preprocessing: Preprocessing, seed: int = 0) -> "Generator":
        """The generator of a recipe's section, the same start for the same seed whatever was drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(settings.latent, preprocessing.height, preprocessing.width, settings.width)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        maps = self.blocks(self.start(noise).unflatten(1, (-1, *self.grid)))
        height, width = self.size
        return maps[:, 0, :height, :width].float().sigmoid()

    @torch.no_grad()
    def pictures(self, count: int, seed: int = 0) -> np.ndarray:
        """uint8 `(count, height, width)`, the same for the same seed."""
        self.eval()
        device, random = self.start.weight.device, torch.Generator().manual_seed(seed)
        noise = torch.randn(count, self.latent, generator=random)
        drawn = [(255 * self(part.to(device))).round().byte().cpu().numpy() for part in noise.split(_BATCH)]
        return np.concatenate(drawn)


# --- the training ----------------------------------------------------------------------------------------------------


class AdversarialTrainer(MixedTrainer):
    """`OCTTrainer` whose loss also tells real B-scans from those of a generator, which learns beside it.

    Only real pictures count in batch norm's statistics, since they are what the finished classifier sees; generated
    ones are normalised as the real ones of the same step (`normalised_by`).

    Args:
        settings: the recipe's section `adversarial`.
        args, kwargs: of `MixedTrainer`.

    Attributes:
        generator: of B-scans as the augmented training side shows them.

    Raises:
        ModelError: the network's classifier isn't one linear layer.
    """

    def __init__(self, *args, settings: AdversarialRecipe, **kwargs):
        setting = f"adversarial.share: {settings.share}"
        super().__init__(*args, share=settings.share, setting=setting, **kwargs)
        self.settings = settings
        width(self.model.timm_model, "adversarial")
        generator = Generator.of(settings, self.preprocessing, self.recipe.seed)
        self.companions[GENERATOR_FILE] = self.generator = generator.to(self.args.device)
        self._real: torch.Tensor | None = None  # of the running step: mean features of its real pictures,
        self._statistics: Statistics = {}  # and by what they were normalised

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """OCTTrainer's loss + weight * `real_or_generated_loss`; plain while evaluating."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        network = self.model.timm_model
        with entering_classifier(network) as seen, recording_statistics(network) as self._statistics:
            labelled, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._real = seen[0].detach().float().mean(0)
        with torch.no_grad():
            drawn = self._drawn(len(inputs["pixel_values"]))
        with normalised_by(self._statistics):
            generated = model(pixel_values=drawn).logits.float()
        loss = labelled + self.settings.weight * real_or_generated_loss(outputs.logits.float(), generated)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        # The generator's gradients alone: those of the network are of its own loss.
        with entering_classifier(self.model.timm_model) as seen, normalised_by(self._statistics):
            model(pixel_values=self._drawn(len(inputs["pixel_values"])))
        parameters = list(self.generator.parameters())
        assert self._real is not None  # the step has computed the loss
        gradients = torch.autograd.grad(matching_loss(self._real, seen[0].float()), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        return loss

    def _drawn(self, count: int) -> torch.Tensor:
        """Generated pictures as the network takes them, float32 `(count, 3, height, width)`."""
        noise = torch.randn(count, self.settings.latent, device=self.args.device)
        self.generator.train()
        with self.accelerator.autocast():  # the Trainer sees to that for its own model alone
            gray = 255 * self.generator(noise)
        if start := self.recipe.start_size:
            gray = shrink(gray, *self._training_size(start))
        return normalise(gray, self.preprocessing)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`OCTTrainer`'s, with the generator as one group more."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        group = {"params": list(self.generator.parameters()), "lr": self.settings.learning_rate}
        optimizer.add_param_group(group | {"weight_decay": 0.0, "betas": _BETAS})
        return optimizer

    def save_generator(self, file: Path) -> None:
        """The generator's weights as safetensors; they may hold what training pictures show, so they stay at home."""
        save_weights(self.generator, file)
