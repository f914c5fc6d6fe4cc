"""How true heat maps are: do they lie on lesions that are known, does the answer hang on what they mark, and do they
depend on what was learned? Each figure stands beside what a map that knows nothing of the network gets.

A map that shows nothing (all of one value) gets what chance gives, in every measure: that is what it is worth.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from oct_hf.data import phantom
from oct_hf.errors import DataError
from oct_hf.evaluation.explain import BATCH, METHODS, SLOW, Method, blurred, explain, fitted, gray_of
from oct_hf.labels import COARSER

SANITY_LIMIT = 0.5  # of the mean |Spearman's rho| between maps of the trained and of the randomised network
TOLERANCE = (
    0.03  # of the width: how far the pointing game lets a point lie from a lesion (15 of 500 pixels in the paper)
)
PHANTOM_SIZE = (248, 256)
RULE = (
    "of the methods that pass the sanity check and were measured on all images, the best mean rank of "
    "energy inside the lesions and of insertion minus deletion, of equals the one with more energy inside"
)
_PHANTOM_SEED = 2**31 + 1  # no training set of phantoms uses it, nor the examples of a repository
_LOCATED = ("pointing_game", "energy", "iou")
_CURVES = ("deletion", "insertion", "insertion_minus_deletion")


@dataclass(frozen=True)
class MarkedBScan:
    """A B-scan whose lesions are known.

    Attributes:
        image: uint8 `(height, width)`.
        mask: bool `(height, width)`, the lesions.
        target: index of the model's label that the lesions stand for.
        group: of which B-scans are alike, such as a patient.
    """

    image: np.ndarray
    mask: np.ndarray
    target: int
    group: str


def marked_phantoms(labels: Sequence[str], count: int = 24, seed: int = 0) -> list[MarkedBScan]:
    """Diseased phantoms with their lesions, one patient each, for the labels of a model that phantoms have.

    Args:
        labels: of the model; a coarser one (AMD) stands for several of the phantoms' (CNV, DRUSEN).
        count: how many, spread evenly over the diseases.
        seed: of the drawing.

    Returns:
        none where the model knows no label that the phantoms have.
    """
    known = {}
    for name in phantom.LABELS:
        fitting = next((label for label in (name, *COARSER.get(name, ())) if label in labels), None)
        if name != "NORMAL" and fitting is not None:
            known[name] = list(labels).index(fitting)
    found = []
    for number in range(count if known else 0):
        name = list(known)[number % len(known)]
        drawn = phantom.draw(name, _PHANTOM_SEED + seed, number, 0, *PHANTOM_SIZE)
        if drawn.mask.any():
            found.append(MarkedBScan(drawn.image, drawn.mask, known[name], f"{name}-{number}"))
    return found


def pointing_game(heat: np.ndarray, mask: np.ndarray) -> float:
    """1 where the map's highest point lies in the mask or within TOLERANCE of it, 0 elsewhere (Zhang et al. 2018).

    Of several equal points it is the share that hits.

    Args:
        heat: `(height, width)`.
        mask: bool of the same shape, with something in it.
    """
    return float(_widened(mask)[heat == heat.max()].mean())


def energy_inside(heat: np.ndarray, mask: np.ndarray) -> float:
    """Share of a map's sum that lies in the mask, 0..1 (the energy-based pointing game of Score-CAM, Wang et al. 2020).

    Args:
        heat: `(height, width)`, 0 or more.
        mask: bool of the same shape.
    """
    total = heat.sum(dtype=np.float64)
    return float(heat[mask].sum(dtype=np.float64) / total) if total > 0 else float(mask.mean())


def iou_at_equal_area(heat: np.ndarray, mask: np.ndarray, seed: int = 0) -> float:
    """Intersection over union of the mask and of the map's highest points, as many as the mask has pixels.

    Args:
        heat: `(height, width)`.
        mask: bool of the same shape, with something in it.
        seed: of the draw among equal points.
    """
    area = int(mask.sum())
    inside = int(mask.ravel()[descending(heat, seed)[:area]].sum())
    return inside / (2 * area - inside)


def chance(mask: np.ndarray) -> dict[str, float]:
    """What a map that knows nothing gets on this mask: its share of the picture, and what follows from that."""
    share = float(mask.mean())
    return {"pointing_game": float(_widened(mask).mean()), "energy": share, "iou": share / (2 - share)}


def descending(heat: np.ndarray, seed: int = 0) -> np.ndarray:
    """Indices of the flattened map from its highest to its lowest point; equal ones in an order drawn at random."""
    return np.lexsort((np.random.default_rng(seed).permutation(heat.size), -heat.ravel()))


def deletion_insertion(
    model, pixels: np.ndarray, heats: np.ndarray, targets: Sequence[int], steps: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the deletion and the insertion curve of each image (RISE, Petsiuk et al. 2018).

    Deletion takes the image's pixels away from the hottest on, insertion brings them into an image without any. What
    stands for a pixel taken away is the blurred image. The curves are of the softmax probability, by the share of
    pixels, in even steps, their areas by the trapezoid rule: a true map has a low deletion and a high insertion.

    Args:
        model: as for `explain`.
        pixels: float32 `(n, 3, height, width)`.
        heats: `(n, height, width)`.
        targets: the class whose probability is followed, for each image.
        steps: of each curve; an image takes 2 * steps forward passes.
        seed: of the order among equal points.

    Returns:
        deletion and insertion, float64 `(n,)` each, 0..1.
    """
    size = pixels[0, 0].size
    without = blurred(pixels)
    bounds = np.rint(np.linspace(0, size, steps + 1)).astype(int)
    areas = np.empty((2, len(pixels)))
    for index, (image, blank, heat) in enumerate(zip(pixels, without, heats, strict=True)):
        rank = np.empty(size, int)
        rank[descending(heat, seed)] = np.arange(size)
        hottest = (rank.reshape(heat.shape) < bounds[:, None, None])[:, None]  # (steps + 1, 1, height, width)
        # Both curves end at the whole image and at the one without any pixel: those two are computed once.
        batch = np.concatenate([np.where(hottest, blank, image), np.where(hottest[1:-1], image, blank)])
        value = probabilities(model, batch)[:, targets[index]].astype(np.float64)
        deletion = value[: steps + 1]
        insertion = np.concatenate([deletion[-1:], value[steps + 1 :], deletion[:1]])
        areas[:, index] = [np.trapezoid(curve, bounds / size) for curve in (deletion, insertion)]
    return areas[0], areas[1]


