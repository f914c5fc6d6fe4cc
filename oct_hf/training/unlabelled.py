"""B-scans without labels beside labelled ones: read without what is held out, and in each batch by their share.

Whoever learns from them, a student of a teacher or FixMatch, trains through `MixedTrainer`.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from oct_hf.data import duplicates
from oct_hf.data.pixels import Pictures, PixelFile, Pixels
from oct_hf.data.rows import sha256
from oct_hf.data.sources import open_source
from oct_hf.errors import DataError, RecipeError
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.parallel import in_order
from oct_hf.training.arguments import images_a_pass
from oct_hf.training.trainer import OCTTrainer

NO_LABEL = -100  # what cross-entropy leaves out


def read_unlabelled(
    path: str | Path,
    preprocessing: Preprocessing,
    hashes: set[str],
    thumbnails: np.ndarray,
    augmentation=None,
    key: str = "unlabelled",
) -> tuple[Pixels, int]:
    """The pictures below a folder or in an archive, whatever its folders are called, as the model's pixels.

    Args:
        path: folder or archive.
        preprocessing: of the model's input.
        hashes: content hashes of what is held out; files that are one of these are left out.
        thumbnails: uint8 `(n, SIDE, SIDE)` of the same; near-duplicates and neighbours of them are left out too.
        augmentation: for training.
        key: of the recipe that names the path, for errors.

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
        raise DataError(f"{key}: every picture of {path} is one of the B-scans held out, or near one")

    def small(name: str) -> np.ndarray:
        return preprocessing.resize(to_gray(read_image(source.read(name), name)))

    images = PixelFile(len(taken), preprocessing.height, preprocessing.width)
    images.write(image for _, image in in_order(small, taken.values()))
    return Pixels(images, [NO_LABEL] * len(taken), list(taken), augmentation), len(names) - len(taken)


class Together(Dataset):
    """Several sets of pictures one after the other; `(epoch, index)` counts through them.

    Attributes:
        labels: int64 `(n,)`, where each part has them.
    """

    labels: np.ndarray

    def __init__(self, *parts: Pictures):
        self.parts = [part for part in parts if len(part)]
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        labels = [labels for part in self.parts if (labels := getattr(part, "labels", None)) is not None]
        if len(labels) == len(self.parts):
            self.labels = np.concatenate(labels)

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


def others_a_batch(share: float, batch_size: int, setting: str) -> int:
    """How many pictures of a batch aren't labelled B-scans.

    Args:
        share: of the batch, 0 to 1.
        batch_size: pictures.
        setting: what an error names.

    Raises:
        RecipeError: a batch has no room for both kinds of pictures.
    """
    others = round(share * batch_size)
    if not 0 < others < batch_size:
        raise RecipeError(f"{setting} of a batch of {batch_size} leaves no picture of one kind")
    return others


class MixedTrainer(OCTTrainer):
    """`OCTTrainer` on labelled and other pictures, of which each pass through the network has the same shares.

    Args:
        others: pictures without labels, or with labels that aren't counted to the training side.
        share: of a batch that is theirs, 0 to 1.
        setting: what an error calls the share.
        args, kwargs: of `OCTTrainer`.

    Attributes:
        labelled: the training side.

    Raises:
        RecipeError: as `others_a_batch`.
    """

    def __init__(self, *args, others: Sequence[Pictures] = (), share: float = 0.5, setting: str = "share", **kwargs):
        super().__init__(*args, **kwargs)
        self.labelled = self.train_dataset
        if others:
            self.images_a_pass, _ = images_a_pass(self.recipe)
            self.others_a_pass = others_a_batch(share, self.images_a_pass, setting)
            self.train_dataset = Together(self.labelled, *others)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        if self.train_dataset is self.labelled:
            return super()._get_train_sampler(train_dataset)
        labelled = len(self.labelled)
        others = len(self.train_dataset) - labelled
        return MixedSampler(labelled, others, self.images_a_pass, self.others_a_pass, self.recipe.seed)

    def training_loss(self, logits: torch.Tensor, inputs: dict) -> torch.Tensor:
        """The recipe's loss of the pictures that have a label."""
        kept = inputs["labels"] != NO_LABEL
        if not kept.any():
            return logits.sum() * 0.0
        return super().training_loss(logits[kept], {k: inputs[k][kept] for k in ("labels", "index") if k in inputs})
