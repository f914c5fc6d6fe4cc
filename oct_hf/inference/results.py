"""Answers as they come, kept so that a killed run loses none, and one whole table at the end.

A journal beside the table takes a line an input, in JSON, the moment its answer is there. Made again, the same command
passes over what the journal has. At the end the table is written from it beside its place and renamed, so that nobody
ever sees half a table, and the journal goes.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from oct_hf.errors import OCTError
from oct_hf.inference import table

_WORDS = {
    "weights": "another model",
    "labels": "a model with other labels",
    "backend": "another backend",
    "rule": "another --rule",
    "gate": "other rules for the column answer",
}


class Journal:
    """The answers of one run, over all the times it is begun.

    Args:
        out: the table that is wanted; the journal is `OUT.unfinished`.
        facts: what makes answers comparable; a journal with others isn't gone on with. Their keys are those of
            `_WORDS`.
        overwrite: forget what is there.

    Attributes:
        before: inputs answered by earlier beginnings.
        eyes, failed: eyes among all answers, and inputs that couldn't be read.

    Raises:
        OCTError: the table is there already, or the journal is of another run.
    """

    def __init__(self, out: Path, facts: dict[str, Any], overwrite: bool = False):
        self.out, self.path = out, out.with_name(out.name + ".unfinished")
        self.before = self.eyes = self.failed = 0
        self._done: Counter[bytes] = Counter()
        facts = json.loads(json.dumps(facts))
        if overwrite:
            self.path.unlink(missing_ok=True)
        if self.path.exists():
            self._go_on(facts)
        elif out.exists() and not overwrite:
            raise OCTError(f"{out}: is there already, and nothing of it is left to do; --overwrite starts anew")
        fresh = not self.path.exists()
        self._file = open(self.path, "ab")  # noqa: SIM115 - open as long as answers come
        if fresh:
            self._append(facts)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def has(self, name: str) -> bool:
        """Whether an earlier beginning answered an input of this name; of two of one name, each is told once."""
        key = _hash(name)
        if not self._done[key]:
            return False
        self._done[key] -= 1
        return True

    def add(self, name: str, rows: list[dict]) -> None:
        """Keeps the rows of one input, all of them or none."""
        self._append([name, rows])
        self._count(rows)

    def rows(self) -> Iterator[dict]:
        """Every row there is."""
        for _, rows in self._entries():
            yield from rows

    def finish(self, names: list[str]) -> None:
        """Writes the table, with these columns, and removes the journal."""
        table.write(self.rows(), names, self.out)
        self._file.close()
        self.path.unlink()

    def _append(self, entry) -> None:
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()  # to the system, which keeps it when this process is killed

    def _count(self, rows: Iterable[dict]) -> None:
        self.eyes += sum(row.get("level") == "eye" for row in rows)
        self.failed += any(row.get("error") for row in rows)

    def _go_on(self, facts: dict[str, Any]) -> None:
        """Takes up what is there; a last line that was cut off is dropped."""
        with open(self.path, "rb") as file:
            whole, first = 0, True
            for line in file:
                entry = _entry(line)
                if entry is None:
                    break
                if first:
                    refuse_other(self.path, entry, facts)
                else:
                    self._done[_hash(entry[0])] += 1
                    self.before += 1
                    self._count(entry[1])
                first, whole = False, whole + len(line)
        if first:
            self.path.unlink()  # it ended before its first line
        else:
            os.truncate(self.path, whole)

    def _entries(self) -> Iterator[list]:
        with open(self.path, "rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def refuse_other(place: Path | str, known: Any, facts: dict[str, Any]) -> None:
    """
    Args:
        place: where answers lie.
        known: what is written there of how they were made.
        facts: how others are to be made now, as JSON gives it back; see `Journal`.

    Raises:
        OCTError: these don't go together.
    """
    if not isinstance(known, dict):
        raise OCTError(f"{place}: not of oct-hf predict; remove it, or choose another --out")
    for key, word in _WORDS.items():
        if known.get(key) != facts.get(key):
            found, wanted = (_short(which.get(key)) for which in (known, facts))
            raise OCTError(
                f"{place}: was begun with {word} ({found}, now {wanted}); --overwrite starts anew,"
                " another --out keeps it"
            )


def _entry(line: bytes):
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None  # after a power cut a file may end in zeros


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = value if isinstance(value, str) else "none" if value is None else "a different one"
    return text[:12]
