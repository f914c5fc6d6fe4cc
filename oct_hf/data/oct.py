"""The `datasets` builder for OCT B-scans: phantoms, the public sets of `catalog`, and a folder of one's own.

One plain `GeneratorBasedBuilder`, so that the same file is a class for `datasets` 5 (`prepare()` below) and a loading
script for `datasets` 3.6. Each file is decoded once while generating, on as many threads as there are cores: a corrupt
image is found now and not in epoch 7. The cache is keyed by the files' names, sizes and times, so a changed folder is
prepared anew.
"""

import contextlib
import errno
import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import datasets.config
from datasets.exceptions import DatasetGenerationError

from oct_hf.data import phantom, speckle
from oct_hf.data.catalog import CATALOG
from oct_hf.data.fetch import locate
from oct_hf.data.layout import LABELLED_BY, find_labels, list_entries, refuse_or_note
from oct_hf.data.rows import (
    BLOCK,
    KNOWN,
    MEASURED,
    MEASURED_BY,
    Work,
    measure,
    picture,
    png,
    read_rows,
    sha256,
    size_of,
)
from oct_hf.data.shards import Shards
from oct_hf.data.source import Source
from oct_hf.data.sources import open_source
from oct_hf.data.stored import PLACE, address, labels_of, stored_work
from oct_hf.errors import DataError, did_you_mean
from oct_hf.labels import SIGNS
from oct_hf.parallel import give_memory_back, in_order, in_processes, lean_arrow

SKIPPED_FILE = "skipped.json"
_FULL, _READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)
_ON_THREADS = 2_000  # images up to which threads do alone


