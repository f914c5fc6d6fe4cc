"""A folder, a zip or a tar of pictures, or several zips, read the same way; archives are read in place.

The listing is made once, with size and time of each file, because each further look at 100,000 files costs seconds.
An archive is a stranger's: a path that leads out of it, a link, or an entry that unpacks to far more than a picture
can be is refused.
"""

import hashlib
import lzma
import os
import re
import stat
import tarfile
import threading
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from oct_hf.data.listing import Names
from oct_hf.errors import BadImageError, DataError
from oct_hf.images import EXTENSIONS

if TYPE_CHECKING:
    from oct_hf.data.volumes.as_pictures import DevicePictures

MAX_FILE = 512 * 1024**2  # bytes of one picture or table, unpacked
_DEVICES = (".dcm", ".dicom", ".vol", ".e2e", ".fda", ".fds", ".img", ".oct")  # as data/volumes has them, but .xml
_BSCAN = re.compile(rf"({'|'.join(map(re.escape, _DEVICES))})#\d+/\d+\.png$", re.IGNORECASE)
_TAIL = 4096  # bytes; compressed pictures of equal size differ here unless they are the same


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
        self.root, self._devices = root, None

    @cached_property
    def files(self) -> Names:
        sizes, times = array("q"), array("q")

        def found() -> Iterator[str]:
            for top, _, names in os.walk(self.root, followlinks=True):
                below = PurePosixPath(Path(top).relative_to(self.root).as_posix())
                prefix = "" if below == PurePosixPath() else f"{below}/"
                for path in (prefix + name for name in names):
                    device = _may_be_volume(path)
                    if device or _is_picture(path):
                        if not path.isprintable() and _not_text(path):
                            raise DataError(f"{self.root}: the name {path!r} is no UTF-8 text; rename the file")
                        status = os.stat(os.path.join(self.root, path))
                        for picture in self.devices.names_in(path) if device else (path,):
                            sizes.append(status.st_size)
                            times.append(status.st_mtime_ns)
                            yield picture

        return Names(found(), size=sizes, time=times)

    @property
    def devices(self) -> "DevicePictures":
        if self._devices is None:
            from oct_hf.data.volumes.as_pictures import DevicePictures

            self._devices = DevicePictures(self.root)
        return self._devices

    def shown(self, path: str):
        return self._devices.shown(path) if self._devices else None

    def unreadable(self) -> list[dict]:
        return self._devices.bad if self._devices else []

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
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                return hashlib.blake2b(file.read(), digest_size=16).digest()
        except OSError:
            return path.encode()  # unreadable: told when it is decoded

    def read(self, path: str) -> bytes:
        if _of_volume(path):
            return self.devices.read(path)
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
        for path, info in self.infos.items():
            _refuse_unsafe(root, path, stat.S_ISLNK(info.external_attr >> 16))
        self.files = Names(path for path in self.infos if _is_picture(path))

    def size(self, path: str) -> int:
        return self.infos[path].file_size

    def stamp(self, path: str) -> str:
        return f"{self.size(path)} {self.glance(path)}"

    def glance(self, path: str) -> int:
        return self.infos[path].CRC

    def read(self, path: str) -> bytes:
        try:
            return self._unpack(path)
        except _UNREADABLE as error:
            raise BadImageError(path, f"can't be read from the zip ({error})") from None

    def _unpack(self, path: str) -> bytes:
        with self.archive.open(path) as entry:
            data = entry.read(MAX_FILE + 1)  # what the directory says of its size may be a lie
        if len(data) > MAX_FILE:
            raise OSError(f"it unpacks to more than {MAX_FILE >> 20} MB")
        return data

    def read_table(self, name: str) -> bytes:
        found = [path for path in self.infos if path == name or path.endswith("/" + name)]
        if not found:
            raise DataError(f"{self.root}: no CSV {name} in it")
        try:
            return self._unpack(found[0])
        except _UNREADABLE as error:
            raise DataError(f"{self.root}: {found[0]} can't be read ({error})") from None


_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, RuntimeError, EOFError, ValueError)


