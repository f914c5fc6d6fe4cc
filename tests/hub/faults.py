"""A proxy between a client and a Hub that harms requests as networks and servers do, on the level of TCP.

Neither side knows of it: the client is the real one and so is the Hub. Each request gets a connection of its own, so a
fault meets one request and no other.
"""

import asyncio
import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

ANSWER = "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n{}"
FAULTS = (
    "500",  # and the Hub never sees the request
    "500 after",  # the Hub acted, its answer is lost
    "429",  # with Retry-After
    "stall",  # before the Hub sees it
    "stall after",  # the Hub acted and the answer never comes
    "cut",  # before the Hub sees it
    "cut upload",  # in the middle of what the client sends
    "cut after",  # the Hub acted, no answer
    "cut answer",  # in the middle of the answer
)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_hub(root, port: int, *options, file_bytes: int | None = None) -> subprocess.Popen:
    """`oct-hf hub` as a process, answering; it can't write a file larger than `file_bytes`, as on a full disk."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    command = [sys.executable, "-m", "oct_hf.cli", "hub", "--root", str(root), "--port", str(port), *options]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit
    )
    assert "HF_ENDPOINT" in process.stdout.readline(), process.stderr.read()
    return process


class Proxy:
    """Forwards to a Hub's port; `plan` may name a fault for a request, or be a function to call instead of harming.

    Attributes:
        port: that it listens on.
        seen: (method, path) of each request in order of arrival, without the query.
        given_up: those of them that nobody harmed and whose client left before the answer, taking a busy machine for a
            stalled Hub.
        plan: from (number of the request, method, path) to one of FAULTS, a function, or None for no harm. A function
            is called on a thread once the request is on its way to the Hub, and the connection is cut when it returns.
    """

    def __init__(self, port: int, hub_port: int):
        self.port, self.hub_port = port, hub_port
        self.seen: list[tuple[str, str]] = []
        self.given_up: list[tuple[str, str]] = []
        self._under_way = 0
        self.plan: Callable = lambda number, method, path: None
        self.retry_after = "0"

    def __enter__(self) -> "Proxy":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        return self

    def __exit__(self, *_) -> None:
        async def end() -> None:
            self._server.close()
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def settle(self) -> None:
        """Returns when the Hub is busy with no request any more; then `given_up` is complete."""

        async def idle() -> None:
            await asyncio.sleep(0.02)  # lets in who is connected and not yet heard
            while self._under_way:
                await asyncio.sleep(0.02)

        asyncio.run_coroutine_threadsafe(idle(), self._loop).result(timeout=60)

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        self._under_way += 1
        try:
            # A client or a Hub that went away ends the request, which is what this file is for.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._handle(client, answer)
        finally:
            self._under_way -= 1
            answer.transport.abort()

    async def _handle(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        head = await client.readuntil(b"\r\n\r\n")
        method, target = head.split(b" ")[:2]
        method, path = method.decode(), target.decode().partition("?")[0]
        fault = None
        if path != "/api/agent-harnesses":  # huggingface_hub's own, once a day; no part of a push
            fault = self.plan(len(self.seen), method, path)
            self.seen.append((method, path))
        if fault == "cut":
            return
        if fault == "stall":
            await client.read(-1)  # until the client gives up
            return
        try:
            body = await _body(head, client)
        except (OSError, asyncio.IncompleteReadError):
            if fault is None:
                self.given_up.append((method, path))
            raise
        if fault == "500":
            answer.write(_answer("500 Internal Server Error"))
        elif fault == "429":
            answer.write(_answer("429 Too Many Requests", f"Retry-After: {self.retry_after}\r\n"))
        else:
            await self._forward(head, body, fault, client, answer)
            if fault is None and (client.at_eof() or client.exception()):
                self.given_up.append((method, path))
        await answer.drain()
        answer.close()
        await answer.wait_closed()

    async def _forward(self, head: bytes, body: bytes, fault, client, answer) -> None:
        back, hub = await asyncio.open_connection("127.0.0.1", self.hub_port)
        try:
            head = re.sub(rb"\r\n[Cc]onnection: [^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n"
            if fault == "cut upload":
                hub.write((head + body)[: len(head) + len(body) // 2 - 1])
                await hub.drain()
                return
            hub.write(head + body)
            await hub.drain()
            if callable(fault):
                await asyncio.to_thread(fault)
                return
            said = await back.read(-1)
        finally:
            hub.transport.abort() if fault == "cut upload" else hub.close()
        if fault == "500 after":
            answer.write(_answer("500 Internal Server Error"))
        elif fault == "stall after":
            await client.read(-1)
        elif fault == "cut answer":
            answer.write(said[: -max(1, (len(said) - said.index(b"\r\n\r\n")) // 2)])
        elif fault != "cut after":
            answer.write(said)


async def _body(head: bytes, client: asyncio.StreamReader) -> bytes:
    if length := re.search(rb"\r\n[Cc]ontent-[Ll]ength: (\d+)", head):
        return await client.readexactly(int(length[1]))
    if not re.search(rb"\r\n[Tt]ransfer-[Ee]ncoding: chunked", head):
        return b""
    whole = b""
    while True:
        line = await client.readuntil(b"\r\n")
        chunk = await client.readexactly(int(line, 16) + 2)
        whole += line + chunk
        if chunk == b"\r\n":
            return whole


def _answer(status: str, headers: str = "") -> bytes:
    body = '{"error": "harmed"}'
    return ANSWER.format(status, len(body), headers, body).encode()
