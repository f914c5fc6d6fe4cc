"""A Hub for one site, on loopback: what the real clients ask of the Hub, over bare git repositories.

For tests, demonstrations and closed networks: one site, not a service. Tokens are its only guard, so it binds to
127.0.0.1 unless told otherwise. What it keeps is in `store.py`; here is only the HTTP that huggingface_hub speaks.
"""

import base64
import datetime
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import yaml
from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse

from oct_hf import serving
from oct_hf.hub.store import LARGE, PATH, REGULAR_BYTES, HubError, Repository, Store, User, yaml_block

PART_BYTES = 64 * 2**20  # of a multipart upload
Authorization = Header(default=None)


def create_app(root: str | Path, tokens: dict[str, User], address: str) -> FastAPI:
    """The Hub as an ASGI application.

    Args:
        root: folder for everything it keeps.
        tokens: who may write, by token.
        address: under which clients reach it, such as `http://127.0.0.1:8765`.
    """
    store = Store(Path(root), tokens)
    app = FastAPI(title="oct-hf loopback Hub")
    app.state.log = []

    @app.exception_handler(HubError)
    def refused(_: Request, error: HubError) -> JSONResponse:
        headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
        return JSONResponse({"error": error.message}, error.status, headers)

    @app.middleware("http")
    async def note(request: Request, answer):
        response = await answer(request)
        app.state.log.append((request.method, request.url.path, response.status_code))
        return response

    app.include_router(_accounts(store, address))
    for kind in ("model", "dataset"):
        app.include_router(_reading(store, kind, address))
        app.include_router(_writing(store, kind, address))
    app.include_router(_large_files(store))
    return app


