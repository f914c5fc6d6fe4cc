"""Writing to the loopback Hub: repositories, their settings, branches and tags, and commits."""

import base64
import json
import re
from typing import Annotated

from fastapi import APIRouter, Body, Depends
from fastapi.responses import JSONResponse

from oct_hf.hub.local.pointers import is_large
from oct_hf.hub.local.protocol import Authorization, Json, prefix, wants_private, whole_body
from oct_hf.hub.local.refusals import HubError
from oct_hf.hub.local.store import Store

PATH = re.compile(r"(?!.*(^|/)(\.\.?|\.git)(/|$))[^\x00-\x1f/\\][^\x00-\x1f\\]*")


def repositories_router(store: Store, address: str) -> APIRouter:
    """Repositories made and deleted."""
    routes = APIRouter()

    @routes.post("/api/repos/create")
    def create(body: Json, authorization: str | None = Authorization):
        user = store.accounts.writer(authorization, body.get("organization"))
        kind, name = body.get("type") or "model", body["name"]
        about = {"url": f"{address}/{prefix(kind)}{user.name}/{name}", "name": f"{user.name}/{name}"}
        try:
            if store.path(kind, user.name, name).exists():
                raise HubError(409, "You already created this repo")
            store.create(kind, user, name, bool(wants_private(body)))
        except HubError as error:
            if error.status != 409:
                raise
            return JSONResponse({"error": error.message, **about}, 409)  # clients read the address here too
        return about | {"id": about["name"]}

    @routes.delete("/api/repos/delete")
    def delete(body: Json, authorization: str | None = Authorization) -> dict:
        user = store.accounts.writer(authorization, body.get("organization"))
        store.delete(authorization, body.get("type") or "model", user.name, body["name"])
        return {}

    return routes


def router(store: Store, kind: str, address: str) -> APIRouter:
    """Settings, branches, tags and commits."""
    routes = APIRouter()
    api = f"/api/{kind}s/{{namespace}}/{{name}}"

    @routes.put(api + "/settings")
    def settings(namespace: str, name: str, body: Json, authorization: str | None = Authorization) -> dict:
        _, repository = store.writable(authorization, kind, namespace, name)
        if body.get("gated") not in (None, False, "auto", "manual"):
            raise HubError(400, "gated must be auto, manual or false")
        repository.set_up(wants_private(body), body.get("gated"))
        return {"private": repository.private, "gated": repository.gated}

    @routes.post(api + "/tag/{revision:path}")
    def tag(namespace: str, name: str, revision: str, body: Json, authorization: str | None = Authorization):
        _, repository = store.writable(authorization, kind, namespace, name)
        repository.add_ref("tags", body["tag"], repository.resolve(revision))
        return {}

    @routes.delete(api + "/branch/{branch:path}")
    def unbranch(namespace: str, name: str, branch: str, authorization: str | None = Authorization):
        if branch == "main":
            raise HubError(400, "The branch main can't be deleted")
        store.writable(authorization, kind, namespace, name)[1].delete_ref("heads", branch)
        return {}

    @routes.delete(api + "/tag/{tag:path}")
    def untag(namespace: str, name: str, tag: str, authorization: str | None = Authorization):
        store.writable(authorization, kind, namespace, name)[1].delete_ref("tags", tag)
        return {}

    @routes.post(api + "/branch/{branch:path}")
    def branch(
        namespace: str,
        name: str,
        branch: str,
        body: Annotated[dict | None, Body()] = None,
        authorization: str | None = Authorization,
    ):
        _, repository = store.writable(authorization, kind, namespace, name)
        repository.add_ref("heads", branch, repository.resolve((body or {}).get("startingPoint", "main")))
        return {}

    @routes.post(api + "/preupload/{revision:path}")
    def preupload(namespace: str, name: str, revision: str, body: Json, authorization: str | None = Authorization):
        _, repository = store.writable(authorization, kind, namespace, name)
        known = {entry["path"]: entry for entry in repository.files(repository.resolve(revision))}
        answers = []
        for file in body["files"]:
            entry = known.get(file["path"])
            oid = (entry.get("lfs") or entry)["oid"] if entry else None
            mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    @routes.post(api + "/commit/{revision:path}")
    def commit(
        namespace: str,
        name: str,
        revision: str,
        body: Annotated[bytes, Depends(whole_body)],
        create_pr: bool = False,
        authorization: str | None = Authorization,
    ):
        user, repository = store.writable(authorization, kind, namespace, name)
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
                files[value["path"]] = store.large.pointer(value["oid"])
            elif key == "deletedFile":
                deleted.append(value["path"])
            elif key == "deletedFolder":
                inside = value["path"].rstrip("/") + "/"
                entries = repository.files(repository.resolve(revision))
                deleted += [entry["path"] for entry in entries if entry["path"].startswith(inside)]
        message = "\n\n".join(filter(None, (header.get("summary"), header.get("description"))))
        home = f"{address}/{prefix(kind)}{namespace}/{name}"
        parent = header.get("parentCommit")
        made, number = repository.commit(revision, user, message, files, deleted, parent, as_pull_request=create_pr)
        return {
            "success": True,
            "commitOid": made,
            "commitUrl": f"{home}/commit/{made}",
            "hookOutput": "",
        } | ({"pullRequestUrl": f"{home}/discussions/{number}"} if create_pr else {})

    return routes
