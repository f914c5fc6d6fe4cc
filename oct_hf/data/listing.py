"""Listings of very many pictures, kept as arrays: about 0.1 KB a picture, where Python's objects take 1 KB.

They behave like the lists that they stand for.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

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


class Texts(Sequence):
    """Strings in their order.

    Args:
        texts: read once, or Arrow's own array of them.
    """

    def __init__(self, texts: Iterable[str] | pa.LargeStringArray):
        self._texts: Any = texts if isinstance(texts, pa.LargeStringArray) else _packed(texts)  # pyarrow has no types

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> str:
        return self._texts[int(row)].as_py()

    def __iter__(self) -> Iterator[str]:
        for at in range(0, len(self), _BLOCK):
            yield from self._texts[at : at + _BLOCK].to_pylist()

    def __eq__(self, other) -> bool:
        return list(self) == list(other)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Texts":
        """Those with these numbers."""
        return Texts(self._texts.take(pa.array(np.asarray(rows, np.int64))))


class Names(Texts):
    """Sorted strings.

    Args:
        names: in any order.
        beside: numbers that stay beside them, by name.
    """

    def __init__(self, names: Iterable[str], **beside: Sequence[int]):
        unsorted = _packed(names)
        # By bytes of UTF-8, which is Python's order too. pyarrow makes this function when it is imported.
        order = pc.sort_indices(unsorted)  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__(unsorted.take(order))
        self.beside = {key: np.asarray(values, np.int64)[order.to_numpy()] for key, values in beside.items()}

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
    """A list of `Entry`: the paths as one text, and of each other field what it may be and which of that each row is.

    Args:
        entries: read once, one at a time.
    """

    def __init__(self, entries: Iterable[Entry]):
        columns = {field.name: _Column() for field in fields(Entry)[1:]}

        def sources() -> Iterator[str]:
            for entry in entries:
                for name, column in columns.items():
                    column.append(getattr(entry, name))
                yield entry.source

        self._sources = _packed(sources())
        self._columns = {name: column.whole() for name, column in columns.items()}

    def __reduce__(self):
        return Entries, (list(self),)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, row: int) -> Entry:
        return next(iter(self.take([row])))

    def __iter__(self) -> Iterator[Entry]:
        for at in range(0, len(self), _BLOCK):
            here = slice(at, at + _BLOCK)
            columns = [values.take(pa.array(codes[here])).to_pylist() for codes, values in self._columns.values()]
            yield from map(Entry, self._sources[here].to_pylist(), *columns)

    @property
    def nbytes(self) -> int:
        """Bytes that the listing takes."""
        return self._sources.nbytes + sum(codes.nbytes + values.nbytes for codes, values in self._columns.values())

    def present(self, name: str) -> set[str]:
        """What occurs in a field."""
        codes, values = self._columns[name]
        return set(values.take(pa.array(np.unique(codes))).to_pylist())

    def take(self, rows: Sequence[int] | np.ndarray) -> "Entries":
        """The entries with these numbers, or where a mask is true."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return self._made(self._sources.take(pa.array(rows)), rows)

    def at(self, rows: np.ndarray) -> Iterator[Entry]:
        """The entries with these numbers, one after the other."""
        for start in range(0, len(rows), _BLOCK):
            yield from self.take(rows[start : start + _BLOCK])

    def where(self, wanted: Callable[[Entry], bool]) -> "Entries":
        """The entries that a function says yes to."""
        return self.take(np.fromiter(map(wanted, self), bool, len(self)))

    def by_side(self) -> dict[str, "Entries"]:
        """The entries of each published side. Where there are several, the side is the fold that a CSV left open."""
        present = [side for side in ("train", "validation", "test") if side in self.present("side")]
        if len(present) == 1:
            return {present[0]: self}
        (sides, names), (folds, known) = self._columns["side"], self._columns["fold"]
        whole = self._made(self._sources, slice(None))
        open_ = np.isin(folds, [code for code, fold in enumerate(known.to_pylist()) if fold == ""])
        filled = np.where(open_, len(known) + sides.astype(np.int64), folds)
        whole._columns["fold"] = filled, pa.concat_arrays([known, names])
        numbers = names.to_pylist()
        return {side: whole.take(sides == numbers.index(side)) for side in present}

    def blocks(self, rows: int) -> Iterator["Entries"]:
        """The entries in parts of at most so many rows."""
        for at in range(0, len(self), rows):
            yield self._made(self._sources[at : at + rows], slice(at, at + rows))

    def _made(self, sources: pa.LargeStringArray, rows: np.ndarray | slice) -> "Entries":
        made = object.__new__(Entries)
        made._sources = sources
        made._columns = {name: (codes[rows], values) for name, (codes, values) in self._columns.items()}
        return made


class _Column:
    """Texts that repeat, as numbers of one byte while there are few of them."""

    def __init__(self):
        self.codes, self.known = array("B"), {}

    def append(self, text: str) -> None:
        code = self.known.setdefault(text, len(self.known))
        if code == 256 and self.codes.typecode == "B":
            self.codes = array("I", self.codes)
        self.codes.append(code)

    def whole(self) -> tuple[np.ndarray, pa.LargeStringArray]:
        """The number of each row, and the texts by number; what was needed to find them is dropped."""
        known, self.known = self.known, {}
        return np.asarray(self.codes), _packed(known)


def _packed(texts: Iterable[str]) -> pa.LargeStringArray:
    written, ends = bytearray(), array("q", [0])
    for text in texts:
        written += text.encode()
        ends.append(len(written))
    return pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(written))
