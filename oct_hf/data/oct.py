"""The `datasets` builder for OCT B-scans: `phantom`, `oct2017` and `folder`.

One plain `GeneratorBasedBuilder`, so that the same file is a class for `datasets` 5 (`prepare()` below) and a loading
script for `datasets` 3.6. Each file is decoded once while generating, on as many threads as there are cores: a corrupt
image is found now and not in epoch 7. The cache is keyed by the files' names, sizes and times, so a changed folder is
prepared anew.
"""

import hashlib
import inspect
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from oct_hf.data import phantom, speckle
from oct_hf.data.duplicates import thumbnail
from oct_hf.data.layout import Entry, find_labels, list_entries, refuse_or_note
from oct_hf.data.sources import Source, open_source
from oct_hf.errors import BadImageError, DataError, did_you_mean
from oct_hf.images import read_image
from oct_hf.threads import in_order

SKIPPED_FILE = "skipped.json"
MEASURED = {"thumbnail": datasets.Value("binary")}  # columns that `_measured` fills


@dataclass
class OCTDataConfig(datasets.BuilderConfig):
    """What to read, and how to know the patient.

    Attributes:
        data_dir: a folder, or a zip that is read in place (`oct2017`, `folder`).
        labels: the classes, in the order of the model's outputs; the folders' names, sorted, where not given.
        csv: table beside the images with one row a file (`folder`), relative to `data_dir`.
        columns: which of its columns stand for file, patient, eye, label, fold and guard.
        pattern: regular expression with the groups `patient` and, if known, `eye`, searched in each path (`folder`).
        skip_bad: go on without the files that can't be read, instead of refusing.
        patients, scans, seed, height, width: size of the `phantom` set: patients a class, B-scans a patient, pixels.
    """

    labels: tuple[str, ...] | None = None
    csv: str | None = None
    columns: dict = field(default_factory=dict)
    pattern: str | None = None
    skip_bad: bool = False
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
            self._source = open_source(self.data_dir)
        return self._source

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when a file is added, removed, renamed, resized or touched."""
        digest = hashlib.sha256()
        if self.name == "phantom":
            digest.update((inspect.getsource(phantom) + inspect.getsource(speckle)).encode())
        elif self.data_dir:
            source = self.source()
            for path in source.files:
                digest.update(f"{path}\0{source.stamp(path)}\n".encode())
            if self.csv:
                digest.update(source.read_table(self.csv))
        return digest.hexdigest()[:16]


class OCT(datasets.GeneratorBasedBuilder):
    """B-scans with label, patient and eye. Published sides (train, validation, test) stay as the data set has them."""

    BUILDER_CONFIG_CLASS = OCTDataConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 - `datasets` wants a list
        OCTDataConfig(name="phantom", version="1.0.0", description="drawn B-scans with known lesions; needs no file"),
        OCTDataConfig(
            name="oct2017", version="1.0.0", description="Kermany et al. 2018: train|test/CLASS/CLASS-PATIENT-N"
        ),
        OCTDataConfig(
            name="folder", version="1.0.0", description="CLASS/… folders; patient from a CSV, names or folders"
        ),
    ]
    DEFAULT_WRITER_BATCH_SIZE = 200  # about 10 MB of JPEGs: memory stays flat

    def _info(self) -> datasets.DatasetInfo:
        known = phantom.LABELS if self.config.name == "phantom" else ()
        labels = list(self.config.labels or known or find_labels(self.config))
        return datasets.DatasetInfo(
            description="OCT B-scans, one a row.",
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "label": datasets.ClassLabel(names=labels),
                    "patient_id": datasets.Value("string"),
                    "eye": datasets.Value("string"),  # OD, OS or empty
                    "source": datasets.Value("string"),  # path inside data_dir
                    "fold": datasets.Value("string"),  # of the CSV: its fold, or "guard"; else empty
                    "content_hash": datasets.Value("string"),  # SHA-256 of the file
                    **MEASURED,
                }
            ),
        )

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        self.skipped: list[dict] = []  # files left out, each with its reason
        if self.config.name == "phantom":
            return [datasets.SplitGenerator("train", gen_kwargs={"entries": None})]
        sides: dict[str, list[Entry]] = {}
        for entry in list_entries(self.config, self.info.features["label"].names, self.skipped):
            sides.setdefault(entry.side, []).append(entry)
        order = [side for side in ("train", "validation", "test") if side in sides]
        return [datasets.SplitGenerator(side, gen_kwargs={"entries": sides[side]}) for side in order]

    def _generate_examples(self, entries):
        rows = _phantom_rows(self.config) if entries is None else self._file_rows(entries)
        for key, (data, content_hash, row) in enumerate(rows):
            # No path: `datasets` would look for a file of that name, image by image. The column `source` has it.
            yield key, {"image": {"path": None, "bytes": data}, "content_hash": content_hash, **row}

    def _file_rows(self, entries: list[Entry]) -> Iterator[tuple[bytes, str, dict]]:
        source = self.config.source()
        bad = []

        def read(entry: Entry) -> tuple[bytes, str, dict] | BadImageError:
            try:
                data = source.read(entry.source)
                pixels = read_image(data, entry.source)
                return _eight_bit_file(data, pixels), hashlib.sha256(data).hexdigest(), _measured(pixels)
            except BadImageError as error:
                return error

        for entry, result in in_order(read, entries):
            if isinstance(result, BadImageError):
                bad.append({"file": result.file, "reason": result.reason})
            else:
                data, content_hash, measured = result
                known = {k: getattr(entry, k) for k in ("label", "patient_id", "eye", "source", "fold")}
                yield data, content_hash, known | measured
        refuse_or_note(bad, self.skipped, self.config.skip_bad)


def _measured(pixels: np.ndarray) -> dict:
    """What is found out of each picture while it is decoded anyway."""
    return {"thumbnail": thumbnail(pixels)}


def _eight_bit_file(data: bytes, pixels: np.ndarray) -> bytes:
    """The file itself, or its pixels as PNG where it has 16 bits or floating point, which `datasets` would saturate."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode[0] not in "IF":
            return data
    return _png(pixels)


