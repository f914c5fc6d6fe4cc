"""What pages for people have in common: one self-contained HTML file, with every picture as a data URI."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image


def write_page(template: str, page: dict, out: Path, **filters) -> None:
    """Renders a template of this folder beside its place and renames it. What is in `page` is escaped.

    Args:
        template: its file's name.
        page: the template's variables; one that is missing is an error.
        out: an .html file.
        filters: by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters
    beside = out.with_name(out.name + ".partial")
    beside.write_text(environment.get_template(template).render(page), encoding="utf-8")
    beside.replace(out)


def picture(image: np.ndarray, width: int) -> str:
    """A data URI of a picture, uint8 `(height, width[, 3])`, as a JPEG so many pixels wide."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    small = Image.fromarray(image).resize((width, min(height, 2 * width)), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=85)
    return data_uri(encoded.getvalue(), "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """A picture file as a data URI; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
