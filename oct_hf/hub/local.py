"""A Hub for one site, on loopback: what the real clients ask of the Hub, over bare git repositories.

For tests, demonstrations and closed networks: one site, not a service. Tokens are its only guard, so it binds to
127.0.0.1 unless told otherwise. What it keeps is in `store.py`; here is only the HTTP that huggingface_hub speaks.
"""

import base64
import datetime
import hashlib
import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import yaml
from fastapi import APIRouter, Body, Depends, FastAPI, Header, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.requests import ClientDisconnect

from oct_hf import serving
from oct_hf.hub.store import LARGE, PATH, REGULAR_BYTES, HubError, Repository, Store, User, disk_error, yaml_block

PART_BYTES = 64 * 2**20  # of a multipart upload
LOGGED = 10_000  # requests that the log remembers
Authorization = Header(default=None)
Json = Annotated[dict, Body()]


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

    app.include_router(_accounts(store, address))
    for kind in ("model", "dataset"):
        app.include_router(_reading(store, kind, address))
        app.include_router(_writing(store, kind, address, part_bytes))
    app.include_router(_large_files(store))
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


def _accounts(store: Store, address: str) -> APIRouter:
    """Who am I; create and delete repositories; check a card's metadata."""
    routes = APIRouter()

    @routes.get("/api/whoami-v2")
    def whoami(authorization: str | None = Authorization) -> dict:
        user = store.user(authorization)
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

    @routes.post("/api/repos/create")
    def create(body: Json, authorization: str | None = Authorization):
        user = store.writer(authorization, body.get("organization"))
        kind, name = body.get("type") or "model", body["name"]
        about = {"url": f"{address}/{_prefix(kind)}{user.name}/{name}", "name": f"{user.name}/{name}"}
        try:
            if store.path(kind, user.name, name).exists():
                raise HubError(409, "You already created this repo")
            store.create(kind, user, name, bool(_private(body)))
        except HubError as error:
            if error.status != 409:
                raise
            return JSONResponse({"error": error.message, **about}, 409)  # clients read the address here too
        return about | {"id": about["name"]}

    @routes.delete("/api/repos/delete")
    def delete(body: Json, authorization: str | None = Authorization) -> dict:
        user = store.writer(authorization, body.get("organization"))
        store.delete(authorization, body.get("type") or "model", user.name, body["name"])
        return {}

    return routes


