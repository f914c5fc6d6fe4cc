"""What is given to predict, as a stream: files, folders, archives, tables with pictures, and files of devices.

Two looks are taken: one that counts and refuses what can't be meant, before a model is loaded, and one that goes along
with the predictions. Neither holds more than the names of one folder, so that any number of files fits in memory.
"""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from oct_hf.data.volumes import VOLUME_EXTENSIONS, is_volume
from oct_hf.errors import BadImageError, DataError
from oct_hf.images import EXTENSIONS, read_image

# Those that can't be read in place say so themselves.
ARCHIVES = (".zip", ".tar", ".npz", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
TABLE = ".parquet"


@dataclass(frozen=True, slots=True)
class Picture:
    """One B-scan, not yet read.

    Attributes:
        name: of its row; the path, `scans.zip/inside/a.png` or `scans.parquet#12`.
        read: gives the encoded file, or decoded uint8 `(height, width[, 3])`; raises BadImageError.
    """

    name: str
    read: Callable[[], bytes | np.ndarray]


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A file as a device exports it, with the B-scans of one eye or several.

    Attributes:
        name: of its rows, its path as text.
        path: where it is.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class Survey:
    """What is there.

    Attributes:
        count: pictures and device files.
        devices: whether device files are among them.
    """

    count: int
    devices: bool


def survey(paths: Iterable[str | Path]) -> Survey:
    """Counts what `stream` will give.

    Raises:
        BadImageError: a path that doesn't exist, or a folder without images.
        DataError: an archive or a table that can't be read.
    """
    count, devices = 0, False
    for path in map(Path, paths):
        if path.is_dir():
            before = count
            for file in below(path):
                count, devices = count + 1, devices or is_volume(file)
            if count == before:
                raise BadImageError(str(path), f"no image in this folder ({', '.join(KINDS)})")
        elif not path.exists():
            raise BadImageError(str(path), "no such file or folder")
        elif _is_archive(path):
            count += len(_opened(path).files)
        elif path.suffix.lower() == TABLE:
            count += open_table(path)[0].metadata.num_rows
        else:
            count, devices = count + 1, devices or is_volume(path)
    return Survey(count, devices)


def stream(paths: Iterable[str | Path]) -> Iterator[Picture | DeviceFile]:
    """Everything below the paths, in their order; what is in a folder sorted by name, part by part.

    Raises: as `survey`.
    """
    for path in map(Path, paths):
        if path.is_dir():
            yield from map(of_file, below(path))
        elif _is_archive(path):
            source = _opened(path)
            for inside in source.files:
                yield Picture(text_of(f"{path.as_posix()}/{inside}"), partial(source.read, inside))
        elif path.suffix.lower() == TABLE:
            yield from _rows(path)
        else:
            yield of_file(path)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The files named, and all images and device files below the folders named, sorted within each folder.

    Raises:
        BadImageError: a path that doesn't exist, or a folder without images.
    """
    found = []
    for path in map(Path, paths):
        survey([path])
        found += below(path) if path.is_dir() else [path]
    return found


KINDS = (*EXTENSIONS, *VOLUME_EXTENSIONS)


def below(folder: Path) -> Iterator[Path]:
    """Images and device files in a folder and its folders, links to folders not followed."""
    for name, inside in _listed(folder):
        if inside:
            yield from below(folder / name)
        else:
            yield folder / name


def _listed(folder: Path) -> Iterator[tuple[str, bool]]:
    """The names in a folder that count, in order, and whether each is a folder's.

    They wait for their turn as bytes in one array: a list of 100,000 of them takes ten megabytes.
    """
    text, ends, inside = bytearray(), array("q", [0]), bytearray()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder or (entry.name.lower().endswith(KINDS) and entry.is_file()):
                    text += os.fsencode(entry.name)
                    ends.append(len(text))
                    inside.append(is_folder)
    except OSError as error:
        raise BadImageError(str(folder), f"can't be listed ({error.strerror or error})") from None
    longest = max(np.diff(ends), default=1)
    names = np.fromiter((bytes(text[start:end]) for start, end in pairwise(ends)), f"S{longest}", len(inside))
    del text, ends
    for row in np.argsort(names, kind="stable"):
        yield os.fsdecode(bytes(names[row])), bool(inside[row])


def of_file(path: Path, name: str | None = None) -> Picture | DeviceFile:
    """A file of this machine as `stream` gives it; `name` is the path where not given."""
    name = text_of(str(path)) if name is None else name
    return DeviceFile(name, path) if is_volume(path) else Picture(name, partial(read_image, path))


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def _opened(path: Path):
    from oct_hf.data.sources import open_source

    source = open_source(path)
    if not len(source.files):
        raise DataError(f"{path}: no image in it")
    return source


def open_table(path: Path | str, file=None):
    """An open Parquet file and the name of its column of pictures: `image`, or the only one of their type.

    Args:
        path: of the file.
        file: the same opened for reading, where it is on no disk of this machine.

    Raises:
        DataError: it can't be read, or has no such column.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path if file is None else file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from None
    fits = [field.name for field in table.schema_arrow if _holds_pictures(field.type)]
    column = "image" if "image" in fits else fits[0] if len(fits) == 1 else None
    if column is None:
        raise DataError(
            f"{path}: no column image of encoded pictures; its columns: {', '.join(table.schema_arrow.names)}"
        )
    return table, column


def _holds_pictures(kind) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else pa.null()
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _rows(path: Path) -> Iterator[Picture]:
    table, column = open_table(path)
    number = 0
    for batch in table.iter_batches(batch_size=64, columns=[column]):
        for value in batch.column(0):
            yield encoded(text_of(f"{path}#{number}"), value.as_py())
            number += 1


def encoded(name: str, value: dict | bytes | None) -> Picture:
    """A picture of which the encoded file is here: itself, or as a table keeps it, `{"bytes", "path"}`."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return Picture(name, partial(bytes, data or b""))


def text_of(name: str) -> str:
    """A name that any table can hold: bytes of it that are no UTF-8 become `\\udc80`, and the like."""
    return name.encode("utf-8", "backslashreplace").decode()
