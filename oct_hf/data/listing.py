"""Listings of very many pictures, kept as Arrow columns: about 0.1 KB a picture, where Python's objects take 1 KB.

They behave like the lists that they stand for.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: its path inside the source, and what is known of it. `side` is the published one, or "train"."""

    source: str
    label: str
    patient_id: str
    eye: str
    fold: str
    side: str
    volume: str = ""  # one name in the whole set; empty where nothing tells
    device: str = ""  # that took it; empty where nothing tells


class Names(Sequence):
    """Sorted strings.

    Args:
        names: in any order.
        beside: numbers that stay beside them, by name.
    """

    def __init__(self, names: Iterable[str], **beside: Sequence[int]):
        written, ends = bytearray(), array("q", [0])
        for name in names:
            written += name.encode()
            ends.append(len(written))
        unsorted = pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(written))
        order = pc.sort_indices(unsorted)  # by bytes of UTF-8, which is Python's order too
        self._names = unsorted.take(order)
        self.beside = {key: np.asarray(values, np.int64)[order.to_numpy()] for key, values in beside.items()}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> str:
        return self._names[row].as_py()

    def __iter__(self) -> Iterator[str]:
        for at in range(0, len(self), _BLOCK):
            yield from self._names[at : at + _BLOCK].to_pylist()

    def __eq__(self, other) -> bool:
        return list(self) == list(other)

    __hash__ = None

    def row(self, name: str) -> int:
        """Where a name stands.

        Raises:
            KeyError: nowhere.
        """
        row = bisect_left(self, name)
        if row == len(self) or self[row] != name:
            raise KeyError(name)
        return row


class Entries(Sequence):
    """A list of `Entry`, as a table with their fields as columns."""

    def __init__(self, entries: Iterable[Entry] | pa.Table):
        if not isinstance(entries, pa.Table):
            schema = pa.schema([(field.name, pa.string()) for field in fields(Entry)])
            blocks = (zip(*map(astuple, block), strict=True) for block in _blocks(entries))
            batches = [pa.record_batch([pa.array(c, pa.string()) for c in block], schema=schema) for block in blocks]
            entries = pa.Table.from_batches(batches, schema)
        self.table = entries

    def __reduce__(self):
        # As a stream, which holds these rows alone; pickled as it is, a slice takes the whole table along.
        written = pa.BufferOutputStream()
        with pa.ipc.new_stream(written, self.table.schema) as stream:
            stream.write_table(self.table)
        return _received, (written.getvalue().to_pybytes(),)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Entry:
        return next(iter(self.take([row])))

    def __iter__(self) -> Iterator[Entry]:
        for block in self.table.to_batches(_BLOCK):
            for row in block.to_pylist():
                yield Entry(**row)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Entries":
        """The entries with these numbers, or where a mask is true."""
        rows = np.asarray(rows)
        return Entries(self.table.filter(rows) if rows.dtype == bool else self.table.take(rows.astype(np.int64)))

    def at(self, rows: np.ndarray) -> Iterator[Entry]:
        """The entries with these numbers, one after the other."""
        for start in range(0, len(rows), _BLOCK):
            yield from self.take(rows[start : start + _BLOCK])

    def where(self, wanted: Callable[[Entry], bool]) -> "Entries":
        """The entries that a function says yes to."""
        return self.take(np.fromiter(map(wanted, self), bool, len(self)))

    def by_side(self) -> dict[str, "Entries"]:
        """The entries of each published side. Where there are several, the side is the fold that a CSV left open."""
        sides = self.table["side"]
        present = [side for side in ("train", "validation", "test") if pc.any(pc.equal(sides, side)).as_py()]
        table = self.table
        if len(present) == 1:
            return {present[0]: self}
        if present:
            folds = pc.if_else(pc.equal(table["fold"], ""), sides, table["fold"])
            table = table.set_column(table.schema.get_field_index("fold"), "fold", folds)
        return {side: Entries(table.filter(pc.equal(sides, side))) for side in present}

    def blocks(self, rows: int) -> Iterator["Entries"]:
        """The entries in parts of at most so many rows."""
        for at in range(0, len(self), rows):
            yield Entries(self.table.slice(at, rows))


def _received(stream: bytes) -> Entries:
    return Entries(pa.ipc.open_stream(stream).read_all())


def _blocks(items: Iterable) -> Iterator[list]:
    items = iter(items)
    while block := list(islice(items, _BLOCK)):
        yield block
