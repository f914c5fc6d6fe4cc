"""Reading from the loopback Hub: what a repository is and holds, and its files."""

import datetime
import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from oct_hf.hub.local.protocol import Authorization, prefix
from oct_hf.hub.local.refusals import HubError
from oct_hf.hub.local.store import Store


def router(store: Store, kind: str, address: str) -> APIRouter:
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
        inside_of = below.rstrip("/") + "/" if below else ""
        inside = [entry for entry in repository.entries(commit) if entry["path"].startswith(inside_of)]
        if below and not inside:
            raise HubError(404, "Entry not found", "EntryNotFound")
        found = [entry for entry in inside if recursive or "/" not in entry["path"][len(inside_of) :]]
        return sorted(found, key=lambda entry: entry["type"])  # folders first

    async def asked(request: Request) -> list[str]:
        is_json = "json" in request.headers.get("content-type", "")
        return (await request.json())["paths"] if is_json else list(map(str, (await request.form()).getlist("paths")))

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

    @routes.api_route(f"/{prefix(kind)}{{namespace}}/{{name}}/resolve/{{rest:path}}", methods=["GET", "HEAD"])
    def download(namespace: str, name: str, rest: str, request: Request, authorization: str | None = Authorization):
        repository = store.repository(authorization, kind, namespace, name)
        commit, path = repository.resolve_with_path(rest)
        user = store.accounts.user(authorization)
        if repository.gated and (user is None or user.name != namespace):
            raise HubError(403 if user else 401, f"Access to {namespace}/{name} is restricted", "GatedRepo")
        entry = next((entry for entry in repository.files(commit) if entry["path"] == path), None)
        headers = {"X-Repo-Commit": commit}
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound")
        if "lfs" in entry:
            oid = entry["lfs"]["oid"]
            headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(entry["size"]), "Accept-Ranges": "bytes"}
            return RedirectResponse(f"{elsewhere}/large/{oid}?key={store.large.signature('read', oid)}", 302, headers)
        content = repository.git("cat-file", "blob", entry["oid"])
        headers |= {"ETag": f'"{entry["oid"]}"', "Content-Length": str(len(content))}
        return Response(b"" if request.method == "HEAD" else content, headers=headers, media_type="text/plain")

    return routes


def _date(seconds: int) -> str:
    # The only form that every client parses.
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
