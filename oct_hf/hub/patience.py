"""Patience with a Hub: which faults pass, how long to wait for them, and the one place that tries again.

huggingface_hub repeats some requests (uploads, listings) and not others (commits, tags), waits as long as a server
tells it to, and sets no limit on silence. Here each request is made once, with such a limit, and the whole step that
it belongs to is made again; so a step must be one that can be made twice.
"""

import contextlib
import importlib
import json
import re
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import get_session

PASSING = (408, 429, 500, 502, 503, 504)
CONNECT_SECONDS = 10
Answer = TypeVar("Answer")
_one_at_a_time = threading.RLock()


class PassingFault(Exception):
    """A fault that the next try may not meet.

    Attributes:
        wait_s: what the Hub asked for, in seconds.
    """

    def __init__(self, why: str, wait_s: float | None = None):
        super().__init__(why)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Patience:
    """How long a push goes on against a Hub that fails.

    A Hub that refuses connections is given up after 15 seconds, one that is silent after about five minutes, one that
    asks for waits (429) after four of them.

    Attributes:
        tries: of one step.
        first_wait_s: before the second try; it doubles from try to try.
        longest_wait_s: a Hub that asks for more (`Retry-After`) is given up at once. huggingface.co counts requests in
            windows of 300 seconds.
        stall_s: silence after which a request counts as lost. An upload may last as long as it moves.
        say: is told what is waited for.
    """

    tries: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 300.0
    stall_s: float = 60.0
    say: Callable[[str], None] = lambda _: None

    def __call__(self, step: Callable[[], Answer]) -> Answer:
        """The step's answer, from the first try that gives one; to be used within `one_try_a_request`.

        Raises:
            PassingFault: the last try met one too, or the Hub asks for too long a wait.
        """
        for number in range(1, self.tries + 1):
            try:
                return _unwrapped(step)
            except PassingFault as fault:
                if fault.wait_s is not None and fault.wait_s > self.longest_wait_s:
                    raise PassingFault(f"{fault} and asks to wait {fault.wait_s:.0f} s") from None
                if number == self.tries:
                    raise PassingFault(f"{fault}, {self.tries} times") from None
                wait = self.first_wait_s * 2 ** (number - 1) if fault.wait_s is None else fault.wait_s
                self.say(f"the Hub {fault}; try {number + 1} of {self.tries} in {wait:.0f} s")
            time.sleep(wait)
        raise AssertionError("unreachable")


@contextmanager
def one_try_a_request(stall_s: float) -> Iterator[None]:
    """Within the block, huggingface_hub's own client gives up on silence and raises PassingFault instead of retrying.

    The client is the one in use, so that a proxy or certificate configured for it stays; only how it sends is changed,
    and changed back. A second thread waits until the first is through. Ctrl-C ends the requests under way at once.
    """
    with _one_at_a_time, _cut_by_ctrl_c() as watch:
        client = get_session()
        library = importlib.import_module(type(client).__module__.partition(".")[0])  # httpx or httpx2
        limits = library.Timeout(stall_s, connect=min(CONNECT_SECONDS, stall_s)).as_dict()
        usual = client.send

        def send(request, **options):
            # Set here, since some calls of huggingface_hub pass timeout=None, which switches a client's own limit off.
            given = request.extensions.get("timeout", {})
            least = {act: min(limit, given.get(act) or limit) for act, limit in limits.items()}
            request.extensions = {**request.extensions, "timeout": least, "trace": watch}
            try:
                response = usual(request, **options)
            except (library.LocalProtocolError, library.UnsupportedProtocol):
                raise
            except library.TransportError as error:
                raise PassingFault(_fault(error, library)) from error
            if response.status_code not in PASSING:
                return response
            response.close()
            raise PassingFault(f"answered {response.status_code}", _asked_wait(response.headers))

        client.send = send
        try:
            yield
        finally:
            client.send = usual


@contextmanager
def _cut_by_ctrl_c() -> Iterator[Callable[[str, dict], None]]:
    """Gives what notes each new connection; Ctrl-C shuts them, since it would else wait until the threads on which
    huggingface_hub uploads are through with their files.
    """
    open_sockets, stopped = weakref.WeakSet(), threading.Event()

    def shut(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def watch(event: str, about: dict) -> None:
        stream: Any = about.get("return_value")
        if event.endswith(("connect_tcp.complete", "start_tls.complete")) and hasattr(stream, "get_extra_info"):
            open_sockets.add(stream.get_extra_info("socket"))
            if stopped.is_set():
                shut(stream.get_extra_info("socket"))

    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    usual = signal.getsignal(signal.SIGINT)

    def stop(number, frame) -> None:
        stopped.set()
        for connection in list(open_sockets):
            shut(connection)
        if callable(usual):
            usual(number, frame)

    signal.signal(signal.SIGINT, stop)
    try:
        yield watch
    finally:
        signal.signal(signal.SIGINT, usual)


def _fault(error: Exception, library) -> str:
    if isinstance(error, library.TimeoutException):
        return "was silent for too long"
    if isinstance(error, library.ConnectError):
        return f"can't be reached ({str(error) or 'no connection'})"
    return f"cut the connection ({str(error) or type(error).__name__})"


def _asked_wait(headers) -> float | None:
    """Seconds of `Retry-After`, or until huggingface.co's window of requests ends (`RateLimit: "api";r=0;t=55`)."""
    asked = headers.get("retry-after", "").strip()
    if asked.isdigit():
        return float(asked)
    window = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(window[1]) if window else None


def _unwrapped(step: Callable[[], Answer]) -> Answer:
    """What the step gives; where it fails, the cause without what huggingface_hub wraps around it."""
    try:
        return step()
    except json.JSONDecodeError:
        raise PassingFault("gave an answer that breaks off") from None
    except RuntimeError as error:  # "Error while uploading …"
        if type(error).__module__ != "builtins" or error.__cause__ is None:
            raise
        raise error.__cause__ from None
