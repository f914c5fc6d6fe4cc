"""Room for requests that were accepted and aren't answered: so many, and so many bytes of bodies in all.

A server that takes whatever comes keeps it in memory until its turn. Here a request that finds no room is turned away
before its body is read, so that memory has a bound however many come. For one event loop; it needs no lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Full(Exception):
    """There is no room; the text says of what."""


class Place:
    """One request's place, and how many bytes it holds."""

    def __init__(self, room: "Room"):
        self._room, self.bytes = room, 0

    def hold(self, nbytes: int) -> None:
        """Has the place hold so many bytes in all, where it held fewer.

        Raises:
            Full: the bytes of all places would be too many.
        """
        more = nbytes - self.bytes
        if more > 0:
            if self._room.bytes + more > self._room.most_bytes:
                raise Full(f"{self._room.bytes / 2**20:.0f} MiB wait already")
            self._room.bytes += more
            self.bytes = nbytes


class Room:
    """
    Args:
        places: requests at a time.
        most_bytes: that all of them hold.

    Attributes:
        taken: places.
        bytes: that these hold.
    """

    def __init__(self, places: int, most_bytes: int):
        self.places, self.most_bytes = places, most_bytes
        self.taken = self.bytes = 0

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place for as long as the block runs.

        Raises:
            Full: all are taken.
        """
        if self.taken >= self.places:
            raise Full(f"{self.taken} requests wait already")
        place = Place(self)
        self.taken += 1
        try:
            yield place
        finally:
            self.taken -= 1
            self.bytes -= place.bytes
