"""Pretraining without labels: a denoising autoencoder, whose encoder is the network that is fine-tuned afterwards.

Speckle is put on a B-scan, and the network learns to take it off again (Vincent et al., "Extracting and composing
robust features with denoising autoencoders", ICML 2008). Clean B-scans nobody has: the target is the B-scan as it was
exported, averaged by its device over frames, and what is put on is more speckle.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from oct_hf.data.pixels import Pictures
from oct_hf.data.speckle import speckle
from oct_hf.errors import RecipeError
from oct_hf.images import Preprocessing
from oct_hf.model.denoised import Decoder, noise_of
from oct_hf.training.arguments import SELECTION
from oct_hf.training.batches import collate
from oct_hf.training.recipe import TrainRecipe
from oct_hf.training.trainer import OCTTrainer

DISPLAY_RANGE = 9.0  # nepers of intensity between black and white, 39 dB, as on the phantoms' display
EPSILON = 1e-3  # of Charbonnier's loss, in units of the display range
HEAD = "pretraining_head"


def add_speckle(image: np.ndarray, looks: int, rng: np.random.Generator) -> np.ndarray:
    """A B-scan as it would look with more speckle.

    Speckle multiplies the intensity, by a gamma variate of shape `looks` and mean 1 (Goodman, Speckle Phenomena in
    Optics, 2007; Schmitt, Xiang and Yung, J Biomed Opt 1999). Devices show the logarithm of the intensity, so that it
    adds its own logarithm to the gray level.

    Args:
        image: uint8 `(height, width)`.
        looks: independent patterns that are averaged, 1 to 31.
        rng: random numbers.
    """
    noise = cv2.log(np.maximum(speckle(rng, looks, *image.shape), np.float32(1e-4)))
    return cv2.add(image, noise * np.float32(255 / DISPLAY_RANGE), dtype=cv2.CV_8U)


def charbonnier(difference: torch.Tensor) -> torch.Tensor:
    """Mean of sqrt(d² + ε²) - ε, between square and absolute error (Charbonnier et al., ICIP 1994; for restored
    pictures: Lai et al., "Deep Laplacian pyramid networks", CVPR 2017).

    Args:
        difference: in units of the display range, any shape.
    """
    return (difference.square() + EPSILON**2).sqrt().mean() - EPSILON


class NoisyPictures(Dataset):
    """Pictures with speckle put on, and as they were.

    An index gives a picture with noise that is always the same; `(epoch, index)` gives it augmented, with other noise
    each epoch. The random numbers come from seed, epoch and picture alone.

    Args:
        pictures: without noise.
        looks: bounds of the speckle's looks.
        seed: of the pretraining.
    """

    def __init__(self, pictures: Pictures, looks: tuple[int, int], seed: int):
        self.pictures, self.looks, self.seed = pictures, looks, seed
        self.labels = np.zeros(len(pictures), np.int64)  # nobody's labels are looked at

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        clean = np.ascontiguousarray(self.pictures[key]["pixel_values"])
        digest = hashlib.blake2b(clean.data, digest_size=16, key=f"{self.seed} {epoch}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        noisy = add_speckle(clean, int(rng.integers(self.looks[0], self.looks[1], endpoint=True)), rng)
        return {"pixel_values": noisy, "clean": clean, "labels": np.int64(0), "index": np.int64(index)}

    def file_of(self, index: int) -> str:
        """The file of a picture, for messages."""
        return self.pictures.file_of(index)


class DenoisingTrainer(OCTTrainer):
    """`OCTTrainer` whose network, with a decoder on its feature maps, takes the noise off `NoisyPictures`.

    The decoder is a child of the timm network, so that optimiser, averaging and checkpoints take it along unasked.
    Epochs are compared by the mean square of what remains on the held-out pictures.

    Args:
        args, kwargs: of `OCTTrainer`.

    Raises:
        RecipeError: the network gives no feature maps.
    """

    def __init__(self, model, recipe: TrainRecipe, preprocessing: Preprocessing, *args, **kwargs):
        try:
            decoder = Decoder(model.timm_model)
        except ValueError as error:
            name = model.config.architecture
            raise RecipeError(f"pretrain.task: denoise needs feature maps to decode; {name}: {error}") from None
        model.timm_model.add_module(HEAD, decoder)
        super().__init__(model, recipe, preprocessing, *args, **kwargs)
        self.data_collator = _collate

    @property
    def decoder(self) -> Decoder:
        """The head that is dropped when the pretraining is over."""
        return self.accelerator.unwrap_model(self.model).timm_model.get_submodule(HEAD)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Charbonnier's of the cleaned pictures; as `logits`, each picture's mean squares, cleaned and with noise."""
        pixels, clean = inputs["pixel_values"], inputs["clean"][:, None].float() / 255
        mean, std = self.preprocessing.mean[0], self.preprocessing.std[0]
        noisy = pixels[:, :1] * std + mean
        cleaned = noisy + noise_of(pixels, self.accelerator.unwrap_model(model).timm_model, self.decoder)
        loss = charbonnier(cleaned - clean)
        if not return_outputs:
            return loss
        squares = [(picture - clean).square().mean((1, 2, 3)) for picture in (cleaned.clamp(0, 1), noisy)]
        return loss, {"logits": torch.stack(squares, 1).float()}

    def _compute_metrics(self, prediction) -> dict:
        squares = prediction.predictions
        if not np.isfinite(squares).all():
            raise self._no_number(None)
        return {"mse": float(squares[:, 0].mean()), "mse_noisy": float(squares[:, 1].mean())} | {
            SELECTION: -float(squares[:, 0].mean())
        }

    def measured(self) -> dict:
        """What the best weights leave on the held-out pictures: `mse`, and with the noise `mse_noisy`."""
        rows = (row for row in self.state.log_history if row["step"] == self.state.best_global_step)
        best = next(row for row in rows if "eval_mse" in row)
        return {key: best[f"eval_{key}"] for key in ("mse", "mse_noisy")}


def _collate(items: list[dict]) -> dict:
    return collate(items) | {"clean": torch.from_numpy(np.stack([item["clean"] for item in items]))}


def write_seen(path: Path, hashes: Sequence[str]) -> None:
    """Writes which pictures an autoencoder has seen, a content hash a line, so that nobody tests on them later."""
    path.write_text("".join(f"{value}\n" for value in sorted(set(hashes))), encoding="utf-8")