def _png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def prepare(
    name: str, data_dir: str | Path | None = None, cache_dir: str | Path | None = None, **options
) -> tuple[datasets.Dataset, list[dict]]:
    """Prepares a set once and opens it from the cache ever after.

    Args:
        name: `phantom`, `oct2017` or `folder`.
        data_dir: folder or zip; not for `phantom`.
        cache_dir: where the prepared set lies; the `datasets` library's own cache by default.
        options: further fields of `OCTDataConfig`.

    Returns:
        All B-scans as one `Dataset` with the columns of `OCT`, where `fold` also says the published side (`train`,
        `validation`, `test`) when the set has one and its CSV says nothing else; and the files left out, each with
        `file` and `reason`.

    Raises:
        DataError: nothing to read, no such set, or files that can't be read while `skip_bad` is off.
    """
    known = [config.name for config in OCT.BUILDER_CONFIGS]
    if name not in known:
        raise DataError(f'data set "{name}" is not known{did_you_mean(name, known)}; known: {", ".join(known)}')
    if name != "phantom" and not data_dir:
        raise DataError(f'data set "{name}" needs its folder or zip: give --data PATH')
    if data_dir:
        options["data_dir"] = str(Path(data_dir).expanduser().resolve())
    builder = OCT(config_name=name, cache_dir=str(cache_dir) if cache_dir else None, **options)
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError | OSError):
            raise error.__cause__ from None
        raise
    note = Path(builder.cache_dir) / SKIPPED_FILE
    if hasattr(builder, "skipped"):
        note.write_text(json.dumps(builder.skipped))
    sides = builder.as_dataset()
    if len(sides) > 1:
        for side in sides:
            folds = [fold or side for fold in sides[side]["fold"]]
            sides[side] = sides[side].remove_columns("fold").add_column("fold", folds)
    return datasets.concatenate_datasets(list(sides.values())), json.loads(note.read_text()) if note.exists() else []


def _phantom_rows(config: OCTDataConfig) -> Iterator[tuple[bytes, str, dict]]:
    labels = list(config.labels or phantom.LABELS)
    jobs = (
        (label, number * len(labels) + index, scan)
        for number in range(config.patients)
        for index, label in enumerate(labels)
        for scan in range(config.scans)
    )
    for _, row in in_order(lambda job: _phantom_row(config, *job), jobs):
        yield row


def _phantom_row(config: OCTDataConfig, label: str, patient: int, scan: int) -> tuple[bytes, str, dict]:
    drawn = phantom.draw(label, config.seed, patient, scan, config.height, config.width)
    data = _png(drawn.image)
    source = f"{label}/P{patient:05d}_{scan:02d}.png"
    row = {"label": label, "patient_id": f"P{patient:05d}", "eye": drawn.eye, "source": source, "fold": ""}
    row |= _measured(drawn.image)
    return data, hashlib.sha256(data).hexdigest(), row
