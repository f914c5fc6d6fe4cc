"""A server in a process of its own, and another one in its place where that dies.

A fault in a native library, or the system's memory killer, then ends the requests at hand and not the service: whoever
connects meanwhile waits for the next process, since the port stays taken here.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection

from oct_hf.errors import OCTError

DEATHS, EARLY = 5, 120.0  # so many deaths in a row, each within so many seconds of its start, and that is the end


def run_replaced(target: Callable[..., int], *given) -> int:
    """Runs `target(*given)` in a process of its own, and again where a signal ended that.

    Args:
        target: a module's function; gives an exit code. SIGTERM asks it to end.
        given: what can be pickled, sockets too, which are closed here when this process is asked to end.

    Returns:
        its exit code; 128 and the number of SIGINT or SIGTERM where this process was asked to end.

    Raises:
        OCTError: whatever `target` raised of this kind, or it died too often.
    """
    context = multiprocessing.get_context("spawn")
    received: list[int] = []
    deaths = 0
    process = None

    def end() -> None:
        assert process is not None
        process.terminate()
        for one in given:
            if isinstance(one, socket.socket):
                one.close()  # or it would go on taking connections that nobody answers

    def pass_on(number, _) -> None:
        received.append(number)
        if process is not None and process.pid is not None:
            end()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not received:
            heard, telling = context.Pipe(duplex=False)
            started = time.monotonic()
            process = context.Process(target=_tell, args=(telling, target, *given))
            process.start()
            telling.close()
            if received:  # before there was a process to tell
                end()
            process.join()
            code, process = process.exitcode or 0, None  # a signal from here on has nobody to be passed on to
            if heard.poll() and (fault := _message(heard)):
                raise OCTError(fault)
            if received:
                break
            if code >= 0:
                return code
            name = signal.Signals(-code).name
            deaths = deaths + 1 if time.monotonic() - started < EARLY else 1
            if deaths == DEATHS:
                minutes = f"each within {EARLY / 60:.0f} minutes of its start"
                raise OCTError(f"the server's process died {DEATHS} times in a row, {minutes}, at last by {name}")
            print(f"the server's process was ended by {name}; another one takes its place", file=sys.stderr, flush=True)
        return 128 + received[-1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(heard) -> str | None:
    try:
        return heard.recv()
    except EOFError:
        return None


def _tell(telling, target: Callable[..., int], *given) -> None:
    """In the new process, to which the other one passes signals on, also those that a terminal sends to both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        code = target(*given)
    except OCTError as error:
        telling.send(str(error))
        code = 2
    sys.exit(code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
