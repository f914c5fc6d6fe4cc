"""An ASGI application on a port: on a thread for the length of a block, or in the foreground until a signal.

The port is taken before anything slow is loaded, so that one in use is said at once and as one line.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from oct_hf.errors import OCTError

HEAD_SECONDS = 30  # for a request's header to arrive
HEAD_BYTES = 64 * 1024  # of it
CONNECTIONS = 512  # at a time; a process may have 1,024 files open, as systems set it
SHUTDOWN_SECONDS = 60  # what was accepted is answered within it; a connection that still hangs is then cut


def take_port(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A bound socket; connections are refused until it is served.

    Args:
        port: 0 takes a free one, which `socket.getsockname()[1]` tells.

    Raises:
        OCTError: the port is in use or not allowed, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        if hasattr(socket, "SO_REUSEPORT"):  # a port just left is free again; Windows means another thing by it
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OCTError(f"{host}:{port} can't be served ({reason}); another port: --port") from None
    return taken


@contextmanager
def running(app, taken: socket.socket, patience: int = SHUTDOWN_SECONDS) -> Iterator[None]:
    """Serves on a thread of this process, answering from the first moment of the block to its last.

    Args:
        patience: seconds for what hangs at the end.
    """
    server = uvicorn.Server(_config(app, patience))
    thread = threading.Thread(target=server.run, args=([taken],), daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise OCTError(f"port {taken.getsockname()[1]} can't be served")
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def run_until_stopped(
    app, taken: socket.socket, ready: Callable[[], None] = lambda: None, patience: int = SHUTDOWN_SECONDS
) -> int:
    """Serves until SIGINT or SIGTERM, then answers what was accepted; gives the signal's number.

    Args:
        ready: called once a client can connect.
        patience: seconds for what hangs at the end.
    """
    received = []
    # uvicorn raises the signal once more after it has ended, for whoever had a handler before: that is this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    taken.listen()
    ready()
    uvicorn.Server(_config(app, patience)).run([taken])
    return received[-1] if received else 0


def _config(app, patience: int) -> uvicorn.Config:
    return uvicorn.Config(app, http=_Patient, log_level="warning", timeout_graceful_shutdown=patience)


_Protocol: Any = AutoHTTPProtocol  # one of two classes, of which its type says what asyncio's has


class _Patient(_Protocol):
    """One connection. uvicorn itself waits for a request's header without end, and keeps it however long it grows."""

    _deadline, _in_head, _head_bytes = None, False, 0

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if not self._answering():
            self._await_head()  # or the rest of a body that was refused, which has the same time
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.abort()
        if self._answering():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    # Told by httptools; h11, the other parser, has such a limit of its own.
    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
