"""What a predictor may answer beside one label: several, or that it wasn't shown a B-scan.

Everything here is applied from plain numbers that lie in a repository; what fits and measures them is
`evaluation/abstention.py`. It needs probabilities and the likeness of `data/quality.py` and nothing from inside a
network, so that torch and ONNX Runtime answer alike (`scripts/ood_methods.py` compares it with what looks inside).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from oct_hf.data import quality
from oct_hf.data.shrunken import shrink
from oct_hf.errors import ModelError
from oct_hf.labels import disease_of

NOT_OCT = "not an OCT B-scan"
UNSURE = "unsure"
TOLERANCE = 1e-5  # of a score: stored probabilities are float32, and ONNX Runtime's are within 1e-5 of torch's


def lac(probabilities: np.ndarray) -> np.ndarray:
    """1 - p, `(n, k)`: the smallest sets on average (Sadinle, Lei & Wasserman, JASA 2019)."""
    return 1 - np.asarray(probabilities, np.float64)


def aps(probabilities: np.ndarray) -> np.ndarray:
    """Sum of all probabilities that are at least a label's own, `(n, k)` (Romano, Sesia & Candès, NeurIPS 2020).

    Without their random tie-break: the same B-scan always gets the same set, and the sets are a little larger.
    """
    values = np.asarray(probabilities, np.float64)
    return (values[:, None, :] * (values[:, None, :] >= values[:, :, None])).sum(-1)


SCORES = {"lac": lac, "aps": aps}


@dataclass(frozen=True)
class Decision:
    """What is said of one picture; as text "DME", "unsure: DME or CNV" or "not an OCT B-scan".

    Attributes:
        labels: that aren't ruled out, the most probable first; none where the picture was refused.
        likeness: that it is a B-scan, 0 to 1; None where that wasn't asked.
    """

    labels: tuple[str, ...]
    likeness: float | None = None

    @property
    def refused(self) -> bool:
        """Whether the picture is no B-scan."""
        return not self.labels

    @property
    def predicted(self) -> str | None:
        """The most probable label; None of what was refused."""
        return self.labels[0] if self.labels else None

    @property
    def unsure(self) -> bool:
        """Whether more than one label is left."""
        return len(self.labels) > 1

    def __str__(self) -> str:
        if self.refused:
            return NOT_OCT
        if not self.unsure:
            return self.labels[0]
        return f"{UNSURE}: {', '.join(self.labels[:-1])} or {self.labels[-1]}"


@dataclass(frozen=True)
class SignDecision:
    """What is said of one picture by a model of signs; as text "CNV: MNV, SRF", "NORMAL: no sign".

    Attributes:
        signs: that reach their thresholds, in the order of the outputs; None where the picture was refused.
        likeness: as of `Decision`.
    """

    signs: tuple[str, ...] | None
    likeness: float | None = None

    @property
    def refused(self) -> bool:
        """Whether the picture is no B-scan."""
        return self.signs is None

    @property
    def predicted(self) -> str | None:
        """The disease that the signs stand for (`labels.disease_of`); None of what was refused."""
        return None if self.signs is None else disease_of(self.signs)

    def __str__(self) -> str:
        return NOT_OCT if self.signs is None else f"{self.predicted}: {', '.join(self.signs) or 'no sign'}"


@dataclass(frozen=True)
class Gate:
    """What decides when no single label is named.

    Attributes:
        labels: `k`, in the order of the model's outputs.
        conformal: of `fit_conformal`, or None: then the most probable label is always named.
        likeness: the least likeness of a B-scan, or None: then no picture is refused.
        version: of the numbers that give the likeness (`quality.version()`).
    """

    labels: tuple[str, ...]
    conformal: dict | None = None
    likeness: float | None = None
    version: str | None = None

    def look(self, image: np.ndarray) -> float | None:
        """The likeness of a picture, uint8 `(height, width[, 3])`; None where this gate doesn't ask for it."""
        return None if self.likeness is None else quality.oct_likeness(shrink(image))

    def refuses(self, likeness: float | None) -> bool:
        """Whether a picture of this likeness is no B-scan; without one that isn't asked."""
        return likeness is not None and self.likeness is not None and likeness < self.likeness

    def decide(self, probabilities: Sequence[float], likeness: float | None = None) -> Decision:
        """The answer for one picture.

        Args:
            probabilities: `k`, in the order of `labels`.
            likeness: of `look`; None skips the question whether it is a B-scan.
        """
        if self.refuses(likeness):
            return Decision((), likeness)
        values = np.asarray(probabilities, np.float64)
        inside = np.arange(len(values)) == values.argmax()
        if self.conformal is not None:
            inside = prediction_sets(values[None], self.conformal)[0]
        order = np.argsort(-values, kind="stable")
        return Decision(tuple(self.labels[i] for i in order if inside[i]), likeness)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def from_dict(cls, found: dict[str, Any], labels: Sequence[str]) -> "Gate":
        """What `to_dict` gave; a threshold for other numbers of the likeness is replaced by the package's own.

        Args:
            found: as read from JSON, from anybody's repository.
            labels: of the model that it is for.

        Raises:
            ModelError: it isn't a gate, or not this model's.
        """
        try:
            gate = cls(tuple(found["labels"]), found["conformal"], found["likeness"], found["version"])
            if gate.conformal is not None:
                threshold = gate.conformal["threshold"]
                if isinstance(threshold, dict) and tuple(threshold) != gate.labels:
                    raise ValueError("thresholds of other labels")
                prediction_sets(np.full((1, len(gate.labels)), 1 / len(gate.labels)), gate.conformal)
            if gate.likeness is not None and not 0 <= gate.likeness <= 1:
                raise ValueError(f"likeness {gate.likeness}")
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise ModelError(f"the rule for abstention can't be read ({type(error).__name__}: {error})") from None
        if gate.labels != tuple(labels):
            raise ModelError(
                f"the rule for abstention is of {', '.join(gate.labels)}, the model of {', '.join(labels)}"
            )
        if gate.likeness is not None and gate.version != quality.version():
            # Its threshold means nothing for other numbers, and to refuse nothing would be worse than the common one.
            gate = replace(gate, likeness=quality.threshold(), version=quality.version())
        return gate


