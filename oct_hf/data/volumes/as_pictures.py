"""A device's files as pictures of a folder: `scan.e2e#0/012.png` is the B-scan 12 of the first acquisition in scan.e2e.

A volume is read when the folder is listed and again when its B-scans are; one or two stay in memory between, and none
beside a large one.
"""

import io
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from oct_hf.data.volumes import Volume, read_volumes
from oct_hf.errors import BadImageError, DataError

_KEPT = 2  # files whose volumes stay in memory
_LARGE = 128 * 1024**2  # bytes of B-scans: with more the files before are let go


@dataclass(frozen=True)
class Shown:
    """What a device's file says of one of its B-scans.

    Attributes:
        file: its path in the folder.
        patient: a pseudonym, or "".
        eye: "OD", "OS" or "".
        device: the format, in words.
    """

    file: str
    patient: str
    eye: str
    device: str


class DevicePictures:
    """The B-scans of the device files below a folder.

    Attributes:
        bad: files that can't be read, each with `file` and `reason`.
    """

    def __init__(self, root: Path):
        self.root, self.bad = root, []
        self._lock, self._open = threading.Lock(), OrderedDict()
        self._known: dict[str, tuple[Shown, np.ndarray]] = {}

    def names_in(self, path: str) -> Iterator[str]:
        """Names the B-scans of a file; none where it can't be read, which is noted."""
        try:
            volumes = self._volumes(path)
        except DataError as error:
            whole = str(self.root / path)
            self.bad.append({"file": path, "reason": str(error).removeprefix(f"{whole}: ")})
            return
        for volume in volumes:
            sums = np.array([zlib.crc32(np.ascontiguousarray(bscan).data) for bscan in volume.bscans], np.uint32)
            name = f"{path}#{volume.number}"
            self._known[name] = Shown(path, volume.patient, volume.laterality, volume.kind), sums
            yield from (f"{name}/{number:03d}.png" for number in range(len(volume.bscans)))

    def shown(self, name: str) -> Shown | None:
        """What is known of a picture; None where it is none of a device's file."""
        found = self._known.get(name.rpartition("/")[0])
        return found and found[0]

    def checksum(self, name: str) -> int:
        """Equal for equal B-scans."""
        volume, number = _place(name)
        return int(self._known[volume][1][number])

    def read(self, name: str) -> bytes:
        """A B-scan as PNG, without loss.

        Raises:
            BadImageError: the file can't be read any more.
        """
        volume, number = _place(name)
        file, _, which = volume.rpartition("#")
        try:
            bscan = self._volumes(file)[int(which)].bscans[number]
        except (DataError, IndexError) as error:
            raise BadImageError(name, f"can't be read from its file ({error})") from None
        encoded = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(bscan)).save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()

    def _volumes(self, file: str) -> list[Volume]:
        with self._lock:
            if file not in self._open:
                while len(self._open) >= _KEPT or (self._open and self._bytes() > _LARGE):
                    self._open.popitem(last=False)
                self._open[file] = read_volumes(self.root / file)
            self._open.move_to_end(file)
            return self._open[file]

    def _bytes(self) -> int:
        return sum(volume.bscans.nbytes for volumes in self._open.values() for volume in volumes)


def _place(name: str) -> tuple[str, int]:
    volume, _, picture = name.rpartition("/")
    return volume, int(picture.removesuffix(".png"))
