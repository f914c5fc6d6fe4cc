"""A folder or a zip of pictures, read the same way; a zip is read in place, and nothing of it is written to disk.

The listing is made once, with size and time of each file, because each further look at 100,000 files costs seconds.
"""

import hashlib
import os
import zipfile
from pathlib import Path, PurePosixPath

from oct_hf.errors import BadImageError, DataError
from oct_hf.images import EXTENSIONS

_TAIL = 4096  # bytes; compressed pictures of equal size differ here unless they are the same


class Source:
    """Pictures by their path inside the source.

    Attributes:
        root: the folder or the zip.
        files: sorted paths, with `/` between the parts; leftovers of macOS and hidden files are left out.
    """

    root: Path
    files: list[str]

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


class Folder(Source):
    """A folder, links followed."""

    def __init__(self, root: Path):
        self.root = root
        self.stats = {}
        for top, _, names in os.walk(root, followlinks=True):
            below = PurePosixPath(Path(top).relative_to(root).as_posix())
            for name in names:
                path = (below / name).as_posix()
                if _is_picture(path):
                    status = os.stat(os.path.join(top, name))
                    self.stats[path] = (status.st_size, status.st_mtime_ns)
        self.files = sorted(self.stats)

    def size(self, path: str) -> int:
        return self.stats[path][0]

    def stamp(self, path: str) -> str:
        return f"{self.stats[path]}"

    def glance(self, path: str) -> bytes:
        try:
            with open(self.root / path, "rb") as file:
                file.seek(max(0, self.size(path) - _TAIL))
                return hashlib.blake2b(file.read(), digest_size=16).digest()
        except OSError:
            return path.encode()  # unreadable: told when it is decoded

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise BadImageError(path, f"can't be opened ({error.strerror or error})") from None

    def read_table(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError:
            raise DataError(f"{self.root}: no CSV {name} in it") from None


class Zip(Source):
    """A zip; its own checksums tell equal pictures apart."""

    def __init__(self, root: Path):
        self.root = root
        try:
            self.archive = zipfile.ZipFile(root)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{root}: not a zip that can be read ({error})") from None
        self.infos = {info.filename: info for info in self.archive.infolist() if not info.is_dir()}
        self.files = sorted(path for path in self.infos if _is_picture(path))

    def __reduce__(self):
        return type(self), (self.root,)  # an open file can't be copied

    def size(self, path: str) -> int:
        return self.infos[path].file_size

    def stamp(self, path: str) -> str:
        return f"{self.size(path)} {self.glance(path)}"

    def glance(self, path: str) -> int:
        return self.infos[path].CRC

    def read(self, path: str) -> bytes:
        try:
            return self.archive.read(path)
        except (zipfile.BadZipFile, OSError, RuntimeError) as error:
            raise BadImageError(path, f"can't be read from the zip ({error})") from None

    def read_table(self, name: str) -> bytes:
        found = [path for path in self.infos if path == name or path.endswith("/" + name)]
        if not found:
            raise DataError(f"{self.root}: no CSV {name} in it")
        return self.archive.read(found[0])


def open_source(path: str | Path) -> Source:
    """The folder or zip at `path`.

    Raises:
        DataError: neither is there.
    """
    path = Path(path)
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Zip(path)
    raise DataError(f"{path}: no such folder or zip")


def _is_picture(path: str) -> bool:
    parts = path.split("/")
    return path.lower().endswith(EXTENSIONS) and "__MACOSX" not in parts and not parts[-1].startswith(".")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
