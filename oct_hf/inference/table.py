"""Predictions as a table: the columns `file`, `predicted`, `answer`, `p_LABEL` for each label, and `error`.

`predicted` is the most probable label, empty for what is no B-scan; `answer` says where the model is unsure.

Where files of a device are among them, `level`, `volume`, `eye`, `bscan`, `rule` and `driving` stand before `error`:
a row a B-scan (level "bscan"), then one an eye (level "eye").
"""

import csv
import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from oct_hf.errors import OCTError

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
        rows = [{name: row.get(name) for name in names} for row in rows]
        beside.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        kinds = [
            pa.float32() if name.startswith("p_") else pa.int32() if name in ("volume", "bscan") else pa.string()
            for name in names
        ]
        schema = pa.schema(zip(names, kinds, strict=True))
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), beside)
    beside.replace(path)
