"""What every source of pictures can do, and how large what it gives may be; archives are read in place."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from oct_hf.errors import DataError
from oct_hf.images import EXTENSIONS

MAX_FILE = 64 * 1024**2  # bytes of one picture, unpacked; several are in memory at once
MAX_TABLE = 128 * 1024**2  # of a CSV: about two million rows
TAIL = 4096  # bytes; compressed pictures of equal size differ here unless they are the same


class Source:
    """Pictures by their path inside the source.

    Attributes:
        root: the folder or the zip.
        files: sorted paths, with `/` between the parts; leftovers of macOS and hidden files are left out.
    """

    root: Path
    files: Sequence[str]

    def __reduce__(self):
        # An open file can't be copied; a process opens the same source once, however often it is sent there.
        return _opened, (type(self), str(self.root), os.stat(self.root).st_mtime_ns)

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Every path with its stamp."""
        return ((path, self.stamp(path)) for path in self.files)

    def shown(self, path: str):
        """What a device's file says of its B-scan (`volumes.as_pictures.Shown`); None of a plain picture."""
        return None

    def unreadable(self) -> list[dict]:
        """Files that can't even be listed, each with `file` and `reason`."""
        return []

    def forget(self) -> None:
        """Drops the listing where it can be made again; pictures are still read."""

    def size(self, path: str) -> int:
        """Bytes of the picture."""
        raise NotImplementedError

    def stamp(self, path: str) -> str:
        """A text that changes when the picture is changed."""
        raise NotImplementedError

    def glance(self, path: str) -> object:
        """Equal for equal pictures, and almost always different for different ones; much cheaper than the content."""
        raise NotImplementedError

    def read(self, path: str) -> bytes:
        """The encoded picture.

        Raises:
            BadImageError: it can't be read.
        """
        raise NotImplementedError

    def read_table(self, name: str) -> bytes:
        """A CSV beside the pictures.

        Raises:
            DataError: there is none of this name.
        """
        raise NotImplementedError


@lru_cache(maxsize=2)
def _opened(kind: type, root: str, time: int) -> Source:
    return kind(Path(root))


def is_picture(path: str) -> bool:
    parts = path.split("/")
    return path.lower().endswith(EXTENSIONS) and "__MACOSX" not in parts and not parts[-1].startswith(".")


def table_of(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{folder}: no CSV {name} in it")
    if path.stat().st_size > MAX_TABLE:
        raise DataError(f"{path}: larger than {MAX_TABLE >> 20} MB, so no table of pictures")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error})") from None
