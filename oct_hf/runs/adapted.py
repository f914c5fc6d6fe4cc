"""A model set to another device's B-scans without labels: what its batch normalisation goes by, and no weight.

The statistics that a network normalises by are those of the B-scans it was trained on; another device's have others,
and every layer then sees what it never learned from. Mixing in those of the new B-scans mends part of that (Schneider
et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020). Labels aren't
needed, so nothing tells whether it helped: measure it on some that have one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from oct_hf.data.sources import open_source
from oct_hf.errors import BadImageError, DataError, ModelError, RunError
from oct_hf.images import read_image
from oct_hf.inference.on_torch import TorchNetwork
from oct_hf.inference.predictor import Predictor
from oct_hf.runs.run import quiet_libraries
from oct_hf.whole import file_sha256, whole_folder, write_json

FACTS = "adapted.json"
LEAST = 16  # B-scans; the statistics of fewer are mostly chance
_BATCH = 32
_WARNING = (
    "It was neither calibrated nor measured after that: figures, thresholds and conformal sets of the model that it "
    "comes from aren't its own."
)


@dataclass(frozen=True)
class _Norm:
    """A layer of batch normalisation, with its statistics as they were trained."""

    layer: _BatchNorm
    mean: torch.Tensor
    var: torch.Tensor


def adapt_model(
    model: str | Path, data: str | Path, out: str | Path, prior: int = 16, most: int = 1024, seed: int = 0
) -> dict:
    """Writes the model with batch statistics of other B-scans mixed into its own.

    With n B-scans each mean and variance becomes (prior × trained + n × new) / (prior + n), new being the average over
    batches of about 32. Labels and folders' names are not looked at. The B-scans have to be as those that will be
    asked about, many eyes with and without disease: statistics of normal eyes alone would make disease look normal.

    Args:
        model: a run, a model folder or a Hub id.
        data: folder or archive with the B-scans.
        out: folder for the adapted model: config.json, model.safetensors, preprocessor_config.json, README.md and
            adapted.json, which holds what is returned.
        prior: how many B-scans the trained statistics count for.
        most: B-scans to take; drawn from `data` where it has more.
        seed: of that, and of the batches.

    Returns:
        `model`, `sha256` of its weights, `bscans`, `unreadable` (how many), `prior`, `seed`, `layers`;
        `before` and `after`, of how many B-scans each label is the most probable one; `changed`, of how many it isn't
        the same one.

    Raises:
        OCTError: the model can't be loaded or has no batch normalisation, fewer than 16 B-scans can be read, or `out`
            is there.
    """
    quiet_libraries()
    out = Path(out)
    if out.exists():
        raise RunError(f"{out} is there; choose another folder, or remove it")
    predictor = Predictor(model, backend="torch")
    network = predictor.network
    assert isinstance(network, TorchNetwork)  # as it was asked for
    norms = [
        _Norm(layer, layer.running_mean.clone(), layer.running_var.clone())
        for layer in network.model.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
    ]
    if not norms:
        raise ModelError(f"{model}: its network has no batch normalisation, so there is nothing to adapt")
    images, unreadable = _read(predictor, Path(data), most, seed)
    before = _labels(predictor, images)
    _mix(predictor, norms, images, prior)
    after = _labels(predictor, images)
    facts = {
        "format": 1,
        "model": Path(model).name if Path(model).exists() else str(model),
        "sha256": file_sha256(network.weights) if network.weights else None,
        "bscans": len(images),
        "unreadable": unreadable,
        "prior": prior,
        "seed": seed,
        "layers": len(norms),
        "before": {label: before.count(label) for label in predictor.labels},
        "after": {label: after.count(label) for label in predictor.labels},
        "changed": sum(first != second for first, second in zip(before, after, strict=True)),
    }
    with whole_folder(out) as partial:
        network.model.to(memory_format=torch.contiguous_format).save_pretrained(partial)
        predictor.preprocessing.save(partial)
        (partial / "README.md").write_text(_card(facts), encoding="utf-8")
        write_json(partial / FACTS, facts)
    return facts


def _read(predictor: Predictor, data: Path, most: int, seed: int) -> tuple[list[np.ndarray], int]:
    """Some B-scans of the model's size, uint8, in an order without a meaning; and how many can't be read."""
    source = open_source(data)
    images: list[np.ndarray] = []
    unreadable = len(source.unreadable())
    for row in np.random.default_rng(seed).permutation(len(source.files)):
        if len(images) == most:
            break
        name = source.files[int(row)]
        try:
            images.append(predictor.preprocessing.resize(read_image(source.read(name), name)))
        except BadImageError:
            unreadable += 1
    if len(images) < LEAST:
        raise DataError(f"{data}: {len(images)} B-scans can be read, and statistics need {LEAST} or more")
    return images, unreadable


def _batches(predictor: Predictor, images: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Pixels for the network, about 32 B-scans a time, none of them a batch of few."""
    for rows in np.array_split(np.arange(len(images)), -(-len(images) // _BATCH)):
        yield [predictor.preprocessing.normalise(images[row]) for row in rows]


def _labels(predictor: Predictor, images: list[np.ndarray]) -> list[str]:
    batches = _batches(predictor, images)
    return [predictor.labels[column] for pixels in batches for column in predictor.logits(pixels).argmax(1)]


def _mix(predictor: Predictor, norms: list[_Norm], images: list[np.ndarray], prior: int) -> None:
    """Changes the layers: each sees what those before it give once they go by the new B-scans."""
    for norm in norms:
        norm.layer.reset_running_stats()
        norm.layer.momentum = None  # the average over all batches
        norm.layer.train()
    for pixels in _batches(predictor, images):
        predictor.logits(pixels)
    kept = prior / (prior + len(images))
    for norm in norms:
        layer = norm.layer.eval()
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.lerp_(norm.mean, kept)
        layer.running_var.lerp_(norm.var, kept)


def _card(facts: dict) -> str:
    lines = [
        "# An adapted model",
        "",
        f"Made of {facts['model']} by `oct-hf adapt`: the statistics of its {facts['layers']} layers of batch "
        f"normalisation were mixed with those of {facts['bscans']} B-scans without labels. {_WARNING}",
        "",
        "For research, not for diagnosis.",
    ]
    return "\n".join(lines) + "\n"
