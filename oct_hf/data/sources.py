"""A folder of pictures, and the one place that opens whatever stands at a path: a folder, an archive, arrays.

The listing is made once, with size and time of each file, because each further look at 100,000 files costs seconds.
"""

import hashlib
import os
import re
import stat
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from oct_hf.data.archives import Several, Tar, Zip, zips_in
from oct_hf.data.listing import Names
from oct_hf.data.npz import Npz
from oct_hf.data.source import MAX_FILE, TAIL, Source, is_picture, table_of
from oct_hf.errors import BadImageError, DataError

if TYPE_CHECKING:
    from oct_hf.data.volumes.as_pictures import DevicePictures

_DEVICES = (".dcm", ".dicom", ".vol", ".e2e", ".fda", ".fds", ".img", ".oct")  # as data/volumes has them, but .xml
_BSCAN = re.compile(rf"({'|'.join(map(re.escape, _DEVICES))})#\d+/\d+\.png$", re.IGNORECASE)


class Folder(Source):
    """A folder, links followed; B-scans of a device's files are pictures in it.

    It is listed when it is first asked what is in it, not to read one picture.
    """

    def __init__(self, root: Path):
        self.root, self._devices = root, None
        self._strange: list[dict] | None = None  # until it was listed

    @cached_property
    def files(self) -> Names:
        sizes, times, strange = array("q"), array("q"), []

        def found() -> Iterator[str]:
            for path in _paths_below(self.root):
                device = _may_be_volume(path)
                if device or is_picture(path):
                    if not path.isprintable() and _not_text(path):
                        raise DataError(f"{self.root}: the name {path!r} is no UTF-8 text; rename the file")
                    try:
                        status = os.stat(os.path.join(self.root, path))
                    except OSError as error:
                        strange.append({"file": path, "reason": f"can't be opened ({error.strerror or error})"})
                        continue
                    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
                        strange.append({"file": path, "reason": "is a pipe or a device, no file"})
                        continue
                    for picture in self.devices.names_in(path) if device else (path,):
                        sizes.append(status.st_size)
                        times.append(status.st_mtime_ns)
                        yield picture

        names, self._strange = Names(found(), size=sizes, time=times), strange
        return names

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
        if self._strange is None:
            len(self.files)
        return (self._strange or []) + (self._devices.bad if self._devices else [])

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
    path = Path(path)
    if path.is_dir():
        folder = Folder(path)
        return folder if not zips_in(path) or folder.files else Several(path)
    if not path.is_file():
        raise DataError(f"{path}: no such folder or zip")
    name = path.name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".gz", ".7z", ".rar")):
        raise DataError(f"{path}: pictures can't be read in place from this kind of archive; unpack it, or zip it")
    if name.endswith(".npz"):
        return Npz(path)
    return Tar(path) if name.endswith(".tar") else Zip(path)


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


def _may_be_volume(path: str) -> bool:
    """Whether a device wrote it, by its ending."""
    return path.lower().endswith(_DEVICES) and not path.rsplit("/", 1)[-1].startswith(".")


def _of_volume(path: str) -> bool:
    """Whether it is the name of a B-scan in a device's file, and no picture of its own."""
    return bool(_BSCAN.search(path))


def _not_text(path: str) -> bool:
    """Whether a name holds bytes that are no UTF-8, which Python marks with surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in path)
