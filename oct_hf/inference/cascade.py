"""A cascade: a small network at a low resolution answers the B-scans it is sure of, the full one all others.

Its files lie in a folder of the repository beside the full model's, and nothing uses them unasked. Imports no torch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oct_hf.errors import ModelError
from oct_hf.images import Preprocessing
from oct_hf.inference.description import Description
from oct_hf.inference.fast_files import GRAY_ONNX, GRAY_OPENVINO, SMALL_INT8
from oct_hf.inference.network import Network, probabilities_of, whole_file
from oct_hf.inference.on_openvino import OpenVINONetwork, has_bfloat16
from oct_hf.untrusted import read_json

DIGEST = "small_sha256"  # of the small network's files, by which an answer's origin is told
CLOSE = 0.03  # between a label and the next one; of 620 B-scans bfloat16 turned none that was further apart than 0.017
GAP = 1.5  # of pillow, for the small picture: half the work, and half a gray level from the other picture


@dataclass(frozen=True)
class Rule:
    """Which B-scans the small network answers, what it looks at, and what its probabilities mean.

    Attributes:
        threshold: how sure it must be, see `sureness`.
        small: preprocessing of its input.
        several: whether answers are signs, each with a sigmoid of its own.
        temperature: by which its logits are divided, so that its probabilities are most like the full model's.
    """

    threshold: float
    small: Preprocessing
    several: bool = False
    temperature: float = 1.0

    @classmethod
    def read(cls, path: Path, several: bool = False) -> "Rule":
        """Reads CASCADE; raises ModelError where it isn't one."""
        try:
            about = read_json(path)
            threshold, temperature = float(about["threshold"]), float(about["temperature"])
            if not temperature > 0:
                raise ValueError(f"a temperature of {temperature}")
            return cls(threshold, Preprocessing.from_dict(about["preprocessing"]), several, temperature)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: says no rule of a cascade ({error!r})") from None

    def to_dict(self) -> dict:
        """What CASCADE holds."""
        found = {"threshold": self.threshold, "temperature": self.temperature}
        return found | {"preprocessing": self.small.to_dict()}

    def shrink(self, gray: np.ndarray) -> np.ndarray:
        """The small network's input, uint8 `(height, width)`, of a decoded gray B-scan of any size."""
        return self.small.resize(gray, GAP)

    def sure(self, probabilities: np.ndarray) -> np.ndarray:
        """bool `(n,)`: which of the small network's answers, `tempered` ones `(n, labels)`, stand."""
        return sureness(probabilities, self.several) >= self.threshold

    def tempered(self, probabilities: np.ndarray) -> np.ndarray:
        """Its answers, float32 `(n, labels)`, of what its file gives, at `temperature`."""
        return at_temperature(probabilities, self.temperature, self.several)


def at_temperature(probabilities: np.ndarray, temperature: float, several: bool = False) -> np.ndarray:
    """Probabilities `(n, labels)` as they were with logits divided by a temperature."""
    given = np.clip(probabilities.astype(np.float64), 1e-12, 1)
    logits = np.log(given) - (np.log(np.clip(1 - given, 1e-12, 1)) if several else 0)
    return probabilities_of(logits / temperature, several).astype(np.float32)


def sureness(probabilities: np.ndarray, several: bool = False) -> np.ndarray:
    """How sure answers `(n, labels)` are, 0 to 1: the largest probability; of signs that of the one most in doubt."""
    return np.maximum(probabilities, 1 - probabilities).min(1) if several else probabilities.max(1)


def lead(probabilities: np.ndarray, several: bool = False) -> np.ndarray:
    """By how much the label of answers `(n, labels)` is ahead of the next; of signs, the one that is ahead least."""
    if several:
        return np.abs(2 * probabilities - 1).min(1)
    ordered = np.sort(probabilities, 1)
    return ordered[:, -1] - ordered[:, -2]


class CascadeNetwork(Network):
    """Both networks on OpenVINO: the small one in int8; the full one in float32, or where the CPU has it in bfloat16.

    What bfloat16 finds close is asked again in float32, so that the label is the one that the full model gives.

    Args:
        description: of the full model.
        file: its CASCADE.

    Raises:
        ModelError: a file is missing or can't be loaded.
    """

    backend = "cascade"
    batch = 64  # what is left of it for the full network, and of that for float32, should be more than one

    def __init__(self, description: Description, file: Path):
        super().__init__(description)
        self.weights, self.rule = file, Rule.read(file, description.several)
        small = whole_file(description, SMALL_INT8)
        full = whole_file(description, GRAY_OPENVINO) or description.file(GRAY_ONNX)
        if small is None or full is None:
            missing = SMALL_INT8 if small is None else GRAY_OPENVINO
            raise ModelError(f"{description.name}: no {missing} in it, which a cascade runs")
        self.small = OpenVINONetwork(description, "openvino-int8", small, self.batch)
        self.full = OpenVINONetwork(description, "openvino", full)
        self.quick = OpenVINONetwork(description, "openvino-bf16", full) if has_bfloat16() else None
        self.passes = self.full.passes

    @property
    def sha256(self) -> str:
        """Of the rule, which names the small network's weights, and of the full network's."""
        return hashlib.sha256((super().sha256 + self.full.sha256).encode()).hexdigest()

    def prepare(self, gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture itself, which the full network may want, and the small one's input."""
        return gray, self.rule.shrink(gray)

    def of_prepared(self, prepared: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        rows = self.rule.tempered(self.small.probabilities(np.stack([small for _, small in prepared])))
        unsure = np.flatnonzero(~self.rule.sure(rows))
        if len(unsure):
            resize = self.description.preprocessing.resize
            rows[unsure] = self._by_full(np.stack([resize(prepared[row][0]) for row in unsure.tolist()]))
        return rows

    def _by_full(self, gray: np.ndarray) -> np.ndarray:
        if self.quick is None:
            return self.full.probabilities(gray)
        rows = self.quick.probabilities(gray)
        close = lead(rows, self.rule.several) < CLOSE
        if close.any():
            rows[close] = self.full.probabilities(gray[close])
        return rows

    def probabilities(self, gray: np.ndarray) -> np.ndarray:
        return self.of_prepared([self.prepare(image) for image in gray])

    @property
    def takes_pixels(self) -> bool:
        return self.full.takes_pixels

    def logits(self, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.full.logits(pixels)  # true colour is rare, and the small one takes none
