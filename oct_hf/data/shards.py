"""Rows of a data set as Parquet shards, the same bytes for the same rows, so that a second push sends none of them.

Row groups are small: who streams a set reads one of them and not a whole shard. Pictures are compressed already, so
their column isn't compressed again; it has no statistics either, which would hold whole pictures. Shards are read
from a folder, or from anywhere that fsspec reaches (`hf://datasets/you/name`, `s3://…`).
"""

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from oct_hf.data.layout import PUBLISHED_SIDES
from oct_hf.errors import DataError
from oct_hf.whole import file_sha256

SHARD_BYTES = 500 * 2**20  # of pictures
GROUP_ROWS = 100
GROUP_BYTES = 8 * 2**20
_NAME = re.compile(r"(?:(?P<side>[a-z]+)-)?(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet|.*\.parquet")
UNFINISHED = "UNFINISHED"  # beside shards that are being written
_NOTE = b"oct_hf"  # in a file's metadata
_OPEN_HERE, _OPEN_FAR = 2, 16  # files that a process keeps open, each with 2 MB of notes on its row groups


@dataclass(frozen=True)
class Shard:
    """One file of one side.

    Attributes:
        path: inside the repository, such as `data/train-00000-of-00002.parquet`.
        side: train, validation, test or unused.
        rows: how many.
        size: bytes.
        sha256: of the file.
    """

    path: str
    side: str
    rows: int
    size: int
    sha256: str


def write_shards(
    rows: Iterable[dict],
    features: datasets.Features,
    folder: Path,
    side: str,
    shard_bytes: int = SHARD_BYTES,
) -> list[Shard]:
    """Writes the rows of one side below `folder/data`.

    Args:
        rows: one dictionary a row; the column `image` is `{"bytes": …, "path": None}`.
        features: of the rows; `datasets` finds them in each shard.
        folder: of the repository.
        side: names the files.
        shard_bytes: a shard ends once its pictures have this many bytes.

    Returns:
        the shards, in order.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    # How many shards there will be, which their names say, is known at the end.
    written = []
    for number, shard in enumerate(_cut(_row_groups(rows, min(GROUP_BYTES, shard_bytes)), shard_bytes)):
        path = folder / "data" / f"{side}-{number:05d}.partial"
        written.append((path, _write(path, shard, features.arrow_schema)))
    shards = []
    for number, (path, count) in enumerate(written):
        final = path.rename(path.with_name(f"{side}-{number:05d}-of-{len(written):05d}.parquet"))
        shards.append(Shard(f"data/{final.name}", side, count, final.stat().st_size, file_sha256(final)))
    return shards


def write_shard(path: Path | BinaryIO, rows: Iterable[dict], schema: pa.Schema, note: dict) -> int:
    """Writes one shard; gives the number of its rows.

    Args:
        path: where, a file that is overwritten, or an open one.
        rows: as for `write_shards`.
        schema: of the rows.
        note: plain facts that `note_of` gives back. Asked for when the last row is written.
    """
    return _write(path, (group for group, _ in _row_groups(rows, GROUP_BYTES)), schema, note)


def note_of(path: str) -> dict:
    """What `write_shard` was given as a note; empty where it was given none.

    Raises:
        DataError: it can't be read.
    """
    try:
        found = json.loads((_opened(path).metadata.metadata or {}).get(_NOTE, b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def group_bytes(path: str, number: int) -> int:
    """Bytes that a row group has on the disk."""
    return _opened(path).metadata.row_group(number).total_byte_size


class Shards:
    """The shards of a prepared or a published set.

    Args:
        root: a folder, or an address that fsspec reads; its `*.parquet` files are looked for in it and below.

    Raises:
        DataError: nothing is there, or a shard is missing.
    """

    def __init__(self, root: str):
        self.root = root
        try:
            self._files, base = url_to_fs(root)
            found = sorted(self._files.glob(f"{base.rstrip('/')}/**/*.parquet"))
            unfinished = self._files.exists(f"{base.rstrip('/')}/{UNFINISHED}")
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"{root}: can't be listed ({' '.join(str(error).split())})") from None
        if unfinished:
            raise DataError(f"{root}: its preparation isn't finished; give oct-hf data prepare … --out again")
        if not found:
            raise DataError(f"{root}: no Parquet files in it")
        self.paths = tuple(self._files.unstrip_protocol(path) for path in found)
        self._refuse_missing()

    def _refuse_missing(self) -> None:
        """Shards say in their names how many there are."""
        present: dict[tuple[str, int], set[int]] = {}
        for path in self.paths:
            match = _NAME.fullmatch(path.rsplit("/", 1)[-1])
            if match and match["count"]:
                folder = path.rsplit("/", 1)[0]
                present.setdefault((f"{folder}/{match['side'] or ''}", int(match["count"])), set()).add(
                    int(match["number"])
                )
        for (name, count), numbers in present.items():
            if missing := sorted(set(range(count)) - numbers):
                raise DataError(
                    f"{name}: shard {missing[0]} of {count} is missing; was it written or downloaded whole?"
                )

    def side(self, path: str) -> str:
        """The published side of a shard, by its name; "train" where it names none, "unused" for rows of no side."""
        match = _NAME.fullmatch(path.rsplit("/", 1)[-1])
        said = (match["side"] or "").lower() if match else ""
        return said if said == "unused" else PUBLISHED_SIDES.get(said, "train")

    def stamp(self) -> str:
        """A text that changes when a shard is changed."""
        return "\n".join(f"{path} {self._files.ukey(path)}" for path in self.paths)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the first shard."""
        return _opened(self.paths[0]).schema_arrow

    @cached_property
    def features(self) -> datasets.Features:
        """The types of the columns as `datasets` knows them."""
        return datasets.Features.from_arrow_schema(self.schema)

    def groups(self) -> Iterator[tuple[str, int, int]]:
        """Path, number and rows of each row group."""
        for path in self.paths:
            about = _opened(path).metadata
            for number in range(about.num_row_groups):
                yield path, number, about.row_group(number).num_rows


