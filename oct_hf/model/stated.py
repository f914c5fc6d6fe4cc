"""What a model's files state of it, judged before anything of it is built: they may come from a stranger.

A config.json decides what is created, and how large; here it can name no other repository, file or code, and no network
grows larger than its weights. Like its neighbours on the remote-code branch this file imports nothing of the package.
"""

import json
import math
import re
import struct
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_LABELS = 100_000
LONGEST_LABEL = 200  # characters
LARGEST = 1_000_000  # number in a network's settings: layers, features, training cases that it holds
LONGEST_HEADER = 16 << 20  # bytes of JSON
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
# What timm, transformers and the networks of this package take for an order to fetch, to read another file or to run
# code. A model that was trained has its weights beside it and needs none of them.
ORDERS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_backbones",
    "pretrained_custom_load",
    "pretrained_filter_fn",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "feature_cfg",
    "feature_cls",
    "scriptable",
}
FOREIGN = {"quantization_config": "weights that another library packs", "transformers_weights": "another weights' file"}
BY_KERNEL = ("attn_implementation", "experts_implementation", "use_kernels", "kernel_config")
_NAME = re.compile(r"[\w.-]+", re.ASCII)
TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the direction of writing
SPARE = 1_000_000  # numbers that a network may have beside those of its weights
_FORMULA = ("=", "+", "-", "@")  # with which a spreadsheet takes a cell for a formula


def config_fault(config: dict[str, Any]) -> str | None:
    """Why a config.json isn't followed, as one line; None where nothing speaks against it."""
    try:
        return next(_faults(config), None)
    except RecursionError:
        return "it is nested too deeply"


def label_fault(label: Any) -> str | None:
    """Why a text can't be a label: it stands in tables, on pages and in terminals, and must be what it seems there."""
    if not isinstance(label, str) or not label.strip():
        return f"{label!r:.60} is no label"
    if len(label) > LONGEST_LABEL:
        return f"the label {label[:20]!r}… has more than {LONGEST_LABEL} characters"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in TURNS for letter in label):
        return f"the label {label!a:.80} holds control codes"
    if re.search(r"<[a-z/!?]", label, re.IGNORECASE):
        return f"the label {label!r:.80} holds a tag"
    if label.startswith(_FORMULA):
        return f"the label {label!r:.60} is a formula to a spreadsheet"
    return None


def _faults(config: dict[str, Any]) -> Iterator[str]:
    architecture = config.get("architecture")
    if architecture is not None and not (isinstance(architecture, str) and _NAME.fullmatch(architecture)):
        yield f"architecture {architecture!r:.60} is no name of a network"
    yield from _counts(config)
    yield from _labels(config)
    for key, value in config.items():
        if key in FOREIGN and value is not None:
            yield f"{key} asks for {FOREIGN[key]}"
        if key.strip("_").startswith(BY_KERNEL) and re.search(r"[/:\\]", str(value)):
            yield f"{key} {value!r:.60} asks for code of another repository"
    if not isinstance(config.get("pretrained_cfg", {}), dict):
        yield "pretrained_cfg is no object"
    if not isinstance(config.get("model_args") or {}, dict):
        yield "model_args is no object"
    yield from _orders(config.get("model_args") or {})


def _counts(config: dict[str, Any]) -> Iterator[str]:
    for key in ("num_classes", "num_labels"):
        count = config.get(key, 1)
        if not isinstance(count, int) or not 0 <= count <= MOST_LABELS:
            yield f"{key} is {count!r:.40}; at most {MOST_LABELS:,} labels can be"


