"""A prepared set as Parquet shards in a place of one's own: on a disk, or wherever fsspec writes.

Which row goes into which shard follows from the files alone. So shards are written on as many processes as there are,
of one machine or of a Ray cluster, and they are the same, byte for byte. A shard is there whole or not at all; a
preparation that was stopped goes on with those that are missing.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from tqdm import tqdm

from oct_hf.data.layout import refuse_or_note
from oct_hf.data.oct import OCT
from oct_hf.data.rows import MEASURED_BY, Work
from oct_hf.data.shards import SHARD_BYTES, UNFINISHED, note_of, write_shard
from oct_hf.errors import DataError, OCTError, did_you_mean
from oct_hf.parallel import in_order, in_processes, on_ray

FACTS_FILE = "prepared.json"
ENGINES = ("processes", "ray")
_NOT_CONTENT = ("version", "data_dir", "data_files", "description", "skip_bad", "stream", "labels", "signs")


@dataclass(frozen=True)
class _Part:
    """One shard to be written."""

    path: str
    read: Any
    blocks: list
    labels: tuple[str, ...]
    schema: pa.Schema
    made_from: str
    threads: int


def write_prepared(
    builder: OCT,
    out: str,
    workers: int | None = None,
    engine: str = "processes",
    shard_bytes: int = SHARD_BYTES,
) -> dict:
    """Reads a set and writes it as `data/SIDE-NNNNN-of-NNNNN.parquet` with a `prepared.json`, which is also returned.

    The patients' ids are in it as they are: it stays at home, and `oct-hf publish-data` makes what may go out.

    Args:
        builder: of `builder_of`.
        out: a folder, or an address that fsspec writes (`s3://…`); new, or of the same preparation.
        workers: processes; as many as there are cores where not given. On a cluster, its own count.
        engine: `processes` of this machine, or `ray`; then every machine must see the files and `out`.
        shard_bytes: pictures of one shard.

    Returns:
        `labels`, `images`, `classes`, `shards` and `skipped`.

    Raises:
        DataError: files that can't be read while `skip_bad` is off, or `out` holds something else.
        OCTError: no such engine, a process that was killed, or no cluster.
    """
    if engine not in ENGINES:
        raise OCTError(f"--engine: found {engine}{did_you_mean(engine, ENGINES)}, expected {' or '.join(ENGINES)}")
    if builder.config.signs:
        raise DataError("data.signs: shards hold one label a picture; draw phantoms with signs where they are used")
    workers = workers or os.cpu_count() or 1
    schema = builder.features.arrow_schema
    labels = tuple(builder.features["label"].names)
    place = _Place(out)
    made_from = _made_from(builder, shard_bytes)
    place.claim(made_from)
    parts = []
    for side, work in builder.work().items():
        cut = list(_cut(work, shard_bytes))
        names = (f"data/{side}-{number:05d}-of-{len(cut):05d}.parquet" for number in range(len(cut)))
        threads = max(1, (os.cpu_count() or 1) // workers) if engine == "processes" else 1
        parts += [
            _Part(place.path(name), work.read, blocks, labels, schema, made_from, threads)
            for name, blocks in zip(names, cut, strict=True)
        ]
    if engine == "ray":
        results = on_ray(_write, parts, workers)
    elif min(workers, len(parts)) > 1:
        results = in_processes(_write, parts, min(workers, len(parts)))
    else:
        results = map(_write, parts)
    done = tqdm(results, total=len(parts), desc="preparing", unit="shard", disable=None, leave=False)
    shards, bad = [], []
    for shard, left_out in done:
        shards.append(shard)
        bad += left_out
    refuse_or_note(bad, builder.skipped, builder.config.skip_bad)
    classes = {name: sum(shard["classes"][name] for shard in shards) for name in labels}
    facts = {
        "format": 1,
        "made_from": made_from,
        "measured_by": MEASURED_BY,
        "labels": list(labels),
        "images": sum(classes.values()),
        "classes": classes,
        "shards": [{"path": shard["path"].removeprefix(place.path("")), "rows": shard["rows"]} for shard in shards],
        "skipped": builder.skipped,
    }
    place.finish(facts)
    return facts


def _made_from(builder: OCT, shard_bytes: int) -> str:
    """A text that is another one where the shards would hold other rows."""
    config = builder.config
    said = {f.name: getattr(config, f.name) for f in dataclasses.fields(type(config)) if f.name not in _NOT_CONTENT}
    said |= {"labels": builder.features["label"].names, "shard_bytes": shard_bytes, "files": config.fingerprint()}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


class _Place:
    """Where the shards go; one preparation at a time, which may be stopped and gone on with."""

    def __init__(self, root: str):
        self.root = root
        try:
            self.files, base = url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise DataError(f"{root}: no place to write to ({error})") from None
        self.local = isinstance(self.files, LocalFileSystem)
        self.base = str(Path(base).expanduser().resolve()) if self.local else base.rstrip("/")

    def path(self, name: str) -> str:
        inner = f"{self.base}/{name}"
        return inner if self.local else self.files.unstrip_protocol(inner)

    def claim(self, made_from: str) -> None:
        """Raises DataError where something else lies there."""
        there = {path[len(self.base) + 1 :] for path in self.files.find(self.base)}
        there.discard(f"{UNFINISHED}.partial")  # of a preparation that was killed before anything else
        marks = [name for name in (FACTS_FILE, UNFINISHED) if name in there]
        known = {json.loads(self.files.cat_file(f"{self.base}/{name}")).get("made_from") for name in marks}
        if there and known != {made_from}:
            what = "another prepared set, or one whose files changed since" if marks else "something else"
            raise DataError(f"{self.root}: holds {what}; name a new folder")
        self.files.makedirs(self.base, exist_ok=True)
        if FACTS_FILE not in there:
            self._write(UNFINISHED, {"made_from": made_from})

    def finish(self, facts: dict) -> None:
        self._write(FACTS_FILE, facts)
        if self.files.exists(f"{self.base}/{UNFINISHED}"):
            self.files.rm_file(f"{self.base}/{UNFINISHED}")

    def _write(self, name: str, facts: dict) -> None:
        target = f"{self.base}/{name}"
        self.files.pipe_file(f"{target}.partial" if self.local else target, json.dumps(facts, indent=1).encode())
        if self.local:
            os.replace(f"{target}.partial", target)


def _cut(work: Work, shard_bytes: int) -> Iterator[list]:
    """The blocks of each shard."""
    blocks, size = [], 0
    for block in work.blocks():
        blocks.append(block)
        size += work.size(block)
        if size >= shard_bytes:
            yield blocks
            blocks, size = [], 0
    if blocks:
        yield blocks


def _write(part: _Part) -> tuple[dict, list[dict]]:
    """Writes a shard that isn't there yet; what is in it, and the files left out of it."""
    files, path = url_to_fs(part.path)
    if files.exists(path):
        note = note_of(part.path)
        if note.get("made_from") == part.made_from and "classes" in note:
            return _said(part, note)
    note = {
        "made_from": part.made_from,
        "measured_by": MEASURED_BY,
        "classes": dict.fromkeys(part.labels, 0),
        "bad": [],
    }

    def rows() -> Iterator[dict]:
        for _, made in in_order(part.read, part.blocks, part.threads):
            for row in made:
                if "reason" in row:
                    note["bad"].append(row)
                else:
                    note["classes"][row["label"]] += 1
                    yield row | {"label": part.labels.index(row["label"])}

    if isinstance(files, LocalFileSystem):
        beside = Path(f"{path}.partial")
        beside.parent.mkdir(parents=True, exist_ok=True)
        write_shard(beside, rows(), part.schema, note)
        os.replace(beside, path)
    else:
        with files.transaction, files.open(path, "wb") as file:  # an object appears when it is whole
            write_shard(file, rows(), part.schema, note)
    return _said(part, note)


def _said(part: _Part, note: dict) -> tuple[dict, list[dict]]:
    classes = note["classes"]
    return {"path": part.path, "rows": sum(classes.values()), "classes": classes}, note["bad"]