@dataclass
class OCTDataConfig(datasets.BuilderConfig):
    """What to read, and how to know the patient.

    Attributes:
        data_dir: a folder, or an archive that is read in place; not for `phantom`.
        labels: the classes, in the order of the model's outputs; the folders' names, sorted, where not given.
        csv: table beside the images with one row a file (`folder`), relative to `data_dir`.
        columns: which of its columns stand for file, patient, eye, volume, device, label, fold and guard.
        pattern: regular expression with the groups `patient` and, if known, `eye`, `volume` and `device`, searched in
            each path (`folder`).
        without_patients: nothing need tell the patient of a `folder`; `patient_id` is empty where nothing does.
        label_by: `image`; `eye`, every image by the worst case of its eye; or `worst`, only the images that show it.
        skip_bad: go on without the files that can't be read, instead of refusing.
        stream: leave the pictures of `parquet` in their shards; each row then says in which.
        signs: of `phantom`, a column `signs` too: which of `labels.SIGNS` each picture shows.
        patients, scans, seed, height, width: size of the `phantom` set: patients a class, B-scans a patient, pixels.
    """

    labels: tuple[str, ...] | None = None
    stream: bool = False
    csv: str | None = None
    columns: dict = field(default_factory=dict)
    pattern: str | None = None
    without_patients: bool = False
    label_by: str = "image"
    skip_bad: bool = False
    signs: bool = False
    patients: int = 100
    scans: int = 4
    seed: int = 0
    height: int = 496
    width: int = 512

    def create_config_id(self, config_kwargs: dict, custom_features=None) -> str:
        """Adds the files' fingerprint to the name of the cache folder; `datasets` itself doesn't look at them."""
        return f"{super().create_config_id(config_kwargs, custom_features)}-{self.fingerprint()}"

    def source(self) -> Source:
        """The files in `data_dir`, listed at the first call."""
        if "_source" not in self.__dict__:
            self._source = open_source(self._place())
        return self._source

    def forget_listing(self) -> None:
        """Frees what only listing needs: 50 bytes a file."""
        if source := self.__dict__.get("_source"):
            source.forget()
        give_memory_back()

    def shards(self) -> Shards:
        """The shards in `data_dir`, of `parquet`."""
        if "_shards" not in self.__dict__:
            self._shards = Shards(self._place())
        return self._shards

    def _place(self) -> str:
        if not self.data_dir:
            raise DataError(f'data set "{self.name}" needs a data_dir: a folder or archive with its files')
        return self.data_dir

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when a file is added, removed, renamed, resized or touched."""
        columns = sorted((*KNOWN, *MEASURED))  # a set prepared before these is prepared anew
        digest = hashlib.sha256(f"{columns} {MEASURED_BY}".encode())
        if self.name == "phantom":
            digest.update((inspect.getsource(phantom) + inspect.getsource(speckle)).encode())
        elif self.name == "parquet":
            digest.update(self.shards().stamp().encode())
        elif self.data_dir:
            source = self.source()
            for path, stamp in source.stamps():
                digest.update(f"{path}\0{stamp}\n".encode())
            for table in (self.csv, getattr(CATALOG.get(self.name), "table", None)):
                with contextlib.suppress(DataError):  # told when it is read
                    digest.update(source.read_table(getattr(table, "name", table)) if table else b"")
        return digest.hexdigest()[:16]


class OCT(datasets.GeneratorBasedBuilder):
    """B-scans with label, patient and eye. Published sides (train, validation, test) stay as the data set has them."""

    BUILDER_CONFIG_CLASS = OCTDataConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 - `datasets` wants a list
        OCTDataConfig(name="phantom", version="1.0.0", description="drawn B-scans with known lesions; needs no file"),
        *(OCTDataConfig(name=row.name, version="1.0.0", description=row.title) for row in CATALOG.values()),
        OCTDataConfig(
            name="folder", version="1.0.0", description="CLASS/… folders; patient from a CSV, names or folders"
        ),
        OCTDataConfig(name="parquet", version="1.0.0", description="shards, prepared or published before"),
    ]
    DEFAULT_WRITER_BATCH_SIZE = 64  # 4 MB of JPEGs; of smaller ones there are so many that opening them takes memory
    workers: int | None = None  # processes; with 1, threads in this one; with None, both as it pays
    config: OCTDataConfig
    skipped: list[dict]  # files left out, each with its reason

    @property
    def features(self) -> datasets.Features:
        """The columns, as `_info` gives them."""
        assert self.info.features is not None
        return self.info.features

    def _info(self) -> datasets.DatasetInfo:
        columns = {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=self._labels()),
            "patient_id": datasets.Value("string"),
            "eye": datasets.Value("string"),  # OD, OS or empty
            "volume": datasets.Value("string"),  # one name in the whole set, or empty
            "device": datasets.Value("string"),  # that took it, or empty
            "source": datasets.Value("string"),  # path inside data_dir
            "fold": datasets.Value("string"),  # of the CSV, or "guard"; else the published side, or empty
            "side": datasets.Value("string"),  # the published one; "train" where there is none
            "content_hash": datasets.Value("string"),  # SHA-256 of the file
            **{name: datasets.Value(kind) for name, kind in MEASURED.items()},
        }
        if self.config.signs:
            columns["signs"] = datasets.Sequence(datasets.ClassLabel(names=list(SIGNS)))
        if self.config.stream:
            del columns["image"]
            columns |= {name: datasets.Value(kind) for name, kind in PLACE.items()}
        return datasets.DatasetInfo(description="OCT B-scans, one a row.", features=datasets.Features(columns))

    def _labels(self) -> list[str]:
        if self.config.labels:
            return list(self.config.labels)
        if self.config.name == "phantom":
            return list(phantom.LABELS)
        return labels_of(self.config.shards()) if self.config.name == "parquet" else find_labels(self.config)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(side, gen_kwargs={"work": work}) for side, work in self.work().items()]

    def _download_and_prepare(self, *args, **kwargs) -> None:
        super()._download_and_prepare(*args, **kwargs)
        # Beside the rows before both take their place: whoever finds the set also finds what was left out of it.
        with self._fs.open(f"{self._output_dir}/{SKIPPED_FILE}", "w") as file:
            json.dump(self.skipped, file)

    def work(self) -> dict[str, Work]:
        """What is to be read for each published side."""
        self.skipped = []
        labels = self.features["label"].names
        if self.config.name == "phantom":
            draw = partial(_phantoms, self.config.seed, self.config.height, self.config.width, self.config.signs)
            size = self.config.height * self.config.width  # speckle leaves about a byte a pixel
            work = {"train": Work(draw, partial(_phantom_jobs, self.config, labels), lambda jobs: size * len(jobs))}
        elif self.config.name == "parquet":
            work = stored_work(self.config.shards(), labels, self.config.without_patients, self.config.stream)
        else:
            source = self.config.source()
            read, size = partial(read_rows, source), partial(size_of, source)
            sides = list_entries(self.config, labels, self.skipped).by_side()
            work = {side: Work(read, partial(rows.blocks, BLOCK), size) for side, rows in sides.items()}
        return work

    def _generate_examples(self, work: Work):
        """On processes or on threads; the rows are the same."""
        self.config.forget_listing()
        bad, key, blocks = [], 0, work.blocks()
        workers = self.workers or os.cpu_count() or 1
        # Processes take a second to start: where nobody asked for them, small sets do without.
        first = list(islice(blocks, 0 if self.workers else _ON_THREADS // BLOCK))
        rest = list(islice(blocks, 1))
        blocks = chain(first, rest, blocks)
        if workers > 1 and rest:
            blocks = in_processes(work.read, blocks, workers)
        else:
            blocks = (rows for _, rows in in_order(work.read, blocks))
        for row in chain.from_iterable(blocks):
            if "reason" in row:
                bad.append(row)
                continue
            yield key, row
            key += 1
            if key % self.DEFAULT_WRITER_BATCH_SIZE == 0:
                give_memory_back()
        refuse_or_note(bad, self.skipped, self.config.skip_bad)


def prepare(
    name: str,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    **options,
) -> tuple[datasets.Dataset, list[dict]]:
    """Prepares a set once and opens it from the cache ever after.

    Args:
        name: `phantom`, `folder`, `parquet` or a name of `catalog.CATALOG`.
        data_dir: folder or archive; of `parquet` a folder, an address that fsspec reads, or `you/name` on the Hub; not
            for `phantom`. A public set is downloaded where it isn't given.
        cache_dir: where the prepared set lies; the `datasets` library's own cache by default.
        workers: processes that read the files; the result is the same. Threads alone where it is 1; by default threads
            for up to 2,000 images, and as many processes as there are cores for more.
        options: further fields of `OCTDataConfig`.

    Returns:
        All B-scans as one `Dataset` with the columns of `OCT`; and the files left out, each with `file` and `reason`.

    Raises:
        DataError: nothing to read, no such set, files that can't be read while `skip_bad` is off, or no room for what
            is prepared.
    """
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
    try:
        with lean_arrow():
            builder = builder_of(name, data_dir, cache, **options)
            builder.workers = workers
            builder.download_and_prepare()
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            raise _no_place(cache, error.__cause__) from None
        if isinstance(error.__cause__, DataError | OSError):
            raise error.__cause__ from None
        raise
    except OSError as error:
        if error.errno not in (*_FULL, *_READ_ONLY) or not str(error.filename).startswith(str(cache)):
            raise
        builder = _prepared_before(name, data_dir, cache, **options)
        if builder is None:
            raise _no_place(cache, error) from None
    give_memory_back()
    note = Path(builder.cache_dir) / SKIPPED_FILE
    sides = builder.as_dataset()
    assert isinstance(sides, dict)  # a Dataset only where one side is asked for
    return datasets.concatenate_datasets(list(sides.values())), json.loads(note.read_text()) if note.exists() else []


def _prepared_before(name: str, data_dir: str | Path | None, cache: Path, **options) -> OCT | None:
    """The builder of a set that lies whole in a cache where nothing can be written, not even `datasets`' locks."""
    with tempfile.TemporaryDirectory() as elsewhere:
        builder = builder_of(name, data_dir, elsewhere, **options)
        place = cache / Path(builder.cache_dir).relative_to(elsewhere)
    if not (place / datasets.config.DATASET_INFO_FILENAME).is_file():
        return None
    builder._cache_dir = builder._output_dir = str(place)
    builder.info = datasets.DatasetInfo.from_directory(str(place))
    return builder


