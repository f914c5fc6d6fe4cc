"""The served contract: a real server on a free port, the Hub's own client and plain HTTP against it."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from referencing import Registry, Resource

from oct_hf import Predictor, serving
from oct_hf.errors import ModelError, OCTError
from oct_hf.inference import server
from oct_hf.inference.runtime import ONNXPredictor, serving_predictor

TASKS = Path(__file__).parents[1] / "node/node_modules/@huggingface/tasks/src/tasks"

CLIENT = """
import json, sys
from huggingface_hub import InferenceClient
url, image = sys.argv[1:]
client = InferenceClient(model=url)
ask = client.image_classification
print(json.dumps({
    "bytes": ask(image),
    "two": ask(image, top_k=2),
    "none": ask(image, function_to_apply="none"),
}))
"""


@contextmanager
def served(classifier, **options):
    """A server on a free port of this process; gives the port."""
    taken = serving.take_port(0)
    with serving.running(server.create_app(classifier, "tiny", **options), taken):
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def predictor(finished_run) -> Predictor:
    return Predictor(finished_run / "model", batch_size=8)


@pytest.fixture(scope="module")
def port(predictor):
    with served(predictor, model_threads=2, body_bytes=2**20) as port:
        yield port


@pytest.fixture(scope="module")
def image(finished_run) -> bytes:
    return (finished_run / "model/examples/DME.png").read_bytes()


@pytest.fixture(scope="module")
def schemas():
    """Validators of the task's own schemas, `input` and `output`."""
    if not TASKS.is_dir():
        if os.environ.get("CI"):
            pytest.fail("@huggingface/tasks must be there in CI: make test installs it")
        pytest.skip("no @huggingface/tasks here: make test installs it")
    common = json.loads((TASKS / "common-definitions.json").read_text())
    registry = Registry().with_resource(common["$id"], Resource.from_contents(common))
    spec = TASKS / "image-classification/spec"
    found = {name: json.loads((spec / f"{name}.json").read_text()) for name in ("input", "output")}
    return {name: jsonschema.Draft6Validator(schema, registry=registry) for name, schema in found.items()}


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
    return ask(port, json.dumps(content), {"Content-Type": "application/json"})


def expected(predictor, image) -> dict[str, float]:
    return next(predictor.predict([image])).probabilities


def assert_same(answer: list[dict], probabilities: dict[str, float]) -> None:
    assert {a["label"] for a in answer} == set(probabilities)
    assert max(abs(a["score"] - probabilities[a["label"]]) for a in answer) <= 1e-6
    scores = [a["score"] for a in answer]
    assert scores == sorted(scores, reverse=True)


def test_the_hubs_client_gets_the_predictors_answers(port, predictor, finished_run):
    file = finished_run / "model/examples/DME.png"
    command = [sys.executable, "-c", CLIENT, f"http://127.0.0.1:{port}", file]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, probabilities = json.loads(done.stdout), expected(predictor, file)
    assert_same(said["bytes"], probabilities)
    assert said["two"] == said["bytes"][:2]
    logits = {a["label"]: a["score"] for a in said["none"]}
    powers = np.exp([logits[label] for label in predictor.labels])
    assert np.abs(powers / powers.sum() - list(probabilities.values())).max() <= 1e-6


def test_bodies_of_every_kind_give_the_same_answer_as_the_schemas_have_it(port, predictor, image, schemas):
    encoded = base64.b64encode(image).decode()
    requests = [
        {"inputs": encoded},
        {"inputs": f"data:image/png;base64,{encoded}", "parameters": {}},
        {"inputs": base64.encodebytes(image).decode(), "parameters": {"top_k": 99, "function_to_apply": "softmax"}},
    ]
    answers = [ask_json(port, request) for request in requests]
    answers += [ask(port, image), *(ask(port, image, {"Content-Type": kind}) for kind in ("image/png", "text/plain"))]
    answers.append(ask(port, json.dumps(requests[0])))  # JSON that doesn't say so
    for request in requests:
        schemas["input"].validate(request)
    for status, _, answer in answers:
        assert status == 200
        schemas["output"].validate(answer)
        assert_same(answer, expected(predictor, image))


