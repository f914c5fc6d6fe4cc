"""B-scans decoded and resized once, kept as uint8, augmented on the fly: what a training step reads.

Resizing comes first and is the image processor's; augmentation of the small picture then costs under a millisecond, and
a batch travels from the worker to the network as one byte a pixel.
"""

from collections.abc import Sequence

import datasets
import numpy as np
from tqdm import tqdm

from oct_hf.data.transforms import Augmentation
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.threads import in_order


class Pixels:
    """A data set for torch's DataLoader.

    An index gives the picture as it is; `(epoch, index)` gives it augmented for that epoch.

    Attributes:
        images: uint8 `(n, height, width)`.
        labels: int64 `(n,)`.
        hashes: `n` content hashes.
    """

    def __init__(self, images: np.ndarray, labels: Sequence[int], hashes: Sequence[str], augmentation=None):
        self.images = images
        self.labels = np.asarray(labels, np.int64)
        self.hashes = list(hashes)
        self.augmentation = augmentation

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
    ) -> "Pixels":
        """Decodes and resizes the column `image` on all cores; `label` and `content_hash` come along."""
        images = np.empty((len(dataset), preprocessing.height, preprocessing.width), np.uint8)
        encoded = dataset.cast_column("image", datasets.Image(decode=False))

        def small(number: int) -> np.ndarray:
            return preprocessing.resize(to_gray(read_image(encoded[number]["image"]["bytes"])))

        work = in_order(small, range(len(encoded)))
        for number, image in tqdm(work, total=len(encoded), desc="decoding", unit="image", disable=None, leave=False):
            images[number] = image
        return cls(images, dataset["label"][:], dataset["content_hash"][:], augmentation)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        image = self.images[index]
        if epoch is not None and self.augmentation is not None:
            image = self.augmentation(image, epoch, self.hashes[index])
        return {"pixel_values": image, "labels": self.labels[index]}
