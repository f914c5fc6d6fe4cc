"""Pretraining: what a network learns before anybody's labels, on phantoms or by denoising (`denoising.py`).

Of phantoms labels and lesion masks are free: a light head on the feature maps marks the lesions beside the labels, so
that the network must find them and can't do with how bright a picture is. Heads are dropped at the end. The result lies
in the run's folder: a run that was stopped later doesn't pretrain again, and another may start from it
(model.weights=…/weights.safetensors).
"""

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from oct_hf.data import phantom
from oct_hf.data.pixels import Pictures, PixelFile, Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import RecipeError
from oct_hf.images import Preprocessing
from oct_hf.model.denoised import PyramidHead
from oct_hf.model.modeling_oct import OCTForImageClassification, calm_head
from oct_hf.parallel import in_order
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.denoising import HEAD, DenoisingTrainer, NoisyPictures, write_seen
from oct_hf.training.feature_maps import FeatureMaps
from oct_hf.training.recipe import PretrainRecipe, TrainRecipe
from oct_hf.training.trainer import OCTTrainer, collate

WEIGHTS, DECODER, FACTS, SEEN = "weights.safetensors", "decoder.safetensors", "facts.json", "pictures.txt"
_POPULATION = 1_000_000  # added to the seed, so that nobody meets the phantoms of a data set that is itself drawn


def pretrain(
    model: OCTForImageClassification,
    settings: PretrainRecipe,
    fine_tuning: TrainRecipe,
    folder: Path,
    metrics: Callable[[np.ndarray, np.ndarray], dict],
    callbacks: Sequence = (),
    stopped: Callable[[], bool] = lambda: False,
    pictures: Callable[[Preprocessing], tuple[Pictures, Pictures, list[str], dict]] | None = None,
) -> dict | None:
    """Trains a model's backbone; its classifier stays as it was.

    Args:
        model: changed in place.
        settings: of the pretraining.
        fine_tuning: from which precision, worker processes and weight decay are taken.
        folder: for checkpoints, and at the end for weights and facts; what is there is taken up.
        metrics: as `OCTTrainer` takes them, for `phantom.LABELS`.
        callbacks: of the Trainer.
        stopped: whether a callback ended the training early.
        pictures: for `task: denoise`, gives B-scans to learn from and held-out ones, of that size; the content hashes
            of the former; and facts about them.

    Returns:
        task, held-out pictures, image size, epochs, seconds; of phantoms how many, accuracy on the held-out ones, and
        of the masks the intersection over union of each kind and their mean (None without a mask head); of denoising
        what `pictures` tells and `DenoisingTrainer.measured`; or None where it was stopped.

    Raises:
        RecipeError: masks or denoising are asked of a network without feature maps.
    """
    finished = _finished(folder, settings)
    if finished:
        _take_over(model, load_file(folder / WEIGHTS))
        return finished
    began = time.monotonic()
    student, preprocessing = _student(model, settings)
    if settings.task == "denoise":
        assert pictures is not None  # this task needs them
        learned, tested, seen, about = pictures(preprocessing)
        train, held_out = (NoisyPictures(one, settings.looks, settings.seed) for one in (learned, tested))
        kind, more = DenoisingTrainer, {}
    else:
        train, held_out = draw_sides(settings, preprocessing)
        seen, about = [], {"phantoms": len(train)}
        kind, more = PretrainTrainer, {"mask_weight": settings.mask_weight}
    drawing = time.monotonic() - began
    as_training, checkpoints = _as_training(settings, fine_tuning), folder / "checkpoints"
    trainer = kind(student, as_training, preprocessing, train, held_out, checkpoints, metrics, callbacks, **more)
    checkpoint = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=checkpoint)
    if stopped():
        return None
    facts = {
        "task": settings.task,
        **about,
        "held_out": len(held_out),
        "image_size": preprocessing.height,
        "epochs": settings.epochs,
        "seconds": round(time.monotonic() - began, 1),
        "seconds_drawing": round(drawing, 1),
        "resumed": checkpoint is not None,
        **trainer.measured(),
    }
    _keep(trainer, settings, facts, folder, seen)
    _take_over(model, load_file(folder / WEIGHTS))
    return facts


def _as_training(settings: PretrainRecipe, fine_tuning: TrainRecipe) -> TrainRecipe:
    taken = {key: getattr(settings, key) for key in ("epochs", "batch_size", "learning_rate", "seed")}
    return TrainRecipe(
        **taken, ema=0.99, weight_decay=fine_tuning.weight_decay, bf16=fine_tuning.bf16, workers=fine_tuning.workers
    )


# --- phantoms --------------------------------------------------------------------------------------------------------


