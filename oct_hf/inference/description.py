"""What a model's repository says of it, read as plain JSON: labels, preprocessing, what its run recorded.

Of a repository on the Hub single files are fetched through huggingface_hub; neither torch nor transformers is needed.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from oct_hf.errors import ModelError
from oct_hf.images import Preprocessing
from oct_hf.model.folder import model_folder
from oct_hf.model.stated import config_fault
from oct_hf.untrusted import read_json


@dataclass(frozen=True)
class Description:
    """A model as its files describe it.

    Attributes:
        name: the folder, with `/` between its parts, or the id on the Hub.
        labels: in the order of the outputs.
        several: whether a picture may have several labels, each with a sigmoid of its own.
        preprocessing: from a decoded picture to the network's input.
    """

    name: str
    labels: tuple[str, ...]
    several: bool
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @classmethod
    def of_config(cls, config, preprocessing: Preprocessing) -> "Description":
        """Of a model in memory, by its `PretrainedConfig`."""
        labels = tuple(config.id2label[number] for number in range(config.num_labels))
        return cls("", labels, config.problem_type == "multi_label_classification", preprocessing)

    def file(self, path: str) -> Path | None:
        """The file of the repository on this machine; None where there is none, or it can't be had."""
        return file_of(self.name, path)


def load_description(name: str | Path) -> Description:
    """What a folder (a run's, or its model's) or Hub id says of its model, without the weights.

    Raises:
        ModelError: there is none, or its preprocessing can't be followed.
    """
    name = model_folder(name).as_posix()  # a Hub id keeps its slash on every system
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise ModelError(f"{name}: no config.json, so this is no model folder")
    config = _json(name, "config.json")
    if fault := config_fault(config):
        raise ModelError(f"{name}: no model that can be loaded (config.json: {fault})")
    several = config.get("problem_type") == "multi_label_classification"
    return Description(name, _labels(name, config), several, _preprocessing(name, config))


def _preprocessing(name: str, config: dict[str, Any]) -> Preprocessing:
    """Of a repository that timm wrote, which has config.json alone, what timm does."""
    timm = isinstance(config.get("pretrained_cfg"), dict) and file_of(name, "preprocessor_config.json") is None
    given = config["pretrained_cfg"] if timm else _json(name, "preprocessor_config.json")
    try:
        return Preprocessing.of_timm(given) if timm else Preprocessing.from_dict(given)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def file_of(name: str | Path, path: str) -> Path | None:
    """A file of a model folder or of a repository on the Hub; None where there is none, or it can't be had."""
    try:
        return _fetched(Path(name).as_posix(), path)
    except ModelError:
        return None


def _fetched(name: str, path: str) -> Path:
    """
    Raises:
        ModelError: it can't be had, or its path, which may stand in the repository's own files, leaves it.
    """
    if PurePosixPath(path).is_absolute() or ".." in re.split(r"[/\\]", path) or PureWindowsPath(path).drive:
        raise ModelError(f"{path!r} leads out of it")
    if Path(name).is_dir():
        found = Path(name) / path
        if not found.is_file():
            raise ModelError(f"no {path} in it")
        return found
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, path))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(str(error).strip().splitlines()[0]) from None


def _json(name: str, path: str) -> dict[str, Any]:
    try:
        found = read_json(_fetched(name, path))
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds no object")
        return found
    except (ModelError, OSError, ValueError) as error:
        raise ModelError(f"{name}: no model that can be loaded ({str(error).strip().splitlines()[0]})") from None


def _labels(name: str, config: dict[str, Any]) -> tuple[str, ...]:
    """As transformers reads them: without names there are LABEL_0, LABEL_1 and so on."""
    names = config.get("id2label")
    if not names and "label_names" in config:  # timm's
        names = {str(number): label for number, label in enumerate(config["label_names"])}
    if not names:
        count = config.get("num_labels", config.get("num_classes", 2))
        return tuple(f"LABEL_{number}" for number in range(count))
    try:
        return tuple(names[str(number)] for number in range(len(names)))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{name}: its id2label isn't numbered from 0 ({error})") from None
