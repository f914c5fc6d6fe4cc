"""The Hub's inference API over one model: `POST /` with an image, labels and scores back; /health, /metrics, /docs.

Concurrent requests go through the model in batches (`batching`); what a body may hold is in `contract`. Limits: a body
of 10 MiB (413), 128 requests accepted and not yet answered, with bodies of 128 MiB in all (429 with Retry-After), 30 s
for a body to arrive (408), and pictures of 16 megapixels and of one frame, at least 16 pixels a side (400). One B-scan
a request. There is no authentication and no TLS, so it listens on 127.0.0.1 unless told otherwise.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from oct_hf import __version__
from oct_hf.errors import BadImageError
from oct_hf.inference import contract
from oct_hf.inference.batching import Batcher
from oct_hf.inference.room import Full, Place, Room

BODY_BYTES = 10 * 2**20
QUEUE = 128  # requests
QUEUE_BYTES = 128 * 2**20
LONGEST_WAIT = 60  # seconds that Retry-After says at most
BODY_SECONDS = 30
PIXELS = 16_000_000  # a B-scan has under 3 million; reading one of 16 takes 240 MB, on as many threads as cores
CLIENT_GONE = 499  # nobody reads this answer; it is the usual number for it in a log

log = logging.getLogger(__name__)


class Classifier(Protocol):
    """What the server asks of a model; `Predictor` has it."""

    labels: tuple[str, ...]
    batch_size: int

    def read(self, source: bytes, max_pixels: int) -> np.ndarray:
        """One encoded image as `logits` wants it, on a reading thread; raises BadImageError."""
        ...

    def logits(self, pixels: list) -> np.ndarray:
        """float32 `(n, labels)` of n read images, on a model's thread."""
        ...


class Refused(Exception):
    """A request gets no answer: the status and the text of `error`."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None):
        super().__init__(text)
        self.status, self.headers = status, headers


class Metrics:
    """What /metrics tells, in a registry of its own, so that several servers can live in one process."""

    def __init__(self):
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("oct_hf_requests", "Requests to classify, by HTTP status.", ["status"], **own)
        self.seconds = Histogram(
            "oct_hf_request_seconds",
            "From a request's header to its answer.",
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            **own,
        )
        self.batches = Histogram(
            "oct_hf_batch_size", "Images in a forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self.queue = Gauge("oct_hf_queue_length", "Requests accepted and not yet answered.", **own)
        self.queue_bytes = Gauge("oct_hf_queue_bytes", "Bytes of their bodies.", **own)


def create_app(
    classifier: Classifier,
    name: str = "model",
    *,
    model_threads: int = 1,
    queue: int = QUEUE,
    queue_bytes: int = QUEUE_BYTES,
    body_bytes: int = BODY_BYTES,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        classifier: a `Predictor`, or anything like it; its `batch_size` is the largest batch.
        name: what /health calls the model.
        model_threads: batches that run at the same time.
        queue: requests accepted and not yet answered, whose bodies or pixels are in memory.
        queue_bytes: of their bodies; at least one of the largest always finds room.
        body_bytes: largest body.
    """
    metrics, room = Metrics(), Room(queue, max(queue_bytes, body_bytes))
    metrics.queue.set_function(lambda: room.taken)
    metrics.queue_bytes.set_function(lambda: room.bytes)

    def answer(items: list) -> list:
        rows = classifier.logits([pixels for pixels, _ in items])
        own = "sigmoid" if getattr(classifier, "several", False) else "softmax"
        return [
            contract.answer(classifier.labels, row, query, own) for row, (_, query) in zip(rows, items, strict=True)
        ]

    batcher = Batcher(answer, classifier.batch_size, model_threads, metrics.batches.observe)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        with batcher:  # its end comes after the last answer: uvicorn ends this when no request is left
            yield

    app = FastAPI(
        title="oct-hf",
        version=__version__,
        summary=f"Classifies retinal OCT B-scans with {name}.",
        description=f"One B-scan a request: {body_bytes / 2**20:g} MiB, {PIXELS // 10**6} megapixels. At most {queue} "
        f"requests with {room.most_bytes / 2**20:g} MiB of bodies wait; more get 429, with the seconds to wait in "
        "Retry-After.",
        lifespan=life,
    )

    @app.exception_handler(HTTPException)
    def not_here(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    errors = {
        400: "No image that can be read, or a wrong field.",
        408: f"The body took longer than {BODY_SECONDS} s.",
        413: f"The body has more than {body_bytes} bytes.",
        500: "The model failed.",
        429: "Too many requests wait; Retry-After says in how many seconds those will be answered.",
    }

    @app.post(
        "/",
        summary="Classify one B-scan",
        responses=contract.responses(errors),
        openapi_extra={"requestBody": contract.REQUEST_BODY},
    )
    async def classify(request: Request) -> Response:
        began = time.perf_counter()
        try:
            with room.place() as place:
                body = await _body(request, body_bytes, place)
                response = JSONResponse(await _unless_gone(request, batcher.submit(lambda: read(body))))
        except Full as full:
            wait = min(max(math.ceil(batcher.seconds(room.taken)), 1), LONGEST_WAIT)
            text = f"{full}; come again in {wait} s"
            response = JSONResponse({"error": text}, 429, {"Retry-After": str(wait)})
        except Refused as refused:
            response = JSONResponse({"error": str(refused)}, refused.status, refused.headers)
        metrics.requests.labels(response.status_code).inc()
        metrics.seconds.observe(time.perf_counter() - began)
        return response

    def read(body: bytes) -> tuple:
        query = contract.read_query(body)
        return classifier.read(query.image, PIXELS), replace(query, image=b"")

    @app.get("/health", summary="The model and its labels, once it answers")
    async def health() -> dict:
        return {"status": "ok", "model": name, "labels": [*classifier.labels]}

    @app.get("/metrics", summary="Counts and times for Prometheus", response_class=Response)
    async def tell() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _body(request: Request, limit: int, place: Place) -> bytes:
    """The whole body, or the reason why not; what a client says of its length is believed before it is read."""
    too_long = Refused(413, f"the body has more than {limit} bytes")
    declared = request.headers.get("content-length", "0")
    declared = int(declared) if declared.isdigit() else 0
    if declared > limit:
        raise too_long
    place.hold(declared)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_long
                place.hold(len(body) + len(chunk))
                body += chunk
    except TimeoutError:
        raise Refused(408, f"the body took longer than {BODY_SECONDS} s", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise _gone() from None
    return bytes(body)


async def _unless_gone(request: Request, work: Future) -> list[dict]:
    """The answer of `work`, which is cancelled when the client leaves before the model has taken it."""
    done = asyncio.wrap_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body, the one message left is that it disconnected
    await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not done.done():
        done.cancel()
        raise _gone()
    try:
        return done.result()
    except (BadImageError, contract.RequestError) as error:
        raise Refused(400, " ".join(str(error).split())) from None
    except Exception as error:
        log.exception("a request has no answer")
        raise Refused(500, f"the model failed ({type(error).__name__})") from None


def _gone() -> Refused:
    # Anew each time: an exception keeps the frames that it went through, with their bodies, each time it is raised.
    return Refused(CLIENT_GONE, "the client has gone")