@dataclass(frozen=True)
class SignGate(Gate):
    """A `Gate` for a model of signs: no sets, but a threshold each, from which the disease follows.

    Attributes:
        thresholds: in the order of `labels`; 0.5 each where none were chosen on a validation side, None for a sign
            that is never called because validation had no case of it.
    """

    thresholds: tuple[float | None, ...] = ()

    def decide(self, probabilities: Sequence[float], likeness: float | None = None) -> SignDecision:
        """The answer for one picture; arguments as of `Gate.decide`."""
        if self.refuses(likeness):
            return SignDecision(None, likeness)
        cuts = self.thresholds or (0.5,) * len(self.labels)
        found = zip(self.labels, probabilities, cuts, strict=True)
        return SignDecision(tuple(name for name, p, cut in found if cut is not None and p >= cut), likeness)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"thresholds": dict(zip(self.labels, self.thresholds, strict=True))}

    @classmethod
    def from_dict(cls, found: dict[str, Any], labels: Sequence[str]) -> "SignGate":
        gate = Gate.from_dict({**found, "conformal": None}, labels)
        try:
            cuts = tuple(found["thresholds"][name] for name in gate.labels)
            if not all(cut is None or 0 <= cut <= 1 for cut in cuts):
                raise ValueError(f"thresholds {cuts}")
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the thresholds of signs can't be read ({type(error).__name__}: {error})") from None
        return cls(gate.labels, None, gate.likeness, gate.version, cuts)


def prediction_sets(probabilities: np.ndarray, conformal: dict) -> np.ndarray:
    """Which labels can't be ruled out at the level of `conformal`.

    The most probable label is always in: an empty set says only that the B-scan is unlike those of the fit, and a
    larger set never covers less.

    Args:
        probabilities: `(n, k)`.
        conformal: of `evaluation.abstention.fit_conformal`; `threshold` is a number, or one a label in the order of
            the columns; None rules no label out.

    Returns:
        bool `(n, k)`.
    """
    probabilities = np.asarray(probabilities)
    found = within(probabilities, conformal)
    found[np.arange(len(found)), probabilities.argmax(1)] = True
    return found


def within(probabilities: np.ndarray, conformal: dict) -> np.ndarray:
    """As `prediction_sets`, where a set may be empty."""
    threshold = conformal["threshold"]
    limits = list(threshold.values()) if isinstance(threshold, dict) else [threshold]
    limits = np.array([np.inf if limit is None else limit for limit in limits])
    return SCORES[conformal["score"]](probabilities) <= limits + TOLERANCE
