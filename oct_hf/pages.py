"""What pages for people have in common: templates that escape what they are given, and pictures inside the page."""

import base64
from collections.abc import Callable
from pathlib import Path

import jinja2


def escaping_template(path: Path, names: dict | None = None, **filters: Callable) -> jinja2.Template:
    """An HTML template; a variable that is missing is an error.

    Args:
        path: its file; templates that it takes parts of lie beside it.
        names: what it knows besides what it is rendered with.
        filters: by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,  # labels, file names and ids come from strangers
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= names or {}
    environment.filters |= filters
    return environment.get_template(path.name)


def data_uri(content: bytes, kind: str) -> str:
    """A picture file as a data URI; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