class MaskedPixels(Pixels):
    """`Pixels` with a lesion mask each, which moves along with what augmentation does to the picture.

    `images` is uint8 `(n, 2 height, width)`: the picture, and below it its mask as `as_bits` gives it.
    """

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        image, mask = np.split(self.images[index], 2)
        if epoch is not None and self.augmentation is not None:
            image, mask = self.augmentation.with_mask(image, mask, epoch, self.hashes[index])
        return {"pixel_values": image, "masks": mask, "labels": self.labels[index]}


def draw_sides(settings: PretrainRecipe, preprocessing: Preprocessing) -> tuple[MaskedPixels, MaskedPixels]:
    """The phantoms to train on, and a tenth as many of other patients (at most 800) that are held out."""
    held_out = min(800, max(len(phantom.LABELS), settings.phantoms // 10))
    augmentation = Augmentation(settings.augment, settings.seed)
    return (
        _draw(range(settings.phantoms), augmentation, settings, preprocessing),
        _draw(range(settings.phantoms, settings.phantoms + held_out), None, settings, preprocessing),
    )


def _draw(patients: range, augmentation, settings: PretrainRecipe, preprocessing: Preprocessing) -> MaskedPixels:
    height, width, seed = preprocessing.height, preprocessing.width, _POPULATION + settings.seed

    def one(patient: int) -> np.ndarray:
        label = phantom.LABELS[patient % len(phantom.LABELS)]
        drawn = phantom.draw(label, seed, patient, 0, height, width, wide=settings.wide)
        return np.concatenate([drawn.image, as_bits(drawn)])

    work = tqdm(in_order(one, patients), total=len(patients), desc="drawing", unit="phantom", disable=None, leave=False)
    pictures = PixelFile(len(patients), 2 * height, width)
    pictures.write(picture for _, picture in work)
    labels = [patient % len(phantom.LABELS) for patient in patients]
    return MaskedPixels(pictures, labels, [f"phantom {seed} {patient}" for patient in patients], augmentation)


def as_bits(drawn: phantom.Phantom) -> np.ndarray:
    """All lesion masks of a phantom in one uint8 `(height, width)`, a bit a kind."""
    bits = np.zeros(drawn.image.shape, np.uint8)
    for kind, mask in drawn.lesions.items():
        bits |= mask.astype(np.uint8) << phantom.LESIONS.index(kind)
    return bits


def coverage(bits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The share of each cell of a coarser grid that a kind of lesion covers, float32 `(N, kinds, height, width)`."""
    kinds = torch.arange(len(phantom.LESIONS), device=bits.device)[:, None, None]
    return functional.adaptive_avg_pool2d((bits[:, None] >> kinds & 1).float(), (height, width))


# --- network ---------------------------------------------------------------------------------------------------------


class MaskHead(PyramidHead):
    """Logits of lesion masks from a network's feature maps, at the finest map's cells.

    Shape:
        maps `(N, channels[i], h_i, w_i)`, finest first, to logits `(N, kinds, h_0, w_0)`.
    """

    def __init__(self, channels: Sequence[int], kinds: int = len(phantom.LESIONS)):
        super().__init__(channels, kinds)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, -4.0)  # lesions cover little; else the first steps learn nothing but that


def mask_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy plus soft Dice (Milletari et al., "V-Net", 2016), the latter over kinds that are present.

    Args:
        logits, truth: `(N, kinds, h, w)`; truth from 0 to 1.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, truth)
    found, dims = logits.sigmoid(), (0, 2, 3)
    overlap, total = (found * truth).sum(dims), (found**2 + truth**2).sum(dims)
    dice = 1 - (2 * overlap + 1e-6) / (total + 1e-6)
    present = truth.sum(dims) > 0
    return entropy + (dice * present).sum() / present.sum().clamp(min=1)


class PretrainTrainer(OCTTrainer):
    """`OCTTrainer` on `MaskedPixels`, whose loss holds the lesion masks too.

    The head is a child of the timm network, so that optimiser, averaging and checkpoints take it along unasked.

    Args:
        mask_weight: of the masks' loss; 0 for no mask head.
        args, kwargs: of `OCTTrainer`.

    Raises:
        RecipeError: the network has no feature maps.
    """

    def __init__(self, model, recipe: TrainRecipe, preprocessing: Preprocessing, *args, mask_weight: float, **kwargs):
        self.mask_weight = mask_weight
        if mask_weight:
            self._add_head(model, preprocessing)
        super().__init__(model, recipe, preprocessing, *args, **kwargs)
        self.data_collator = _collate

    def _add_head(self, model, preprocessing: Preprocessing) -> None:
        network = model.timm_model
        self._maps = FeatureMaps(network, preprocessing.height, preprocessing.width)
        if not self._maps.strides:
            raise RecipeError(
                f"pretrain.mask_weight: {model.config.architecture} has no feature maps to mark lesions on; set it to 0"
            )
        network.add_module(HEAD, MaskHead(self._maps.channels))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """`OCTTrainer`'s loss; while training, the masks' too."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if self.mask_weight and model.training:
            logits = self._mask_logits()
            truth = coverage(inputs["masks"], *logits.shape[2:])
            loss = loss + self.mask_weight * mask_loss(logits, truth)
        return (loss, outputs) if return_outputs else loss

    def _mask_logits(self) -> torch.Tensor:
        head = self.accelerator.unwrap_model(self.model).timm_model.get_submodule(HEAD)
        return head(self._maps.take())

    def measured(self) -> dict:
        """What the best weights show on the held-out phantoms: `accuracy`, `balanced_accuracy` and `iou` of masks."""
        best = self.state.best_global_step
        row = next(row for row in self.state.log_history if row["step"] == best and "eval_accuracy" in row)
        shown = {key: row[f"eval_{key}"] for key in ("accuracy", "balanced_accuracy")}
        return shown | {"iou": self.mask_iou() if self.mask_weight else None}

    @torch.no_grad()
    def mask_iou(self) -> dict:
        """Intersection over union on the validation side at the head's grid: of each kind there, and their mean."""
        model = self.model.eval()
        both, either = torch.zeros(2, len(phantom.LESIONS), dtype=torch.float64)
        for batch in self.get_eval_dataloader():
            inputs = self._prepare_inputs(batch)
            model(pixel_values=inputs["pixel_values"])
            logits = self._mask_logits()
            found, true = logits > 0, coverage(inputs["masks"], *logits.shape[2:]) >= 0.5
            both += (found & true).sum((0, 2, 3)).cpu()
            either += (found | true).sum((0, 2, 3)).cpu()
        kinds = {kind: float(b / e) if e else None for kind, b, e in zip(phantom.LESIONS, both, either, strict=True)}
        known = [value for value in kinds.values() if value is not None]
        return {"mean": float(np.mean(known)) if known else None, "kinds": kinds}


def _collate(items: list[dict]) -> dict:
    return collate(items) | {"masks": torch.from_numpy(np.stack([item["masks"] for item in items]))}


# --- what goes from one model to the other ---------------------------------------------------------------------------


def _student(model: OCTForImageClassification, settings: PretrainRecipe) -> tuple:
    """The same network, with a new classifier where phantoms' labels are learned, and its preprocessing."""
    student = copy.deepcopy(model)
    student.config.problem_type = None  # phantoms have one label each, whatever the fine-tuning learns
    torch.manual_seed(settings.seed)
    if settings.task == "phantoms":
        student.config.id2label = dict(enumerate(phantom.LABELS))
        student.config.label2id = {name: i for i, name in enumerate(phantom.LABELS)}
        network = student.timm_model
        network.reset_classifier(len(phantom.LABELS))
        calm_head(network.get_classifier())
    cfg = dict(student.config.pretrained_cfg)
    if settings.image_size:
        cfg["input_size"] = [3, settings.image_size, settings.image_size]
    return student, Preprocessing.from_pretrained_cfg(cfg)


def _backbone(state: dict, network: Any) -> dict:
    """timm's keys and weights without classifier and the pretraining's head."""
    classifier = {id(p) for p in network.get_classifier().parameters()}
    dropped = {name for name, p in network.named_parameters() if id(p) in classifier}
    bare = {key.removeprefix("timm_model."): value for key, value in state.items()}
    return {key: v for key, v in bare.items() if key not in dropped and not key.startswith(f"{HEAD}.")}


def _keep(trainer: OCTTrainer, settings: PretrainRecipe, facts: dict, folder: Path, seen: list[str]) -> None:
    """Weights first and facts last: facts that are there mean that the weights are whole."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    weights = _backbone(model.state_dict(), model.timm_model)
    save_file({key: value.cpu().contiguous() for key, value in weights.items()}, folder / WEIGHTS)
    if settings.task == "denoise":
        decoder = model.timm_model.get_submodule(HEAD).state_dict()
        save_file({key: value.cpu().contiguous() for key, value in decoder.items()}, folder / DECODER)
        write_seen(folder / SEEN, seen)
    beside = folder / f"{FACTS}.new"
    cfg = model.config.pretrained_cfg
    kept = {"settings": _plain(settings), "facts": facts, "architecture": model.config.architecture}
    kept |= {key: list(cfg[key]) for key in ("mean", "std")}
    beside.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    beside.replace(folder / FACTS)


def _finished(folder: Path, settings: PretrainRecipe) -> dict | None:
    try:
        kept = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept["facts"] if kept["settings"] == _plain(settings) and (folder / WEIGHTS).exists() else None


def _plain(settings: PretrainRecipe) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _take_over(model: OCTForImageClassification, weights: dict) -> None:
    """The pretrained weights into a model, whose classifier stays."""
    network = model.timm_model
    own = _backbone(network.state_dict(), network)
    if own.keys() != weights.keys():
        raise RecipeError("pretrain: the weights that lie in the run's folder are those of another network")
    network.load_state_dict(weights, strict=False)
