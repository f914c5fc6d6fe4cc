"""Predictions as a table: the columns `file`, `predicted`, `p_LABEL` for each label, and `error`."""

import csv
import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from oct_hf.errors import OCTError

FORMATS = (".csv", ".parquet", ".json")


def columns(labels: tuple[str, ...]) -> list[str]:
    """The table's columns, in order."""
    return ["file", "predicted", *(f"p_{label}" for label in labels), "error"]


def row(answer, labels: tuple[str, ...]) -> dict:
    """One `Prediction` as a row; probabilities are None where there is an error."""
    values = {f"p_{label}": (answer.probabilities or {}).get(label) for label in labels}
    return {"file": answer.file, "predicted": answer.predicted, **values, "error": answer.error}


def check_format(path: Path) -> None:
    """Raises OCTError, before any work is done, where the file's ending names no format or its folder isn't there."""
    if path.suffix not in FORMATS:
        raise OCTError(f"{path}: a table ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise OCTError(f"{path}: no folder {path.parent}")


def write(rows: list[dict], names: list[str], path: Path) -> None:
    """Writes the table beside its place and renames it, so that a reader never sees half of it."""
    beside = path.with_name(path.name + ".partial")
    if path.suffix == ".csv":
        with open(beside, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        beside.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        kinds = [pa.float32() if name.startswith("p_") else pa.string() for name in names]
        schema = pa.schema(zip(names, kinds, strict=True))
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), beside)
    beside.replace(path)