def _no_place(cache: Path, error: OSError) -> DataError:
    return DataError(
        f"{cache}: {error.strerror or error}, and the prepared data goes there; make room or name another place "
        "(HF_DATASETS_CACHE=FOLDER), then give the same command again"
    )


def builder_of(name: str, data_dir: str | Path | None = None, cache_dir: str | Path | None = None, **options) -> OCT:
    """The builder that `prepare` uses; its arguments are checked.

    Raises:
        DataError: no such set, or nothing to read.
    """
    known = [config.name for config in OCT.BUILDER_CONFIGS]
    if name not in known:
        raise DataError(f'data set "{name}" is not known{did_you_mean(name, known)}; known: {", ".join(known)}')
    if name in ("folder", "parquet") and not data_dir:
        what = "folder or zip: give --data PATH" if name == "folder" else "folder or address: give data.path"
        raise DataError(f'data set "{name}" needs its {what}')
    if options.get("stream") and name != "parquet":
        raise DataError(f"data.stream reads Parquet: oct-hf data prepare {name} --out FOLDER, then data.name=parquet")
    if options.get("label_by", "image") not in LABELLED_BY:
        raise DataError(f"data.label_by: found {options['label_by']!r}, expected one of {', '.join(LABELLED_BY)}")
    if options.get("signs") and name != "phantom":
        raise DataError(f"data.signs: {name} says of no B-scan which signs it shows; phantoms do (data.name=phantom)")
    if name == "parquet" and options.get("label_by", "image") != "image":
        raise DataError("data.label_by: shards have the labels they were written with; give it when they are prepared")
    size = options.pop("size", 224)
    if name in CATALOG:
        data_dir = locate(CATALOG[name], data_dir, size)
    if data_dir:
        local = str(Path(data_dir).expanduser().resolve())
        options["data_dir"] = address(str(data_dir)) if name == "parquet" else local
    rows = 1000 if options.get("stream") else None  # of a batch: without their pictures they are small
    return OCT(config_name=name, cache_dir=str(cache_dir) if cache_dir else None, writer_batch_size=rows, **options)


def _phantom_jobs(config: OCTDataConfig, labels: list[str]) -> Iterator[list[tuple[str, int, int]]]:
    jobs = (
        (label, number * len(labels) + index, scan)
        for number in range(config.patients)
        for index, label in enumerate(labels)
        for scan in range(config.scans)
    )
    while block := list(islice(jobs, BLOCK)):
        yield block


def _phantoms(seed: int, height: int, width: int, signs: bool, jobs: list[tuple[str, int, int]]) -> list[dict]:
    rows = []
    for label, patient, scan in jobs:
        drawn = phantom.draw(label, seed, patient, scan, height, width)
        data = png(drawn.image)
        row: dict[str, Any] = {"label": label, "patient_id": f"P{patient:05d}", "eye": drawn.eye}
        row |= {"fold": "", "side": "train", "volume": f"P{patient:05d}", "device": "phantom"}
        row |= {"source": f"{label}/P{patient:05d}_{scan:02d}.png"}
        if signs:
            row["signs"] = [sign for sign, lesion in SIGNS.items() if lesion in drawn.lesions]
        rows.append(row | {"image": picture(data), "content_hash": sha256(data)} | measure(drawn.image))
    return rows