def randomised(model, pixels: np.ndarray, seed: int = 0):
    """A copy of the network that has learned nothing: every weight tensor shuffled within itself.

    Shuffled and not drawn anew, so that the values keep their sizes; batch norm's statistics are taken again from the
    images, or the copy would saturate.

    Args:
        model: as for `explain`.
        pixels: some images, float32 `(n, 3, height, width)`.
        seed: of the shuffling.
    """
    network = copy.deepcopy(getattr(model, "model", model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    network.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over the batches
        layer.train()
    if norms:
        probabilities(network, pixels)
    return network.eval()


def rank_correlation(one: np.ndarray, other: np.ndarray) -> list[float | None]:
    """Spearman's rho of each pair of maps; None where one of the two shows nothing.

    Args:
        one, other: `(n, height, width)`.
    """
    found = []
    for first, second in zip(one, other, strict=True):
        if np.ptp(first) == 0 or np.ptp(second) == 0:
            found.append(None)
        else:
            found.append(float(np.corrcoef(rankdata(first), rankdata(second))[0, 1]))
    return found


def probabilities(model, pixels: np.ndarray) -> np.ndarray:
    """float32 `(n, labels)` of any network that `explain` takes, after the softmax."""
    network = getattr(model, "model", model)
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            output = network(torch.from_numpy(np.asarray(pixels[start : start + BATCH], np.float32)).to(device))
            found.append(getattr(output, "logits", output).float().softmax(-1).cpu().numpy())
    return np.concatenate(found)


def measure_faithfulness(
    model,
    preprocessing,
    images: Sequence[np.ndarray],
    groups: Sequence[str] | None = None,
    marked: Sequence[MarkedBScan] | None = None,
    methods: Iterable[str] | Mapping[str, Method] = METHODS,
    slow_images: int = 4,
    steps: int = 8,
    seed: int = 0,
) -> dict:
    """Measures methods on B-scans, and on others whose lesions are known.

    Args:
        model: an `OCTForImageClassification` or any network that `explain` takes, in evaluation mode.
        preprocessing: `Preprocessing` of its input.
        images: uint8 B-scans of any size, for deletion, insertion and the sanity check, by the predicted class.
        groups: of the images, such as patients: intervals are over them. Each image its own where not given.
        marked: B-scans with known lesions, for the pointing game, energy and IoU, by their own label; phantoms where
            not given, if the model has `config.id2label` and knows their labels; () for none.
        methods: names of METHODS, or a mapping from names to functions as METHODS is.
        slow_images: how many images (and marked B-scans) the methods in SLOW get.
        steps: of the deletion and insertion curves.
        seed: of all that is drawn.

    Returns:
        `methods` and `baselines` (maps of the B-scan's brightness, of noise; chance) by name, each with figures as
        `{"mean", "low", "high"}` (95 % interval over groups; None where there is nothing to measure or but one group);
        also `n` and `n_marked`, and of a method `sanity` (mean absolute `rho`, `n`, `passed`). `settings`, with the
        share of marked B-scans that the model calls as their lesions are, and the mean probability of the explained
        class on the image without any pixel. `rule` and `method`, the best by it or None.

    Raises:
        DataError: no images.
    """
    if not len(images):
        raise DataError("explanations can't be measured without images: give at least one B-scan")
    methods = dict(methods) if isinstance(methods, Mapping) else {name: name for name in methods}
    if marked is None:
        config = getattr(getattr(model, "model", model), "config", None)
        marked = marked_phantoms([config.id2label[i] for i in range(config.num_labels)], seed=seed) if config else ()
    pixels = np.stack([preprocessing(image) for image in images])
    predicted = probabilities(model, pixels).argmax(1)
    groups = [str(group) for group in (range(len(images)) if groups is None else groups)]
    lesions = np.stack([preprocessing(one.image) for one in marked]) if marked else pixels[:0]
    bench = _Bench(model, pixels, predicted, groups, lesions, list(marked), steps, seed)
    unlearned = randomised(model, pixels, seed)
    found = {}
    for name, method in methods.items():
        few = slow_images if name in SLOW else max(len(images), len(marked))
        found[name] = bench.measure(method, few) | {"sanity": bench.sanity(method, unlearned, few)}
    blank = probabilities(model, blurred(pixels))
    answers = probabilities(model, lesions).argmax(1) if marked else np.zeros(0)
    result = {
        "methods": found,
        "baselines": bench.baselines(),
        "settings": {
            "images": len(images),
            "groups": len(set(groups)),
            "marked": len(marked),
            "marked_recognised": float(np.mean([a == m.target for a, m in zip(answers, marked, strict=True)]))
            if marked
            else None,
            "blank_probability": float(np.mean(blank[np.arange(len(images)), predicted])),
            "steps": steps,
            "seed": seed,
            "sanity_limit": SANITY_LIMIT,
        },
        "rule": RULE,
    }
    return result | {"method": best_method(result)}


def best_method(measured: dict) -> str | None:
    """The method to show by default, by RULE; None where none passes.

    Args:
        measured: as `measure_faithfulness` gives it.
    """
    methods = measured["methods"]
    most = max((one["n"] for one in methods.values()), default=0)
    able = [name for name, one in methods.items() if one["sanity"]["passed"] and one["n"] == most]
    if not able:
        return None
    scores = []
    for figure in ("energy", "insertion_minus_deletion"):
        values = [methods[name][figure]["mean"] for name in able]
        if None not in values:
            scores.append([-value for value in values])
    ranks = np.mean([rankdata(score) for score in scores], 0)
    return able[np.lexsort((scores[0], ranks))[0]]


class _Bench:
    """The images that all methods are measured on."""

    def __init__(self, model, pixels, predicted, groups, lesions, marked: list[MarkedBScan], steps: int, seed: int):
        self.model, self.pixels, self.predicted, self.groups = model, pixels, predicted, groups
        self.lesions, self.marked, self.steps, self.seed = lesions, marked, steps, seed

    def measure(self, method, few: int) -> dict:
        """All but the sanity check, on at most `few` images and marked B-scans."""
        heats = explain(self.model, self.pixels[:few], self.predicted[:few], method)
        targets = [one.target for one in self.marked[:few]]
        located = explain(self.model, self.lesions[:few], targets, method) if targets else []
        return self.figures(heats, located)

    def sanity(self, method, unlearned, few: int) -> dict:
        """How alike the maps of the trained network and of one that has learned nothing are (Adebayo et al. 2018)."""
        maps = (explain(one, self.pixels[:few], self.predicted[:few], method) for one in (self.model, unlearned))
        known = [abs(rho) for rho in rank_correlation(*maps) if rho is not None]
        mean = float(np.mean(known)) if known else None
        return {"rho": mean, "n": len(known), "passed": mean is not None and mean <= SANITY_LIMIT}

    def baselines(self) -> dict:
        """The same figures of maps that know nothing of the network."""
        found = {}
        rng = np.random.default_rng(self.seed)
        for name, draw in (("brightness", gray_of), ("noise", lambda pixels: _noise(rng, pixels.shape))):
            found[name] = self.figures(draw(self.pixels), draw(self.lesions) if self.marked else [])
        by_chance = [chance(one.mask) for one in self.marked]
        groups = [one.group for one in self.marked]
        found["chance"] = {key: _interval([one[key] for one in by_chance], groups, self.seed) for key in _LOCATED}
        return found

    def figures(self, heats: np.ndarray, located: Sequence[np.ndarray] | np.ndarray) -> dict:
        n, groups = len(heats), [one.group for one in self.marked[: len(located)]]
        deletion, insertion = deletion_insertion(
            self.model, self.pixels[:n], heats, self.predicted[:n], self.steps, self.seed
        )
        curves = dict(zip(_CURVES, (deletion, insertion, insertion - deletion), strict=True))
        result = {"n": n, "n_marked": len(located)}
        result |= {key: _interval(values, self.groups[:n], self.seed) for key, values in curves.items()}
        values = [_locate(heat, one.mask, self.seed) for heat, one in zip(located, self.marked, strict=False)]
        return result | {key: _interval([one[key] for one in values], groups, self.seed) for key in _LOCATED}


def _locate(heat: np.ndarray, mask: np.ndarray, seed: int) -> dict[str, float]:
    heat = fitted(heat, mask.shape)
    found = pointing_game(heat, mask), energy_inside(heat, mask), iou_at_equal_area(heat, mask, seed)
    return dict(zip(_LOCATED, found, strict=True))


def _interval(values: Sequence[float] | np.ndarray, groups: Sequence[str], seed: int, resamples: int = 1000) -> dict:
    """Mean and its 95 % interval by the cluster bootstrap (Field and Welsh 2007), percentiles."""
    if not len(values):
        return {"mean": None, "low": None, "high": None}
    _, index = np.unique(np.asarray(groups, str), return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    mean = float(np.mean(values))
    if len(sums) < 2:
        return {"mean": mean, "low": None, "high": None}
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), (0.025, 0.975))
    return {"mean": mean, "low": float(low), "high": float(high)}


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Maps of noise as coarse as a CAM's: 6x6 random cells, float32 `(n, height, width)`."""
    cells = rng.random((shape[0], 6, 6), dtype=np.float32)
    return np.stack([fitted(one, shape[2:]) for one in cells]) if shape[0] else cells


def _widened(mask: np.ndarray) -> np.ndarray:
    """The mask and all within TOLERANCE of it."""
    side = 2 * round(TOLERANCE * mask.shape[1]) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)
