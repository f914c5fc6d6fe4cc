"""A server among clients of every kind: quick and slow ones, sound and broken requests, all at once."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from asking import ask, png, served, server_of

from oct_hf import serving
from oct_hf.data.phantom import draw

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read as Linux tells it")
CLIENTS = 64
FLAT = 30_000  # KB by which the server may grow between a quarter and the end of the flood


@contextmanager
def real_server(run: Path):
    """`oct-hf serve` in a process of its own; gives the process and its port."""
    command = [sys.executable, "-m", "oct_hf.cli", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        said = process.stderr.readline()
        # A line for each request that is no HTTP: a pipe that nobody empties would stop the server.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process, int(said.partition("http://127.0.0.1:")[2].partition(" ")[0])
    finally:
        process.terminate()
        process.wait(60)


def post(body: bytes, length: int | None = None) -> bytes:
    return (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body
    )


def bomb() -> bytes:
    """100 million pixels in 100 KB."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("L", (10_000, 10_000)).save(file, "PNG", compress_level=9)
    return file.getvalue()


class Flood:
    """Clients that ask for so many seconds; `statuses` says what each kind of request got."""

    def __init__(self, port: int, seconds: float, image: bytes):
        self.port, self.until, self.image = port, time.monotonic() + seconds, image
        self.statuses: dict[str, Counter] = {}
        self.kinds = {
            "valid": self._answer(post(image)),
            "no image": self._answer(post(b"\x89PNG" + bytes(200))),
            "bad json": self._answer(post(b'{"inputs": ' + b"[" * 5000)),
            "bomb": self._answer(post(bomb())),
            "huge": self._answer(post(b"x" * 1000, 11 << 20)),
            "no http": self._answer(b"\x16\x03\x01 hello\r\n\r\n"),
            "cut off": self._leave(post(image)[:-20]),
            "slow body": self._drip(post(b"", 1000)),
            "slow head": self._drip(b"POST / HTTP/1.1\r\n"),
            "endless head": self._answer(b"POST / HTTP/1.1\r\nX: " + b"y" * (1 << 20)),
        }

    async def run(self) -> None:
        # Half of the clients ask what is sound, since these must be answered among all the others.
        names = [name for name in self.kinds if name != "valid"]
        each = [names[n // 2 % len(names)] if n % 2 else "valid" for n in range(CLIENTS)]
        await asyncio.gather(*(self._client(name) for name in each))

    async def _client(self, name: str) -> None:
        found = self.statuses.setdefault(name, Counter())
        while time.monotonic() < self.until:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                found[await self.kinds[name](reader, writer)] += 1
            except (ConnectionError, asyncio.IncompleteReadError):
                found["closed"] += 1
            except TimeoutError:
                found["no answer"] += 1
            finally:
                writer.close()

    def _answer(self, request: bytes):
        async def ask_it(reader, writer) -> int:
            writer.write(request)
            return int((await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).split()[1])

        return ask_it

    def _leave(self, request: bytes):
        async def go(reader, writer) -> str:
            writer.write(request)
            await writer.drain()
            await asyncio.sleep(0.05)
            return "left"

        return go

    def _drip(self, request: bytes):
        async def drip(reader, writer) -> str:
            writer.write(request)
            while time.monotonic() < self.until:
                writer.write(b"x")
                await writer.drain()
                if reader.at_eof():
                    raise ConnectionError
                await asyncio.sleep(1)
            return "left"

        return drip


def memory(process, name: str = "VmRSS") -> int:
    """KB."""
    lines = Path(f"/proc/{server_of(process.pid)}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.promise("A flooded server answers every sound request, refuses the others, and its memory stays flat.")
def test_sound_requests_are_answered_among_broken_slow_and_huge_ones(finished_run, cases):
    pytest.importorskip("onnxruntime")
    seconds = 120 if cases.every else 6
    image = png(draw("DME", 5, height=96, width=96).image)
    with real_server(finished_run) as (process, port):
        assert ask(port, image)[0] == 200
        flood = Flood(port, seconds, image)

        async def measured() -> tuple[int, int]:
            asked = asyncio.ensure_future(flood.run())
            await asyncio.sleep(seconds / 4)
            early = memory(process)
            await asyncio.sleep(seconds * 3 / 4 - 1)
            late = memory(process)
            await asked
            return early, late

        early, late = asyncio.run(measured())
        assert ask(port, image)[0] == 200 and ask(port, method="GET", path="/health")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(70) == 128 + signal.SIGTERM
    total = sum(counts.total() for counts in flood.statuses.values())
    cases.tried += total
    answered = flood.statuses["valid"][200]
    print(f"{total / seconds:.0f} requests a second, of which {answered / seconds:.0f} were sound and answered")
    print(f"memory {early / 1000:.0f} MB after a quarter, {late / 1000:.0f} MB at the end; {flood.statuses}")
    assert set(flood.statuses["valid"]) <= {200, 429} and answered > seconds
    for name, wanted in (("no image", 400), ("bad json", 400), ("bomb", 400), ("huge", 413), ("no http", 400)):
        assert set(flood.statuses[name]) <= {wanted, 429}, (name, flood.statuses[name])
    assert set(flood.statuses["endless head"]) <= {"closed", 400, 431}
    assert late - early < FLAT


class Quick:
    labels, batch_size = ("DME", "NORMAL"), 4

    def read(self, source: bytes, max_pixels: int) -> bytes:
        return source

    def logits(self, pixels: list) -> np.ndarray:
        return np.zeros((len(pixels), 2), np.float32)


async def closed_after(port: int, sent: bytes, drip: bytes = b"") -> float:
    """Seconds until the server ends a connection that was sent this, and then `drip` again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    writer.write(sent)
    try:
        while not reader.at_eof() and time.monotonic() - began < 20:
            if drip:
                writer.write(drip)
            try:
                await asyncio.wait_for(reader.read(1), 0.1)
            except TimeoutError:
                continue
    except ConnectionError:
        pass
    finally:
        writer.close()
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_header_that_does_not_come_is_not_waited_for(sent, monkeypatch):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.5)
    with served(Quick()) as port:
        assert asyncio.run(closed_after(port, sent, b"y" if sent else b"")) < 10
        assert ask(port, b"x")[0] == 200


def test_a_header_without_end_is_cut_off_and_not_kept(monkeypatch):
    with served(Quick()) as port:
        assert asyncio.run(closed_after(port, b"POST / HTTP/1.1\r\nX: ", b"y" * 50_000)) < 10
        assert ask(port, b"x", {"X-Long": "y" * 20_000})[0] in (200, 431)


def test_a_second_request_on_a_connection_has_its_own_time(monkeypatch):
    import http.client

    monkeypatch.setattr(serving, "HEAD_SECONDS", 1)
    with served(Quick()) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(3):
            connection.request("POST", "/", b"x")
            assert connection.getresponse().read()
            time.sleep(0.6)
        connection.close()


def test_connections_beyond_the_limit_are_closed_and_those_within_go_on(monkeypatch):
    monkeypatch.setattr(serving, "CONNECTIONS", 20)

    async def crowd(port: int) -> int:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
        await asyncio.sleep(0.5)
        ended = sum(reader.at_eof() or reader.exception() is not None for reader, _ in opened)
        for _, writer in opened:
            writer.close()
        return ended

    with served(Quick()) as port:
        assert asyncio.run(crowd(port)) == 10
        time.sleep(0.3)
        assert ask(port, b"x")[0] == 200


def test_nothing_is_kept_of_clients_that_left_in_the_middle_of_a_body():
    part = b"x" * 200_000

    async def leave(port: int, times: int) -> None:
        for _ in range(times):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(part, 2 * len(part)))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    with served(Quick()) as port:
        asyncio.run(leave(port, 5))
        tracemalloc.start()
        try:
            asyncio.run(leave(port, 100))
            time.sleep(0.5)
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert kept < 10 * len(part)
