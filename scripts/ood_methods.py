"""Compares ways to tell what is no B-scan: the gate of `data/quality.py`, and scores of a trained network.

python scripts/ood_methods.py MODEL --oct NEH --other-oct OCT2017 ... --fit PICTURES --report PICTURES

Every threshold comes from the model's own validation B-scans and no other picture. The quality gate is also fitted
anew, without the model's test B-scans and on the pictures of --fit alone, so that nothing reported was in any fit.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.csv
import torch
from fit_quality import answers, changed, drawn, fit, in_order
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from oct_hf import Predictor, draw_phantom
from oct_hf.data import quality
from oct_hf.data.phantom import LABELS
from oct_hf.data.shrunken import shrink
from oct_hf.errors import BadImageError
from oct_hf.images import EXTENSIONS, read_image, to_gray

ACCEPTED = 0.99  # of the validation B-scans, each patient weighing the same


class Seen:
    """What is known of some pictures: the gate's features `look`, `logits`, and the network's `features`."""

    def __init__(self, pictures: list[np.ndarray], predictor: Predictor):
        self.look = np.array([found for _, found in in_order(lambda p: quality.look(shrink(to_gray(p)))[0], pictures)])
        self.logits, self.features = [], []
        head = predictor.model.timm_model.get_classifier()
        hook = head.register_forward_pre_hook(lambda _, given: self.features.append(given[0].float().cpu().numpy()))
        for start in range(0, len(pictures), 32):
            pixels = [predictor.preprocessing(picture) for picture in pictures[start : start + 32]]
            self.logits.append(predictor.logits(pixels))
        hook.remove()
        self.logits, self.features = np.concatenate(self.logits).astype(float), np.concatenate(self.features)


def pictures_below(folder: Path) -> list[tuple[str, bytes, np.ndarray]]:
    """Name, SHA-256 and pixels of every picture."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS):
        try:
            picture = read_image(path)
        except BadImageError:
            continue
        found.append((path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest(), picture))
    return found


def mahalanobis(train: Seen, labels: np.ndarray):
    """Squared distance to the nearest class mean (Lee et al. 2018); that less the distance to all (Ren et al. 2021).

    Ledoit-Wolf covariances: there are more features than B-scans.
    """
    values = train.features.astype(float)
    means = {label: values[labels == label].mean(0) for label in np.unique(labels)}
    within = LedoitWolf(assume_centered=True).fit(values - np.stack([means[label] for label in labels])).precision_
    whole, middle = LedoitWolf().fit(values).precision_, values.mean(0)

    def square(x, centre, precision):
        return np.einsum("ij,jk,ik->i", x - centre, precision, x - centre)

    def near(seen):
        return np.min([square(seen.features, mean, within) for mean in means.values()], 0)

    return near, lambda seen: near(seen) - square(seen.features, middle, whole)


def neighbours(train: Seen, k: int):
    """Distance to the k-th nearest training B-scan, features of length 1 (Sun et al. 2022)."""

    def unit(seen):
        return seen.features / np.linalg.norm(seen.features, axis=1, keepdims=True)

    index = NearestNeighbors(n_neighbors=k).fit(unit(train))
    return lambda seen: index.kneighbors(unit(seen))[0][:, -1]


def logit(p: np.ndarray) -> np.ndarray:
    """Of a probability, kept finite."""
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return np.log(p / (1 - p))


def patient_quantile(values: np.ndarray, groups: np.ndarray, share: float) -> float:
    """Quantile in which each patient weighs the same."""
    _, mine, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(values)
    weight = np.cumsum(1 / counts[mine[order]]) / len(counts)
    return float(values[order[np.searchsorted(weight, share - 1e-9)]])


