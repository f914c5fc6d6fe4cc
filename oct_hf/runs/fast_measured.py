"""Fast files whose answers aren't the float model's, int8 and a cascade: made, and measured on held-out B-scans.

Nothing is placed here: what is written goes to a scratch folder, with the numbers that say whether it may stay.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from oct_hf.data.encoded import Encoded
from oct_hf.data.splits import learned_from
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import DataError, ModelError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.stand_in import LEAST_AGREEMENT, compare_int8, same_answers
from oct_hf.hub.download import download
from oct_hf.hub.fast import answers_of, cascade_facts, size_of
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.inference.cascade import DIGEST, Rule, at_temperature, sureness
from oct_hf.inference.description import load_description
from oct_hf.inference.fast_files import CASCADE, CASCADE_ANSWERS, SMALL_INT8, files_of, load_fast
from oct_hf.inference.quantise import CALIBRATION_IMAGES, quantise
from oct_hf.parallel import in_order
from oct_hf.runs.again import drawn_data, labelled
from oct_hf.runs.folder import read_run
from oct_hf.whole import file_sha256, write_json

PREDICTIONS = "predictions.parquet"
BATCH = 16  # images a forward pass
TEMPERATURES = (0.1, 10.0)  # among which the one of a small network is looked for
VIEWS, VIEWED = 8, "standard"  # of each validation B-scan, on which a small network's threshold is found too


@dataclass(frozen=True)
class Measured:
    """A fast file that was made, and what it costs.

    Attributes:
        files: what belongs to it, the one to give to the runtime first; the last holds its held-out answers.
        report: on these.
    """

    files: tuple[str, ...]
    report: dict


class HeldOut:
    """A run's B-scans: some of the training side, and those that were predicted.

    Args:
        model: what the user named, for errors.
        folder: of the model.
        data: where its data lie; where its run found them, or drawn again, where not given.
        preprocessing: of the model's input.

    Attributes:
        own: its predictions.
        preprocessing: as given.

    Raises:
        DataError: the data can't be had, or aren't those that were predicted.
    """

    def __init__(self, model: Path, folder: Path, data: str | Path | None, preprocessing: Preprocessing):
        if not (folder / PREDICTIONS).is_file():
            raise DataError(f"{model}: no {PREDICTIONS} in it, so what another file costs can't be measured")
        self.model, self.preprocessing, self.own = model, preprocessing, Predictions.read(folder / PREDICTIONS)
        self._found = labelled(folder, _data_at(model, folder, data), None)
        row = {value: number for number, value in enumerate(self._found.hashes)}
        missing = sum(value not in row for value in self.own.hashes)
        if missing:
            count = len(self.own.hashes)
            raise DataError(f"{missing} of the {count} held-out B-scans of {model} are not in the data given")
        self._rows = [row[value] for value in self.own.hashes]

    def training(self) -> Iterator[np.ndarray]:
        """uint8 `(height, width)` each, as decoded: up to `CALIBRATION_IMAGES` B-scans of the training side."""
        rows = np.flatnonzero(self._found.sides == "train")
        if not len(rows):
            raise DataError(
                f"{self.model}: the data hold no B-scan of its training side, and int8 is calibrated on these"
            )
        chosen = np.sort(np.random.default_rng(0).permutation(rows)[:CALIBRATION_IMAGES])
        return self._grays(chosen.tolist(), "calibrating")

    def grays(self) -> Iterator[np.ndarray]:
        """uint8 `(height, width)` each, as decoded, in the order of the predictions; coloured pictures as gray."""
        return self._grays(self._rows, "measuring")

    def _grays(self, rows: Sequence[int], doing: str) -> Iterator[np.ndarray]:
        encoded = Encoded(self._found.dataset)
        work = in_order(lambda row: to_gray(read_image(encoded[row])), rows)
        for _, gray in tqdm(work, doing, len(rows), unit="image", disable=None, leave=False):
            yield gray


def make_int8(source: Path, name: str, scratch: Path, held_out: HeldOut) -> Measured:
    """An int8 file, calibrated on the training side.

    Args:
        source: `onnx/gray.onnx` of the model.
        name: of `INT8`.
        scratch: where it is written, under its name.
        held_out: the model's.
    """
    resize = held_out.preprocessing.resize
    training = np.stack([*map(resize, held_out.training())])
    quantise(source, scratch / name, training)
    run = load_fast(scratch / name)
    found = [run(np.stack([*map(resize, batch)])) for batch in _batches(held_out.grays())]
    answers = held_out.own.with_probabilities(np.concatenate(found))
    answers.write(scratch / answers_of(name))
    sizes = {"bytes": size_of(scratch, name)}
    report = {"file": name, **sizes, **compare_int8(held_out.own, answers), "calibrated_on": len(training)}
    return Measured((*files_of(name), answers_of(name)), report)


def make_cascade(
    source: Path, small: Path, small_source: Path, preprocessing: Preprocessing, scratch: Path, held_out: HeldOut
) -> Measured:
    """A cascade of a model and a small one that learned its answers.

    The small network, in int8, answers the B-scans that it is sure of, by a threshold from the validation side,
    augmented and not (`lowest_threshold`). What the two together cost is measured on the test side.

    Args:
        source: `onnx/gray.onnx` of the full model.
        small: model folder of the small one.
        small_source: `onnx/gray.onnx` of it.
        preprocessing: of its input.
        scratch: where the files are written.
        held_out: the full model's.

    Raises:
        DataError: the small model knows other labels, or learned from B-scans that the full one holds out.
        ModelError: it is never sure enough.
    """
    own = held_out.own
    _check_small(small, own)
    several = own.truth is not None
    rule = Rule(0.0, preprocessing, several)
    quantise(small_source, scratch / SMALL_INT8, np.stack([*map(rule.shrink, held_out.training())]))
    ask_small, ask_full = load_fast(scratch / SMALL_INT8), load_fast(source)

    def ask(grays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        given = (np.stack([*map(shape, grays)]) for shape in (rule.shrink, held_out.preprocessing.resize))
        return ask_small(next(given)), ask_full(next(given))

    answers, seen = [], []  # of both on what was held out; and on validation B-scans and views of them
    augmentation = Augmentation(VIEWED)
    for batch in _batches(zip(held_out.grays(), own.hashes, own.sides, strict=True)):
        answers.append(ask([gray for gray, _, _ in batch]))
        of_validation = [(gray, digest) for gray, digest, side in batch if side == "validation"]
        for view in range(VIEWS if of_validation else 0):
            seen.append(ask([augmentation(gray, view, digest) for gray, digest in of_validation]))
    by_small, by_full = map(np.concatenate, zip(*answers, strict=True))
    validation = own.sides == "validation"
    seen.append((by_small[validation], by_full[validation]))
    seen_small, seen_full = map(np.concatenate, zip(*seen, strict=True))
    rule = replace(rule, temperature=most_alike(seen_small, seen_full, several))
    rule = replace(rule, threshold=lowest_threshold(rule.tempered(seen_small), seen_full, several))
    by_small = rule.tempered(by_small)
    stands = rule.sure(by_small)
    if not stands[validation].any():
        raise ModelError(
            f"{small}: is never surer than where its answers differ from the full model's, so it would answer nothing; "
            "let it learn longer, or at a higher resolution"
        )
    together = own.with_probabilities(np.where(stands[:, None], by_small, own.probabilities))
    together.write(scratch / CASCADE_ANSWERS)
    digests = {DIGEST: {part: file_sha256(scratch / part) for part in files_of(SMALL_INT8)}}
    write_json(scratch / CASCADE, rule.to_dict() | digests)
    report = {"file": CASCADE, **cascade_facts(scratch, own)}
    return Measured((CASCADE, *files_of(SMALL_INT8), CASCADE_ANSWERS), report)


def most_alike(small: np.ndarray, full: np.ndarray, several: bool = False) -> float:
    """The temperature at which a small network's probabilities, `(n, labels)`, are most like the full one's.

    By their cross-entropy, as labels are fitted to where a model is calibrated; the full one's were.
    """
    told = full.astype(np.float64)

    def cross_entropy(logarithm: float) -> float:
        found = np.clip(at_temperature(small, np.exp(logarithm), several).astype(np.float64), 1e-9, 1 - 1e-9)
        other = (1 - told) * np.log(1 - found) if several else 0
        return -float((told * np.log(found) + other).mean())

    found: Any = minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def lowest_threshold(small: np.ndarray, full: np.ndarray, several: bool = False) -> float:
    """How sure the small network must be, so that few of these answers, `(n, labels)` each, would be another.

    Half as many as a cascade is allowed: what is found here is to hold on other B-scans.
    """
    same = same_answers(full, small, several)
    same = same.all(1) if several else same
    wrong = np.sort(sureness(small, several)[~same])[::-1]
    allowed = int(len(small) * (1 - LEAST_AGREEMENT) / 2)
    return float(np.nextafter(wrong[allowed], 2, dtype=np.float32)) if len(wrong) > allowed else 0.0


def _check_small(small: Path, own: Predictions) -> None:
    names = load_description(small).labels
    if names != own.names:
        raise DataError(f"{small}: knows {', '.join(names)}, and the full model {', '.join(own.names)}")
    known = learned_from(small)
    if shared := sum(digest in known for digest in own.hashes):
        raise DataError(
            f"{small} was trained on {shared} of the B-scans that the full model holds out; train it on its split"
        )


def _batches(items: Iterable) -> Iterator[list]:
    items = iter(items)
    while batch := list(islice(items, BATCH)):
        yield batch


def _data_at(model: Path, folder: Path, data: str | Path | None) -> str | None:
    """Where the model's data lie: as given, else where its run found them; None for phantoms, which are drawn."""
    if data is not None or drawn_data(download(str(folder))):
        return None if data is None else str(data)
    known = read_run(model) or read_run(folder.resolve().parent)
    path = known["recipe_given"]["data"]["path"] if known else None
    if path is None or not Path(path).exists():
        where = f"{path} is gone" if path else "it doesn't say where they lie"
        raise DataError(f"{model}: this is measured on the model's data, and {where}; give --data PATH")
    return path
