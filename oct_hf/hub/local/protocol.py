"""What the requests of huggingface_hub have in common: token, body, and how kinds of repositories are written."""

from typing import Annotated

from fastapi import Body, Header, Request

Authorization = Header(default=None)
Json = Annotated[dict, Body()]


async def whole_body(request: Request) -> bytes:
    """A request's body, read before its handler starts; the handlers that call git are no coroutines, so they run on
    threads and hold up nobody else.
    """
    return await request.body()


def wants_private(body: dict) -> bool | None:
    """What a request wants; older clients send `private`, newer ones `visibility`."""
    return body["visibility"] == "private" if "visibility" in body else body.get("private")


def prefix(kind: str) -> str:
    """What stands before a repository's name in its address: nothing for models."""
    return "" if kind == "model" else f"{kind}s/"