def _reading(store: Store, kind: str, address: str) -> APIRouter:
    """What a repository is and holds, and its files."""
    routes = APIRouter()
    api = f"/api/{kind}s/{{namespace}}/{{name}}"
    # Clients lose the commit's header on a redirect within one host, so large files have the host's other name.
    elsewhere = address.replace("127.0.0.1", "localhost")

    @routes.get(api)
    @routes.get(api + "/revision/{revision:path}")
    def about(namespace: str, name: str, revision: str = "main", authorization: str | None = Authorization) -> dict:
        repository = store.repository(authorization, kind, namespace, name)
        commit = repository.resolve(revision)
        card, config = repository.card(commit), repository.config(commit)
        when = _date(repository.time(commit))
        return {
            "_id": hashlib.sha256(f"{kind} {namespace}/{name}".encode()).hexdigest()[:24],
            "id": f"{namespace}/{name}",
            "modelId": f"{namespace}/{name}",
            "author": namespace,
            "sha": commit,
            "lastModified": when,
            "createdAt": when,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": list(card.get("tags") or []),
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card,
            "config": {key: config[key] for key in ("architectures", "model_type", "auto_map") if key in config},
            "siblings": [{"rfilename": entry["path"]} for entry in repository.files(commit)],
        }

    @routes.get(api + "/tree/{rest:path}")
    def tree(namespace: str, name: str, rest: str, recursive: bool = False, authorization: str | None = Authorization):
        repository = store.repository(authorization, kind, namespace, name)
        commit, below = repository.resolve_with_path(rest)
        prefix = below.rstrip("/") + "/" if below else ""
        inside = [entry for entry in repository.entries(commit) if entry["path"].startswith(prefix)]
        if below and not inside:
            raise HubError(404, "Entry not found", "EntryNotFound")
        found = [entry for entry in inside if recursive or "/" not in entry["path"][len(prefix) :]]
        return sorted(found, key=lambda entry: entry["type"])  # folders first

    async def asked(request: Request) -> list[str]:
        is_json = "json" in request.headers.get("content-type", "")
        return (await request.json())["paths"] if is_json else (await request.form()).getlist("paths")

    @routes.post(api + "/paths-info/{revision:path}")
    def paths_info(
        namespace: str,
        name: str,
        revision: str,
        wanted: Annotated[list[str], Depends(asked)],
        authorization: str | None = Authorization,
    ):
        repository = store.repository(authorization, kind, namespace, name)
        return [entry for entry in repository.entries(repository.resolve(revision)) if entry["path"] in wanted]

    @routes.get(api + "/refs")
    def refs(namespace: str, name: str, include_prs: bool = False, authorization: str | None = Authorization) -> dict:
        groups = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        listed = {"branches": [], "tags": [], "converts": []} | ({"pullRequests": []} if include_prs else {})
        for ref, commit in store.repository(authorization, kind, namespace, name).refs():
            _, group, short = ref.split("/", 2)
            if groups[group] in listed:
                listed[groups[group]].append({"name": short, "ref": ref, "targetCommit": commit})
        return listed

    @routes.get(api + "/commits/{revision:path}")
    def commits(namespace: str, name: str, revision: str, authorization: str | None = Authorization) -> list[dict]:
        repository = store.repository(authorization, kind, namespace, name)
        return [
            {"id": commit, "date": _date(when), "title": title, "message": "", "authors": [{"user": author}]}
            for commit, when, title, author in repository.history(repository.resolve(revision))
        ]

    @routes.api_route(f"/{_prefix(kind)}{{namespace}}/{{name}}/resolve/{{rest:path}}", methods=["GET", "HEAD"])
    def download(namespace: str, name: str, rest: str, request: Request, authorization: str | None = Authorization):
        repository = store.repository(authorization, kind, namespace, name)
        commit, path = repository.resolve_with_path(rest)
        user = store.user(authorization)
        if repository.gated and (user is None or user.name != namespace):
            raise HubError(403 if user else 401, f"Access to {namespace}/{name} is restricted", "GatedRepo")
        entry = next((entry for entry in repository.files(commit) if entry["path"] == path), None)
        headers = {"X-Repo-Commit": commit}
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound")
        if "lfs" in entry:
            oid = entry["lfs"]["oid"]
            headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(entry["size"]), "Accept-Ranges": "bytes"}
            return RedirectResponse(f"{elsewhere}/large/{oid}?key={store.signature('read', oid)}", 302, headers)
        content = repository.git("cat-file", "blob", entry["oid"])
        headers |= {"ETag": f'"{entry["oid"]}"', "Content-Length": str(len(content))}
        return Response(b"" if request.method == "HEAD" else content, headers=headers, media_type="text/plain")

    return routes


