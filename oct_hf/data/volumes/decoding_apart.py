"""Pictures that only gdcm decodes (JPEG without loss, JPEG of 12 bits), in a process of their own.

gdcm ends its process at some damaged pictures, and prints what it thinks of others; here that is the end of a child
alone, and one that takes too long is ended. The child is started once for a file and takes one picture after the other.
"""

import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np

MOST_SECONDS = 60  # for one frame; whole ones take milliseconds


class Decoder:
    """A child process; use it as a context."""

    def __enter__(self) -> "Decoder":
        command = [sys.executable, "-m", __name__]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing)
        assert self.child.stdin is not None and self.child.stdout is not None  # pipes
        self._asked, self._answered = self.child.stdin, self.child.stdout
        return self

    def decode(self, encapsulated: bytes, options: dict) -> np.ndarray:
        """One frame, `(rows, columns)`.

        Raises:
            ValueError: it can't be decoded, or not in a minute.
        """
        told = json.dumps(options).encode()
        too_long = threading.Timer(MOST_SECONDS, self.child.kill)
        too_long.start()
        try:
            self._asked.write(struct.pack("<2I", len(told), len(encapsulated)) + told + encapsulated)
            self._asked.flush()
            head = self._answered.read(12)
            kind, rows, columns = struct.unpack("<4s2I", head)
            kind = np.dtype(kind.decode().strip())
            values = np.frombuffer(self._answered.read(kind.itemsize * rows * columns), kind)
            return values.reshape(rows, columns)
        except (OSError, struct.error, TypeError):
            raise ValueError("a picture that gdcm can't decode") from None
        finally:
            too_long.cancel()

    def __exit__(self, *_) -> None:
        self.child.kill()
        self.child.communicate()


def _frames() -> Iterator[tuple[dict, bytes]]:
    while head := sys.stdin.buffer.read(8):
        told, length = struct.unpack("<2I", head)
        yield json.loads(sys.stdin.buffer.read(told)), sys.stdin.buffer.read(length)


def _main() -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    for options, frame in _frames():
        options["transfer_syntax_uid"] = syntax = UID(options["transfer_syntax_uid"])
        values = get_decoder(syntax).as_array(frame, index=0, decoding_plugin="gdcm", **options)[0]
        values = values.astype(values.dtype.newbyteorder("<"))
        kind = f"<{values.dtype.kind}{values.dtype.itemsize}".encode().ljust(4)
        sys.stdout.buffer.write(struct.pack("<4s2I", kind, *values.shape) + values.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
