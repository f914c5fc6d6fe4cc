"""Predictions as a table: the columns `file`, `predicted`, `answer`, `p_LABEL` for each label, and `error`.

`predicted` is the most probable label, empty for what is no B-scan; `answer` says where the model is unsure.

Where files of a device are among them, `level`, `volume`, `eye`, `bscan`, `rule` and `driving` stand before `error`:
a row a B-scan (level "bscan"), then one an eye (level "eye"). In CSV, a text that a spreadsheet would take for a
formula has a `'` before it.
"""

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from oct_hf.errors import OCTError
from oct_hf.parallel import give_memory_back, lean_arrow
from oct_hf.untrusted import cell
from oct_hf.whole import written_beside

GROUP, BLOCK = 1024, 256  # rows of a group of a Parquet file; of them as Python's objects, ten times as large
FORMATS = (".csv", ".parquet", ".json")
EYE_COLUMNS = ("level", "volume", "eye", "bscan", "rule", "driving")


def columns(labels: tuple[str, ...], eyes: bool = False) -> list[str]:
    """The table's columns, in order; with those of eyes where files of a device are among the inputs."""
    return ["file", "predicted", "answer", *(f"p_{label}" for label in labels), *(EYE_COLUMNS if eyes else ()), "error"]


def eye_rows(answer) -> list[dict]:
    """The rows of one `EyeAnswer`: its B-scans, then the eye."""
    known = {"file": answer.file, "volume": answer.volume.number, "eye": answer.volume.laterality or "unknown"}
    names = [f"p_{label}" for label in answer.labels]
    rows = []
    for number, values in enumerate(answer.bscans):
        predicted = answer.labels[int(values.argmax())]
        rows.append({**known, "level": "bscan", "bscan": number, **_named(predicted), **_values(names, values)})
    joined = {"level": "eye", "rule": answer.rule, "driving": " ".join(map(str, answer.driving))}
    return [*rows, {**known, **joined, **_named(answer.predicted), **_values(names, answer.probabilities)}]


def _named(label: str) -> dict[str, str]:
    return {"predicted": label, "answer": label}


def _values(names: list[str], values) -> dict[str, float]:
    return dict(zip(names, map(float, values), strict=True))


def row(answer, labels: tuple[str, ...]) -> dict:
    """One `Prediction` as a row; probabilities are None where there is an error."""
    values = {f"p_{label}": (answer.probabilities or {}).get(label) for label in labels}
    said = answer.predicted if answer.decision is None else str(answer.decision)
    return {"file": answer.file, "predicted": answer.predicted, "answer": said, **values, "error": answer.error}


def arrow_schema(names: list[str]):
    """The columns' types in Parquet: float32 for probabilities, int32 for numbers, text for the rest."""
    import pyarrow as pa

    kinds = [
        pa.float32() if name.startswith("p_") else pa.int32() if name in ("volume", "bscan") else pa.string()
        for name in names
    ]
    return pa.schema(zip(names, kinds, strict=True))


def check_format(path: Path) -> None:
    """Raises OCTError, before any work is done, where the file's ending names no format or its folder isn't there."""
    if path.suffix not in FORMATS:
        raise OCTError(f"{path}: a table ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise OCTError(f"{path}: no folder {path.parent}")


def write(rows: Iterable[dict], names: list[str], path: Path) -> None:
    """Writes the table beside its place and renames it, so that a reader never sees half of it.

    Args:
        rows: read once, some thousands in memory at a time.
        names: the columns.
        path: ends in one of FORMATS.
    """
    with written_beside(path) as beside:
        {".csv": _write_csv, ".json": _write_json, ".parquet": _write_parquet}[path.suffix](iter(rows), names, beside)


def csv_text(rows: Iterable[dict], names: list[str]) -> str:
    """The table as CSV, for what is no file."""
    text = io.StringIO(newline="")
    _rows_to_csv(rows, names, text)
    return text.getvalue()


def _write_csv(rows: Iterator[dict], names: list[str], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        _rows_to_csv(rows, names, file)


def _rows_to_csv(rows: Iterable[dict], names: list[str], file: TextIO) -> None:
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def _write_json(rows: Iterator[dict], names: list[str], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        for number, row in enumerate(rows):
            one = json.dumps({name: row.get(name) for name in names}, indent=1, ensure_ascii=False)
            file.write(("," if number else "") + "\n" + textwrap.indent(one, " "))
        file.write("\n]\n")


def _write_parquet(rows: Iterator[dict], names: list[str], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = arrow_schema(names)

    def blocks(count: int) -> Iterator[pa.Table]:
        rest = islice(rows, count)
        while block := list(islice(rest, BLOCK)):
            yield pa.Table.from_pylist(block, schema=schema)

    with lean_arrow(), parquet.ParquetWriter(path, schema) as writer:
        while group := list(blocks(GROUP)):
            writer.write_table(pa.concat_tables(group))
            give_memory_back()
