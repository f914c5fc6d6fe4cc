"""The served contract: a real server on a free port, the Hub's own client and plain HTTP against it."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from asking import ask, ask_json, assert_same, expected, metrics, png, served
from referencing import Registry, Resource

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


@pytest.mark.promise("Whatever a request holds, the server answers as its description says.")
def test_a_picture_that_unpacks_to_far_more_than_a_bscan_is_refused_before_it_is_decoded(port, image):
    bomb = png(np.zeros((4001, 4000), np.uint8))
    assert len(bomb) < 100_000
    status, _, said = ask(port, bomb)
    assert status == 400 and "has 4000x4001 pixels, more than 16 megapixels" in said["error"]
    assert ask(port, image)[0] == 200


@pytest.mark.promise("Whatever a request holds, the server answers as its description says.")
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


def test_health_metrics_and_the_page_that_says_how(port, predictor, image):
    status, _, said = ask(port, method="GET", path="/health")
    assert status == 200 and said == {"status": "ok", "model": "tiny", "labels": list(predictor.labels)}
    before = metrics(port)
    assert ask(port, image)[0] == 200 and ask(port, b"x")[0] == 400
    after = metrics(port)
    for name in ("oct_hf_requests_total 200", "oct_hf_requests_total 400", "oct_hf_batch_size_count"):
        assert after[name] == before.get(name, 0) + 1
    assert after["oct_hf_request_seconds_count"] == before["oct_hf_request_seconds_count"] + 2
    assert after["oct_hf_queue_length"] == 0
    assert "swagger" in ask(port, method="GET", path="/docs")[2]
    described = ask(port, method="GET", path="/openapi.json")[2]["paths"]["/"]["post"]
    assert set(described["requestBody"]["content"]) == {"image/*", "application/octet-stream", "application/json"}
    assert set(described["responses"]) == {"200", "400", "408", "413", "429", "500"}
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