def read_group(path: str, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group of a shard.

    Raises:
        DataError: it can't be read.
    """
    try:
        return _opened(path).read_row_group(number, columns, use_threads=False)
    except (OSError, pa.ArrowException, IndexError) as error:
        raise DataError(f"{path}: row group {number} can't be read ({' '.join(str(error).split())})") from None


def _opened(path: str) -> pq.ParquetFile:
    try:
        time = os.stat(path.removeprefix("file://")).st_mtime_ns
    except OSError:
        time = 0  # not of this machine
    here = isinstance(url_to_fs(path)[0], LocalFileSystem)
    return (_opened_here if here else _opened_far)(path, time, os.getpid(), threading.get_ident())


def _open(path: str, time: int, process: int, thread: int) -> pq.ParquetFile:
    """A file of this thread alone: a place in a file that two share is nobody's."""
    try:
        files, inner = url_to_fs(path)
        here = isinstance(files, LocalFileSystem)
        # Reading ahead joins requests over a network, but each open file then keeps its last row group in memory.
        return pq.ParquetFile(inner if here else files.open(inner, "rb"), pre_buffer=not here)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: can't be read as Parquet ({' '.join(str(error).split())})") from None


_opened_here = lru_cache(maxsize=_OPEN_HERE)(_open)
_opened_far = lru_cache(maxsize=_OPEN_FAR)(_open)


def _row_groups(rows: Iterable[dict], group_bytes: int):
    """Lists of rows, each with the bytes of its pictures."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += len(row["image"]["bytes"])
        if len(group) == GROUP_ROWS or size >= group_bytes:
            yield group, size
            group, size = [], 0
    if group:
        yield group, size


def _cut(groups, shard_bytes: int):
    """Iterators over the row groups of one shard each; only one row group is in memory at a time."""
    groups = iter(groups)
    for first in groups:

        def shard(first=first):
            group, size = first
            yield group
            while size < shard_bytes and (following := next(groups, None)) is not None:
                group, more = following
                size += more
                yield group

        yield shard()


def _write(path: Path | BinaryIO, groups: Iterable[list[dict]], schema: pa.Schema, note: dict | None = None) -> int:
    pictures = ("image.bytes", "image.path")
    others = [name for name in schema.names if name != "image"]
    options: dict[str, Any] = {
        "compression": {**dict.fromkeys(pictures, "none"), **dict.fromkeys(others, "snappy")},
        "use_dictionary": [name for name in others if name != "content_hash"],
        "write_statistics": others,
        "write_page_index": True,
    }
    count = 0
    with pq.ParquetWriter(path, schema, **options) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
            count += len(group)
        if note is not None:
            writer.add_key_value_metadata({_NOTE: json.dumps(note, sort_keys=True).encode()})
    return count
