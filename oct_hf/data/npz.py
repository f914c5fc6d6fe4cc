"""MedMNIST's .npz files as a source of pictures: `train|val|test/LABEL/number.png`, one a row of the arrays.

The arrays stay on the disk: an .npz is a zip, and one whose arrays are compressed is unpacked once into a temporary
folder that goes when the program ends. Nothing in it is unpickled.
"""

import io
import shutil
import tempfile
import weakref
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError  # what numpy's reader of headers raises of some

import numpy as np
from PIL import Image

from oct_hf.data.listing import Names
from oct_hf.data.source import Source
from oct_hf.errors import BadImageError, DataError
from oct_hf.labels import LABEL_SETS

SIDES = ("train", "val", "test")
_MOST = 1_000_000  # images of a side; OCTMNIST has 97,477
_LARGEST = 16 * 1024**3  # bytes of an array; OCTMNIST's of 224 pixels has 5 billion, three times that in colour


class Npz(Source):
    """`{side}_images` uint8 `(n, h, w[, 3])` and `{side}_labels` `(n, 1)`, with the labels' order of OCTMNIST."""

    def __init__(self, root: Path):
        self.root = root
        self.scratch = tempfile.mkdtemp(prefix="oct-hf-npz-")
        weakref.finalize(self, shutil.rmtree, self.scratch, ignore_errors=True)
        names = LABEL_SETS["octmnist"]
        self.arrays, files = {}, []
        try:
            with zipfile.ZipFile(root) as archive:
                for side in SIDES:
                    self.arrays[side] = self._array(archive, f"{side}_images.npy")
                    labels = np.asarray(self._array(archive, f"{side}_labels.npy")).reshape(-1)
                    _check(side, self.arrays[side], labels, len(names))
                    files += [f"{side}/{names[label]}/{row:06d}.png" for row, label in enumerate(labels)]
            self.files = Names(files)
        except (zipfile.BadZipFile, zlib.error, TokenError, OSError, KeyError, ValueError, EOFError) as error:
            why = " ".join(str(error).split())
            raise DataError(f"{root}: not an .npz of MedMNIST ({why}); is the download whole?") from None

    def _array(self, archive: zipfile.ZipFile, name: str) -> np.ndarray:
        """The array, mapped from a file and not held in memory."""
        info = archive.getinfo(name)
        with archive.open(info) as entry:
            version = np.lib.format.read_magic(entry)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, kind = read(entry)
            if kind.hasobject or fortran:
                raise ValueError(f"{name} holds {kind}, not numbers")
            size = kind.itemsize * int(np.prod(shape, dtype=object))
            if size > _LARGEST or max(shape, default=0) > _MOST:
                raise ValueError(f"{name} says {shape}, far more than OCTMNIST has")
            if size > info.file_size or size <= 0:
                raise ValueError(f"{name} says {shape}, but has {info.file_size} bytes")
            target = Path(self.scratch) / name.removesuffix(".npy")
            with open(target, "wb") as file:
                left = size
                while left:
                    block = entry.read(min(left, 1 << 22))
                    if not block:
                        raise EOFError(f"{name} ends too early")
                    file.write(block)
                    left -= len(block)
        return np.memmap(target, kind, "r", shape=shape)

    def size(self, path: str) -> int:
        return self.arrays[path.split("/")[0]][0].nbytes

    def stamp(self, path: str) -> str:
        return f"{self.root.stat().st_size} {self.root.stat().st_mtime_ns} {path}"

    def glance(self, path: str) -> int:
        return zlib.crc32(self._pixels(path).data)

    def read(self, path: str) -> bytes:
        encoded = io.BytesIO()
        try:
            Image.fromarray(self._pixels(path)).save(encoded, "PNG", compress_level=1)
        except (ValueError, OSError) as error:
            raise BadImageError(path, f"can't be read from the .npz ({error})") from None
        return encoded.getvalue()

    def read_table(self, name: str) -> bytes:
        raise DataError(f"{self.root}: no CSV {name} in an .npz")

    def _pixels(self, path: str) -> np.ndarray:
        side, _, name = path.split("/")
        return np.ascontiguousarray(self.arrays[side][int(name.removesuffix(".png"))])


def _check(side: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"{side}_images has shape {images.shape} of {images.dtype}")
    if len(images) != len(labels):
        raise ValueError(f"{side} has {len(images)} images and {len(labels)} labels")
    if len(labels) and not (labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"{side}_labels are not numbers from 0 to {classes - 1}")
