"""Which part of a network trains: the head alone at first, then stage by stage down to the stem."""

import math
from typing import Any

from timm.models import group_parameters

from oct_hf.training.recipe import TrainRecipe


class Thawing:
    """Freezes and thaws by the epoch alone, so that a resumed training needs no memory of it.

    Howard & Ruder, "Universal language model fine-tuning for text classification" (2018), section 3.3, over the
    stages that timm tells apart.

    Args:
        network: a timm network.
        recipe: its `freeze_epochs` and `thaw_epochs`.

    Attributes:
        frozen: whether some of it doesn't train.
    """

    def __init__(self, network: Any, recipe: TrainRecipe):
        self.network, self.recipe = network, recipe
        self.frozen = False
        self._share = 1.0

    def set_epoch(self, epoch: int) -> None:
        """Lets those stages train that the schedule has come to."""
        thawing = epoch - self.recipe.freeze_epochs
        share = 0.0 if thawing < 0 else min(1.0, (thawing + 1) / (self.recipe.thaw_epochs + 1))
        if share == self._share:
            return
        stages = list(group_parameters(self.network, self.network.group_matcher(coarse=True)).values())
        still = stages[: len(stages) - math.ceil(len(stages) * share)]
        names = {name for stage in still for name in stage}
        head = {id(p) for p in self.network.get_classifier().parameters()}
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in names or id(parameter) in head)
        self.frozen, self._share = share < 1, share

    def hold(self) -> None:
        """Keeps batch norm's statistics and dropout of what is frozen still; `train()` on the network undoes it."""
        if self.frozen and self._share == 0:
            self.network.eval()
            self.network.get_classifier().train()
        elif self.frozen:
            for module in self.network.modules():
                parameters = list(module.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    module.eval()
