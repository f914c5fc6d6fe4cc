"""OCTForImageClassification: any timm classifier, or one of `architectures.py`, as a transformers model.

Built on transformers' TimmWrapper, so that the same weights also load without this class. A folder that
`save_pretrained` writes holds timm's own keys, which transformers' native loader and timm read alike. For the same
reason a calibration lies in the classifier's weights: a number in the config alone no other loader would apply.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors import SafetensorError
from transformers import TimmWrapperForImageClassification
from transformers.utils.hub import cached_file

from .architectures import NETWORKS
from .combined import PARTS
from .configuration_oct import OCTConfig
from .stated import SHARDS, WEIGHTS, no_larger_than, shards_of

PREFIX = "timm_model."
WHERE = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder", "proxies")


class OCTForImageClassification(TimmWrapperForImageClassification):
    """Classifies B-scans: float32 `(N, 3, height, width)`, normalised, to logits `(N, labels)`.

    `OCTForImageClassification.from_timm(...)` makes a new one; `from_pretrained` loads a saved or published one.
    """

    config_class = OCTConfig
    config: OCTConfig
    timm_model: Any  # timm's networks have attributes, such as `pretrained_cfg`, that torch's type doesn't know

    if TYPE_CHECKING:  # transformers wraps torch's own in a way that takes `self` for its first argument

        def to(self, *args: Any, **kwargs: Any) -> "OCTForImageClassification":
            """As torch's."""
            ...

    @classmethod
    def from_timm(
        cls,
        architecture: str,
        labels: Sequence[str],
        *,
        pretrained: bool = False,
        weights: str | dict[str, torch.Tensor] | None = None,
        image_size: int | tuple[int, int] | None = None,
        descriptions: dict[str, str] | None = None,
        **model_args,
    ) -> "OCTForImageClassification":
        """A new classifier on a timm network.

        Args:
            architecture: a timm name, such as `tf_efficientnetv2_b0` or `tf_efficientnetv2_b0.in1k`, or one of
                `architectures.NETWORKS`; or, with a slash in it, a folder or Hub repository that timm can read, such
                as one this package wrote. A calibration in its weights is undone.
            labels: the classes, in the order of the outputs.
            pretrained: start from the weights that timm names for this architecture (downloads from the Hub).
            weights: start from a local safetensors file with timm's keys instead, or from tensors under these keys.
            image_size: input height and width in pixels; that of the base weights where not given.
            descriptions: what each label means, for timm's widget.
            model_args: further arguments of the network, such as `drop_path_rate`. A network whose weights depend on
                the image's size, such as a vision transformer, gets `image_size` as its `img_size` by itself.

        Raises:
            ValueError: the architecture is unknown to timm or is no classifier, or the weights don't fit it.
            OSError: the weights can't be read or downloaded.
        """
        # Weights come after construction: post_init() re-initialises whatever was loaded before it.
        base = _timm_network(architecture, len(labels), pretrained, weights, model_args)
        if base.pretrained_cfg.get("architecture") in NETWORKS:
            model_args = _parts_of(architecture) | model_args
        sized = _of_size(base, image_size, model_args)
        if sized != model_args:
            model_args = sized
            base = _timm_network(architecture, len(labels), pretrained, weights, model_args)
        config = _config_of(base, architecture, labels, image_size, descriptions, model_args)
        model = cls(config)
        model.timm_model.load_state_dict(base.state_dict())
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> Any:
        """As the parent's, which loads a folder or Hub repository, but of safetensors alone and all of its weights.

        Raises:
            ValueError: its config.json or weights aren't what they should be (`stated`), or some weights are missing.
            OSError: it can't be read or downloaded.
        """
        with_info = kwargs.pop("output_loading_info", False)
        place = {key: kwargs[key] for key in WHERE if kwargs.get(key) is not None}
        kwargs |= {"output_loading_info": True, "use_safetensors": True}
        with no_larger_than(weight_files(pretrained_model_name_or_path, **place)):
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        refuse_partial(info)
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory, state_dict=None, **kwargs) -> None:
        """Writes config.json and model.safetensors with timm's keys, whether the model was built or loaded."""
        state_dict = self.state_dict() if state_dict is None else state_dict
        bare = {key.removeprefix(PREFIX): value for key, value in state_dict.items()}
        super().save_pretrained(save_directory, state_dict=bare, **kwargs, **_as_given())

    def fold_temperature(self, temperature: float | Sequence[float]) -> None:
        """Divides the classifier's weight and bias by a temperature, so that every loader's logits are logits / T.

        Temperature scaling after Guo et al., "On calibration of modern neural networks" (2017). What was folded is
        recorded as `config.calibration_temperature`; folding once more multiplies it.

        Args:
            temperature: above 0; or one for each output, for sigmoid outputs.

        Raises:
            ValueError: it is no such number, or the network's logits aren't its classifier's linear answer; nothing
                is changed then.
        """
        factor = _checked_temperature(temperature, self.config.num_labels)
        _divide_classifier(self.timm_model, self.config.pretrained_cfg["input_size"], factor)
        before = getattr(self.config, "calibration_temperature", None)
        product = factor if before is None else factor * _checked_temperature(before, self.config.num_labels)
        self.config.calibration_temperature = product.tolist()  # a float of one number, a list of several

    def unfold_temperature(self) -> None:
        """Undoes `fold_temperature`, so that training goes on from the logits that it left; without one, nothing."""
        recorded = getattr(self.config, "calibration_temperature", None)
        if recorded is None:
            return
        factor = 1 / _checked_temperature(recorded, self.config.num_labels)
        _divide_classifier(self.timm_model, self.config.pretrained_cfg["input_size"], factor)
        del self.config.calibration_temperature