def test_parameters_do_what_they_say(port, predictor, image):
    encoded = base64.b64encode(image).decode()
    by = {}
    for function in ("none", "sigmoid"):
        parameters = {"function_to_apply": function, "top_k": None}
        by[function] = ask_json(port, {"inputs": encoded, "parameters": parameters})[2]
    for logit, score in zip(by["none"], by["sigmoid"], strict=True):
        assert logit["label"] == score["label"]
        assert score["score"] == pytest.approx(1 / (1 + np.exp(-logit["score"])), abs=1e-6)
    best = ask_json(port, {"inputs": encoded, "parameters": {"top_k": 1}})[2]
    probabilities = expected(predictor, image)
    assert [a["label"] for a in best] == [max(probabilities, key=probabilities.get)]


def test_real_bscans_are_answered_as_the_predictor_answers_them(port, predictor, real_files):
    for file, answer in zip(real_files, predictor.predict(real_files), strict=True):
        assert_same(ask(port, file.read_bytes())[2], answer.probabilities)


def test_forty_clients_at_once_get_their_own_answers_from_batches(predictor):
    from oct_hf.data.phantom import draw

    kinds = ("CNV", "DME", "DRUSEN", "NORMAL")
    images = [_png(draw(kinds[i % 4], 5, patient=i, height=96, width=96).image) for i in range(40)]
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
        values = _metrics(port)
    assert values["oct_hf_batch_size_sum"] == 120 == values["oct_hf_requests_total 200"]
    assert values["oct_hf_batch_size_count"] < 100  # batches formed
    assert values["oct_hf_batch_size_bucket 8.0"] == values["oct_hf_batch_size_count"]  # and none above the limit


def test_a_picture_that_unpacks_to_far_more_than_a_bscan_is_refused_before_it_is_decoded(port, image):
    bomb = _png(np.zeros((4001, 4000), np.uint8))
    assert len(bomb) < 100_000
    status, _, said = ask(port, bomb)
    assert status == 400 and "has 4000x4001 pixels, more than 16 megapixels" in said["error"]
    assert ask(port, image)[0] == 200


