"""What a user did wrong, as one line.

Every error that a user can mend is an `OCTError`; the command line prints it without a traceback and exits 2. Anything
else that escapes is a defect of this package and shows its traceback.
"""

import difflib
from collections.abc import Iterable
from itertools import takewhile


class OCTError(Exception):
    """Base of the errors a user can mend: the text says what, where, and what to do."""


class DataError(OCTError):
    """Images, labels, patients or a CSV are not as they must be."""


class BadImageError(DataError):
    """One image can't be read as a B-scan.

    Attributes:
        file: the name it was given under.
        reason: what is wrong with it, without the name.
    """

    def __init__(self, file: str, reason: str):
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.file, self.reason)


class RecipeError(OCTError):
    """A recipe has an unknown key, an ill-typed value or a combination that can't work."""


class ModelError(OCTError):
    """Weights, an architecture or a published model are not usable for what was asked."""


class WeightsMissing(ModelError):
    """A base's weights can't be had from here."""


class TrainingError(OCTError):
    """A training can't go on: its loss is no number, or its batches don't fit into memory."""


class RunError(OCTError):
    """A run's folder can't be used as asked."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` for the nearest of `known`, or an empty string where none is near."""
    text = str(word)
    near = difflib.get_close_matches(text, [str(k) for k in known], n=3, cutoff=0.5)
    # Of two that are equally near, the one that begins alike: "octd" is octdl rather than octid.
    near.sort(key=lambda one: (difflib.SequenceMatcher(a=one, b=text).ratio(), _begins(text, one)), reverse=True)
    return f' (did you mean "{near[0]}"?)' if near else ""


def _begins(word: str, one: str) -> int:
    """How many letters are the same at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(word, one, strict=False)))
