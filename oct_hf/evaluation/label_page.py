"""One HTML page of likely label errors, for a person to look through and save as corrections.csv.

The file needs no network, no server and no other file: its pictures are in it, and a policy in its head forbids it to
load or send anything. It shows patients' eyes, so it lies in the run's folder and is never published.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from oct_hf.data.corrections import LEAVE_OUT
from oct_hf.evaluation.label_errors import Suspect
from oct_hf.labels import describe
from oct_hf.pages import data_uri, escaping_template

_TEMPLATE = Path(__file__).with_name("label_page.html.jinja")
_QUALITY = 80  # of the JPEGs; a B-scan of 320 pixels then has about 10 kB
_TALLEST = 2.0  # height of a picture against its width; what is taller is squeezed


@dataclass(frozen=True)
class Shown:
    """What the page shows of one suspect.

    Attributes:
        suspect: from `find_suspects`.
        image: uint8 `(h, w)` or `(h, w, 3)`.
        eye: "OD", "OS" or empty.
        source: the file's path in the data set, where it may be shown; else empty.
        neighbours: images of the same eye that lie beside it, with the label of each.
    """

    suspect: Suspect
    image: np.ndarray
    eye: str = ""
    source: str = ""
    neighbours: Sequence[tuple[np.ndarray, str]] = ()


def label_page(
    shown: Sequence[Shown],
    names: Sequence[str],
    *,
    title: str,
    images: int,
    found: int,
    folds: int,
    fingerprint: str,
    unit: str = "patient",
    earlier: Sequence[dict] = (),
) -> str:
    """The page as one HTML text.

    Args:
        shown: the suspects, the surest first.
        names: every label of the set.
        title: the run's name.
        images: of the whole set.
        found: how many suspects there are; `shown` may be fewer.
        folds: of the cross-validation.
        fingerprint: of the data; decisions are kept in the browser under it.
        unit: what the groups are.
        earlier: rows (columns of the saved file) of corrections that already apply; they are saved along.
    """
    return escaping_template(_TEMPLATE).render(
        items=[_item(number, one) for number, one in enumerate(shown, 1)],
        names=list(names),
        means={name: describe(name) for name in names},
        leave_out=LEAVE_OUT,
        title=title,
        images=images,
        found=found,
        folds=folds,
        unit=unit,
        state={"fingerprint": fingerprint, "earlier": list(earlier), "leaveOut": LEAVE_OUT},
    )


def _item(number: int, one: Shown) -> dict:
    return {
        "number": number,
        "suspect": one.suspect,
        "picture": small_picture(one.image, 320),
        "eye": one.eye,
        "source": one.source,
        "neighbours": [{"picture": small_picture(image, 120), "label": label} for image, label in one.neighbours],
    }


def small_picture(image: np.ndarray, width: int) -> dict:
    """A small JPEG as a data URI, with its size in pixels.

    Args:
        image: uint8 `(h, w)` or `(h, w, 3)`.
        width: at most so many pixels wide.
    """
    height, given = image.shape[:2]
    wide = min(width, given)
    size = wide, max(1, min(round(height * wide / given), round(wide * _TALLEST)))
    encoded = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=_QUALITY)
    return {"uri": data_uri(encoded.getvalue(), "jpeg"), "width": size[0], "height": size[1]}