def _labels(config: dict[str, Any]) -> Iterator[str]:
    by_number, names = config.get("id2label") or {}, config.get("label_names") or ()
    if not isinstance(by_number, dict):
        yield "id2label is no object"
        return
    if not isinstance(names, list | tuple):
        yield "label_names is no list"
        return
    for labels in (list(by_number.values()), names):
        if len(labels) > MOST_LABELS:
            yield f"it has {len(labels):,} labels; at most {MOST_LABELS:,} can be"
            return
        yield from filter(None, map(label_fault, labels))
        if len(set(labels)) < len(labels):
            yield "two of its labels are the same"
    ours = "label_names" in config and "id2label" in config  # one of them is for transformers, the other for timm
    if ours and sorted(map(str, names)) != sorted(map(str, by_number.values())):
        yield "id2label and label_names name different labels"
    elif ours and any(by_number.get(str(n), by_number.get(n)) != name for n, name in enumerate(names)):
        yield "id2label and label_names name the same labels in another order"


def _orders(stated: Any, key: str = "model_args") -> Iterator[str]:
    if isinstance(stated, dict):
        for name, value in stated.items():
            if name in ORDERS:
                yield f"{key}: {name} is no setting of a trained model"
            yield from _orders(value, name)
    elif isinstance(stated, list | tuple):
        for value in stated:
            yield from _orders(value, key)
    elif isinstance(stated, str) and re.search(r"[/:\\]", stated):
        yield f"{key}: {stated!r:.60} is no name of a network"
    elif isinstance(stated, int | float) and not abs(stated) <= LARGEST:  # also of what is no number
        yield f"{key}: {stated!r:.40} is too large"


# --- weights ---


def header_of(file: Path) -> tuple[dict[str, Any], int]:
    """The JSON at the head of a safetensors file, and the bytes behind it; raises ValueError where it is none."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(LONGEST_HEADER, file.stat().st_size - 8):
                raise ValueError(f"{file.name}: is no safetensors file (its header's length is wrong)")
            header = json.loads(opened.read(length))
        if not isinstance(header, dict):
            raise ValueError(f"{file.name}: is no safetensors file (its header is no object)")
        return header, file.stat().st_size - 8 - length
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file.name}: is no safetensors file (its header is no JSON: {error})") from None


def shards_of(index: Path) -> list[str]:
    """The files that an index of shards names; raises ValueError where one isn't a safetensors file beside it."""
    try:
        if index.stat().st_size > LONGEST_HEADER:
            raise ValueError("it is too large")
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index.name}: is no index of shards ({error!r:.80})") from None
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not name.endswith(".safetensors"):
            raise ValueError(f"{index.name}: {name!r:.60} is no safetensors file beside it")
    return names


@contextmanager
def no_larger_than(files: Sequence[Path]) -> Iterator[None]:
    """Within it, this thread builds no network with many more numbers than these safetensors files hold.

    A config of a few bytes may state a network of terabytes; it is stopped at the first tensor too many.

    Raises:
        ValueError: a file isn't what it should be, or a network grows too large.
    """
    from torch.nn.modules import module

    tensors, numbers = 0, 0
    for file in files:
        for name, about in header_of(file)[0].items():
            if name != "__metadata__":
                tensors, numbers = tensors + 1, numbers + _numbers(file, about)
    # Each is registered when it is built and again when it is loaded; a layer may be built and replaced.
    room, thread = [4 * tensors + 1000, 4 * numbers + SPARE], threading.get_ident()

    def take(_module, name: str, tensor) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        room[0], room[1] = room[0] - 1, room[1] - tensor.numel()
        if min(room) < 0:
            raise ValueError(f"its config.json states a larger network than its weights have ({numbers:,} numbers)")

    hooks = (
        module.register_module_parameter_registration_hook(take),
        module.register_module_buffer_registration_hook(take),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _numbers(file: Path, about: Any) -> int:
    """How many numbers of at least a byte each a tensor has, by its place in the file."""
    try:
        start, end = about["data_offsets"]
        if not 0 <= start <= end <= file.stat().st_size:
            raise ValueError
        count = math.prod(about["shape"])
        if count > 2 * (end - start):  # the smallest have half a byte
            raise ValueError
        return min(count, end - start)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file.name}: is no safetensors file (a tensor lies outside of its place)") from None
