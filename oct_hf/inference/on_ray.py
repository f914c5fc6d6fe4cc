"""Pictures answered on a Ray cluster: machines that each load the model once and take parts of the list as they can.

Only names travel: a machine reads the pictures of a part itself and writes the part's answers itself, whole or not at
all (`parts`). So what a lost process had is done again by another, and nothing is there twice; memory holds a few
batches, since Ray Data hands out a part only when a machine has room for it. A picture that ends its process each time
is narrowed down in ever smaller parts, and its row says so.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from oct_hf.errors import ModelError, OCTError, RunError
from oct_hf.evaluation.aggregation import RULES
from oct_hf.inference import table
from oct_hf.inference.backends import CHOICES
from oct_hf.inference.description import load_description
from oct_hf.inference.inputs import text_of
from oct_hf.inference.parts import Parts, write_part
from oct_hf.inference.places import list_places, one_line
from oct_hf.inference.ray_actor import TRIES, Ledger, Options, Shared, Worker
from oct_hf.inference.recorded import recorded, recorded_rule
from oct_hf.parallel import import_ray, ray_cluster, shares

PART = 512  # pictures
_NEEDED = (".json", ".safetensors", ".onnx", ".xml", ".bin")  # files of a repository that a predictor may open


@dataclass(frozen=True)
class Done:
    """What a run on a cluster came to.

    Attributes:
        images: pictures and device files that were asked for.
        before: of them, those that earlier beginnings had answered.
        failed: rows with an error.
        lost: times that a process was lost and its part given to another.
    """

    images: int
    before: int
    failed: int
    lost: int


def predict_on_ray(
    places: Sequence[str],
    model: str | Path,
    out: str,
    options: Options | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> Done:
    """Answers every picture exactly once; a run that was stopped goes on with those that aren't answered.

    Args:
        places: paths or addresses that fsspec reads; every machine must see them. Parquet files, too.
        model: folder or Hub id; its files travel to the machines.
        out: as of `Parts`; a folder that every machine sees, or an address.
        options: how.
        workers: processes at a time; where not given, as many as there are GPUs, or else machines.
        overwrite: forget what is in `out`.

    Raises:
        OCTError: Ray isn't installed, no cluster, nothing there, or `out` holds something else; a machine can't work.
    """
    options = options or Options()
    ray = import_ray()
    if options.backend not in CHOICES:
        raise OCTError(f"no backend {options.backend}; there are {', '.join(CHOICES)}")
    if options.rule is not None and options.rule not in RULES:
        raise OCTError(f"--rule: found {options.rule}, expected {', '.join(RULES)}")
    folder = _on_this_machine(Path(model).as_posix())
    labels, rule = load_description(folder).labels, options.rule or recorded_rule(folder)[0]
    listing = list_places(places)
    repository = {path: (folder / path).read_bytes() for path in _needed(folder)}
    facts = {
        "weights": _sha256(repository),
        "labels": labels,
        "backend": options.backend,
        "rule": rule,
        "gate": None if options.always else recorded(folder, "gate"),
    }
    parts = Parts(out, facts, table.columns(labels, listing.devices), overwrite)
    left = [name for name in listing.names if text_of(name) not in parts.answered]
    before, lost = len(listing.names) - len(left), 0
    shared = Shared(options, rule, len(left), Path.cwd(), parts.address, parts.names, parts.facts)
    if left:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray warns of how its own Data makes processes
        with ray_cluster() as ray:
            bar = tqdm(total=len(listing.names), initial=before, desc="predicting", unit="file", disable=None)
            with bar:
                work = _Cluster(ray, shared, repository, workers)
                for size in work.sizes(len(left)):
                    left = list(work.answered(parts, left, size, bar))
                lost = work.lost
    if left:
        text = f"its process died {TRIES} times at this file"
        write_part(parts.address, parts.number(), _rows_of(left, text), parts.names, parts.facts)
    if twice := parts.look():
        raise RunError(f"{out}: {twice[0]} is in two parts; did another run write here at the same time?")
    if missing := [name for name in listing.names if text_of(name) not in parts.answered]:
        raise RunError(f"{out}: {len(missing)} files have no answer, such as {missing[0]}; the same command goes on")
    parts.finish({"images": len(parts.answered), "errors": parts.failed})
    return Done(len(listing.names), before, parts.failed, lost)


class _Cluster:
    """Has parts answered; `lost` counts the processes that went in between."""

    def __init__(self, ray, shared: Shared, repository: dict[str, bytes], workers: int | None):
        self._ray, self.lost = ray, 0
        self._slots, self._cpus, self._gpus = shares(ray, workers)
        self._ledger = ray.remote(num_cpus=0)(Ledger).remote()
        self._given = shared, ray.put(repository), self._ledger

    def sizes(self, count: int) -> list[int]:
        """Pictures of a part, and of those that a part which was lost each time is cut into."""
        first = min(PART, -(-count // (4 * self._slots)))
        return [first, *(size for size in (16, 1) if size < first)]

    def answered(self, parts: Parts, names: list[str], size: int, bar: tqdm) -> Iterator[str]:
        """Has parts of such a size answered; gives the names of those whose process was lost each time."""
        if not names:
            return
        ray, gone = self._ray, {}
        for start in range(0, len(names), size):
            gone[parts.number()] = names[start : start + size]
        blocks = [pa.table({"number": [number], "names": [json.dumps(part)]}) for number, part in gone.items()]
        try:
            with closing(self._stream(blocks)) as rows:
                for row in rows:
                    if row["fault"]:
                        raise RunError(row["fault"])
                    self.lost += row["tries"] - 1
                    if row["answered"]:
                        bar.update(len(gone.pop(row["number"])))
        except ray.exceptions.RayTaskError:
            raise  # a defect, with its traceback
        except ray.exceptions.RayError as error:
            raise RunError(
                f"the Ray cluster: {one_line(error)}; all machines need the same oct-hf with its extra ray"
            ) from None
        for part in gone.values():
            yield from part

    def _stream(self, blocks: list[pa.Table]) -> Generator[dict, None, None]:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        work = ray.data.from_arrow(blocks).map_batches(
            Worker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._slots),
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            fn_constructor_args=self._given,
        )
        # Not iter_rows: where it is left early, threads of its own go on asking for blocks; once the cluster is shut
        # down, one that asks ends this process without a word.
        bundles: Any = work.iter_internal_ref_bundles()
        try:
            for bundle in bundles:
                for block in bundle.blocks:
                    rows: Any = ray.get(block.ref)
                    yield from rows.to_pylist()
        finally:
            del bundles  # has the executor stop, and waits two seconds for it
            for thread in threading.enumerate():
                if thread.name.startswith("StreamingExecutor"):
                    thread.join()


def _on_this_machine(model: str) -> Path:
    """The model's folder; of a Hub id what a predictor may open is fetched.

    Raises:
        ModelError: it can't be had.
    """
    if Path(model).exists():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, allow_patterns=[f"*{ending}" for ending in _NEEDED]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"{model}: no model that can be had ({one_line(error)})") from None


def _needed(folder: Path) -> list[str]:
    found = (path for path in sorted(folder.rglob("*")) if path.suffix in _NEEDED and path.is_file())
    return [path.relative_to(folder).as_posix() for path in found]


def _sha256(repository: dict[str, bytes]) -> str:
    """Of what probabilities come from; run.json, which tells of the run, isn't of it."""
    parts = [[path, hashlib.sha256(data).hexdigest()] for path, data in repository.items() if path != "run.json"]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _rows_of(names: list[str], error: str) -> Iterator[dict]:
    return ({"file": text_of(name), "error": error} for name in names)
