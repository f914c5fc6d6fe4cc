"""A table of answers in parts: a folder of Parquet files that many machines write, each part whole or not at all.

A part is named by the one who hands out the work, so that who does it a second time writes the same file again. Its
footer says by which model its answers are; what the parts hold is all that a run which goes on needs to know. Other
readers see one table: `pandas.read_parquet(FOLDER)`.
"""

import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from oct_hf.errors import OCTError
from oct_hf.inference import table
from oct_hf.inference.places import one_line, open_place
from oct_hf.inference.results import refuse_other
from oct_hf.parallel import in_order

SUMMARY = "_predicted.json"  # readers of a folder of Parquet pass over what begins with _ or a dot
_NOTE = b"oct_hf"  # in a part's metadata
_READS = 16  # parts at a time
_PART = re.compile(r"part-(\d{5,})\.parquet")


class Parts:
    """The parts of one run, over all the times it is begun.

    Args:
        out: a folder, new or of the same run, or an address that fsspec writes; or a table of `table.FORMATS` on this
            machine, whose parts then lie in `OUT.parts` until it is whole.
        facts: what makes answers comparable, as for `results.Journal`.
        names: the columns.
        overwrite: forget what is there.

    Attributes:
        address: of the folder, from every machine that sees it.
        answered: names of the inputs whose rows are there.
        failed: how many of them couldn't be read.

    Raises:
        OCTError: it holds something else, or answers of another model; it can't be written.
    """

    def __init__(self, out: str, facts: dict[str, Any], names: list[str], overwrite: bool = False):
        self.out, self.facts, self.names = out, json.loads(json.dumps(facts)), names
        self.table = Path(out) if "://" not in out and out.lower().endswith(table.FORMATS) else None
        if self.table is not None:
            table.check_format(self.table)
            if self.table.exists() and not overwrite:
                raise OCTError(f"{out}: is there already, and nothing of it is left to do; --overwrite starts anew")
        self._files, inner = open_place(out if self.table is None else f"{self.table.resolve()}.parts")
        self.address = inner if isinstance(self._files, LocalFileSystem) else self._files.unstrip_protocol(inner)
        self._inner = inner.rstrip("/")
        self.answered: set[str] = set()
        self.failed = self._next = 0
        try:
            self._claim(overwrite)
        except OCTError:
            raise
        except Exception as error:  # stores have no common base
            raise OCTError(f"{out}: can't be written or read ({one_line(error)})") from None

    def number(self) -> int:
        """Of a part that isn't there yet."""
        self._next += 1
        return self._next - 1

    def rows(self) -> Iterator[dict]:
        """Every row there is, part after part."""
        for path in self._paths():
            with self._files.open(path, "rb") as file:
                yield from pq.read_table(file, schema=table.arrow_schema(self.names)).to_pylist()

    def look(self) -> list[str]:
        """Reads which inputs are answered; gives those that are answered in more than one part."""
        self.answered, self.failed, twice = set(), 0, []
        for _, found in in_order(self._answered_in, self._paths(), _READS):
            twice += self.answered & found.keys()
            self.answered |= found.keys()
            self.failed += sum(error is not None for error in found.values())
        return twice

    def _answered_in(self, path: str) -> dict[str, str | None]:
        with self._files.open(path, "rb") as file:
            part = pq.ParquetFile(file)
            refuse_other(f"{self.out}/{path.rpartition('/')[2]}", _note(part), self.facts)
            columns = part.read(["file", "error"], use_threads=False).to_pydict()
        return dict(zip(columns["file"], columns["error"], strict=True))

    def finish(self, facts: dict[str, Any]) -> None:
        """Says that the table is whole, with a few facts; where one file is wanted, writes it and drops the parts."""
        if self.table is None:
            self._files.pipe_file(f"{self._inner}/{SUMMARY}", json.dumps({**facts, **self.facts}, indent=1).encode())
            return
        table.write(self.rows(), self.names, self.table)
        self._files.rm(self._inner, recursive=True)

    def _claim(self, overwrite: bool) -> None:
        there = [path.rpartition("/")[2] for path in self._files.find(self._inner)]
        others = [name for name in there if not (_PART.fullmatch(name) or name == SUMMARY or _is_partial(name))]
        if others:
            raise OCTError(f"{self.out}: holds something else ({others[0]}); name a new folder with --out")
        if self._files.isfile(self._inner):
            raise OCTError(f"{self.out}: is a file; --out names a folder, or a table ({', '.join(table.FORMATS)})")
        for name in there:
            if overwrite or name == SUMMARY or _is_partial(name):
                self._files.rm_file(f"{self._inner}/{name}")
        self._files.makedirs(self._inner, exist_ok=True)
        if twice := self.look():
            raise OCTError(f"{self.out}: {twice[0]} is in two parts; did two runs write here at a time? --overwrite")
        self._next = max((int(part[1]) + 1 for part in map(_PART.fullmatch, there) if part), default=0)

    def _paths(self) -> list[str]:
        self._files.invalidate_cache(self._inner)
        found = ((path, _PART.fullmatch(path.rpartition("/")[2])) for path in self._files.find(self._inner))
        return [path for path, part in sorted(found, key=lambda one: int(one[1][1]) if one[1] else -1) if part]


def write_part(address: str, number: int, rows: Iterable[dict], names: list[str], facts: dict[str, Any]) -> None:
    """Writes a part, over one of the same number.

    Args:
        address, names, facts: of the `Parts`.
        number: of `Parts.number`.
        rows: of the part.

    Raises:
        OCTError: it can't be written.
    """
    schema = table.arrow_schema(names).with_metadata({_NOTE: json.dumps(facts).encode()})
    whole = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), whole)
    files, inner = open_place(address)
    target = f"{inner.rstrip('/')}/part-{number:05d}.parquet"
    try:
        if isinstance(files, LocalFileSystem):
            beside = Path(target).with_name(f".{uuid.uuid4().hex}.partial")  # another may be at the same part
            beside.write_bytes(whole.getvalue())
            os.replace(beside, target)
        else:
            files.pipe_file(target, whole.getvalue())  # an object appears when it is whole
    except Exception as error:
        raise OCTError(f"{target}: can't be written ({one_line(error)}); all must see --out under one path") from None


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial")


def _note(part: pq.ParquetFile) -> Any:
    try:
        return json.loads((part.metadata.metadata or {})[_NOTE])
    except (KeyError, ValueError):
        return None
