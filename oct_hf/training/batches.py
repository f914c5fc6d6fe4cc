"""What happens to a batch between the workers and the network: order, size, normalisation, mixing.

All of it depends on seed, epoch and step alone, so that a stopped training goes on with the batches it would have had.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Sampler
from torchvision.transforms import v2

from oct_hf.images import Preprocessing
from oct_hf.training.recipe import TrainRecipe

STAGES = 4  # of progressive resizing, as Tan & Le have them
_STRIDE = 32  # pixels; the networks' own stride


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
    """A batch: uint8 `(N, height, width)`, int64 labels `(N,)` or `(N, classes)`, int64 numbers of the pictures.

    Where some have a second view, `strong` holds it, and of the others the picture itself.
    """
    batch = {"pixel_values": torch.from_numpy(np.stack([item["pixel_values"] for item in items]))}
    for key in ("labels", "index"):
        if key in items[0]:
            batch[key] = torch.from_numpy(np.array([item[key] for item in items], np.int64))
    if any("strong" in item for item in items):
        views = [item.get("strong", item["pixel_values"]) for item in items]
        batch["strong"] = torch.from_numpy(np.stack(views))
    return batch


def normalise(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """float32 `(N, 3, height, width)` in channels-last memory of 0 to 255 `(N, height, width)`, on their device."""
    mean = torch.tensor(preprocessing.mean, device=images.device)
    std = torch.tensor(preprocessing.std, device=images.device)
    # (v / 255 - mean) / std, in one pass
    return torch.addcmul(-mean / std, images[..., None].float(), 1 / (255 * std)).permute(0, 3, 1, 2)


def training_size(start: int, final: int, epoch: int, epochs: int) -> int:
    """Pixels of an epoch's pictures: from `start` to `final` in up to four equal steps, the last stage at `final`.

    Tan & Le, "EfficientNetV2: smaller models and faster training" (2021), algorithm 1, without its growing
    regularisation; sizes between are multiples of 32.
    """
    stages = min(STAGES, epochs)
    stage = min(stages - 1, epoch * stages // epochs)
    if stage == stages - 1 or start >= final:
        return final
    return max(_STRIDE, round((start + (final - start) * stage / (stages - 1)) / _STRIDE) * _STRIDE)


def shrink(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """float `(N, height, width)`, 0 to 255, antialiased, of uint8 pictures of another size."""
    if images.shape[1:] == (height, width):
        return images
    small = functional.interpolate(images[:, None].float(), (height, width), mode="bilinear", antialias=True)
    return small[:, 0]


def make_mixing(recipe: TrainRecipe, classes: int) -> v2.Transform | None:
    """Mixup (Zhang et al. 2018), CutMix (Yun et al. 2019) or one of them by chance, as torchvision has them.

    It takes float `(N, 3, height, width)` and labels and gives both mixed, labels as shares `(N, classes)`; its random
    numbers are torch's global ones, which the trainer seeds by the step.
    """
    kinds = [(v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix)]
    chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    return v2.RandomChoice(chosen) if len(chosen) > 1 else (chosen or [None])[0]
