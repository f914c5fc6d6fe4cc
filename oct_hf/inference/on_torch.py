"""A network on torch: any that transformers or this package can load, on the best device there is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import logging

from oct_hf.errors import ModelError
from oct_hf.inference.description import Description, file_of
from oct_hf.inference.network import Network
from oct_hf.model.configuration_oct import OCTConfig
from oct_hf.model.modeling_oct import OCTForImageClassification, refuse_partial, weight_files
from oct_hf.model.stated import SHARDS, WEIGHTS, no_larger_than

NO_CODE = {"trust_remote_code": False}
ADAPTER = "adapter_config.json"


class TorchNetwork(Network):
    """
    Args:
        description: of the model.
        model: a model in memory; loaded from what the description names where not given.
        device: such as "cuda"; the best there is where not given.

    Attributes:
        model: in evaluation mode, on its device.

    Raises:
        ModelError: it can't be loaded.
    """

    backend = "torch"

    def __init__(self, description: Description, model=None, device=None):
        super().__init__(description)
        if model is None:
            model = _load(description.name)
            self.weights = next(filter(None, map(description.file, (WEIGHTS, SHARDS))), None)
            model = model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU, to the same answers
        self.model = model.to(device or best_device()).eval()
        self._table = torch.from_numpy(np.ascontiguousarray(description.preprocessing.table().T))

    @torch.inference_mode()
    def probabilities(self, gray: np.ndarray) -> np.ndarray:
        """As the parent's; what goes to the device is a byte a pixel, and it is normalised there."""
        device = self.model.device
        values = torch.from_numpy(np.ascontiguousarray(gray)).to(device).int()
        pixels = torch.nn.functional.embedding(values, self._table.to(device)).permute(0, 3, 1, 2)
        logits = self.model(pixel_values=pixels).logits.float()
        return probabilities_of(logits, self.description.several).cpu().numpy()

    def pixel_probabilities(self, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return probabilities_of(torch.from_numpy(self.logits(pixels)), self.description.several).numpy()

    @torch.inference_mode()
    def logits(self, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.asarray(pixels)).to(self.model.device)
        return self.model(pixel_values=batch).logits.float().cpu().numpy()


def probabilities_of(logits: torch.Tensor, several: bool) -> torch.Tensor:
    """Logits `(n, labels)` after the softmax, or after the sigmoid where a picture may have several labels."""
    return logits.sigmoid() if several else logits.softmax(-1)


def quiet_transformers() -> None:
    """Keeps transformers' advice and loading bars off the screen; errors still come through."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def best_device() -> str:
    """The fastest device torch can use here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load(name: str) -> Any:
    with _unloadable(name):
        own = OCTConfig.get_config_dict(name)[0].get("needs_code")  # AutoConfig knows no such type
        # Said aloud: where nothing is said, transformers asks whoever sits at a terminal whether to run their code.
        config = OCTConfig.from_pretrained(name) if own else AutoConfig.from_pretrained(name, **NO_CODE)
        if config.model_type != "timm_wrapper":
            return _of_transformers(name)
        config = OCTConfig.from_pretrained(name)
        if config.model_args:  # timm writes their number there too, and transformers then hands it on twice
            config.model_args = {key: value for key, value in config.model_args.items() if key != "num_classes"}
        return OCTForImageClassification.from_pretrained(name, config=config)


def _of_transformers(name: str):
    """A model of any other type that transformers has."""
    if find_spec("peft") and file_of(name, ADAPTER):
        raise ValueError(f"{ADAPTER} in it names another model, of which this would be a change")
    with no_larger_than(weight_files(name)):
        model, info = AutoModelForImageClassification.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **NO_CODE
        )
    refuse_partial(info)
    return model


@contextmanager
def _unloadable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name}: no model that can be loaded ({str(error).strip().splitlines()[0]})") from None
