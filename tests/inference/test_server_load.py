"""A server that many ask at once: batches, a full queue, clients that leave, a model that fails, an end in between."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from asking import ask, assert_same, metrics, png, served


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


def test_a_full_queue_is_a_503_that_says_when_to_come_again():
    slow = Slow()
    with served(slow, queue=3) as port, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, port, b"x") for _ in range(3)]
        _until(lambda: metrics(port)["oct_hf_queue_length"] == 3)
        status, headers, said = ask(port, b"x")
        assert status == 503 and headers["Retry-After"] == "1" and "3 requests wait" in said["error"]
        assert ask(port, method="GET", path="/health")[0] == 200
        slow.go.set()
        assert [w.result()[0] for w in waiting] == [200, 200, 200] and ask(port, b"x")[0] == 200


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
