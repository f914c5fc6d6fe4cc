"""Pictures wherever fsspec reads: a folder of this machine, s3://, gs://, https://, and Parquet tables in them.

One look lists names, which are all that travels to the machines of a cluster; each then reads the pictures itself.
What is named is called as `inputs` calls it, so that a cluster's table has the rows of one machine's.
"""

import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from oct_hf.data.volumes import VOLUME_EXTENSIONS
from oct_hf.errors import BadImageError, DataError, OCTError
from oct_hf.inference.inputs import (
    ARCHIVES,
    KINDS,
    TABLE,
    DeviceFile,
    Picture,
    below,
    encoded,
    of_file,
    open_table,
    text_of,
)
from oct_hf.parallel import in_order

_ROW = re.compile(rf"(.*{re.escape(TABLE)})#(\d+)")
_FETCHES, _AHEAD = 32, 64  # at a time over a network, where waiting costs and the machine's cores don't matter
_TRIES = 3


@dataclass(frozen=True)
class Listing:
    """What is there.

    Attributes:
        names: of pictures and device files, each once, in the order of their rows.
        devices: whether device files are among them.
    """

    names: list[str]
    devices: bool


def open_place(address: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or an address, and the path in it.

    Raises:
        OCTError: nothing that is installed reads such an address.
    """
    try:
        return url_to_fs(address)
    except (ImportError, ValueError) as error:  # fsspec's words say which package is missing
        raise OCTError(f"{address}: {one_line(error)}") from None


def list_places(places: Iterable[str]) -> Listing:
    """All pictures and device files named, and those below the folders named; where a folder has none, the rows of its
    Parquet files.

    Raises:
        BadImageError: there is no such place, or nothing in it.
        DataError: it can't be listed, or only one machine could read it, as an archive.
        OCTError: what reads it isn't installed.
    """
    names = dict.fromkeys(name for place in places for name in _listed(place))
    return Listing(list(names), any(name.lower().endswith(VOLUME_EXTENSIONS) for name in names))


def read_listed(names: Sequence[str], started_in: Path) -> Iterator[Picture | DeviceFile]:
    """The pictures of names that `list_places` gave, in order; those over a network are fetched some ahead.

    Args:
        names: of the listing, or some of them.
        started_in: where relative ones are from.
    """
    for (table, far), run in groupby(names, lambda name: (_table_of(name), "://" in name)):
        if table:
            yield from _rows(table, [int(row[2]) for row in map(_ROW.fullmatch, run) if row], started_in)
        elif far:
            for name, found in in_order(_fetched, run, _FETCHES, _AHEAD):
                yield from _far(name, found)
        else:
            yield from (of_file(started_in / name, text_of(name)) for name in run)


def is_seen(name: str, started_in: Path) -> bool:
    """Whether this machine sees the folder that a listed name is in."""
    folder = (_table_of(name) or name).rpartition("/")[0]
    try:
        files, inner = open_place(folder if "://" in name else str(started_in / folder))
        return files.exists(inner)
    except Exception:  # of whatever kind: stores have no common base
        return False


def one_line(error: BaseException) -> str:
    """What an error says, or its kind where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _listed(place: str) -> Iterator[str]:
    if "::" in place:
        raise OCTError(f"{place}: an address inside another isn't read; name the folder itself")
    files, inner = open_place(place)
    local = isinstance(files, LocalFileSystem)
    own = Path(place if "://" not in place else inner)
    try:
        folder = files.isdir(inner)
        if not folder and not files.exists(inner):
            raise BadImageError(place, "no such file or folder")
        found = sorted(files.find(inner), key=lambda path: path.split("/")) if folder and not local else []
    except OCTError:
        raise
    except Exception as error:
        raise DataError(f"{place}: can't be listed ({one_line(error)})") from None
    name = str(own) if local else files.unstrip_protocol(inner)
    if not folder:
        if name.lower().endswith(ARCHIVES):
            raise DataError(f"{place}: an archive is read by one machine; unpack it, or leave --engine out")
        yield from _row_names(name) if name.lower().endswith(TABLE) else [name]
        return
    names = map(str, below(own)) if local else map(files.unstrip_protocol, found)
    nothing = True
    for name in names:
        if name.lower().endswith(KINDS):
            nothing = False
            yield name
    if nothing:
        tables = sorted(map(str, own.rglob(f"*{TABLE}"))) if local else map(files.unstrip_protocol, found)
        for name in tables:
            if name.lower().endswith(TABLE):
                nothing = False
                yield from _row_names(name)
    if nothing:
        raise BadImageError(place, f"no image in this folder ({', '.join((*KINDS, TABLE))})")


def _row_names(table: str) -> Iterator[str]:
    with _opened(table) as file:
        rows = open_table(table, file)[0].metadata.num_rows
    return (f"{table}#{row}" for row in range(rows))


def _opened(path: str):
    files, inner = open_place(path)
    try:
        return files.open(inner, "rb")
    except Exception as error:
        raise DataError(f"{path}: can't be opened ({one_line(error)})") from None


def _table_of(name: str) -> str | None:
    row = _ROW.fullmatch(name)
    return row[1] if row else None


def _rows(path: str, wanted: list[int], started_in: Path) -> Iterator[Picture]:
    """These rows of a table, ascending; only the row groups that hold them are read."""
    with _opened(path if "://" in path else str(started_in / path)) as file:
        table, column = open_table(path, file)
        left, first = set(wanted), 0
        for group in range(table.num_row_groups):
            row, first = first, first + table.metadata.row_group(group).num_rows
            if left.isdisjoint(range(row, first)):
                continue
            for batch in table.iter_batches(batch_size=16, row_groups=[group], columns=[column]):
                for value in batch.column(0):
                    if row in left:
                        yield encoded(text_of(f"{path}#{row}"), value.as_py())
                    row += 1


def _fetched(name: str) -> bytes | BadImageError:
    files, inner = open_place(name)
    tried = 0
    while True:
        tried += 1
        try:
            data: Any = files.cat_file(inner)
            return data
        except FileNotFoundError:
            return BadImageError(name, "isn't there any more")
        except Exception as error:
            if tried == _TRIES:
                return BadImageError(name, f"can't be fetched ({one_line(error)})")
            time.sleep(tried)


def _far(name: str, found: bytes | BadImageError) -> Iterator[Picture | DeviceFile]:
    if isinstance(found, BadImageError):
        yield Picture(name, partial(_refuse, found))
    elif name.lower().endswith(VOLUME_EXTENSIONS):
        with tempfile.TemporaryDirectory() as folder:  # their readers want a file
            path = Path(folder, name.rpartition("/")[2])
            path.write_bytes(found)
            yield DeviceFile(name, path)
    else:
        yield encoded(name, found)


def _refuse(error: BadImageError) -> bytes:
    raise error
