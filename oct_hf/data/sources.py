"""A folder or an archive of pictures, read the same way; archives (`archives`, `npz`) are read in place.

The listing is made once, with size and time of each file, because each further look at 100,000 files costs seconds.
"""

import hashlib
import os
import re
import stat
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from oct_hf.data.listing import Names
from oct_hf.errors import BadImageError, DataError
from oct_hf.images import EXTENSIONS

if TYPE_CHECKING:
    from oct_hf.data.volumes.as_pictures import DevicePictures

MAX_FILE = 64 * 1024**2  # bytes of one picture, unpacked; several are in memory at once
MAX_TABLE = 128 * 1024**2  # of a CSV: about two million rows
_DEVICES = (".dcm", ".dicom", ".vol", ".e2e", ".fda", ".fds", ".img", ".oct")  # as data/volumes has them, but .xml
_BSCAN = re.compile(rf"({'|'.join(map(re.escape, _DEVICES))})#\d+/\d+\.png$", re.IGNORECASE)
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
        status = os.stat(self.root)
        return _opened, (str(self.root), status.st_mtime_ns)

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


class Folder(Source):
    """A folder, links followed; B-scans of a device's files are pictures in it.

    It is listed when it is first asked what is in it, not to read one picture.
    """

    def __init__(self, root: Path):
        self.root, self._devices, self._strange = root, None, []

    @cached_property
    def files(self) -> Names:
        sizes, times = array("q"), array("q")

        def found() -> Iterator[str]:
            for path in _paths_below(self.root):
                device = _may_be_volume(path)
                if device or is_picture(path):
                    if not path.isprintable() and _not_text(path):
                        raise DataError(f"{self.root}: the name {path!r} is no UTF-8 text; rename the file")
                    try:
                        status = os.stat(os.path.join(self.root, path))
                    except OSError as error:
                        self._strange.append({"file": path, "reason": f"can't be opened ({error.strerror or error})"})
                        continue
                    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
                        self._strange.append({"file": path, "reason": "is a pipe or a device, no file"})
                        continue
                    for picture in self.devices.names_in(path) if device else (path,):
                        sizes.append(status.st_size)
                        times.append(status.st_mtime_ns)
                        yield picture

        return Names(found(), size=sizes, time=times)

    def forget(self) -> None:
        self.__dict__.pop("files", None)

    @property
    def devices(self) -> "DevicePictures":
        if self._devices is None:
            from oct_hf.data.volumes.as_pictures import DevicePictures

            self._devices = DevicePictures(self.root)
        return self._devices

    def shown(self, path: str):
        return self._devices.shown(path) if self._devices else None

    def unreadable(self) -> list[dict]:
        return self._strange + (self._devices.bad if self._devices else [])

    def size(self, path: str) -> int:
        return int(self.files.beside["size"][self.files.row(path)])

    def stamp(self, path: str) -> str:
        return self._stamp(self.files.row(path))

    def stamps(self) -> Iterator[tuple[str, str]]:
        return ((path, self._stamp(row)) for row, path in enumerate(self.files))

    def _stamp(self, row: int) -> str:
        beside = self.files.beside
        return f"({beside['size'][row]}, {beside['time'][row]})"

    def glance(self, path: str) -> object:
        if _of_volume(path):
            return self.devices.checksum(path)
        try:
            with open(self.root / path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                return hashlib.blake2b(file.read(), digest_size=16).digest()
        except OSError:
            return path.encode()  # unreadable: told when it is decoded

    def read(self, path: str) -> bytes:
        if _of_volume(path):
            return self.devices.read(path)
        try:
            if os.path.getsize(self.root / path) > MAX_FILE:
                raise BadImageError(path, f"has more than {MAX_FILE >> 20} MB, so it is no B-scan")
            return (self.root / path).read_bytes()
        except OSError as error:
            raise BadImageError(path, f"can't be opened ({error.strerror or error})") from None

    def read_table(self, name: str) -> bytes:
        return table_of(self.root, name)


def open_source(path: str | Path) -> Source:
    """The folder, zip, tar, npz of MedMNIST, or folder of zips at `path`.

    Raises:
        DataError: none of these is there, or it can't be read or trusted.
    """
    from oct_hf.data.archives import Several, Tar, Zip

    path = Path(path)
    if path.is_dir():
        folder = Folder(path)
        zips = sorted(p for p in path.glob("*.zip") if not p.name.startswith("."))
        return folder if not zips or folder.files else Several(path, zips)
    if not path.is_file():
        raise DataError(f"{path}: no such folder or zip")
    name = path.name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".gz", ".7z", ".rar")):
        raise DataError(f"{path}: pictures can't be read in place from this kind of archive; unpack it, or zip it")
    if name.endswith(".npz"):
        from oct_hf.data.npz import Npz

        return Npz(path)
    return Tar(path) if name.endswith(".tar") else Zip(path)


@lru_cache(maxsize=2)
def _opened(root: str, time: int) -> Source:
    return open_source(root)


def _paths_below(root: Path) -> Iterator[str]:
    """Paths of all that is no folder, links followed; a link to a folder that it lies in is passed over."""

    def below(folder: str, prefix: str, above: tuple) -> Iterator[str]:
        try:
            status = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError:
            return
        if (here := (status.st_dev, status.st_ino)) in above:
            return
        for entry in entries:
            if _is_folder(entry):
                yield from below(entry.path, f"{prefix}{entry.name}/", (*above, here))
            else:
                yield prefix + entry.name

    return below(str(root), "", ())


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


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


def _may_be_volume(path: str) -> bool:
    """Whether a device wrote it, by its ending."""
    return path.lower().endswith(_DEVICES) and not path.rsplit("/", 1)[-1].startswith(".")


def _of_volume(path: str) -> bool:
    """Whether it is the name of a B-scan in a device's file, and no picture of its own."""
    return bool(_BSCAN.search(path))


def is_picture(path: str) -> bool:
    parts = path.split("/")
    return path.lower().endswith(EXTENSIONS) and "__MACOSX" not in parts and not parts[-1].startswith(".")


def _not_text(path: str) -> bool:
    """Whether a name holds bytes that are no UTF-8, which Python marks with surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
