"""Many inputs of any kind to rows of a table, one input after the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import cast

from oct_hf.errors import DataError
from oct_hf.inference import table
from oct_hf.inference.eyes import EyeAnswer, answer_eyes
from oct_hf.inference.inputs import DeviceFile, Picture
from oct_hf.inference.predictor import Predictor


@dataclass(frozen=True)
class Answered:
    """What is known of one input once it is answered.

    Attributes:
        name: of the input.
        rows: of the table; one, or of a device's file those of its B-scans and eyes.
        eyes: of a device's file, with their pixels.
    """

    name: str
    rows: list[dict]
    eyes: list[EyeAnswer] = field(default_factory=list)


def answer(predictor: Predictor, inputs: Iterable[Picture | DeviceFile], rule: str) -> Iterator[Answered]:
    """Every input's answer, in order; of what can't be read the row says why, and the rest goes on.

    Args:
        predictor: with its gate.
        inputs: of `inputs.stream`.
        rule: by which the B-scans of an eye are joined, a key of `evaluation.aggregation.RULES`.
    """
    for of_device, run in groupby(inputs, lambda given: isinstance(given, DeviceFile)):
        if of_device:
            yield from (_of_device(predictor, given, rule) for given in cast("Iterator[DeviceFile]", run))
        else:
            for one in predictor.predict(cast("Iterator[Picture]", run)):
                yield Answered(one.file, [table.row(one, predictor.labels)])


def _of_device(predictor: Predictor, given: DeviceFile, rule: str) -> Answered:
    try:
        eyes = list(answer_eyes(predictor, given.path, rule))
    except DataError as error:
        return Answered(given.name, [{"file": given.name, "error": str(error).removeprefix(f"{given.path}: ")}])
    return Answered(given.name, [row for eye in eyes for row in table.eye_rows(eye)], eyes)
