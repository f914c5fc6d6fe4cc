"""What every backend offers of one network, and probabilities without torch.

A backend takes gray B-scans of the model's size as uint8, since most B-scans are gray and a graph that knows so needs
neither a normalised copy nor three channels. True colour goes as normalised pixels through the network's own input.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from oct_hf.errors import ModelError
from oct_hf.inference.description import Description
from oct_hf.inference.fast_files import ONNX_FILE, files_of
from oct_hf.whole import file_sha256


class Network(ABC):
    """One network with its weights.

    Attributes:
        backend: its name, a key of `backends.BACKENDS`.
        passes: calls that may run at the same time on threads of their own, to the most images a second.
        batch: images a call, to the most images a second.
        weights: the file that they come from; None of a model that was given in memory.
    """

    backend: str
    passes: int = 1
    batch: int = 16
    weights: Path | None = None

    def __init__(self, description: Description):
        self.description = description

    @cached_property
    def sha256(self) -> str:
        """Of the weights' file; tells one model from another."""
        return file_sha256(self.weights) if self.weights else ""

    def probabilities(self, gray: np.ndarray) -> np.ndarray:
        """float32 `(n, labels)` of n gray B-scans, uint8 `(n, height, width)` of the model's size."""
        return self.pixel_probabilities([self.description.preprocessing.normalise(image) for image in gray])

    def prepare(self, gray: np.ndarray):
        """Of one decoded gray B-scan, uint8 of any size, what `of_prepared` takes; work for a thread of its own."""
        return self.description.preprocessing.resize(gray)

    def of_prepared(self, prepared: Sequence) -> np.ndarray:
        """As `probabilities`, of n B-scans that `prepare` made ready."""
        return self.probabilities(np.stack(prepared))

    def pixel_probabilities(self, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """float32 `(n, labels)` of n preprocessed images, each float32 `(3, height, width)`."""
        return probabilities_of(self.logits(pixels), self.description.several)

    @property
    def takes_pixels(self) -> bool:
        """Whether it has what `logits` needs."""
        return True

    @abstractmethod
    def logits(self, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """float32 `(n, labels)`, before softmax or sigmoid, of n preprocessed images."""


class FileNetwork(Network):
    """A network on a runtime that loads files: one that takes gray B-scans, and ONNX_FILE once pixels come."""

    batch = 4  # what a thread's layers hold of more no longer fits in the cache of a core

    def __init__(self, description: Description):
        super().__init__(description)
        self._lock = threading.Lock()
        self._of_pixels: Any = None

    @property
    def takes_pixels(self) -> bool:
        return self.description.file(ONNX_FILE) is not None

    @property
    def of_pixels(self) -> Any:
        """ONNX_FILE, loaded when it is first asked for."""
        with self._lock:
            if self._of_pixels is None:
                file = self.description.file(ONNX_FILE)
                if file is None:
                    raise ModelError(f"{self.description.name}: no {ONNX_FILE} in it, which pictures in colour need")
                self._of_pixels = self.load(file)
        return self._of_pixels

    @abstractmethod
    def load(self, file: Path) -> Any:
        """A file, ready to run; raises ModelError where it can't be loaded."""


def whole_file(description: Description, path: str) -> Path | None:
    """A fast file that is on this machine with what belongs to it; None where the repository lacks a part."""
    first, *others = (description.file(part) for part in files_of(path))
    return None if None in others else first


def probabilities_of(logits: np.ndarray, several: bool) -> np.ndarray:
    """Logits `(n, labels)` after the softmax, or after the sigmoid where a picture may have several labels."""
    if several:
        return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