class Tar(Source):
    """A tar that isn't compressed, so that any picture can be reached; its header has no checksum of the content."""

    def __init__(self, root: Path):
        self.root, self.lock = root, threading.Lock()
        try:
            self.archive = tarfile.open(root, "r:")  # noqa: SIM115 - open as long as the source
            members = self.archive.getmembers()
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise DataError(f"{root}: not a tar that can be read ({error})") from None
        for member in members:
            _refuse_unsafe(root, member.name, member.issym() or member.islnk() or member.isdev())
        self.infos = {member.name.removeprefix("./"): member for member in members if member.isfile()}
        self.files = Names(path for path in self.infos if _is_picture(path))

    def size(self, path: str) -> int:
        return self.infos[path].size

    def stamp(self, path: str) -> str:
        return f"{self.size(path)} {self.infos[path].mtime}"

    def glance(self, path: str) -> bytes:
        return hashlib.blake2b(self._unpack(path)[-_TAIL:], digest_size=16).digest()

    def read(self, path: str) -> bytes:
        try:
            return self._unpack(path)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise BadImageError(path, f"can't be read from the tar ({error})") from None

    def _unpack(self, path: str) -> bytes:
        if self.size(path) > MAX_FILE:
            raise OSError(f"it has more than {MAX_FILE >> 20} MB")
        with self.lock:  # one file, one place in it
            data = self.archive.extractfile(self.infos[path]).read()
        if len(data) != self.size(path):
            raise OSError("the tar ends before it")
        return data

    def read_table(self, name: str) -> bytes:
        found = [path for path in self.infos if path == name or path.endswith("/" + name)]
        if not found:
            raise DataError(f"{self.root}: no CSV {name} in it")
        return self._unpack(found[0])


class Several(Source):
    """A folder of zips, as a set comes that has one for each class. A zip's name stands before the paths in it."""

    def __init__(self, root: Path, zips: list[Path]):
        self.root = root
        self.parts = {path.stem: Zip(path) for path in zips}
        self.files = Names(f"{stem}/{path}" for stem, part in self.parts.items() for path in part.files)

    def _of(self, path: str) -> tuple[Zip, str]:
        stem, _, inner = path.partition("/")
        return self.parts[stem], inner

    def size(self, path: str) -> int:
        part, inner = self._of(path)
        return part.size(inner)

    def stamp(self, path: str) -> str:
        part, inner = self._of(path)
        return part.stamp(inner)

    def glance(self, path: str) -> int:
        part, inner = self._of(path)
        return part.glance(inner)

    def read(self, path: str) -> bytes:
        part, inner = self._of(path)
        return part.read(inner)

    def read_table(self, name: str) -> bytes:
        beside = self.root / name
        if beside.is_file():
            return beside.read_bytes()
        for part in self.parts.values():
            if any(path == name or path.endswith("/" + name) for path in part.infos):
                return part.read_table(name)
        raise DataError(f"{self.root}: no CSV {name} in it, nor in its zips")


def open_source(path: str | Path) -> Source:
    """The folder, zip, tar, npz of MedMNIST, or folder of zips at `path`.

    Raises:
        DataError: none of these is there, or it can't be read or trusted.
    """
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


def _refuse_unsafe(root: Path, path: str, link: bool) -> None:
    """Raises DataError of an archive whose entry is a link, or would lead out of the folder it is unpacked in."""
    parts = re.split(r"[/\\]", path)
    if link or ".." in parts or path.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0].endswith(":")):
        why = "is a link or a device" if link else "leads out of the archive"
        raise DataError(f"{root}: its entry {path!r} {why}; such an archive isn't read")


def _may_be_volume(path: str) -> bool:
    """Whether a device wrote it, by its ending."""
    return path.lower().endswith(_DEVICES) and not path.rsplit("/", 1)[-1].startswith(".")


def _of_volume(path: str) -> bool:
    """Whether it is the name of a B-scan in a device's file, and no picture of its own."""
    return bool(_BSCAN.search(path))


def _is_picture(path: str) -> bool:
    parts = path.split("/")
    return path.lower().endswith(EXTENSIONS) and "__MACOSX" not in parts and not parts[-1].startswith(".")


def _not_text(path: str) -> bool:
    """Whether a name holds bytes that are no UTF-8, which Python marks with surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
