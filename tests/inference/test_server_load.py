"""A server that many ask at once: batches, a full queue, clients that leave, a model that fails, an end in between."""

import asyncio
import gc
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from asking import ask, assert_same, metrics, png, served

from oct_hf.inference.batching import Batcher


def test_forty_clients_at_once_get_their_own_answers_from_batches(predictor):
    from oct_hf.data.phantom import draw

    kinds = ("CNV", "DME", "DRUSEN", "NORMAL")
    images = [png(draw(kinds[i % 4], 5, patient=i, height=96, width=96).image) for i in range(40)]
    answers = list(predictor.predict(images))
    assert len({tuple(a.probabilities.values()) for a in answers}) == 40  # so that a swap is seen
    with served(predictor) as port:
        together = threading.Barrier(40)

        def client(image):
            together.wait()
            return [ask(port, image) for _ in range(3)]

        with ThreadPoolExecutor(40) as pool:
            for got, answer in zip(pool.map(client, images), answers, strict=True):
                for status, _, said in got:
                    assert status == 200
                    assert_same(said, answer.probabilities)
        values = metrics(port)
    assert values["oct_hf_batch_size_sum"] == 120 == values["oct_hf_requests_total 200"]
    assert values["oct_hf_batch_size_count"] < 100  # batches formed
    assert values["oct_hf_batch_size_bucket 8.0"] == values["oct_hf_batch_size_count"]  # and none above the limit


class Slow:
    """A classifier that answers when told, for what happens meanwhile."""

    labels, batch_size = ("DME", "NORMAL"), 4

    def __init__(self):
        self.go, self.batches = threading.Event(), []

    def read(self, source: bytes, max_pixels: int) -> bytes:
        return source

    def logits(self, pixels: list) -> np.ndarray:
        self.batches.append(pixels)
        if pixels == [b"fail"]:
            raise ArithmeticError("no memory")
        self.go.wait(20)
        return np.array([[float(len(p)), 0.0] for p in pixels], np.float32)


def _until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def test_a_full_queue_is_a_429_that_says_when_to_come_again():
    slow = Slow()
    with served(slow, queue=3) as port, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, port, b"x") for _ in range(3)]
        _until(lambda: metrics(port)["oct_hf_queue_length"] == 3)
        status, headers, said = ask(port, b"x")
        assert status == 429 and headers["Retry-After"] == "1" and "3 requests wait" in said["error"]
        assert ask(port, method="GET", path="/health")[0] == 200
        slow.go.set()
        assert [w.result()[0] for w in waiting] == [200, 200, 200] and ask(port, b"x")[0] == 200


def test_the_wait_is_what_the_queue_takes_at_the_models_pace():
    slow = Slow()
    with served(slow, queue=9) as port, ThreadPoolExecutor(9) as pool:
        first = pool.submit(ask, port, b"x")
        _until(lambda: slow.batches)
        time.sleep(1.2)  # which a batch then takes at least
        slow.go.set()
        assert first.result()[0] == 200
        slow.go.clear()
        waiting = [pool.submit(ask, port, b"x") for _ in range(9)]
        _until(lambda: metrics(port)["oct_hf_queue_length"] == 9)
        assert 4 <= int(ask(port, b"x")[1]["Retry-After"]) <= 60  # three batches of at most four
        slow.go.set()
        assert {work.result()[0] for work in waiting} == {200}


@pytest.mark.parametrize("declared", [True, False])
def test_bodies_of_too_many_bytes_in_all_are_turned_away(declared):
    slow = Slow()
    body = b"x" * 600
    with served(slow, queue_bytes=1000, body_bytes=1000) as port, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, port, body)
        _until(lambda: metrics(port)["oct_hf_queue_bytes"] == 600)
        status, headers, said = ask(port, body if declared else iter([body]))  # an iterator goes in chunks
        assert status == 429 and int(headers["Retry-After"]) >= 1 and "MiB wait already" in said["error"]
        slow.go.set()
        assert first.result()[0] == 200 and ask(port, b"x" * 1000)[0] == 200
        assert metrics(port)["oct_hf_queue_bytes"] == 0


def test_what_nobody_waits_for_takes_no_memory_until_its_turn():
    go, taken = threading.Event(), threading.Event()

    class Picture:
        pass

    def answer(items: list) -> list:
        taken.set()
        go.wait(20)
        return items

    with Batcher(answer, batch_size=1) as batcher:
        first = batcher.submit(lambda: None)
        assert taken.wait(20)
        picture = Picture()
        left, kept = weakref.ref(picture), batcher.submit(lambda picture=picture: picture)
        del picture
        _until(lambda: not batcher._waiting.empty())
        assert left() is not None and kept.cancel()
        del kept
        gc.collect()
        assert left() is None
        go.set()
        assert first.result() is None


