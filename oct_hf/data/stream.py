"""Training straight from Parquet shards: of a set that has no room on this disk, or was never downloaded.

One epoch gives each row once. Row groups come in an order of the epoch's own, and a buffer of a thousand pictures mixes
those that lie beside each other, so a batch draws from ten row groups or more. The order depends on seed, epoch and the
number of worker processes: a resumed run needs as many as the run before.
"""

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from oct_hf.data.listing import Texts
from oct_hf.data.shards import read_group
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import DataError
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.parallel import give_memory_back, in_order, lean_arrow

_BUFFER = 1_000  # encoded pictures a process, about 60 MB


class StreamedPixels(IterableDataset):
    """The rows of one side, decoded, resized and augmented as `Pixels` has them; with a length.

    Args:
        index: rows of `prepare(…, stream=True)`, without pictures.
        preprocessing: of the model.
        augmentation: for the epochs.
        seed: of the order.
        batch_size: of a batch; worker processes take whole batches, so that only the last one is short.

    Attributes:
        labels: int64 `(n,)`, in the order of the index.
    """

    def __init__(
        self,
        index: datasets.Dataset,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        batch_size: int = 1,
    ):
        self.labels = np.asarray(index["label"][:], np.int64)
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self.seed, self.batch_size = seed, batch_size
        # Worker processes have a copy of this object for all epochs; the number is in memory that they share.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        with lean_arrow():
            places = self._read_index(index)
        starts = np.flatnonzero(np.any(np.diff(self._places[:, :2], axis=0, prepend=-1) != 0, axis=1))
        self._groups = np.stack([starts, np.append(starts[1:], len(places))], 1)  # first row and end of each

    def _read_index(self, index: datasets.Dataset) -> np.ndarray:
        """Shards, hashes and order of the rows by where they lie; gives their places, unsorted."""
        columns = index.select_columns(["shard", "group", "row", "content_hash"]).with_format("arrow")[:]
        shards = columns["shard"].combine_chunks().dictionary_encode()
        self._shards = shards.dictionary.to_pylist()
        places = np.stack(
            [np.asarray(one, np.int32) for one in (shards.indices, columns["group"], columns["row"])], axis=1
        )
        self._order = np.lexsort(places.T[::-1]).astype(np.int32)
        self._places = places[self._order]
        self._hashes = Texts(columns["content_hash"].cast(pa.large_string()).combine_chunks()).take(self._order)
        return places

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch, a resumed one too."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict]:
        epoch, worker = int(self._epoch), get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rows = self._shuffled(epoch, number, workers)
        decoded = ((row, self._small(row)) for row in rows) if worker else in_order(self._small, rows)
        for (_, index, content_hash), image in decoded:
            if self.augmentation is not None:
                image = self.augmentation(image, epoch, content_hash)
            yield {"pixel_values": image, "labels": self.labels[index], "index": np.int64(index)}

    def file_of(self, index: int) -> str:
        """Which picture a row of the index is, for messages: its shard, row group and row."""
        shard, group, row = self._places[np.flatnonzero(self._order == index)[0]]
        return f"{Path(self._shards[shard]).name} row group {group} row {row}"

    def _small(self, row: tuple[bytes, int, str]) -> np.ndarray:
        return self.preprocessing.resize(to_gray(read_image(row[0], row[2])))

    def _shuffled(self, epoch: int, number: int, workers: int) -> Iterator[tuple[bytes, int, str]]:
        random = np.random.default_rng([self.seed, epoch, number, workers])
        buffer = []
        for row in self._rows(epoch, number, workers):
            if len(buffer) < _BUFFER:
                buffer.append(row)
                continue
            at = int(random.integers(_BUFFER))
            yield buffer[at]
            buffer[at] = row
        yield from (buffer[at] for at in random.permutation(len(buffer)))

    def _rows(self, epoch: int, number: int, workers: int) -> Iterator[tuple[bytes, int, str]]:
        """This worker's share of the epoch, row group after row group."""
        groups = self._groups[np.random.default_rng([self.seed, epoch]).permutation(len(self._groups))]
        ends = np.cumsum(groups[:, 1] - groups[:, 0])
        batches = -(-len(self) // self.batch_size)
        first, last = (min(len(self), (batches * w // workers) * self.batch_size) for w in (number, number + 1))
        for (start, stop), end in zip(groups, ends, strict=True):
            begin = end - (stop - start)
            if end <= first or begin >= last:
                continue
            yield from self._group(start + max(0, first - begin), stop - max(0, end - last))
            give_memory_back()  # pictures that have left the buffer leave holes

    def _group(self, start: int, stop: int) -> Iterator[tuple[bytes, int, str]]:
        shard, group, _ = self._places[start]
        path = self._shards[shard]
        with lean_arrow():
            pictures = read_group(path, int(group), ["image"])["image"].combine_chunks().field("bytes")
        for at in range(start, stop):
            row = int(self._places[at, 2])
            if row >= len(pictures):
                raise DataError(f"{path}: was changed since it was listed; give the same command again")
            yield pictures[row].as_py(), int(self._order[at]), self._hashes[at]
