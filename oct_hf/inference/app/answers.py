"""Dropped files to answers that a page can show: what `oct-hf predict` writes of each, and small pictures of it.

The files themselves aren't kept. What is, is in memory: for each B-scan a JPEG to look at and the model's own pixels,
from which a heat map can still be drawn.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from oct_hf.data.source import MAX_FILE
from oct_hf.errors import BadImageError, OCTError
from oct_hf.images import read_image
from oct_hf.inference import table
from oct_hf.inference.en_face import mark
from oct_hf.inference.eyes import EyeAnswer, answer_eyes
from oct_hf.inference.gate import Decision, SignDecision
from oct_hf.inference.inputs import DeviceFile, Picture, of_file, stream, survey, text_of
from oct_hf.inference.predictor import Prediction, Predictor

MAX_FILES = 100  # pictures and device files at once, those inside archives counted
MAX_UPLOAD = 512 * 2**20  # bytes of one file; a device's volume of 128 B-scans has some 100 MB
MAX_PIXELS = 16_000_000  # of a picture; a B-scan has under 3 million
MAX_BSCANS = 600  # of one device file: they are kept in memory to be looked at
VIEW = 1024  # pixels of the longer side of what is shown


@dataclass(frozen=True)
class Upload:
    """A dropped file.

    Attributes:
        name: as its owner calls it.
        path: where it lies until it is answered.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class Shown:
    """One B-scan as the page keeps it.

    Attributes:
        view: JPEG to look at.
        pixels: uint8 of the model's input size, `(height, width[, 3])`.
        probabilities: by label.
        decision: of the model's gate; None where it has none, and of a volume's B-scans.
    """

    view: bytes
    pixels: np.ndarray
    probabilities: dict[str, float]
    decision: Decision | SignDecision | None = None


@dataclass(frozen=True)
class Answer:
    """What is said of one picture, or of one eye in a device's file.

    Attributes:
        name: of the file; of an archive's picture with its place inside.
        rows: of the table that is downloaded, as `oct-hf predict` writes them.
        bscans: one of a picture, all of a volume, none where `error` says why not.
        eye: of a device's file, without pixels.
        en_face: PNG of the fundus with the B-scans marked.
        error: why there is no answer.
    """

    name: str
    rows: list[dict]
    bscans: list[Shown] = field(default_factory=list)
    eye: EyeAnswer | None = None
    en_face: bytes | None = None
    error: str | None = None

    @property
    def said(self) -> str:
        """The answer in words, as in the table's column `answer`."""
        return self.error or self.rows[-1]["answer"]

    @property
    def probabilities(self) -> dict[str, float]:
        """By label: of the eye, or of the picture."""
        if self.eye is not None:
            return dict(zip(self.eye.labels, map(float, self.eye.probabilities), strict=True))
        return self.bscans[0].probabilities if self.bscans else {}


def check_count(uploads: Sequence[Upload]) -> None:
    """Raises OCTError where more is given at once than a page can show; what can't be counted is told later."""
    if len(uploads) > MAX_FILES:
        raise OCTError(_too_many(len(uploads)))
    count = 0
    for upload in uploads:
        try:
            count += survey([upload.path]).count
        except OCTError:
            count += 1
    if count > MAX_FILES:
        raise OCTError(_too_many(count))


def _too_many(count: int) -> str:
    return f"{count} files are too many: at most {MAX_FILES} at once here; oct-hf predict takes any number"


def answer_uploads(predictor: Predictor, uploads: Sequence[Upload], rule: str) -> Iterator[list[Answer]]:
    """The answers to each upload, in order: one of a picture, several of an archive or a device's file with two eyes.

    Args:
        predictor: with its gate.
        uploads: the files.
        rule: by which the B-scans of an eye are joined, a key of `evaluation.aggregation.RULES`.
    """
    for upload in uploads:
        try:
            yield list(_answers(predictor, upload, rule))
        except OCTError as error:
            yield [_failed(upload.name, _without_path(error, upload))]


def csv_of(answers: Sequence[Answer], labels: tuple[str, ...]) -> str:
    """The table of these answers, as `oct-hf predict --out answers.csv` writes it."""
    names = table.columns(labels, any(answer.eye for answer in answers))
    return table.csv_text((row for answer in answers for row in answer.rows), names)


def _answers(predictor: Predictor, upload: Upload, rule: str) -> Iterator[Answer]:
    given = of_file(upload.path, upload.name)
    if isinstance(given, DeviceFile):
        yield from _of_device(predictor, upload, rule)
        return
    place = text_of(upload.path.as_posix())
    for picture in stream([upload.path]):
        assert isinstance(picture, Picture)  # only a folder has devices' files in it
        inside = picture.name.removeprefix(place)  # of an archive or a table
        name = upload.name + inside
        try:
            image = _read(picture if inside else upload.path, name)
        except BadImageError as error:
            yield _failed(name, error.reason)
            continue
        (found,) = predictor.predict([image])
        if found.probabilities is None:
            yield _failed(name, str(found.error))
            continue
        named = Prediction(name, found.probabilities, decision=found.decision)
        shown = _shown(predictor, image, found.probabilities, found.decision)
        yield Answer(name, [table.row(named, predictor.labels)], [shown])


def _read(given: Path | Picture, name: str) -> np.ndarray:
    if isinstance(given, Path):
        if given.exists() and given.stat().st_size > MAX_FILE:
            raise BadImageError(name, f"has more than {MAX_FILE >> 20} MB, which no picture of a B-scan has")
        return read_image(given, name, MAX_PIXELS)
    found = given.read()
    return found if isinstance(found, np.ndarray) else read_image(found, name, MAX_PIXELS)


def _of_device(predictor: Predictor, upload: Upload, rule: str) -> Iterator[Answer]:
    for found in answer_eyes(predictor, upload.path, rule, MAX_BSCANS):
        picture = io.BytesIO()
        mark(found).save(picture, "PNG")
        bscans = [
            _shown(predictor, image, dict(zip(found.labels, map(float, values), strict=True)))
            for image, values in zip(found.volume.bscans, found.bscans, strict=True)
        ]
        rows = [row | {"file": upload.name} for row in table.eye_rows(found)]
        yield Answer(upload.name, rows, bscans, found.without_pixels(), picture.getvalue())


def _shown(predictor: Predictor, image: np.ndarray, probabilities: dict[str, float], decision=None) -> Shown:
    small = Image.fromarray(image)
    small.thumbnail((VIEW, VIEW), Image.Resampling.LANCZOS)
    view = io.BytesIO()
    small.save(view, "JPEG", quality=90)
    return Shown(view.getvalue(), np.array(predictor.preprocessing.resize(image)), probabilities, decision)


def _failed(name: str, reason: str) -> Answer:
    return Answer(name, [{"file": name, "error": reason}], error=reason)


def _without_path(error: OCTError, upload: Upload) -> str:
    """An error's words without where the file lay here."""
    said = str(error).removeprefix(f"{upload.path}: ")
    return said.replace(str(upload.path), upload.name)
