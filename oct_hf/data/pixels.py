"""B-scans decoded and resized once, kept as uint8, augmented on the fly: what a training step reads.

Resizing comes first and is the image processor's; augmentation of the small picture then costs under a millisecond, and
a batch travels from the worker to the network as one byte a pixel. The small pictures lie in a file, so that memory
does not grow with the set; what is read again soon the operating system keeps.
"""

import errno
import os
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import datasets
import datasets.config
import numpy as np
from tqdm import tqdm

from oct_hf.data.encoded import Encoded
from oct_hf.data.listing import Texts
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import DataError
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.parallel import in_order

_PREFIX = "pixels-"


class Pictures(Protocol):
    """What a training reads by number: `Pixels`, or what is made of them. A key is as that of `Pixels`."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> dict: ...

    def file_of(self, index: int) -> str:
        """The file of a picture, for messages."""
        ...


class LabelledPictures(Pictures, Protocol):
    """With `labels` as those of `Pixels`."""

    labels: np.ndarray


class PixelFile:
    """uint8 pictures of one size in a temporary file, beside the prepared sets; it goes when the object goes.

    A process that is killed leaves its files. They are as large as the set, so the next one that needs the place
    removes those that nobody holds any more.

    Args:
        count, height, width: how many, of what size in pixels.
    """

    def __init__(self, count: int, height: int, width: int):
        self.shape = (count, height, width)
        folder = Path(datasets.config.HF_DATASETS_CACHE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(folder)
            handle, self.path = _held_file(folder)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            handle, self.path = _held_file(Path(tempfile.gettempdir()))  # a cache that is only read
        weakref.finalize(self, _let_go, self.path, os.getpid(), handle)

    def __len__(self) -> int:
        return self.shape[0]

    def remove(self) -> None:
        """Gives the room back at once, for a process that may end without a last word."""
        _remove(self.path, os.getpid())

    def write(self, images) -> None:
        """Writes all pictures, in order.

        Raises:
            DataError: the disk is full.
        """
        try:
            with open(self.path, "wb") as file:
                for image in images:
                    file.write(np.ascontiguousarray(image, np.uint8).data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise DataError(
                f"no room for {self.shape[0]:,} pictures of {self.shape[2]}x{self.shape[1]} pixels in "
                f"{Path(self.path).parent}; free some, or set HF_DATASETS_CACHE to a larger disk"
            ) from None

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 `(height, width)`. Read and not mapped: mapped pages would count as this process's memory."""
        size = self.shape[1] * self.shape[2]
        with open(self.path, "rb", buffering=0) as file:
            file.seek(int(row) * size)
            data = file.read(size)
        return np.frombuffer(data, np.uint8).reshape(self.shape[1:])


class _Chosen:
    """Some rows of pictures, in an order of their own; nothing is copied."""

    def __init__(self, images, rows: Sequence[int]):
        self.images, self.rows = images, np.asarray(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.images[self.rows[row]]


def multi_hot(dataset: datasets.Dataset) -> np.ndarray:
    """The column `signs` as 0 and 1, int64 `(n, signs)`."""
    found = np.zeros((len(dataset), len(dataset.features["signs"].feature.names)), np.int64)
    for row, signs in enumerate(dataset["signs"][:]):
        found[row, signs] = 1
    return found


def _held_file(folder: Path) -> tuple[int, str]:
    """A new file, locked as long as its handle is open: by the system, which sees a process end in any way."""
    while True:
        handle, path = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
        _lock(handle)
        if os.fstat(handle).st_nlink:  # else somebody took it for an abandoned one before it was locked
            return handle, path
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it went meanwhile, or is another user's
            handle = os.open(path, os.O_RDWR)
            try:
                if _lock(handle):
                    path.unlink()
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    """Whether nobody else had it locked; never where the system has no such locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _let_go(path: str, owner: int, handle: int) -> None:
    if os.getpid() == owner:
        os.close(handle)
    _remove(path, owner)


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not where a worker process ends that has a copy of the object
        with suppress(OSError):
            os.unlink(path)


class Pixels:
    """A data set for torch's DataLoader.

    An index gives the picture as it is; `(epoch, index)` gives it augmented for that epoch.

    Attributes:
        images: uint8 `(n, height, width)`, an array or a `PixelFile`.
        labels: int64 `(n,)`; or 0 and 1, `(n, signs)`, where a picture may have several.
        hashes: `n` content hashes.
        sources: a data set whose column `source` names each picture's file, or None.
    """

    def __init__(
        self,
        images: np.ndarray | PixelFile | _Chosen,
        labels: Sequence[int] | np.ndarray,
        hashes: Sequence[str],
        augmentation: Augmentation | None = None,
        sources: datasets.Dataset | None = None,
    ):
        self.images, self.sources = images, sources
        self.labels = np.asarray(labels, np.int64)
        self.hashes = hashes if isinstance(hashes, Texts) else Texts(hashes)
        self.augmentation = augmentation

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
    ) -> "Pixels":
        """Decodes and resizes the column `image` on all cores; `content_hash` comes along, and `signs` or `label`."""
        encoded = Encoded(dataset)

        def small(row: int) -> np.ndarray:
            return preprocessing.resize(to_gray(read_image(encoded[row])))

        images = PixelFile(len(dataset), preprocessing.height, preprocessing.width)
        work = tqdm(
            in_order(small, range(len(dataset))),
            total=len(dataset),
            desc="decoding",
            unit="image",
            disable=None,
            leave=False,
        )
        images.write(image for _, image in work)
        sources = dataset.select_columns(["source"]) if "source" in dataset.column_names else None
        blocks: Any = dataset.select_columns("content_hash").iter(1000)
        hashes = Texts(text for block in blocks for text in block["content_hash"])  # a list would take twice as much
        labels = multi_hot(dataset) if "signs" in dataset.column_names else dataset["label"][:]
        return cls(images, labels, hashes, augmentation, sources)

    def rows(self, chosen: Sequence[int], augmentation: Augmentation | None = None) -> "Pixels":
        """Some of the pictures by their numbers, as the sides of a fold; decoded once for all folds."""
        return Pixels(_Chosen(self.images, chosen), self.labels[chosen], self.hashes.take(chosen), augmentation)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        image = self.images[index]
        if epoch is not None and self.augmentation is not None:
            image = self.augmentation(image, epoch, self.hashes[index])
        return {"pixel_values": image, "labels": self.labels[index], "index": np.int64(index)}

    def file_of(self, index: int) -> str:
        """The file of a picture as its data set names it, or its content hash where none is known."""
        return self.sources[index]["source"] if self.sources is not None else self.hashes[index]