def _writing(store: Store, kind: str, address: str, part_bytes: int) -> APIRouter:
    """Branches, tags, uploads and commits."""
    routes = APIRouter()
    api = f"/api/{kind}s/{{namespace}}/{{name}}"

    def writable(authorization: str | None, namespace: str, name: str) -> tuple[User, Repository]:
        store.writer(authorization)
        repository = store.repository(authorization, kind, namespace, name)
        return store.writer(authorization, namespace), repository

    @routes.put(api + "/settings")
    def settings(namespace: str, name: str, body: Json, authorization: str | None = Authorization) -> dict:
        _, repository = writable(authorization, namespace, name)
        if body.get("gated") not in (None, False, "auto", "manual"):
            raise HubError(400, "gated must be auto, manual or false")
        repository.set_up(_private(body), body.get("gated"))
        return {"private": repository.private, "gated": repository.gated}

    @routes.post(api + "/tag/{revision:path}")
    def tag(namespace: str, name: str, revision: str, body: Json, authorization: str | None = Authorization):
        _, repository = writable(authorization, namespace, name)
        repository.add_ref("tags", body["tag"], repository.resolve(revision))
        return {}

    @routes.delete(api + "/branch/{branch:path}")
    def unbranch(namespace: str, name: str, branch: str, authorization: str | None = Authorization):
        if branch == "main":
            raise HubError(400, "The branch main can't be deleted")
        writable(authorization, namespace, name)[1].delete_ref("heads", branch)
        return {}

    @routes.delete(api + "/tag/{tag:path}")
    def untag(namespace: str, name: str, tag: str, authorization: str | None = Authorization):
        writable(authorization, namespace, name)[1].delete_ref("tags", tag)
        return {}

    @routes.post(api + "/branch/{branch:path}")
    def branch(
        namespace: str,
        name: str,
        branch: str,
        body: Annotated[dict | None, Body()] = None,
        authorization: str | None = Authorization,
    ):
        _, repository = writable(authorization, namespace, name)
        repository.add_ref("heads", branch, repository.resolve((body or {}).get("startingPoint", "main")))
        return {}

    @routes.post(api + "/preupload/{revision:path}")
    def preupload(namespace: str, name: str, revision: str, body: Json, authorization: str | None = Authorization):
        _, repository = writable(authorization, namespace, name)
        known = {entry["path"]: entry for entry in repository.files(repository.resolve(revision))}
        answers = []
        for file in body["files"]:
            large = file["size"] > REGULAR_BYTES or file["path"].endswith(LARGE)
            entry = known.get(file["path"])
            oid = (entry.get("lfs") or entry)["oid"] if entry else None
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    @routes.post(f"/{_prefix(kind)}{{namespace}}/{{name}}.git/info/lfs/objects/batch")
    def batch(
        namespace: str, name: str, body: Annotated[bytes, Depends(_whole)], authorization: str | None = Authorization
    ):
        writable(authorization, namespace, name)
        body = json.loads(body)  # its Content-Type is git's own
        objects, transfer = [], "basic"
        for wanted in body["objects"]:
            answer = dict(wanted)
            if not store.has(wanted["oid"]):
                link, key = f"{address}/large/{wanted['oid']}", f"?key={store.signature('write', wanted['oid'])}"
                upload = {"href": link + key, "header": {}}
                if "multipart" in body.get("transfers", []) and wanted["size"] > part_bytes:
                    transfer, parts = "multipart", -(-wanted["size"] // part_bytes)
                    upload["header"] = {f"{i:05d}": f"{link}/part/{i}{key}" for i in range(1, parts + 1)}
                    upload["header"]["chunk_size"] = str(part_bytes)
                    upload["href"] = f"{link}/complete/{parts}{key}"
                answer["actions"] = {"upload": upload}
            objects.append(answer)
        return {"transfer": transfer, "objects": objects}

    @routes.post(api + "/commit/{revision:path}")
    def commit(
        namespace: str,
        name: str,
        revision: str,
        body: Annotated[bytes, Depends(_whole)],
        create_pr: bool = False,
        authorization: str | None = Authorization,
    ):
        user, repository = writable(authorization, namespace, name)
        header, files, deleted = {}, {}, []
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
                continue
            if not PATH.fullmatch(value["path"]):
                raise HubError(400, f"Invalid path: {value['path']}")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = store.pointer(value["oid"])
            elif key == "deletedFile":
                deleted.append(value["path"])
            elif key == "deletedFolder":
                inside = value["path"].rstrip("/") + "/"
                entries = repository.files(repository.resolve(revision))
                deleted += [entry["path"] for entry in entries if entry["path"].startswith(inside)]
        message = "\n\n".join(filter(None, (header.get("summary"), header.get("description"))))
        home = f"{address}/{_prefix(kind)}{namespace}/{name}"
        parent = header.get("parentCommit")
        made, number = repository.commit(revision, user, message, files, deleted, parent, as_pull_request=create_pr)
        return {
            "success": True,
            "commitOid": made,
            "commitUrl": f"{home}/commit/{made}",
            "hookOutput": "",
        } | ({"pullRequestUrl": f"{home}/discussions/{number}"} if create_pr else {})

    return routes


def _large_files(store: Store) -> APIRouter:
    """Upload, in one piece or in parts, and download by SHA-256. An upload counts once its content has been hashed."""
    routes = APIRouter()

    @routes.put("/large/{oid}")
    async def put(oid: str, request: Request, key: str = "") -> dict:
        store.check("write", oid, key)
        await store.receive(oid, request.stream())
        return {}

    @routes.put("/large/{oid}/part/{number}")
    async def put_part(oid: str, number: int, request: Request, key: str = "") -> Response:
        store.check("write", oid, key)
        return Response(headers={"ETag": f'"{await store.receive_part(oid, number, request.stream())}"'})

    @routes.post("/large/{oid}/complete/{parts}")
    def complete(oid: str, parts: int, key: str = "") -> dict:
        store.check("write", oid, key)
        store.join_parts(oid, parts)
        return {}

    @routes.api_route("/large/{oid}", methods=["GET", "HEAD"])
    def get(oid: str, key: str = "") -> FileResponse:
        store.check("read", oid, key)
        return FileResponse(store.file(oid), headers={"ETag": f'"{oid}"'})

    return routes


async def _whole(request: Request) -> bytes:
    """A request's body, read before its handler starts; the handlers that call git are no coroutines, so they run on
    threads and hold up nobody else.
    """
    return await request.body()


def _private(body: dict) -> bool | None:
    """What a request wants; older clients send `private`, newer ones `visibility`."""
    return body["visibility"] == "private" if "visibility" in body else body.get("private")


def _prefix(kind: str) -> str:
    return "" if kind == "model" else f"{kind}s/"


def _date(seconds: int) -> str:
    # The only form that every client parses.
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
