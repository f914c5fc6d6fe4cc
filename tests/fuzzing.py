"""Files changed at random and read, in a process that a decoder may crash: what test_fuzz.py starts and watches.

It prints a line a case, so that whoever watches knows which one took too long or ended it. Real files are changed in
memory only.
"""

import io
import json
import re
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

INTERESTING = (0, 1, 2, 127, 128, 255)
NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 65_535, 100_000, 10**7)


def mutated(whole: bytes, random: np.random.Generator) -> bytes:
    """The file after one to three harms: other bytes, other numbers, cut off, a part twice, moved or left out."""
    data = bytearray(whole)
    for _ in range(random.integers(1, 4)):
        # Half of the times in the header, where lengths and counts stand.
        end = min(len(data), 600) if random.integers(2) else len(data)
        at, much = int(random.integers(0, max(end, 1))), int(random.integers(1, 400))
        kind = random.integers(6)
        if kind == 0:
            for place in random.integers(0, max(end, 1), random.integers(1, 9)):
                if place < len(data):
                    data[place] = random.choice((*INTERESTING, random.integers(256)))
        elif kind == 1:
            order, number = random.choice((">", "<")), int(random.choice(NUMBERS)) & 0xFFFFFFFF
            data[at : at + 4] = struct.pack(f"{order}I", number)
        elif kind == 2:
            del data[int(random.integers(0, len(data) + 1)) :]
        elif kind == 3:
            data[at:at] = data[at : at + much]
        elif kind == 4:
            del data[at : at + much]
        else:
            data[at : at + much] = random.bytes(much)
    return bytes(data)


def encoded(seed: int) -> list[bytes]:
    """Phantoms in every kind of file that is read."""
    from oct_hf.data.phantom import draw

    gray = Image.fromarray(draw("DME", seed, height=96, width=128).image)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 16)
    kinds = [(gray, "JPEG", {}), (gray, "JPEG", {"progressive": True, "exif": _turned()}), (gray, "PNG", {})]
    kinds += [(deep, "PNG", {}), (gray.convert("RGBA"), "PNG", {}), (gray.convert("P"), "PNG", {}), (gray, "BMP", {})]
    kinds += [(gray.convert("RGB"), "WEBP", {"lossless": True}), (gray.convert("RGB"), "WEBP", {}), (gray, "GIF", {})]
    compressions = (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")
    kinds += [(gray, "TIFF", {"compression": c} if c else {}) for c in compressions]
    kinds += [
        (deep, "TIFF", {}),
        (gray.convert("1"), "TIFF", {"compression": "group4"}),
        (gray.convert("F"), "TIFF", {}),
    ]
    files = []
    for image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
    return files


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def images(seed: int, folder: Path, real: list[Path]) -> Iterator[Callable[[], str]]:
    """Reading one changed picture after the other; the file itself lies under `folder` when it is its turn."""
    from oct_hf.errors import BadImageError
    from oct_hf.images import read_image

    random = np.random.default_rng(seed)
    files = [*encoded(seed), *(path.read_bytes() for path in real)]

    def case() -> str:
        try:
            pixels = read_image(mutated(files[random.integers(len(files))], random))
        except BadImageError as error:
            assert error.reason and len(error.reason) < 2000
            return "refused"
        assert pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and min(pixels.shape[:2]) >= 16
        return "read"

    while True:
        yield case


def volumes(kind: str, seed: int, folder: Path) -> Iterator[Callable[[], str]]:
    """The same of a device's files."""
    from oct_hf.data.volumes import read_volumes
    from oct_hf.errors import DataError
    from tests.data.volumes.kinds import BESIDE, KINDS

    random, path = np.random.default_rng(seed), KINDS[kind](folder)
    victims = sorted({path, path.with_name(BESIDE.get(kind, path.name))})
    sound = {victim: victim.read_bytes() for victim in victims}

    def case() -> str:
        victim = victims[random.integers(len(victims))]
        victim.write_bytes(mutated(sound[victim], random))
        try:
            found = read_volumes(path)
        except DataError as error:
            assert "\n" not in str(error)
            return "refused"
        finally:
            victim.write_bytes(sound[victim])
        assert all(volume.bscans.ndim == 3 and volume.bscans.dtype == np.uint8 for volume in found)
        return "read"

    while True:
        yield case


def main(kind: str, seed: int, count: int, folder: Path, memory: int, real: list[Path]) -> None:
    """Prints the number of each case when it begins and how it ended; at the end the most memory, in MB."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    cases = images(seed, folder, real) if kind == "images" else volumes(kind, seed, folder)
    for number, case in zip(range(count), cases, strict=False):
        print(number, end=" ", flush=True)
        print(case(), flush=True)
    # Not ru_maxrss: a child begins with that of its parent.
    print("memory", int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    main(told["kind"], told["seed"], told["count"], Path(told["folder"]), told["memory"], list(map(Path, told["real"])))
