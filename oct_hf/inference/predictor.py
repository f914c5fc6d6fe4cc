"""B-scans in, probabilities out: the pixels of `images`, the network of a saved or published model.

Files are decoded on threads beside the network, in order, a few at a time, so that a folder of any size fits in memory.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig
from transformers.utils import cached_file, logging

from oct_hf.data.volumes import VOLUME_EXTENSIONS
from oct_hf.errors import BadImageError, ModelError
from oct_hf.images import EXTENSIONS, MAX_PIXELS, Preprocessing, read_image
from oct_hf.inference.gate import Decision, Gate, SignDecision, SignGate
from oct_hf.model.configuration_oct import OCTConfig
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.parallel import in_order


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
        return max(self.probabilities, key=self.probabilities.get)


class Predictor:
    """A model ready to predict.

    Args:
        model: folder or Hub id of a model that this package or transformers wrote, or the model itself.
        preprocessing: only with a model object; a folder or repository brings its own.
        batch_size: images a forward pass.
        device: such as "cuda"; the best there is where not given.
        gate: says of each picture whether it is a B-scan and which labels are left; a model of signs, which always has
            one, then takes thresholds of 0.5.

    Attributes:
        several: whether its labels are signs, several a picture: each probability is then a sigmoid of its own.

    Raises:
        ModelError: it can't be loaded.
    """

    def __init__(
        self,
        model,
        preprocessing: Preprocessing | None = None,
        batch_size: int = 16,
        device=None,
        gate: Gate | None = None,
    ):
        if isinstance(model, str | Path):
            model, preprocessing = _load(Path(model).as_posix())  # a Hub id keeps its slash on every system
            model = model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU, to the same answers
        self.model = model.to(device or best_device()).eval()
        self.preprocessing = preprocessing
        self._describe(self.model.config, batch_size, gate)

    def _describe(self, config: PretrainedConfig, batch_size: int, gate: Gate | None) -> None:
        self.batch_size, self._gate = batch_size, gate
        self.labels = tuple(config.id2label[i] for i in range(config.num_labels))
        self.several = config.problem_type == "multi_label_classification"

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

    @torch.inference_mode()
    def logits(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `(n, labels)` of n preprocessed images, each float32 `(3, height, width)`."""
        batch = torch.from_numpy(np.asarray(pixels)).to(self.model.device)
        return self.model(pixel_values=batch).logits.float().cpu().numpy()

    def probabilities(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """As `logits`, after the softmax, or after the sigmoid where labels are signs."""
        return probabilities_of(torch.from_numpy(self.logits(pixels)), self.several).numpy()

    def predict(self, sources: Iterable[str | Path | bytes | np.ndarray]) -> Iterator[Prediction]:
        """One `Prediction` a source, in order; a file that can't be read gives one with `error` and the rest go on.

        Args:
            sources: paths, encoded images, or uint8 arrays `(height, width[, 3])`.
        """

        def read(source) -> tuple[np.ndarray, float | None] | BadImageError:
            try:
                image = source if isinstance(source, np.ndarray) else read_image(source)
                return self.read(image), self.gate.look(image) if self.gate else None
            except BadImageError as error:
                return error

        for group in _groups(in_order(read, sources), self.batch_size):
            images = [result[0] for _, result in group if not isinstance(result, BadImageError)]
            rows = iter(self.probabilities(images) if images else ())
            for source, result in group:
                name = str(source) if isinstance(source, str | Path) else "image"
                if isinstance(result, BadImageError):
                    yield Prediction(name, error=result.reason)
                    continue
                row = next(rows)
                decision = self.gate.decide(row, result[1]) if self.gate else None
                yield Prediction(name, dict(zip(self.labels, map(float, row), strict=True)), decision=decision)


def probabilities_of(logits: torch.Tensor, several: bool) -> torch.Tensor:
    """Logits `(n, labels)` after the softmax, or after the sigmoid where a picture may have several labels."""
    return logits.sigmoid() if several else logits.softmax(-1)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The files named, and all images and device files below the folders named, sorted within each folder.

    Raises:
        BadImageError: a path that doesn't exist, or a folder without images.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            kinds = (*EXTENSIONS, *VOLUME_EXTENSIONS)
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in kinds and p.is_file())
            if not inside:
                raise BadImageError(str(path), f"no image in this folder ({', '.join(kinds)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise BadImageError(str(path), "no such file or folder")
    return found


def quiet_transformers() -> None:
    """Keeps transformers' advice and loading bars off the screen; errors still come through."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def best_device() -> str:
    """The fastest device torch can use here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_description(name: str) -> tuple[PretrainedConfig, Preprocessing]:
    """What a folder or Hub id says of its model (labels are in the config), without the weights.

    Raises:
        ModelError: there is none, or its preprocessing can't be followed.
    """
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        hint = " (did you mean its folder model/?)" if (Path(name) / "model" / "config.json").is_file() else ""
        raise ModelError(f"{name}: no config.json, so this is no model folder{hint}")
    with _unloadable(name):
        own = OCTConfig.get_config_dict(name)[0].get("needs_code")  # AutoConfig knows no such type
        config = (OCTConfig if own else AutoConfig).from_pretrained(name)
        preprocessing = json.loads(Path(cached_file(name, "preprocessor_config.json")).read_text())
    return config, Preprocessing.from_dict(preprocessing)


def _load(name: str):
    config, preprocessing = load_description(name)
    loader = OCTForImageClassification if config.model_type == "timm_wrapper" else AutoModelForImageClassification
    with _unloadable(name):
        return loader.from_pretrained(name), preprocessing


@contextmanager
def _unloadable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{name}: no model that can be loaded ({str(error).strip().splitlines()[0]})") from None


def _groups(items: Iterable, size: int) -> Iterator[list]:
    # itertools.batched is of Python 3.12
    items = iter(items)
    while group := list(islice(items, size)):
        yield group
