"""Finds what is untrue on a model card: its text against the text that the measured facts give.

Tables and metadata are compared value by value, so that each fault names its metric; prose is compared word by word.
"""

import difflib
import re

import yaml

from oct_hf.hub.front_matter import yaml_block


def card_faults(text: str, expected: str, whole: bool = True) -> list[str]:
    """One line for each value or sentence of a card that differs from what it should be.

    Args:
        text: README.md.
        expected: the card made again.
        whole: the prose counts too; False where another version's template wrote it.
    """
    try:
        said, measured = _metadata(text), _metadata(expected)
    except yaml.YAMLError as error:
        return [f"README.md: its metadata is no YAML ({' '.join(str(error).split())[:100]})"]
    said, measured = said | _tables(text), measured | _tables(expected)
    faults = [
        f"README.md: {name} says {said[name]}, it is {measured[name]}"
        for name in measured
        if name in said and said[name] != measured[name]
    ]
    if whole:
        faults += [f"README.md: {name} ({value}) is missing" for name, value in measured.items() if name not in said]
        faults += [f"README.md: {name} ({value}) has no source" for name, value in said.items() if name not in measured]
        faults += _prose_faults(_prose(text), _prose(expected))
    return faults


def _metadata(text: str) -> dict[str, str]:
    """The YAML block flattened; a score by its metric's name."""
    found: dict[str, str] = {}

    def walk(value, path: str) -> None:
        if isinstance(value, dict):
            if {"name", "type", "value"} <= value.keys():  # a metric of the model index
                path = f"metadata, {value['name']}"
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(inner, f"{path}.{index}")
        else:
            found[path] = str(value)

    walk(yaml_block(text) or {}, "metadata")
    return found


def _tables(text: str) -> dict[str, str]:
    """Every cell by its section, row and column, such as "Results, Balanced accuracy, test"."""
    found: dict[str, str] = {}
    section, header = "", None
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if header is None:
            header = cells
            found[f"{section}, columns of the table by {header[0]}"] = ", ".join(header)
        elif not set(line) <= set("|-"):
            for number, cell in enumerate(cells[1:], 1):
                column = header[number] if number < len(header) else f"column {number}"
                found[f"{section}, {cells[0]}, {column}"] = cell
    return found


def _prose(text: str) -> list[str]:
    """Lines that are neither metadata nor table."""
    body = re.sub(r"\A---\r?\n.*?\r?\n---", "", text, flags=re.DOTALL)
    return [line.strip() for line in body.splitlines() if line.strip() and not line.startswith("|")]


def _prose_faults(said: list[str], expected: list[str]) -> list[str]:
    faults = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, said, expected, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        for one, other in zip(said[a:b], expected[c:d], strict=False):
            faults += _word_faults(one.split(), other.split())
        faults += [f'README.md: "{_cut(line)}" has no source' for line in said[a:b][d - c :]]
        faults += [f'README.md: "{_cut(line)}" is missing' for line in expected[c:d][b - a :]]
    return faults


def _word_faults(said: list[str], expected: list[str]) -> list[str]:
    faults = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, said, expected, autojunk=False).get_opcodes():
        if kind != "equal":
            before = " ".join(expected[max(0, c - 5) : c])
            there, right = " ".join(said[a:b]) or "nothing", " ".join(expected[c:d]) or "nothing"
            faults.append(f'README.md: after "{before}" stands {_cut(there)}, it is {_cut(right)}')
    return faults


def _cut(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "…"
