"""A page of a run: one self-contained HTML file, written whole, with every picture inside it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from oct_hf.pages import data_uri, escaping_template
from oct_hf.whole import written_beside


def write_page(template: str, page: dict, out: Path, **filters) -> None:
    """Renders a template of this folder beside its place and renames it. What is in `page` is escaped.

    Args:
        template: its file's name.
        page: the template's variables; one that is missing is an error.
        out: an .html file.
        filters: by name.
    """
    text = escaping_template(Path(__file__).with_name(template), **filters).render(page)
    with written_beside(out) as beside:
        beside.write_text(text, encoding="utf-8")


def picture(image: np.ndarray, width: int) -> str:
    """A data URI of a picture, uint8 `(height, width[, 3])`, as a JPEG so many pixels wide."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    small = Image.fromarray(image).resize((width, min(height, 2 * width)), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=85)
    return data_uri(encoded.getvalue(), "jpeg")
