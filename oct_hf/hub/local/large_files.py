"""The loopback Hub's large files, each under its SHA-256: uploads in one piece or in parts, and links to them.

An upload counts once its content has been hashed; until then it lies where a start of the Hub clears it away.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterable, Callable, Iterator
from pathlib import Path

from oct_hf.hub.local.pointers import pointer
from oct_hf.hub.local.refusals import HubError

PART_SECONDS = 24 * 3600  # after which a part of an upload that nobody finished is removed
_SHA256 = re.compile(r"[0-9a-f]{64}")


class LargeFiles:
    """The folder of large files.

    Args:
        folder: for those that are whole.
        unfinished: for uploads on their way, on the same file system.
    """

    def __init__(self, folder: Path, unfinished: Path):
        self.folder, self.unfinished = folder, unfinished
        folder.mkdir(parents=True, exist_ok=True)
        self._secret = secrets.token_bytes(32)  # of the links; they needn't outlive the process

    def has(self, oid: str) -> bool:
        """Whether a large file is here already."""
        return bool(_SHA256.fullmatch(oid)) and (self.folder / oid).exists()

    def file(self, oid: str) -> Path:
        """Where a large file lies.

        Raises:
            HubError: 404, it was never uploaded.
        """
        if not self.has(oid):
            raise HubError(404, "Large file not found", "EntryNotFound")
        return self.folder / oid

    def pointer(self, oid: str) -> bytes:
        """What git holds in a large file's place.

        Raises:
            HubError: 400, it was never uploaded.
        """
        if not self.has(oid):
            raise HubError(400, f"Large file {oid} was not uploaded")
        return pointer(oid, (self.folder / oid).stat().st_size)

    async def receive(self, oid: str, content: AsyncIterable[bytes]) -> None:
        """Keeps an upload; it takes its place only if its content is what its name says.

        Raises:
            HubError: 422, the content has another hash; 400, the name is no hash.
        """
        with self._whole(oid) as write:
            async for chunk in content:
                write(chunk)

    async def receive_part(self, oid: str, number: int, content: AsyncIterable[bytes]) -> str:
        """Keeps one part of an upload and gives its MD5; parts that nobody came back for are removed.

        Raises:
            HubError: 400, the name is no hash.
        """
        for old in self.unfinished.glob("*.part*"):
            if old.stat().st_mtime < time.time() - PART_SECONDS:
                old.unlink(missing_ok=True)
        digest = hashlib.md5(usedforsecurity=False)
        with self._written(self._part(oid, number), digest) as write:
            async for chunk in content:
                write(chunk)
        return digest.hexdigest()

    def join_parts(self, oid: str, count: int) -> None:
        """Makes an upload of its parts, which are gone afterwards, whatever came of it.

        Raises:
            HubError: 422, a part is missing, or the content has another hash; 400, the name is no hash.
        """
        parts = [self._part(oid, number) for number in range(1, count + 1)]
        try:
            with self._whole(oid) as write:
                for part in parts:
                    if not part.exists():
                        raise HubError(422, f"{part.name} was not uploaded")
                    with part.open("rb") as file:
                        while chunk := file.read(2**20):
                            write(chunk)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)

    def signature(self, act: str, oid: str) -> str:
        """What a link to a large file carries, so that only whom this Hub gave the link may follow it."""
        return hmac.new(self._secret, f"{act} {oid}".encode(), hashlib.sha256).hexdigest()

    def check(self, act: str, oid: str, signature: str) -> None:
        """Raises HubError, 403, where a link to a large file is not one that this Hub gave."""
        if not hmac.compare_digest(self.signature(act, oid), signature):
            raise HubError(403, "This link was not given by this Hub")

    def _part(self, oid: str, number: int) -> Path:
        """Where one part of an upload waits for the others."""
        return self.unfinished / f"{_checked(oid)}.part{number}"

    @contextlib.contextmanager
    def _whole(self, oid: str) -> Iterator[Callable[[bytes], None]]:
        """A function to write an upload with, which takes its place where it has this hash."""
        digest = hashlib.sha256()
        with self._written(self.folder / _checked(oid), digest) as write:
            yield write
            if digest.hexdigest() != oid:
                raise HubError(422, "The content has another SHA-256 than its name")

    @contextlib.contextmanager
    def _written(self, path: Path, digest) -> Iterator[Callable[[bytes], None]]:
        """A function to write a file with, which is hashed on its way and takes its place when the block ends well."""
        handle, name = tempfile.mkstemp(dir=self.unfinished)
        try:
            with open(handle, "wb") as file:

                def write(chunk: bytes) -> None:
                    digest.update(chunk)
                    file.write(chunk)

                yield write
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def _checked(oid: str) -> str:
    if not _SHA256.fullmatch(oid):
        raise HubError(400, f"Not a SHA-256: {oid}")
    return oid
