"""A Hub for one site, on loopback: what the real clients ask of the Hub, over bare git repositories.

For tests, demonstrations and closed networks: one site, not a service. Tokens are its only guard, so it binds to
127.0.0.1 unless told otherwise. What it keeps is in `store.py` and the files below that one; `reading.py`, `writing.py`
and `transfers.py` are the HTTP that huggingface_hub speaks.
"""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import yaml
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from oct_hf import serving
from oct_hf.hub.front_matter import yaml_block
from oct_hf.hub.local import reading, transfers, writing
from oct_hf.hub.local.accounts import User
from oct_hf.hub.local.protocol import Authorization, Json
from oct_hf.hub.local.refusals import HubError, disk_error
from oct_hf.hub.local.store import Store

PART_BYTES = 64 * 2**20  # of a multipart upload
LOGGED = 10_000  # requests that the log remembers


def create_app(
    root: str | Path,
    tokens: dict[str, User],
    address: str,
    *,
    part_bytes: int = PART_BYTES,
    say: Callable[[str], None] | None = None,
) -> FastAPI:
    """The Hub as an ASGI application.

    Args:
        root: folder for everything it keeps.
        tokens: who may write, by token.
        address: under which clients reach it, such as `http://127.0.0.1:8765`.
        part_bytes: larger files come in parts of this size.
        say: is told of each request: method, path and status, and nothing of its query, headers and body.
    """
    store = Store(Path(root), tokens)
    app = FastAPI(title="oct-hf loopback Hub")
    app.state.log = []
    app.state.address = address

    @app.exception_handler(HubError)
    def refused(_: Request, error: HubError) -> JSONResponse:
        headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
        return JSONResponse({"error": error.message}, error.status, headers)

    @app.exception_handler(OSError)
    def failed(request: Request, error: OSError) -> JSONResponse:
        return refused(request, disk_error(error))

    @app.exception_handler(ClientDisconnect)
    def left(request: Request, _: ClientDisconnect) -> JSONResponse:
        return refused(request, HubError(400, "The client left before it had sent everything"))

    @app.middleware("http")
    async def note(request: Request, answer):
        response = await answer(request)
        app.state.log.append((request.method, request.url.path, response.status_code))
        del app.state.log[:-LOGGED]
        if say:
            say(f"{request.method} {request.url.path} {response.status_code}")
        return response

    app.include_router(_clients(store))
    app.include_router(writing.repositories_router(store, address))
    for kind in ("model", "dataset"):
        app.include_router(reading.router(store, kind, address))
        app.include_router(writing.router(store, kind, address))
        app.include_router(transfers.batch_router(store, kind, address, part_bytes))
    app.include_router(transfers.router(store))
    return app


@contextmanager
def running(
    root: str | Path,
    tokens: dict[str, User],
    port: int,
    host: str = "127.0.0.1",
    address: str | None = None,
    **options,
):
    """A Hub on a thread of this process, answering from the first moment of the block to its last.

    Args:
        root: folder for everything it keeps.
        tokens: who may write, by token.
        port: to listen on; 0 takes a free one.
        host: to listen on.
        address: under which clients reach it, where that is another one (a proxy stands in front).
        options: as of `create_app`.

    Yields:
        the FastAPI application; `app.state.log` has (method, path, status) of each request, `app.state.address` where
        it is reached.
    """
    taken = serving.take_port(port, host)
    app = create_app(root, tokens, address or f"http://{host}:{taken.getsockname()[1]}", **options)
    with serving.running(app, taken):
        yield app


def _clients(store: Store) -> APIRouter:
    """What needs no repository: who am I, and is a card's metadata right."""
    routes = APIRouter()

    @routes.get("/api/whoami-v2")
    def whoami(authorization: str | None = Authorization) -> dict:
        user = store.accounts.user(authorization)
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        access = {"accessToken": {"role": "write" if user.write else "read"}}
        return {"type": "user", "name": user.name, "fullname": user.name, "orgs": [], "auth": access}

    @routes.post("/api/validate-yaml")
    def validate(body: Json):
        try:
            found = yaml_block(body["content"])
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        missing = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": missing}

    return routes
