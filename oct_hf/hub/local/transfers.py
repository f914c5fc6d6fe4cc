"""Large files on their way to the loopback Hub and from it: git LFS's batch requests, and the links that they give."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse

from oct_hf.hub.local.protocol import Authorization, prefix, whole_body
from oct_hf.hub.local.store import Store


def batch_router(store: Store, kind: str, address: str, part_bytes: int) -> APIRouter:
    """Where a client is to send the large files that aren't here yet."""
    routes = APIRouter()

    @routes.post(f"/{prefix(kind)}{{namespace}}/{{name}}.git/info/lfs/objects/batch")
    def batch(
        namespace: str,
        name: str,
        body: Annotated[bytes, Depends(whole_body)],
        authorization: str | None = Authorization,
    ):
        store.writable(authorization, kind, namespace, name)
        asked = json.loads(body)  # its Content-Type is git's own
        objects, transfer = [], "basic"
        for wanted in asked["objects"]:
            answer = dict(wanted)
            if not store.large.has(wanted["oid"]):
                link, key = f"{address}/large/{wanted['oid']}", f"?key={store.large.signature('write', wanted['oid'])}"
                upload = {"href": link + key, "header": {}}
                if "multipart" in asked.get("transfers", []) and wanted["size"] > part_bytes:
                    transfer, parts = "multipart", -(-wanted["size"] // part_bytes)
                    upload["header"] = {f"{i:05d}": f"{link}/part/{i}{key}" for i in range(1, parts + 1)}
                    upload["header"]["chunk_size"] = str(part_bytes)
                    upload["href"] = f"{link}/complete/{parts}{key}"
                answer["actions"] = {"upload": upload}
            objects.append(answer)
        return {"transfer": transfer, "objects": objects}

    return routes


def router(store: Store) -> APIRouter:
    """Upload, in one piece or in parts, and download by SHA-256."""
    routes = APIRouter()

    @routes.put("/large/{oid}")
    async def put(oid: str, request: Request, key: str = "") -> dict:
        store.large.check("write", oid, key)
        await store.large.receive(oid, request.stream())
        return {}

    @routes.put("/large/{oid}/part/{number}")
    async def put_part(oid: str, number: int, request: Request, key: str = "") -> Response:
        store.large.check("write", oid, key)
        return Response(headers={"ETag": f'"{await store.large.receive_part(oid, number, request.stream())}"'})

    @routes.post("/large/{oid}/complete/{parts}")
    def complete(oid: str, parts: int, key: str = "") -> dict:
        store.large.check("write", oid, key)
        store.large.join_parts(oid, parts)
        return {}

    @routes.api_route("/large/{oid}", methods=["GET", "HEAD"])
    def get(oid: str, key: str = "") -> FileResponse:
        store.large.check("read", oid, key)
        return FileResponse(store.large.file(oid), headers={"ETag": f'"{oid}"'})

    return routes
