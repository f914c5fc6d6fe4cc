"""What comes from strangers, read and shown: JSON and YAML of bounded size, text for terminals and spreadsheets.

A file name or a label is shown as it is; only where a terminal or spreadsheet would obey it is it written otherwise.
"""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

MOST_JSON = 16 << 20  # bytes; what is read of it takes up to twenty times as much memory
MOST_YAML = 1 << 20
MOST_PARTS = 200_000  # of a YAML file with what its aliases stand for
# Orders to a terminal, and what turns the direction in which text is shown; line ends and tabs are none.
ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def shown(text: str) -> str:
    """The text for a terminal: control codes as `\\x1b`, so that they are seen and not obeyed."""
    return ORDERS.sub(lambda found: ascii(found[0])[1:-1], text)


def cell(value: Any) -> Any:
    """A value for a CSV file: a text as `shown`, with a `'` before it where a spreadsheet would compute it.

    Python's writer leaves a carriage return without quotes where lines end otherwise, and readers then see two rows.
    """
    if not isinstance(value, str):
        return value
    text = shown(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """
    Raises:
        ValueError: it is no JSON in UTF-8, larger than `most` bytes, or nested too deeply.
        OSError: it can't be read.
    """
    if path.stat().st_size > most:
        raise ValueError(f"{path.name} has more than {most >> 20} MB")
    return json_of(path.read_text(encoding="utf-8"))


def json_of(text: str | bytes) -> Any:
    """JSON; raises ValueError, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def xml_of(raw: bytes) -> ElementTree.Element:
    """XML that declares nothing, since a few entities of entities can stand for terabytes.

    Raises:
        ValueError: it does, or is no XML.
    """
    # Without the zero bytes UTF-16 reads as ASCII.
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", raw.replace(b"\0", b""), re.IGNORECASE):
        raise ValueError("declares a document type or entities")
    try:
        return ElementTree.fromstring(raw)
    except ElementTree.ParseError as error:
        raise ValueError(f"is no xml text ({error})") from None


def yaml_of(text: str) -> Any:
    """YAML's plain types.

    Raises:
        yaml.YAMLError: it is no YAML, or too much of it: a few aliases of aliases can stand for terabytes.
    """
    if len(text) > MOST_YAML:
        raise yaml.YAMLError(f"it has more than {MOST_YAML >> 20} MB")
    try:
        content = yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, AttributeError) as error:  # of a date that is none, of a key that is no key
        raise yaml.YAMLError(" ".join(str(error).split())) from None
    _check_size(content)
    return content


def _check_size(content: Any) -> None:
    rest, seen = [content], 0
    while rest:
        part = rest.pop()
        seen += 1
        if seen > MOST_PARTS:
            raise yaml.YAMLError(f"it stands for more than {MOST_PARTS:,} values")
        if isinstance(part, dict):
            rest += part.values()
        elif isinstance(part, list | tuple | set):
            rest += part
