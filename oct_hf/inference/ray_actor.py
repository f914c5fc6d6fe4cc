"""One process of a Ray cluster: it loads the model once, then answers one part after the other.

Apart from what hands out the work, since this is what the machines import.
"""

import json
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from oct_hf.errors import OCTError, RunError
from oct_hf.inference.bulk import answer
from oct_hf.inference.parts import write_part
from oct_hf.inference.places import is_seen, read_listed
from oct_hf.inference.predictor import Predictor
from oct_hf.inference.recorded import recorded_gate

TRIES = 3  # of a part whose process is lost: by then it is likelier a picture's fault


@dataclass(frozen=True)
class Options:
    """How pictures are answered; as the options of `oct-hf predict`."""

    batch_size: int | None = None
    backend: str = "auto"
    always: bool = False
    rule: str | None = None


@dataclass(frozen=True)
class Shared:
    """What a machine needs beside the model."""

    options: Options
    rule: str
    images: int
    started_in: Path
    address: str
    names: list[str]
    facts: dict[str, Any]


class Ledger:
    """How often each part was begun; Ray itself would give a part that ends its process to another one for ever."""

    def __init__(self):
        self._begun: dict[int, int] = {}

    def begin(self, number: int) -> int:
        self._begun[number] = self._begun.get(number, 0) + 1
        return self._begun[number]


class Worker:
    """A process of the cluster with the model in it."""

    def __init__(self, shared: Shared, repository, ledger):
        import ray

        self._ray, self._shared, self._ledger, self._fault = ray, shared, ledger, ""
        self._folder = tempfile.TemporaryDirectory()
        try:
            self._predictor = self._loaded(ray.get(repository))
        except OCTError as error:  # kept: Ray would begin a process that fails here again and again
            self._fault = self._named(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        number, tries, written = batch["number"][0].as_py(), 1, False
        if not self._fault:
            tries = self._ray.get(self._ledger.begin.remote(number))
            if tries <= TRIES:
                try:
                    self._answer(number, json.loads(batch["names"][0].as_py()))
                    written = True
                except OCTError as error:
                    self._fault = self._named(error)
        row = {"number": [number], "tries": [tries], "answered": [written], "fault": [self._fault]}
        return pa.table(row)

    def _answer(self, number: int, names: list[str]) -> None:
        shared = self._shared
        rows = [
            row | {"file": one.name}
            for one in answer(self._predictor, read_listed(names, shared.started_in), shared.rule)
            for row in one.rows
        ]
        if all(row.get("error") for row in rows) and not is_seen(names[0], shared.started_in):
            raise RunError(f"{names[0]} can't be read there ({rows[0]['error']}); all must see the pictures")
        write_part(shared.address, number, rows, shared.names, shared.facts)

    def _loaded(self, repository: dict[str, bytes]) -> Predictor:
        for path, content in repository.items():
            place = Path(self._folder.name, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        options = self._shared.options
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        predictor = Predictor(
            self._folder.name, batch_size=options.batch_size, backend=options.backend, images=self._shared.images
        )
        predictor.gate = recorded_gate(self._folder.name, predictor.labels, options.always)
        return predictor

    @staticmethod
    def _named(error: OCTError) -> str:
        return f"{platform.node()}, a machine of the Ray cluster: {error}"
