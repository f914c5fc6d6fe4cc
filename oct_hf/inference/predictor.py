"""B-scans in, probabilities out: the pixels of `images`, the network of a saved or published model on some backend.

Pictures are decoded on threads beside the network, in order, a few at a time, so that a folder of any size fits in
memory. Neither torch nor transformers is imported where the repository holds a file for a faster backend.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from oct_hf.data.filters import expect_many
from oct_hf.errors import BadImageError, ModelError, OCTError
from oct_hf.images import MAX_PIXELS, Preprocessing, read_image
from oct_hf.inference.backends import FEW, open_network
from oct_hf.inference.description import Description, load_description
from oct_hf.inference.gate import Decision, Gate, SignDecision, SignGate
from oct_hf.inference.inputs import Picture
from oct_hf.inference.network import Network
from oct_hf.parallel import in_order

Given = str | Path | bytes | np.ndarray | Picture


@dataclass(frozen=True)
class Prediction:
    """The answer for one file: probabilities by label, or why there is none; what a gate, if any, makes of them."""

    file: str
    probabilities: dict[str, float] | None = None
    error: str | None = None
    decision: Decision | SignDecision | None = None

    @property
    def predicted(self) -> str | None:
        """The most probable label, or the disease of the signs; None of what a gate refused."""
        if not self.probabilities:
            return None
        if self.decision is not None:
            return self.decision.predicted
        return max(self.probabilities, key=self.probabilities.__getitem__)


class _Read(NamedTuple):
    """A picture on its way to the network.

    Attributes:
        gray: whether it has one channel.
        ready: what the network takes of it; in colour, uint8 of the model's size.
        likeness: to a B-scan; None where no gate asks.
    """

    gray: bool
    ready: Any
    likeness: float | None


class Predictor:
    """A model ready to predict.

    Args:
        model: folder (a run's, or its model's) or Hub id of a model that this package or transformers wrote, the model
            itself, or a `Network`.
        preprocessing: only with a model object; a folder or repository brings its own.
        batch_size: images a call of the network; what suits its backend where not given.
        device: such as "cuda", for torch, which is then the backend.
        gate: says of each picture whether it is a B-scan and which labels are left; a model of signs, which always has
            one, then takes thresholds of 0.5.
        backend: one of `backends.CHOICES`; `auto` takes the fastest here whose probabilities are fp32's.
        images: how many are to be predicted, where that is known.

    Attributes:
        labels: in the order of the outputs.
        several: whether its labels are signs, several a picture: each probability is then a sigmoid of its own.
        network: the model on its backend.
        preprocessing: from a decoded picture to the network's input.

    Raises:
        ModelError: it can't be loaded, or has no file for the backend.
        OCTError: no such backend, it isn't installed, or it takes no device.
    """

    def __init__(
        self,
        model,
        preprocessing: Preprocessing | None = None,
        batch_size: int | None = None,
        device=None,
        gate: Gate | None = None,
        backend: str = "auto",
        images: int | None = None,
    ):
        if isinstance(model, Network):
            self.network = model
        elif isinstance(model, str | Path) and device is None:
            self.network = open_network(load_description(model), backend, images)
            if images is not None and images > FEW:
                expect_many()
        elif backend in ("auto", "torch"):
            self.network = _on_torch(model, preprocessing, device)
        else:
            raise OCTError(f"backend {backend} runs files of a repository on the CPU: no device, no model in memory")
        described = self.network.description
        self.labels, self.several, self.preprocessing = described.labels, described.several, described.preprocessing
        self._lock, self._pixel_network = Lock(), None
        self.batch_size, self._gate = batch_size or self.network.batch, gate

    @property
    def model(self) -> Any:
        """The torch model; raises ModelError where the backend is another."""
        network: Any = self.network
        if network.backend != "torch":
            raise ModelError(f"{network.description.name}: runs on {network.backend}; give backend='torch'")
        return network.model

    @property
    def gate(self) -> Gate | None:
        """What decides on answers; of a model of signs never None."""
        return SignGate(self.labels) if self._gate is None and self.several else self._gate

    @gate.setter
    def gate(self, gate: Gate | None) -> None:
        self._gate = gate

    def read(self, source: str | Path | bytes | np.ndarray, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Pixels for the model, float32 `(3, height, width)`; raises BadImageError, also of a file too large."""
        given = isinstance(source, np.ndarray)
        return self.preprocessing(source if given else read_image(source, max_pixels=max_pixels))

    def logits(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `(n, labels)` of n preprocessed images, each float32 `(3, height, width)`."""
        return self._of_pixels.logits(pixels)

    def probabilities(self, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """As `logits`, after the softmax, or after the sigmoid where labels are signs."""
        return self._of_pixels.pixel_probabilities(pixels)

    def predict(self, sources: Iterable[Given]) -> Iterator[Prediction]:
        """One `Prediction` a source, in order; a file that can't be read gives one with `error` and the rest go on.

        Args:
            sources: paths, encoded images, uint8 arrays `(height, width[, 3])`, or what `inputs.stream` gives.
        """
        passes = self.network.passes
        groups = _groups(in_order(self._read, sources, ahead=(passes + 1) * self.batch_size), self.batch_size)
        for group, rows in in_order(self._answer, groups, passes, ahead=passes + 1):
            for (source, result), row in zip(group, rows, strict=True):
                if isinstance(result, BadImageError):
                    yield Prediction(_name(source), error=result.reason)
                    continue
                decision = self.gate.decide(row, result.likeness) if self.gate else None
                yield Prediction(_name(source), dict(zip(self.labels, map(float, row), strict=True)), decision=decision)

    def _read(self, source: Given) -> "_Read | BadImageError":
        try:
            given = source.read() if isinstance(source, Picture) else source
            image = given if isinstance(given, np.ndarray) else read_image(given)
            gray = image.ndim == 2
            ready = self.network.prepare(image) if gray else self.preprocessing.resize(image)
            return _Read(gray, ready, self.gate.look(image) if self.gate else None)
        except BadImageError as error:
            return error

    def _answer(self, group: list[tuple]) -> list[np.ndarray | None]:
        """The probabilities of each picture of a group; None of what couldn't be read."""
        rows: list[np.ndarray | None] = [None] * len(group)
        gray, colour = [], []
        for place, (_, result) in enumerate(group):
            if isinstance(result, _Read):
                (gray if result.gray else colour).append((place, result.ready))
        if gray:
            places, prepared = zip(*gray, strict=True)
            for place, row in zip(places, self.network.of_prepared(prepared), strict=True):
                rows[place] = row
        if colour:
            places, images = zip(*colour, strict=True)
            pixels = [self.preprocessing.normalise(image) for image in images]
            for place, row in zip(places, self.probabilities(pixels), strict=True):
                rows[place] = row
        return rows

    @property
    def _of_pixels(self) -> Network:
        """What answers true colour: the network itself, or torch where the repository lacks the file for it."""
        with self._lock:  # several calls may find at once that it isn't loaded
            if self._pixel_network is None:
                own = self.network.takes_pixels
                self._pixel_network = self.network if own else _on_torch(self.network.description.name, None, None)
        return self._pixel_network


def _on_torch(model, preprocessing: Preprocessing | None, device) -> Network:
    from oct_hf.inference.on_torch import TorchNetwork

    if isinstance(model, str | Path):
        return TorchNetwork(load_description(model), None, device)
    if preprocessing is None:
        raise OCTError("a model in memory says nothing of its preprocessing: Predictor(model, preprocessing)")
    return TorchNetwork(Description.of_config(model.config, preprocessing), model, device)


def _name(source: Given) -> str:
    if isinstance(source, Picture):
        return source.name
    return str(source) if isinstance(source, str | Path) else "image"


def _groups(items: Iterable, size: int) -> Iterator[list]:
    # itertools.batched is of Python 3.12
    items = iter(items)
    while group := list(islice(items, size)):
        yield group