def test_clients_that_leave_neither_block_nor_cost_a_forward_pass():
    slow = Slow()
    with served(slow) as port, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, port, b"first")
        _until(lambda: slow.batches)
        for sent in (b"gone", b"go"):  # after its whole body, and in the middle of it
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n" + sent)
                _until(lambda: metrics(port)["oct_hf_queue_length"] == 2)
            _until(lambda: metrics(port)["oct_hf_queue_length"] == 1)
        slow.go.set()
        assert first.result()[0] == 200 and ask(port, b"last")[0] == 200
        assert metrics(port)["oct_hf_requests_total 499"] == 2
    assert slow.batches == [[b"first"], [b"last"]]


def test_a_model_that_fails_is_a_500_and_the_next_request_is_answered():
    slow = Slow()
    slow.go.set()
    with served(slow) as port:
        status, _, said = ask(port, b"fail")
        assert status == 500 and said == {"error": "the model failed (ArithmeticError)"}
        assert ask(port, b"x")[0] == 200


@pytest.mark.promise("A server that is stopped answers what it accepted.")
def test_a_server_that_ends_answers_what_it_accepted():
    slow = Slow()
    with ThreadPoolExecutor(9) as pool:
        with served(slow) as port:
            waiting = [pool.submit(ask, port, b"x" * n) for n in range(1, 9)]
            _until(lambda: metrics(port)["oct_hf_queue_length"] == 8)
            threading.Timer(0.3, slow.go.set).start()
        for n, work in enumerate(waiting, 1):
            status, _, said = work.result()
            assert status == 200 and said[0]["score"] == pytest.approx(1 / (1 + np.exp(-n)))
    with pytest.raises(ConnectionRefusedError):
        ask(port, b"x")


SLOW_SERVER = """
import sys, time
import numpy as np
from oct_hf import serving
from oct_hf.inference.server import create_app

class Slow:
    labels, batch_size = ("DME", "NORMAL"), 4
    def read(self, source, max_pixels):
        return len(source)
    def logits(self, pixels):
        time.sleep(float(sys.argv[1]))
        return np.array([[float(p), 0.0] for p in pixels], np.float32)

taken = serving.take_port(0)
ready = lambda: print(taken.getsockname()[1], flush=True)
sys.exit(128 + serving.run_until_stopped(create_app(Slow(), queue=16, queue_bytes=8 * 2**20), taken, ready))
"""


@contextmanager
def slow_server(seconds: float):
    """A server in a process of its own whose batches take so long; gives the process and the port."""
    process = subprocess.Popen([sys.executable, "-c", SLOW_SERVER, str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate(timeout=60)


async def flood(port: int, clients: int, seconds: float, body: bytes) -> Counter:
    """Statuses that so many clients at once get, each asking again as soon as it has its answer."""
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    statuses, until = Counter(), time.monotonic() + seconds

    async def client():
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                statuses[int(head.split()[1])] += 1
                assert head.startswith(b"HTTP/1.1 200") or b"retry-after: " in head.lower()
            finally:
                writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return statuses


@pytest.mark.promise("A flooded server answers every sound request, refuses the others, and its memory stays flat.")
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read as Linux tells it")
def test_a_flood_gets_answers_and_429_and_no_memory():
    def most_memory() -> int:  # KB
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    body = b"x" * 10**6
    with slow_server(0.2) as (process, port):
        assert ask(port, body)[0] == 200
        before = most_memory()
        statuses = asyncio.run(flood(port, 200, 4, body))  # 200 MB at a time
        assert set(statuses) == {200, 429} and statuses[200] >= 8 and statuses[429] > 200, statuses
        assert most_memory() - before < 80_000
        assert ask(port, b"x")[0] == 200 and metrics(port)["oct_hf_queue_length"] == 0


@pytest.mark.promise("A server that is stopped answers what it accepted.")
def test_sigterm_under_load_answers_what_was_accepted_and_takes_no_more():
    with slow_server(0.5) as (process, port), ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(ask, port, b"x" * n) for n in range(1, 13)]
        _until(lambda: metrics(port)["oct_hf_queue_length"] == 12)
        process.send_signal(signal.SIGTERM)
        assert [work.result()[0] for work in waiting] == [200] * 12
        assert process.wait(30) == 128 + signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            ask(port, b"x")
