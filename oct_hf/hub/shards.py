"""Rows of a data set as Parquet shards, the same bytes for the same rows, so that a second push sends none of them.

Row groups are small: who streams a set reads one of them and not a whole shard. Pictures are compressed already, so
their column isn't compressed again; it has no statistics either, which would hold whole pictures.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from oct_hf.data.sources import file_sha256

SHARD_BYTES = 256 * 2**20
GROUP_ROWS = 100
GROUP_BYTES = 8 * 2**20


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


def _write(path: Path, groups: Iterable[list[dict]], schema: pa.Schema) -> int:
    pictures = ("image.bytes", "image.path")
    others = [name for name in schema.names if name != "image"]
    count = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression={**dict.fromkeys(pictures, "none"), **dict.fromkeys(others, "snappy")},
        use_dictionary=[name for name in others if name != "content_hash"],
        write_statistics=others,
        write_page_index=True,
    ) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
            count += len(group)
    return count
