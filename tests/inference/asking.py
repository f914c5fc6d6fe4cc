"""A server on a free port of this process, plain HTTP against it, and what its answers must be."""

import http.client
import io
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from oct_hf import serving
from oct_hf.inference import server


@contextmanager
def served(classifier, **options):
    """A server on a free port of this process; gives the port."""
    taken = serving.take_port(0)
    with serving.running(server.create_app(classifier, "tiny", **options), taken):
        yield taken.getsockname()[1]


def ask(port: int, body=None, headers=None, method="POST", path="/"):
    """Status, headers and the decoded JSON (or text) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read().decode()
        is_json = "json" in answer.headers["content-type"]
        return answer.status, answer.headers, json.loads(content) if is_json else content
    finally:
        connection.close()


def ask_json(port: int, content):
    """The same of a request whose body is this as JSON."""
    return ask(port, json.dumps(content), {"Content-Type": "application/json"})


def expected(predictor, image) -> dict[str, float]:
    """The probabilities that an answer must have."""
    return next(predictor.predict([image])).probabilities


def assert_same(answer: list[dict], probabilities: dict[str, float]) -> None:
    """Whether an answer has these probabilities, the largest first."""
    assert {a["label"] for a in answer} == set(probabilities)
    assert max(abs(a["score"] - probabilities[a["label"]]) for a in answer) <= 1e-6
    scores = [a["score"] for a in answer]
    assert scores == sorted(scores, reverse=True)


def metrics(port: int) -> dict[str, float]:
    """Values by name and, where there is one, label."""
    text = ask(port, method="GET", path="/metrics")[2]
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def png(pixels: np.ndarray) -> bytes:
    """Gray pixels as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def server_of(process: int) -> int:
    """The process that answers, of the one that was started; as Linux tells it."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return next(int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes())
