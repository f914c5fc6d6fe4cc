"""The encoded pictures of a prepared set by row, whether it holds them or says in which shard they are."""

import threading
from collections import OrderedDict

import datasets

from oct_hf.data.shards import read_group
from oct_hf.errors import DataError

_GROUPS = 8  # row groups that stay in memory, of at most 8 MB each


class Encoded:
    """Pictures as the bytes of their files, for any number of threads.

    Args:
        dataset: of `prepare`. Rows that lie beside each other in a shard are best asked for one after the other.
    """

    def __init__(self, dataset: datasets.Dataset):
        self._lock, self._groups = threading.Lock(), OrderedDict()
        if "image" in dataset.column_names:
            self._rows = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
            self._places = None
        else:
            self._places = dataset.select_columns(["shard", "group", "row", "content_hash"])

    def __getitem__(self, row: int) -> bytes:
        """
        Raises:
            DataError: a shard can't be read, or was changed since it was listed.
        """
        if self._places is None:
            return self._rows[int(row)]["image"]["bytes"]
        place = self._places[int(row)]
        pictures = self._group(place["shard"], place["group"])
        if place["row"] >= len(pictures):
            raise DataError(f"{place['shard']}: was changed since it was listed; give the same command again")
        return pictures[place["row"]].as_py()

    def _group(self, shard: str, number: int):
        key = shard, number
        with self._lock:
            if key not in self._groups:
                image = read_group(shard, number, ["image"])["image"].combine_chunks()
                self._groups[key] = image.field("bytes")
                while len(self._groups) > _GROUPS:
                    self._groups.popitem(last=False)
            return self._groups[key]
