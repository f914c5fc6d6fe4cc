"""Co-teaching: two networks learn side by side, each from the labels that the other finds easy.

Han et al., "Co-teaching: robust training of deep neural networks with extremely noisy labels" (NeurIPS 2018). A network
learns right labels first and wrong ones by heart later, so the examples of small loss are those whose label is probably
right; what one network errs in choosing, the other, which started elsewhere, corrects. The first network is the one
that is averaged, measured and kept: the two are alike, and to keep the better one would measure twice as often and
choose among twice as many on the validation side.
"""

import torch
from torch.nn import functional

from oct_hf.errors import RecipeError
from oct_hf.training.optimisers import parameter_groups
from oct_hf.training.recipe import CoTeachingRecipe
from oct_hf.training.thawing import Thawing
from oct_hf.training.trainer import OCTTrainer

PEER_FILE = "peer.safetensors"  # the other network, in a checkpoint


def kept_share(settings: CoTeachingRecipe, epoch: int) -> float:
    """R(T) = 1 - min(T / T_k * tau, tau), the share of a batch that is learned from in an epoch counted from 0."""
    return 1 - settings.forget_rate * min(epoch / settings.gradual, 1)


def small_losses(logits: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
    """Which examples of a batch have the smallest cross-entropy.

    Args:
        logits: `(N, classes)`.
        labels: int64 `(N,)`.
        share: of the batch that is chosen, rounded down but never to none.

    Returns:
        int64, their places in the batch, the smallest loss first; of equal ones the first in the batch.
    """
    losses = functional.cross_entropy(logits.detach(), labels, reduction="none")
    count = max(1, int(share * len(labels) + 1e-6))
    return losses.argsort(stable=True)[:count]


class CoTeachingTrainer(OCTTrainer):
    """`OCTTrainer` with a second network beside its model; each learns from what the other chooses of a batch.

    The loss is the sum of both networks' losses: they share no weight, so each gets its own gradient. Where a step is
    taken in several passes, each pass is chosen from alone.

    Args:
        peer: the other network, on another start.
        settings: the recipe's section `co_teaching`.
        args, kwargs: of `OCTTrainer`.

    Raises:
        RecipeError: images with several labels.
    """

    def __init__(self, *args, peer, settings: CoTeachingRecipe, **kwargs):
        super().__init__(*args, **kwargs)
        if self.several:
            raise RecipeError("co_teaching: networks choose by the loss of one label an image, not of several at once")
        self.settings = settings
        self.peer = peer.to(self.args.device, memory_format=torch.channels_last)
        self.companions[PEER_FILE] = self.peer
        self.peer_thawing = Thawing(self.peer.timm_model, self.recipe)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The recipe's loss of each network on what the other one chose; plain while evaluating."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.thawing.hold()
        self.peer.train()
        self.peer_thawing.hold()
        outputs = model(pixel_values=inputs["pixel_values"])
        with self.accelerator.autocast():  # the Trainer sees to that for its own model alone
            others = self.peer(pixel_values=inputs["pixel_values"]).logits.float()
        own, labels = outputs.logits.float(), inputs["labels"]
        share = kept_share(self.settings, self.epoch)
        by_own, by_other = (small_losses(logits, labels, share) for logits in (own, others))
        loss = self.training_loss(own[by_other], {"labels": labels[by_other]})
        loss = loss + self.training_loss(others[by_own], {"labels": labels[by_own]})
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.peer_thawing.set_epoch(self.epoch)
        return super().training_step(model, inputs, num_items_in_batch)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`OCTTrainer`'s, with the other network's weights in groups of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        for group in parameter_groups(self.peer.timm_model, self.recipe, self.args.learning_rate):
            optimizer.add_param_group(group)
        return optimizer