@pytest.mark.parametrize(
    "body, status, text",
    [
        (b"", 400, "empty"),
        (b"no image", 400, "is not an image"),
        (b"\x89PNG\r\n\x1a\n broken", 400, "image"),
        (b'{"inputs": ', 400, "no JSON"),
        (b"{" * 5000, 400, "no JSON"),
        (b'{"inputs": 3}', 400, "base64 string"),
        (b'{"image": "aGVsbG8="}', 400, "base64 string"),
        (b'{"inputs": "aGVs!bG8="}', 400, "no base64"),
        (b'{"inputs": "aGVsbG8"}', 400, "no base64"),
        (b'{"inputs": "aGVsbG8="}', 400, "is not an image"),
        (b'{"inputs": "data:image/png,abc"}', 400, "isn't base64"),
        (b'{"inputs": "http://127.0.0.1:9/a.png"}', 400, "fetches none"),
        (b'{"inputs": "file:///etc/passwd"}', 400, "fetches none"),
        (b'{"inputs": "IMAGE", "parameters": 7}', 400, "must be an object"),
        (b'{"inputs": "IMAGE", "parameters": {"top_k": 0}}', 400, "top_k must be"),
        (b'{"inputs": "IMAGE", "parameters": {"top_k": true}}', 400, "top_k must be"),
        (b'{"inputs": "IMAGE", "parameters": {"top_k": "2"}}', 400, "top_k must be"),
        (b'{"inputs": "IMAGE", "parameters": {"topk": 2}}', 400, 'did you mean "top_k"'),
        (b'{"inputs": "IMAGE", "parameters": {"function_to_apply": "relu"}}', 400, "softmax, sigmoid, none"),
        (b'{"inputs": "IMAGE", "parameters": {"function_to_apply": []}}', 400, "softmax, sigmoid, none"),
        (b"x" * (2**20 + 1), 413, "1048576 bytes"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_server_goes_on(port, image, body, status, text):
    body = body.replace(b"IMAGE", base64.b64encode(image))
    for content in (body, iter([body])):  # an iterator goes without a Content-Length, in chunks
        got, _, said = ask(port, content)
        assert got == status and list(said) == ["error"], said
        assert text in said["error"] and len(said["error"].splitlines()) == 1
    assert ask(port, image)[0] == 200


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
        _until(lambda: _metrics(port)["oct_hf_queue_length"] == 3)
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
                _until(lambda: _metrics(port)["oct_hf_queue_length"] == 2)
            _until(lambda: _metrics(port)["oct_hf_queue_length"] == 1)
        slow.go.set()
        assert first.result()[0] == 200 and ask(port, b"last")[0] == 200
        assert _metrics(port)["oct_hf_requests_total 499"] == 2
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
            _until(lambda: _metrics(port)["oct_hf_queue_length"] == 8)
            threading.Timer(0.3, slow.go.set).start()
        for n, work in enumerate(waiting, 1):
            status, _, said = work.result()
            assert status == 200 and said[0]["score"] == pytest.approx(1 / (1 + np.exp(-n)))
    with pytest.raises(ConnectionRefusedError):
        ask(port, b"x")


def test_health_metrics_and_the_page_that_says_how(port, predictor, image):
    status, _, said = ask(port, method="GET", path="/health")
    assert status == 200 and said == {"status": "ok", "model": "tiny", "labels": list(predictor.labels)}
    before = _metrics(port)
    assert ask(port, image)[0] == 200 and ask(port, b"x")[0] == 400
    after = _metrics(port)
    for name in ("oct_hf_requests_total 200", "oct_hf_requests_total 400", "oct_hf_batch_size_count"):
        assert after[name] == before.get(name, 0) + 1
    assert after["oct_hf_request_seconds_count"] == before["oct_hf_request_seconds_count"] + 2
    assert after["oct_hf_queue_length"] == 0
    assert "swagger" in ask(port, method="GET", path="/docs")[2]
    described = ask(port, method="GET", path="/openapi.json")[2]["paths"]["/"]["post"]
    assert set(described["requestBody"]["content"]) == {"image/*", "application/octet-stream", "application/json"}
    assert set(described["responses"]) == {"200", "400", "408", "413", "500", "503"}
    assert ask(port, method="GET", path="/gone")[::2] == (404, {"error": "Not Found"})
    assert ask(port, method="GET")[::2] == (405, {"error": "Method Not Allowed"})


def test_the_description_is_as_strict_as_the_server(port, image):
    described = ask(port, method="GET", path="/openapi.json")[2]["paths"]["/"]["post"]
    body = jsonschema.Draft202012Validator(described["requestBody"]["content"]["application/json"]["schema"])
    output = jsonschema.Draft202012Validator(
        described["responses"]["200"]["content"]["application/json"]["schema"],
    )
    encoded = base64.b64encode(image).decode()
    for parameters in ({}, {"top_k": 2}, {"top_k": 0}, {"top_k": None}, {"function_to_apply": "relu"}, {"topk": 1}, 7):
        request = {"inputs": encoded, "parameters": parameters}
        status, _, said = ask_json(port, request)
        assert (status == 200) == body.is_valid(request), parameters
        assert (status == 200) == output.is_valid(said)


def test_onnx_runtime_answers_as_torch_to_1e_5(finished_run, predictor, real_files, tmp_path):
    pytest.importorskip("onnxruntime")
    fast = serving_predictor(finished_run / "model", "auto")
    assert isinstance(fast, ONNXPredictor) and fast.labels == predictor.labels
    for one, other in zip(fast.predict(real_files), predictor.predict(real_files), strict=True):
        assert max(abs(one.probabilities[k] - p) for k, p in other.probabilities.items()) <= 1e-5
    with pytest.raises(OCTError, match=r'no runtime onxx \(did you mean "onnx"'):
        serving_predictor(finished_run / "model", "onxx")
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((finished_run / "model" / file).read_bytes())
    with pytest.raises(ModelError, match=r"no onnx/model\.onnx in it"):
        serving_predictor(tmp_path, "onnx")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").write_bytes(b"broken")
    with pytest.raises(ModelError, match="can't be loaded"):
        serving_predictor(tmp_path, "onnx")


def test_the_command_serves_a_run_until_sigterm(finished_run, predictor, image):
    command = [sys.executable, "-m", "oct_hf.cli", "serve", finished_run, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = process.stderr.readline()
        port = int(said.split("http://127.0.0.1:")[1].split()[0])
        status, _, answer = ask(port, image)
        assert status == 200 and answer[0]["label"] == next(predictor.predict([image])).predicted
        taken = subprocess.run([*command[:-1], str(port)], capture_output=True, text=True)
        assert taken.returncode == 2 and len(taken.stderr.splitlines()) == 1 and "in use" in taken.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + signal.SIGTERM and rest == ""


def test_a_missing_extra_is_one_line(finished_run):
    code = (
        "import importlib.util as u, sys; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'prometheus_client' else real(name, *a)\n"
        f"sys.argv = ['oct-hf', 'serve', {str(finished_run)!r}]\n"
        "from oct_hf import cli; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install "oct-hf[serve]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def _png(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _metrics(port: int) -> dict[str, float]:
    """Values by name and, where there is one, label."""
    text = ask(port, method="GET", path="/metrics")[2]
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