def weight_files(repository: str | Path, **place) -> list[Path]:
    """The safetensors files of a folder or Hub repository, fetched; `place` is told to transformers' `cached_file`.

    Raises:
        ValueError: it has none, or its index of shards leads out of it.
        OSError: they can't be had.
    """
    place |= {"_raise_exceptions_for_missing_entries": False}
    if whole := cached_file(repository, WEIGHTS, **place):
        return [Path(whole)]
    index = cached_file(repository, SHARDS, **place)
    if index is None:
        raise ValueError(f"no {WEIGHTS} in it; weights of another kind aren't read, since reading them can run code")
    found = {name: cached_file(repository, name, **place) for name in shards_of(Path(index))}
    if missing := [name for name, file in found.items() if file is None]:
        raise ValueError(f"{missing[0]} is missing, which {SHARDS} names")
    return [Path(file) for file in found.values() if file is not None]


def refuse_partial(info: dict) -> None:
    """Raises ValueError where transformers' `loading_info` tells of weights that were drawn at random."""
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"its weights lack {missing[0]}{more}, so its answers would be random")


def _timm_network(
    architecture: str, labels: int, pretrained: bool, weights: str | dict | None, model_args: dict
) -> Any:
    """The timm network with a new head for `labels` classes, on random, given, local or downloaded weights."""
    overlay = {"state_dict": weights} if isinstance(weights, dict) else {"file": str(weights)} if weights else None
    if weights and not isinstance(weights, dict) and not Path(weights).is_file():
        raise OSError(f"no weights file {weights}")
    if "/" in architecture or Path(architecture).is_dir():
        name = f"local-dir:{architecture}" if Path(architecture).is_dir() else f"hf-hub:{architecture}"
        pretrained = True
    else:
        name = architecture
        if not timm.is_model(name.split(".")[0]):
            near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.3)
            raise ValueError(f"timm knows no model {name}" + (f' (did you mean "{near[0]}"?)' if near else ""))
    try:
        with _bounded(architecture) if name != architecture else nullcontext():
            network: Any = timm.create_model(
                name,
                pretrained=pretrained or weights is not None,
                pretrained_cfg_overlay=overlay,
                num_classes=labels,
                **model_args,
            )
        classifier = network.get_classifier()
        is_classifier = isinstance(classifier, torch.nn.Module) and any(True for _ in classifier.parameters())
    except AttributeError:
        is_classifier = False
    except KeyError as error:
        raise ValueError(f"{architecture} holds no timm model: its config.json has no {error}") from error
    except (RuntimeError, TypeError, SafetensorError) as error:
        name = "given" if isinstance(weights, dict) else weights
        given = f"the weights {name} don't fit it" if weights else "timm can't build it"
        raise ValueError(f"{architecture}: {given} ({str(error).strip().splitlines()[0]})") from error
    if not is_classifier:
        raise ValueError(f"{architecture} is not a classifier: it has no classification head")
    trained_head = pretrained and network.pretrained_cfg.get("num_classes") == labels
    if not trained_head:
        calm_head(classifier)
    elif name != architecture:
        _undo_calibration(network, architecture, labels)
    return network


@contextmanager
def _bounded(repository: str) -> Iterator[None]:
    """Within it, timm builds what a folder or Hub repository states, which is looked at first."""
    _described(repository)
    where, _, revision = repository.partition("@") if not Path(repository).is_dir() else (repository, "", "")
    try:
        files = weight_files(where, **({"revision": revision} if revision else {}))
    except ValueError as error:
        raise ValueError(f"{repository}: {error}") from None
    with no_larger_than(files):
        yield


def _parts_of(architecture: str) -> dict:
    """Which networks a network of this package's folder or repository was made of, for one made from it."""
    if "/" not in architecture and not Path(architecture).is_dir():
        return {}
    recorded = _described(architecture).get("model_args") or {}
    return {key: recorded[key] for key in PARTS if key in recorded}


def _described(repository: str) -> dict:
    """The config.json of a folder or Hub repository."""
    repository, _, revision = repository.partition("@") if not Path(repository).is_dir() else (repository, "", "")
    return OCTConfig.get_config_dict(repository, **({"revision": revision} if revision else {}))[0]


