"""A denoising autoencoder that a run kept, before the classifier of another (`model.denoise`).

It becomes a layer of that classifier and is published with it: a model that was trained on cleaned pictures and is
asked about others would be another model.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from oct_hf.data.splits import HELD_OUT
from oct_hf.errors import DataError, RecipeError
from oct_hf.model.denoised import DENOISED
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.runs.folder import read_run
from oct_hf.runs.labelled import LabelledSet
from oct_hf.training.pretrain import DECODER, FACTS, SEEN, WEIGHTS
from oct_hf.whole import file_sha256


def kept_autoencoder(folder: Path) -> dict:
    """What a run's `pretraining/` of task denoise says: `facts`, `settings`, `architecture`, `mean` and `std`.

    Raises:
        RecipeError: there is none.
    """
    try:
        kept = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if kept["settings"]["task"] == "denoise" and all((folder / name).is_file() for name in (WEIGHTS, DECODER)):
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise RecipeError(
        f"model.denoise: {folder} holds no denoising autoencoder; a finished run with pretrain.task=denoise has one in "
        "its folder pretraining"
    )


def behind_autoencoder(model: OCTForImageClassification, folder: Path, **options) -> OCTForImageClassification:
    """The same classifier behind a kept autoencoder, as one network (`model/denoised.py`).

    Args:
        model: on its base weights.
        folder: as of `kept_autoencoder`.
        options: of the classifier's network, as `from_timm` got them.

    Raises:
        RecipeError: there is no autoencoder, or it learned on pictures of another size.
    """
    kept, config = kept_autoencoder(folder), model.config
    if config.architecture == DENOISED:
        raise RecipeError("model.denoise: the base has an autoencoder already; leave it out (model.denoise=null)")
    size = config.pretrained_cfg["input_size"][1:]
    if list(size) != [kept["facts"]["image_size"]] * 2:
        raise RecipeError(
            f"model.denoise: it cleans pictures of {kept['facts']['image_size']} pixels, the model sees {size[0]}; the "
            "grain of the noise would be another: take the same image_size"
        )
    joined = OCTForImageClassification.from_timm(
        DENOISED,
        [config.id2label[i] for i in range(config.num_labels)],
        image_size=tuple(size),
        descriptions=config.label_descriptions,
        base=config.architecture,
        cleaner=kept["architecture"],
        norms=[[list(cfg["mean"]), list(cfg["std"])] for cfg in (config.pretrained_cfg, kept)],
        **options,
    )
    joined.config.pretrained_cfg |= {key: config.pretrained_cfg[key] for key in ("mean", "std", "interpolation")}
    joined.config.pretrained_cfg.pop("license", None)
    if licence := config.pretrained_cfg.get("license"):  # of the weights that the classifier starts from
        joined.config.pretrained_cfg["license"] = licence
    network = joined.timm_model
    network.network.load_state_dict(model.timm_model.state_dict())
    weights, own = load_file(folder / WEIGHTS), network.cleaner.state_dict()
    network.cleaner.load_state_dict({key: weights[key] for key in own if key in weights})
    network.decoder.load_state_dict(load_file(folder / DECODER))
    for part in (network.cleaner, network.decoder):
        part.requires_grad_(False)
    return joined


def check_unseen(folder: Path, data: LabelledSet) -> None:
    """Raises DataError where an autoencoder learned on B-scans that this run holds out."""
    kept_autoencoder(folder)
    seen = set((folder / SEEN).read_text(encoding="utf-8").split())
    held_out = np.isin(data.sides, HELD_OUT)
    if shared := sum(value in seen for value, out in zip(data.hashes, held_out, strict=True) if out):
        raise DataError(
            f"model.denoise: {folder} learned on {shared} of the B-scans that this split holds out; take its run's "
            "split (split.by=file split.path=RUN/model/split.csv)"
        )


def autoencoder_facts(folder: Path) -> dict:
    """What a card says of the autoencoder inside a model; no path."""
    kept = kept_autoencoder(folder)
    run = read_run(folder.parent) or {"model": {"weights": None, "license": None}, "data": {"license": None}}
    told = ("training_side", "unlabelled", "held_out", "image_size", "epochs", "mse", "mse_noisy")
    return {
        "architecture": kept["architecture"],
        "looks": kept["settings"]["looks"],
        **{key: kept["facts"][key] for key in told},
        "weights": run["model"]["weights"],  # what it started from
        "licenses": {"weights": run["model"]["license"], "data": run["data"]["license"]},
        "weights_sha256": [file_sha256(folder / name) for name in (WEIGHTS, DECODER)],
    }
