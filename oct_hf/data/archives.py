"""Zips, tars and folders of zips as sources of pictures, read in place.

An archive is a stranger's: a path that leads out of it, a link, or an entry that unpacks to far more than a picture
can be is refused.
"""

import hashlib
import lzma
import re
import stat
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

from oct_hf.data.listing import Names
from oct_hf.data.source import MAX_FILE, MAX_TABLE, TAIL, Source, is_picture, table_of
from oct_hf.errors import BadImageError, DataError


class _Archive(Source):
    """One file with entries by path, `infos`; `faults` are what reading a damaged one raises."""

    kind: str
    faults: tuple[type[Exception], ...]
    infos: dict

    def _unpack(self, path: str, most: int) -> bytes:
        raise NotImplementedError

    def read(self, path: str) -> bytes:
        try:
            return self._unpack(path, MAX_FILE)
        except self.faults as error:
            raise BadImageError(path, f"can't be read from the {self.kind} ({error})") from None

    def read_table(self, name: str) -> bytes:
        found = [path for path in self.infos if path == name or path.endswith("/" + name)]
        if not found:
            raise DataError(f"{self.root}: no CSV {name} in it")
        try:
            return self._unpack(found[0], MAX_TABLE)
        except self.faults as error:
            raise DataError(f"{self.root}: {found[0]} can't be read ({error})") from None


class Zip(_Archive):
    """A zip; its own checksums tell equal pictures apart."""

    kind = "zip"
    faults = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, RuntimeError, EOFError, ValueError)

    def __init__(self, root: Path):
        self.root = root
        try:
            self.archive = zipfile.ZipFile(root)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{root}: not a zip that can be read ({error})") from None
        self.infos = {info.filename: info for info in self.archive.infolist() if not info.is_dir()}
        for path, info in self.infos.items():
            _refuse_unsafe(root, path, stat.S_ISLNK(info.external_attr >> 16))
        self.files = Names(path for path in self.infos if is_picture(path))

    def size(self, path: str) -> int:
        return self.infos[path].file_size

    def stamp(self, path: str) -> str:
        return f"{self.size(path)} {self.glance(path)}"

    def glance(self, path: str) -> int:
        return self.infos[path].CRC

    def _unpack(self, path: str, most: int) -> bytes:
        data = b""
        if self.infos[path].file_size <= most:
            with self.archive.open(path) as entry:
                data = entry.read(most + 1)  # what the directory says of its size may be a lie
        if max(len(data), self.infos[path].file_size) > most:
            raise OSError(f"it unpacks to more than {most >> 20} MB")
        return data


class Tar(_Archive):
    """A tar that isn't compressed, so that any picture can be reached; its header has no checksum of the content."""

    kind = "tar"
    faults = (tarfile.TarError, OSError, EOFError)

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
        self.files = Names(path for path in self.infos if is_picture(path))

    def size(self, path: str) -> int:
        return self.infos[path].size

    def stamp(self, path: str) -> str:
        return f"{self.size(path)} {self.infos[path].mtime}"

    def glance(self, path: str) -> bytes:
        try:
            return hashlib.blake2b(self._unpack(path, MAX_FILE)[-TAIL:], digest_size=16).digest()
        except self.faults:
            return path.encode()  # unreadable: told when it is decoded

    def _unpack(self, path: str, most: int) -> bytes:
        if self.size(path) > most:
            raise OSError(f"it has more than {most >> 20} MB")
        with self.lock:  # one file, one place in it
            opened = self.archive.extractfile(self.infos[path])
            assert opened is not None  # only files are listed
            data = opened.read()
        if len(data) != self.size(path):
            raise OSError("the tar ends before it")
        return data


class Several(Source):
    """A folder of zips, as a set comes that has one for each class. A zip's name stands before the paths in it."""

    def __init__(self, root: Path):
        self.root = root
        self.parts = {path.stem: Zip(path) for path in zips_in(root)}
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
        if (self.root / name).is_file():
            return table_of(self.root, name)
        for part in self.parts.values():
            if any(path == name or path.endswith("/" + name) for path in part.infos):
                return part.read_table(name)
        raise DataError(f"{self.root}: no CSV {name} in it, nor in its zips")


def zips_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.zip") if not path.name.startswith("."))


def _refuse_unsafe(root: Path, path: str, link: bool) -> None:
    """Raises DataError of an archive whose entry is a link, or would lead out of the folder it is unpacked in."""
    parts = re.split(r"[/\\]", path)
    if link or ".." in parts or path.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0].endswith(":")):
        why = "is a link or a device" if link else "leads out of the archive"
        raise DataError(f"{root}: its entry {path!r} {why}; such an archive isn't read")
