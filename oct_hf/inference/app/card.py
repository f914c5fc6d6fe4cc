"""A model's card for a tab of the page: its text without metadata, its own pictures inside it and no others."""

import re
from pathlib import PurePosixPath

from oct_hf.inference.description import file_of
from oct_hf.pages import data_uri

_FRONT = re.compile(r"\A---\r?\n.*?\r?\n---\r?\n", re.DOTALL)
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)[^)]*\)")
_HEADING = re.compile(r"^(#{1,5} )", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```\s*$", re.MULTILINE | re.DOTALL)


def card_text(folder: str) -> str:
    """Markdown of a model's README.md; a sentence where it has none.

    Args:
        folder: a model folder or a Hub id.
    """
    file = file_of(folder, "README.md")
    if file is None:
        return "This model has no card, so nothing is known here of its data, its limits or how well it was measured."
    text = _FRONT.sub("", file.read_text(encoding="utf-8", errors="replace"))
    code = _FENCE.findall(text)
    parts = [_under_the_page(part, folder) for part in _FENCE.split(text)]
    return "".join(part + fence for part, fence in zip(parts, [*code, ""], strict=True))


def _under_the_page(text: str, folder: str) -> str:
    """Headings one level lower, since the page has its own first one; pictures as data, which need no address."""
    return _PICTURE.sub(lambda found: _inside(found, folder), _HEADING.sub(r"#\1", text))


def _inside(found: re.Match, folder: str) -> str:
    text, place = found.groups()
    path = PurePosixPath(place)
    own = "://" not in place and not path.is_absolute() and ".." not in path.parts
    file = file_of(folder, place) if own and path.suffix in (".png", ".jpg", ".jpeg") else None
    if file is None:
        return f"({text or 'a picture'}: not shown here)"
    kind = "png" if path.suffix == ".png" else "jpeg"
    return f"![{text}]({data_uri(file.read_bytes(), kind)})"
