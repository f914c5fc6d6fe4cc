"""A set that was prepared or published as Parquet, as rows again.

Only `image` and `label` must be there. What was measured when the set was prepared is taken over where this version
would measure the same; a picture is then not even decoded to be listed.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import datasets

from oct_hf.data.rows import KNOWN, MEASURED, MEASURED_BY, Work, eight_bit_file, measure, picture, sha256
from oct_hf.data.shards import Shards, group_bytes, note_of, read_group
from oct_hf.errors import BadImageError, DataError
from oct_hf.images import read_image

PLACE = {"shard": "string", "group": "int32", "row": "int32"}  # columns that say where a picture lies


def address(given: str) -> str:
    """Where a set lies: a folder, what fsspec reads, or `you/name` for a data set on the Hub."""
    if "://" in given:
        return given
    folder = Path(given).expanduser()
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", given):
        return f"hf://datasets/{given}"
    return str(folder.resolve())


def labels_of(shards: Shards) -> list[str]:
    """The classes that the shards name.

    Raises:
        DataError: they name none.
    """
    label = shards.features.get("label")
    if isinstance(label, datasets.ClassLabel):
        return list(label.names)
    raise DataError(f"{shards.root}: its column label names no classes; give them with data.labels")


def stored_work(shards: Shards, labels: list[str], without_patients: bool, stream: bool) -> dict[str, Work]:
    """The rows of each side.

    Args:
        shards: of the set.
        labels: the classes that are wanted; rows of others are passed over.
        without_patients: nothing needs to tell the patient.
        stream: say where each picture lies, instead of giving it.

    Raises:
        DataError: a column that must be there is missing.
    """
    present = set(shards.schema.names)
    for needed in ("image", "label", *(() if without_patients else ("patient_id",))):
        if needed not in present:
            remedy = "; near-duplicates can stand in (data.without_patients=true)" if needed == "patient_id" else ""
            raise DataError(f"{shards.root}: no column {needed}{remedy}; its columns: {', '.join(sorted(present))}")
    feature = shards.features["label"]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if names is not None and (strange := sorted(set(labels) - set(names))):
        raise DataError(f"{shards.root}: no class {', '.join(strange)} in it; there are {', '.join(names)}")
    sides = {side: [p for p in shards.paths if shards.side(p) == side] for side in map(shards.side, shards.paths)}
    one = len(sides) == 1
    order = [side for side in ("train", "validation", "test", "unused") if side in sides]
    return {
        side: Work(
            partial(_read, tuple(labels), names, side, one, stream),
            partial(_groups, shards, frozenset(sides[side])),
            _size,
        )
        for side in order
    }


def _groups(shards: Shards, paths: frozenset[str]) -> Iterator[tuple[str, int]]:
    return ((path, number) for path, number, _ in shards.groups() if path in paths)


def _size(place: tuple[str, int]) -> int:
    return group_bytes(*place)


def _read(
    labels: tuple[str, ...], names: list[str] | None, side: str, one: bool, stream: bool, place: tuple[str, int]
) -> list[dict]:
    """The rows of one row group."""
    path, number = place
    table = read_group(path, number, [c for c in (*KNOWN, *MEASURED, "content_hash") if c != "side"])
    measured = stream and set(MEASURED) <= set(table.column_names)
    measured = measured and note_of(path).get("measured_by") == MEASURED_BY
    pictures = None
    if not (measured and "content_hash" in table.column_names):
        pictures = read_group(path, number, ["image"])["image"].combine_chunks().field("bytes")
    rows = []
    for row, known in enumerate(table.to_pylist()):
        label = names[known["label"]] if names else known["label"]
        if label not in labels:
            continue
        made = {key: known.get(key) or "" for key in KNOWN} | {"label": label, "side": "train" if one else side}
        made["fold"] = "guard" if side == "unused" else made["fold"] or ("" if one else side)
        name = made["source"] or f"{PurePosixPath(path).name}#{number}/{row}"
        made["source"] = name
        if pictures is None:
            made |= {key: known[key] for key in (*MEASURED, "content_hash")}
        else:
            data = pictures[row].as_py() or b""
            made["content_hash"] = known.get("content_hash") or sha256(data)
            try:
                pixels = read_image(data, name)
            except BadImageError as error:
                rows.append({"file": error.file, "reason": error.reason})
                continue
            made |= measure(pixels)
            if not stream:
                made["image"] = picture(eight_bit_file(data, pixels))
        if stream:
            made |= {"shard": path, "group": number, "row": row}
        rows.append(made)
    return rows