def _of_size(network: Any, image_size: int | tuple[int, int] | None, model_args: dict) -> dict:
    """`model_args` with the size of the images where the network is built for one size, which isn't its usual one."""
    cfg = network.pretrained_cfg
    if not cfg.get("fixed_input_size") or "img_size" in model_args:
        return model_args
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or cfg["input_size"][1:])
    usual = timm.get_pretrained_cfg(cfg["architecture"])
    is_usual = usual and size == tuple(usual.input_size[1:]) == tuple(cfg["input_size"][1:])
    return model_args if is_usual else {**model_args, "img_size": list(size)}


def _undo_calibration(network: Any, repository: str, labels: int) -> None:
    """Undoes what `fold_temperature` did to a network that timm loaded from this package's folder or repository."""
    recorded = _described(repository).get("calibration_temperature")
    if recorded is not None:
        _divide_classifier(network, network.pretrained_cfg["input_size"], 1 / _checked_temperature(recorded, labels))


def _checked_temperature(temperature: float | Sequence[float], outputs: int) -> torch.Tensor:
    """float64 `()` or `(outputs,)`."""
    factor = torch.as_tensor(temperature, dtype=torch.float64)
    if factor.shape not in ((), (outputs,)) or not (factor.isfinite() & (factor > 0)).all():
        raise ValueError(f"a temperature is one number above 0, or one for each of {outputs} outputs: {temperature}")
    return factor


@torch.no_grad()
def _divide_classifier(network: Any, input_size: Sequence[int], factor: torch.Tensor) -> None:
    """Divides the last layers, then looks whether the logits followed: some networks do more after them."""
    names = network.pretrained_cfg.get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    found = dict(network.named_modules())
    layers = [found[name] for name in names if isinstance(found.get(name), torch.nn.Linear | torch.nn.Conv2d)]
    if not layers or len(layers) < len(names):
        said = ", ".join(f"{name} ({type(found.get(name)).__name__})" for name in names) or "none"
        raise ValueError(f"a temperature can only be folded into linear or convolutional classifiers, not into {said}")
    parameters = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    kept, training = [p.clone() for p in parameters], network.training
    network.eval()
    first = parameters[0]
    noise = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)
    before = network(noise).double()
    for parameter in parameters:
        shape = (-1, *(1,) * (parameter.ndim - 1)) if factor.ndim else ()
        parameter.copy_(parameter.double() / factor.to(parameter.device).reshape(shape))
    off = (network(noise).double() * factor.to(first.device) - before).abs().max()
    network.train(training)
    if not off <= max(1e-3, 10 * torch.finfo(first.dtype).eps) * before.abs().max():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
        raise ValueError(f"{', '.join(names)}: the logits don't scale with this classifier, so no temperature fits it")


def calm_head(classifier: torch.nn.Module) -> None:
    """Starts a new head near zero; timm's own start leaves some networks' logits so far apart that it costs epochs."""
    for layer in classifier.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)


def _config_of(base, architecture, labels, image_size, descriptions, model_args) -> OCTConfig:
    cfg = dict(base.pretrained_cfg)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    cfg["input_size"] = [3, *(size or cfg["input_size"][1:])]
    # The whole B-scan is the input: a crop would cut the macula's edge off.
    cfg.update(crop_pct=1.0, crop_mode="squash")
    if cfg.get("interpolation") not in ("bilinear", "bicubic"):
        cfg["interpolation"] = "bicubic"
    # Where the weights came from is no longer true of the fine-tuned ones.
    for key in (
        "url",
        "file",
        "hf_hub_id",
        "hf_hub_filename",
        "state_dict",
        "source",
        "custom_load",
        "tag",
        "num_classes",
    ):
        cfg.pop(key, None)
    cfg.pop("test_input_size", None)
    return OCTConfig(
        architecture=cfg.get("architecture") or architecture.split(".")[0],
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
        label_descriptions={name: (descriptions or {}).get(name, name) for name in labels},
        num_features=base.num_features,
        image_processor_type="ViTImageProcessor",  # a folder with pretrained_cfg is asked for it here
        pretrained_cfg={key: value for key, value in cfg.items() if value is not None},
        **({"needs_code": True} if cfg.get("architecture") in NETWORKS else {}),
        **({"model_args": model_args} if model_args else {}),
    )


def _as_given() -> dict:
    """Keeps transformers 5 from renaming keys on save; 4.x knows no renaming."""
    try:
        from transformers.core_model_loading import PrefixChange  # noqa: F401
    except ImportError:
        return {}
    return {"save_original_format": False}


def _register_key_conversion() -> None:
    """Lets transformers 5 put the prefix on timm's keys for this class as it does for its own TimmWrapper.

    The interface is private to transformers; nothing else here touches it. 4.x needs nothing of the kind.
    """
    try:
        from transformers.conversion_mapping import register_checkpoint_conversion_mapping
        from transformers.core_model_loading import PrefixChange
    except ImportError:
        return
    added = PrefixChange(prefix_to_add=PREFIX.removesuffix("."))
    register_checkpoint_conversion_mapping("OCTForImageClassification", [added], overwrite=True)


_register_key_conversion()