@contextmanager
def running(root: str | Path, tokens: dict[str, User], port: int, host: str = "127.0.0.1"):
    """A Hub on a thread of this process, answering from the first moment of the block to its last.

    Yields:
        the FastAPI application; `app.state.log` has (method, path, status) of each request.
    """
    app = create_app(root, tokens, f"http://{host}:{port}")
    with serving.running(app, serving.take_port(port, host)):
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
    async def validate(request: Request):
        try:
            found = yaml_block((await request.json())["content"])
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        missing = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": missing}

    @routes.post("/api/repos/create")
    async def create(request: Request, authorization: str | None = Authorization):
        body = await request.json()
        user = store.writer(authorization, body.get("organization"))
        kind, name = body.get("type") or "model", body["name"]
        about = {"url": f"{address}/{_prefix(kind)}{user.name}/{name}", "name": f"{user.name}/{name}"}
        if store.path(kind, user.name, name).exists():
            return JSONResponse({"error": "You already created this repo", **about}, 409)
        # Older clients send `private`, newer ones `visibility`.
        store.create(kind, user, name, bool(body.get("private")) or body.get("visibility") == "private")
        return about | {"id": about["name"]}

    @routes.delete("/api/repos/delete")
    async def delete(request: Request, authorization: str | None = Authorization) -> dict:
        body = await request.json()
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
            "gated": False,
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
        found, folders = [], {}
        for entry in repository.files(commit):
            if not entry["path"].startswith(prefix):
                continue
            parts = entry["path"][len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                path = prefix + "/".join(parts[:depth])
                folders[path] = {"type": "directory", "path": path, "oid": repository.tree(commit, path), "size": 0}
            if recursive or len(parts) == 1:
                found.append(entry)
        if below and not found and not folders:
            raise HubError(404, "Entry not found", "EntryNotFound")
        return [*folders.values(), *found]

    @routes.post(api + "/paths-info/{revision:path}")
    async def paths_info(
        namespace: str, name: str, revision: str, request: Request, authorization: str | None = Authorization
    ):
        repository = store.repository(authorization, kind, namespace, name)
        commit = repository.resolve(revision)
        is_json = "json" in request.headers.get("content-type", "")
        wanted = (await request.json())["paths"] if is_json else (await request.form()).getlist("paths")
        entries = repository.files(commit)
        found = [entry for entry in entries if entry["path"] in wanted]
        folders = [path for path in wanted if any(entry["path"].startswith(path + "/") for entry in entries)]
        return found + [
            {"type": "directory", "path": path, "oid": repository.tree(commit, path), "size": 0} for path in folders
        ]

    @routes.get(api + "/refs")
    def refs(namespace: str, name: str, authorization: str | None = Authorization) -> dict:
        listed = {"branches": [], "tags": [], "converts": []}
        for ref, commit in store.repository(authorization, kind, namespace, name).refs():
            if ref.startswith("refs/pr/"):
                continue
            group = "tags" if ref.startswith("refs/tags/") else "branches"
            listed[group].append({"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": commit})
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


def _writing(store: Store, kind: str, address: str) -> APIRouter:
    """Branches, tags, uploads and commits."""
    routes = APIRouter()
    api = f"/api/{kind}s/{{namespace}}/{{name}}"

    def writable(authorization: str | None, namespace: str, name: str) -> tuple[User, Repository]:
        store.writer(authorization)
        repository = store.repository(authorization, kind, namespace, name)
        return store.writer(authorization, namespace), repository

    @routes.post(api + "/tag/{revision:path}")
    async def tag(
        namespace: str, name: str, revision: str, request: Request, authorization: str | None = Authorization
    ):
        _, repository = writable(authorization, namespace, name)
        repository.add_ref("tags", (await request.json())["tag"], repository.resolve(revision))
        return {}

    @routes.delete(api + "/tag/{tag:path}")
    def untag(namespace: str, name: str, tag: str, authorization: str | None = Authorization):
        writable(authorization, namespace, name)[1].delete_ref("tags", tag)
        return {}

    @routes.post(api + "/branch/{branch:path}")
    async def branch(
        namespace: str, name: str, branch: str, request: Request, authorization: str | None = Authorization
    ):
        _, repository = writable(authorization, namespace, name)
        start = json.loads(await request.body() or "{}").get("startingPoint", "main")
        repository.add_ref("heads", branch, repository.resolve(start))
        return {}

    @routes.post(api + "/preupload/{revision:path}")
    async def preupload(
        namespace: str, name: str, revision: str, request: Request, authorization: str | None = Authorization
    ):
        _, repository = writable(authorization, namespace, name)
        known = {entry["path"]: entry for entry in repository.files(repository.resolve(revision))}
        answers = []
        for file in (await request.json())["files"]:
            large = file["size"] > REGULAR_BYTES or file["path"].endswith(LARGE)
            entry = known.get(file["path"])
            oid = (entry.get("lfs") or entry)["oid"] if entry else None
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    @routes.post(f"/{_prefix(kind)}{{namespace}}/{{name}}.git/info/lfs/objects/batch")
    async def batch(namespace: str, name: str, request: Request, authorization: str | None = Authorization):
        writable(authorization, namespace, name)
        body = await request.json()
        objects, transfer = [], "basic"
        for wanted in body["objects"]:
            answer = dict(wanted)
            if not store.has(wanted["oid"]):
                link, key = f"{address}/large/{wanted['oid']}", f"?key={store.signature('write', wanted['oid'])}"
                upload = {"href": link + key, "header": {}}
                if "multipart" in body.get("transfers", []) and wanted["size"] > PART_BYTES:
                    transfer, parts = "multipart", -(-wanted["size"] // PART_BYTES)
                    upload["header"] = {f"{i:05d}": f"{link}/part/{i}{key}" for i in range(1, parts + 1)}
                    upload["header"]["chunk_size"] = str(PART_BYTES)
                    upload["href"] = f"{link}/complete/{parts}{key}"
                answer["actions"] = {"upload": upload}
            objects.append(answer)
        return {"transfer": transfer, "objects": objects}

    @routes.post(api + "/commit/{revision:path}")
    async def commit(
        namespace: str, name: str, revision: str, request: Request, authorization: str | None = Authorization
    ):
        user, repository = writable(authorization, namespace, name)
        header, files, deleted = {}, {}, []
        for line in (await request.body()).splitlines():
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
        home, pull_request = f"{address}/{_prefix(kind)}{namespace}/{name}", {}
        if request.query_params.get("create_pr"):
            number = repository.open_pull_request(revision)
            revision, pull_request = f"refs/pr/{number}", {"pullRequestUrl": f"{home}/discussions/{number}"}
        made = repository.commit(revision, user, message, files, deleted, header.get("parentCommit"))
        return {
            "success": True,
            "commitOid": made,
            "commitUrl": f"{home}/commit/{made}",
            "hookOutput": "",
        } | pull_request

    return routes


def _large_files(store: Store) -> APIRouter:
    """Upload, in one piece or in parts, and download by SHA-256. An upload counts once its content has been hashed."""
    routes = APIRouter()

    @routes.put("/large/{oid}")
    async def put(oid: str, request: Request, key: str = "") -> dict:
        store.check("write", oid, key)
        with store.receiving(oid) as file:
            async for chunk in request.stream():
                file.write(chunk)
        return {}

    @routes.put("/large/{oid}/part/{number}")
    async def put_part(oid: str, number: int, request: Request, key: str = "") -> Response:
        store.check("write", oid, key)
        content = await request.body()
        store.part(oid, number).write_bytes(content)
        return Response(headers={"ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'})

    @routes.post("/large/{oid}/complete/{parts}")
    def complete(oid: str, parts: int, key: str = "") -> dict:
        store.check("write", oid, key)
        with store.receiving(oid) as file:
            for number in range(1, parts + 1):
                file.write(store.part(oid, number).read_bytes())
        for number in range(1, parts + 1):
            store.part(oid, number).unlink()
        return {}

    @routes.api_route("/large/{oid}", methods=["GET", "HEAD"])
    def get(oid: str, key: str = "") -> FileResponse:
        store.check("read", oid, key)
        return FileResponse(store.file(oid), headers={"ETag": f'"{oid}"'})

    return routes


def _prefix(kind: str) -> str:
    return "" if kind == "model" else f"{kind}s/"


def _date(seconds: int) -> str:
    # The only form that every client parses.
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
