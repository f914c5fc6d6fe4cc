"""FixMatch: what a network is sure of on a weakly augmented B-scan, it must say of the strongly augmented one too.

Sohn et al., "FixMatch: simplifying semi-supervised learning with consistency and confidence" (NeurIPS 2020). The loss
is that of the labels plus `weight` times `consistency_loss`. As there, the weak pictures are answered by the training
network itself, dropout and batch statistics included; here in a pass of their own, since it needs no gradient.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import RecipeError
from oct_hf.training.recipe import SemiRecipe
from oct_hf.training.unlabelled import NO_LABEL, MixedTrainer


def consistency_loss(strong: torch.Tensor, weak: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy to the most probable label, where that is at least `threshold` probable; eq. 4 of the paper.

    Args:
        strong: logits `(N, classes)` of the strongly augmented pictures.
        weak: logits `(N, classes)` of the weakly augmented ones; no gradient flows through them.
        threshold: 0 to 1.

    Returns:
        the sum over the pictures that pass, over N; and their share.
    """
    sure, label = weak.detach().softmax(-1).max(-1)
    passed = (sure >= threshold).float()
    each = functional.cross_entropy(strong, label, reduction="none")
    return (passed * each).mean(), passed.mean()


class TwoViews(Dataset):
    """Pictures without their labels, each as its own set augments it and strongly too (`strong` of an item).

    Args:
        pictures: with the weak augmentation.
        strong: the other one.
    """

    def __init__(self, pictures: Pixels, strong: Augmentation):
        self.pictures, self.strong = pictures, strong

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        image = self.pictures.images[index]
        if epoch is not None:
            # Other random numbers than the weak view's, or both would be moved alike.
            image = self.strong(image, epoch, f"{self.pictures.hashes[index]} strong")
        return self.pictures[key] | {"labels": np.int64(NO_LABEL), "strong": image}

    def file_of(self, index: int) -> str:
        """Which picture it is, for messages."""
        return self.pictures.file_of(index)


class FixMatchTrainer(MixedTrainer):
    """`OCTTrainer` that learns from pictures without labels beside its training side.

    Its log has `sure`, the share of pictures without labels that were learned from since the last line.

    Args:
        settings: the recipe's section `semi`.
        others: the pictures without labels, weakly augmented; labels that they carry are not read.
        strong: the strong augmentation.
        args, kwargs: of `OCTTrainer`.

    Raises:
        RecipeError: a batch without room for both kinds, or images with several labels.
    """

    def __init__(self, *args, settings: SemiRecipe, others: Sequence[Pixels], strong: Augmentation, **kwargs):
        views, ratio = [TwoViews(part, strong) for part in others], settings.ratio
        super().__init__(*args, others=views, share=ratio / (1 + ratio), setting=f"semi.ratio: {ratio}", **kwargs)
        if self.several:
            raise RecipeError("semi: FixMatch learns one label an image, not several at once")
        self.settings = settings
        self._passed: list[torch.Tensor] = []

    def _prepare_inputs(self, inputs: dict) -> dict:
        strong = inputs.get("strong")
        inputs = super()._prepare_inputs(inputs)
        if strong is not None and strong.dtype == torch.uint8:
            inputs["strong"] = self.normalised(inputs["strong"])
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """`OCTTrainer`'s loss of the labelled pictures + weight * `consistency_loss`; plain while evaluating."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.thawing.hold()
        pixels, weight = inputs["pixel_values"], self.settings.weight
        labelled = int((inputs["labels"] != NO_LABEL).sum())  # they come first
        weak, strong = pixels[labelled:], inputs["strong"][labelled:]
        outputs = model(pixel_values=torch.cat([pixels[:labelled], strong]) if weight else pixels[:labelled])
        logits = outputs.logits.float()
        own = {key: inputs[key][:labelled] for key in ("labels", "index") if key in inputs}
        loss = self.training_loss(logits[:labelled], own)
        if weight and len(weak):
            with torch.no_grad():
                told = model(pixel_values=weak).logits.float()
            consistent, passed = consistency_loss(logits[labelled:], told, self.settings.threshold)
            loss = loss + weight * consistent
            self._passed.append(passed)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """`Trainer.log`, with the share that passed the threshold."""
        if "loss" in logs and self._passed:
            logs["sure"] = round(torch.stack(self._passed).mean().item(), 4)
            self._passed.clear()
        super().log(logs, *args, **kwargs)