def main() -> None:
    """Fits, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model trained on --oct, with its split.csv")
    parser.add_argument("--oct", type=Path, required=True, help="the B-scans it was trained, validated and tested on")
    parser.add_argument("--other-oct", type=Path, nargs="*", default=[], help="B-scans of other hospitals and devices")
    parser.add_argument("--fit", type=Path, required=True, help="other pictures to fit the quality gate anew")
    parser.add_argument("--report", type=Path, required=True, help="other pictures to report on, one folder a kind")
    given = parser.parse_args()
    torch.set_num_threads(1)
    predictor = Predictor(given.model, backend="torch")
    split = {row["content_hash"]: row for row in pyarrow.csv.read_csv(Path(given.model) / "split.csv").to_pylist()}
    own = [(digest, picture) for _, digest, picture in pictures_below(given.oct) if digest in split]
    sides, rows = {}, {}
    for side in ("train", "validation", "test"):
        mine = [(digest, picture) for digest, picture in own if split[digest]["side"] == side]
        rows[side] = [split[digest] for digest, _ in mine]
        sides[side] = Seen([picture for _, picture in mine], predictor)
    others = {folder.name: Seen([p for *_, p in pictures_below(folder)], predictor) for folder in given.other_oct}
    kinds = {
        folder.name: Seen([p for *_, p in pictures_below(folder)], predictor)
        for folder in sorted(given.report.iterdir())
    }
    anew = fitted_anew([to_gray(picture) for digest, picture in own if split[digest]["side"] != "test"], given.fit)

    labels = np.array([row["label"] for row in rows["train"]])
    patients = np.array([str(row["patient_id"]) for row in rows["validation"]])
    near, relative = mahalanobis(sides["train"], labels)
    alone = {
        "quality": lambda seen: -logit(quality.likeness(seen.look)),
        "quality, fitted anew": lambda seen: -logit(answers(anew, seen.look)),
        "max softmax": lambda seen: -softmax(seen.logits, 1).max(1),
        "energy": lambda seen: -logsumexp(seen.logits, 1),
        "Mahalanobis": near,
        "relative Mahalanobis": relative,
        "k-NN, 10th": neighbours(sides["train"], 10),
    }
    print(json.dumps({"validation patients": len(set(patients))} | {side: len(found) for side, found in rows.items()}))
    fixed = {"quality": -logit(quality.threshold()), "quality, fitted anew": -logit(0.5)}
    limits = {
        name: fixed.get(name, patient_quantile(score(sides["validation"]), patients, ACCEPTED))
        for name, score in alone.items()
    }
    # Each alone, and refused if either says so; then for the AUROC the larger score, in units of validation B-scans.
    for names in [(name,) for name in alone] + [("quality, fitted anew", name) for name in alone if name not in fixed]:
        score = alone[names[0]]
        if len(names) > 1:
            score = larger([alone[name] for name in names], sides["validation"], patients)

        def refuses(seen, names=names):
            return np.any([alone[name](seen) > limits[name] for name in names], 0)

        found = described(score, refuses, sides["test"], others, kinds)
        print(json.dumps({"method": " or ".join(names)} | found))


def fitted_anew(bscans: list[np.ndarray], folder: Path) -> dict:
    """The quality gate as scripts/fit_quality.py fits it, on these B-scans and these pictures alone."""
    random = np.random.default_rng(0)
    more = [changed(bscans[n % len(bscans)], random) for n in range(3 * len(bscans))]
    phantoms = [draw_phantom(LABELS[n % 4], patient=n, scan=0, height=248, width=256).image for n in range(200)]
    train = [to_gray(picture) for *_, picture in pictures_below(folder)]
    train += [p[: len(p) // 2 + 60, : p.shape[1] // 2 + 60] for p in train if min(p.shape) > 250]
    train += [picture for _, picture in drawn(bscans, random)]
    look = [np.array([quality.look(shrink(p))[0] for p in part]) for part in ([*bscans, *more, *phantoms], train)]
    return fit(*look)


def larger(scores: list, validation: Seen, patients: np.ndarray):
    """The largest of several scores, each less its median and in units of its upper tail on validation B-scans."""
    scales = []
    for score in scores:
        values = score(validation)
        scales.append((np.median(values), patient_quantile(values, patients, ACCEPTED) - np.median(values) + 1e-9))
    return lambda seen: np.max(
        [(score(seen) - middle) / scale for score, (middle, scale) in zip(scores, scales, strict=True)], 0
    )


def described(score, refuses, test: Seen, others: dict, kinds: dict) -> dict:
    """AUROC of the test B-scans against the pictures; the share of B-scans refused and of the pictures let through."""
    inside, outside = score(test), {kind: score(seen) for kind, seen in kinds.items()}

    def auroc(bscans, pictures):
        labels = np.r_[np.zeros(len(bscans)), np.ones(len(pictures))]
        return round(float(roc_auc_score(labels, np.r_[bscans, pictures])), 4)

    everything = np.concatenate(list(outside.values()))
    passed = {kind: ~refuses(seen) for kind, seen in kinds.items()}
    return {
        "auroc": auroc(inside, everything),
        "by kind": {kind: auroc(inside, values) for kind, values in outside.items()},
        "auroc of others": {name: auroc(score(seen), everything) for name, seen in others.items()},
        "refused": {name: round(float(refuses(seen).mean()), 4) for name, seen in {"test": test, **others}.items()},
        "let through": int(sum(map(sum, passed.values()))),
        "pictures": len(everything),
        "let through by kind": {kind: f"{int(found.sum())} of {len(found)}" for kind, found in passed.items()},
    }


if __name__ == "__main__":
    main()
