"""Is a picture an OCT B-scan at all, and how good a one: numbers of each picture, found while it is decoded.

The gate is a logistic regression on what a B-scan looks like when it is small: dark above, bright layers across the
whole width that follow a smooth line, speckle. Its numbers lie in quality.json; `scripts/fit_quality.py` fits them and
says how well they do. A disease can lower the score, too: a swollen retina has fewer sharp layers. So who leaves
pictures out should see which class loses most.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import overload

import numpy as np

from oct_hf.data.filters import uniform, uniform_lines
from oct_hf.data.shrunken import SHRUNKEN, margins, white_wedges

NUMBERS = Path(__file__).with_name("quality.json")
FAULTS = {
    "signal": "weak signal",
    "sharpness": "blurred",
    "unclipped": "clipped",
    "unfilled": "filled by the export",
    "whole": "cut off at the edge",
}
_BRIGHT = 250  # gray levels: the upper end of the scale, of area-averaged pixels
_EDGE = 4  # rows of a shrunken picture
SHARES = {"unclipped": (0.9, 1.0), "unfilled": (0.4, 1.0), "whole": (0.3, 1.0)}  # where a share is rated 0 and 1


@dataclass(frozen=True)
class Quality:
    """What was found out of one picture.

    Attributes:
        oct_likeness: 0 to 1, the gate's probability that it is an OCT B-scan.
        quality: 0 to 1, of the worst component. Of signal and sharpness 0 is what 1 % of the B-scans of the fit are
            below, 1 what half of them are above; the others are shares of the picture, with limits that were set.
        fault: that component, in words; empty where `quality` is 1.
    """

    oct_likeness: float
    quality: float
    fault: str


@cache
def numbers() -> dict:
    """What was fitted: `version`, `gate` (mean, scale, weights, intercept, threshold) and `score` (limits)."""
    found = json.loads(NUMBERS.read_text())
    return found | {"gate": {key: np.array(value) for key, value in found["gate"].items()}}


def version() -> str:
    """Another text when the same picture would be given other numbers."""
    return str(numbers()["version"])


def threshold() -> float:
    """The least likeness that passes the gate."""
    return float(numbers()["gate"]["threshold"])


@overload
def is_oct(likeness: float) -> bool: ...
@overload
def is_oct(likeness: np.ndarray) -> np.ndarray: ...
def is_oct(likeness: float | np.ndarray) -> bool | np.ndarray:
    """Whether a picture with this likeness passes the gate."""
    return likeness >= threshold()


def measure_quality(small: np.ndarray) -> Quality:
    """Gate and score of one picture.

    Args:
        small: uint8 `(SHRUNKEN, SHRUNKEN)`, what `shrink` gives.
    """
    values, parts = look(small)
    parts = {name: rated(name, value) for name, value in parts.items()}
    worst = min(parts, key=parts.__getitem__)
    return Quality(float(likeness(values)), parts[worst], FAULTS[worst] if parts[worst] < 1 else "")


def likeness(values: np.ndarray) -> float | np.ndarray:
    """The gate's probability for the features of `look`, `(..., features)`."""
    gate = numbers()["gate"]
    scaled = np.clip((values - gate["mean"]) / gate["scale"], -4, 4)
    return 1 / (1 + np.exp(-(expanded(scaled) @ gate["weights"] + gate["intercept"])))


def rated(name: str, value: float) -> float:
    """A component from 0 to 1, between its limits."""
    low, high = SHARES.get(name) or numbers()["score"][name]
    return float(np.clip((value - low) / (high - low), 0, 1))


def expanded(scaled: np.ndarray) -> np.ndarray:
    """The features and their products: of some a B-scan has neither little nor much."""
    first, second = np.triu_indices(scaled.shape[-1])
    return np.concatenate([scaled, scaled[..., first] * scaled[..., second]], -1)


def left_out(
    likeness: Sequence[float],
    quality: Sequence[float],
    fault: Sequence[str],
    min_quality: float | None,
    require_oct: bool,
) -> dict[int, str]:
    """Which pictures a recipe doesn't want, by row number, each with the reason.

    Args:
        likeness, quality, fault: `n` of each, as `Quality` has them.
        min_quality: the least score, or None.
        require_oct: only what passes the gate.
    """
    reasons = {}
    for row, (sure, score, why) in enumerate(zip(likeness, quality, fault, strict=True)):
        if require_oct and not is_oct(sure):
            reasons[row] = f"doesn't look like an OCT B-scan (likeness {sure:.3f})"
        elif min_quality is not None and score < min_quality:
            reasons[row] = f"quality {score:.2f} is below {min_quality} ({why})"
    return reasons


def oct_likeness(small: np.ndarray) -> float:
    """The gate of one picture alone: `measure_quality`'s, for those who don't ask how good it is."""
    return float(likeness(look(small, rate=False)[0]))


def look(small: np.ndarray, rate: bool = True) -> tuple[np.ndarray, dict[str, float]]:
    """What gate and score are computed from.

    Args:
        small: uint8 `(SHRUNKEN, SHRUNKEN)`, what `shrink` gives.
        rate: find the components too.

    Returns:
        float `(features,)`; and the components, each larger where the picture is better:
        signal: contrast, from the lower quartile to the 99th percentile, in standard deviations of the noise, by the
            median difference of neighbours (Donoho & Johnstone, 1994).
        sharpness: the steepest step down a column, as a share of the contrast; median over columns.
        unclipped: share of the picture below the upper end of the scale.
        unfilled: share that no export filled.
        whole: share of columns whose brightest layers keep away from the upper and lower edge.
    """
    fill = white_wedges(small) | margins(small)
    picture = np.where(fill, 0, small).astype(np.float32)
    inside = picture[~fill] if fill.sum() < fill.size - SHRUNKEN else picture.ravel()
    # The shrunken picture has whole gray levels, so that counting them gives the percentiles.
    counts = np.cumsum(np.bincount(inside.astype(np.uint8), minlength=256))
    low, quarter, half, high, top = np.searchsorted(counts, counts[-1] * np.array([0.05, 0.25, 0.5, 0.9, 0.99]))
    contrast = max(float(top - quarter), 1.0)
    smooth = uniform(picture, 5)
    smoother = uniform(smooth, 9)
    # Along and across the layers, in two widths.
    across = np.abs(np.diff(picture, axis=1))
    fine = [np.abs(np.diff(picture, axis=0)).mean(), across.mean()]
    coarse = [np.abs(smooth[6:] - smooth[:-6]).mean(), np.abs(smooth[:, 6:] - smooth[:, :-6]).mean()]
    # Every other column, laid over each other by the middle of their light, as if the retina were flat.
    columns = np.ascontiguousarray(smooth[:, ::2])
    rows = np.arange(SHRUNKEN, dtype=np.float32)[:, None]
    light = np.square(np.maximum(columns - np.float32(quarter), 0)) + np.float32(1e-3)
    weight = light.sum(0)
    middle = (light * rows).sum(0) / weight
    spread = np.sqrt(np.maximum((light * np.square(rows)).sum(0) / weight - np.square(middle), 0))
    line = uniform_lines(middle, 5)
    shift = np.rint(line - SHRUNKEN / 2).astype(int)
    flat = np.take_along_axis(columns, np.clip(np.arange(SHRUNKEN)[:, None] + shift, 0, SHRUNKEN - 1), 0)
    profile = flat.mean(1)
    flat -= flat.mean(0)
    length = np.sqrt(np.square(flat).sum(0)) + np.float32(1e-3)
    flat /= length
    shape = profile - profile.mean()
    alike = shape @ flat / (np.sqrt(np.square(shape).sum()) + 1e-3)
    far = (flat[:, 12:] * flat[:, :-12]).sum(0)
    alike.sort()
    far.sort()
    above, below = profile[: SHRUNKEN // 4].mean(), profile[-SHRUNKEN // 4 :].mean()
    brightest = int(np.argmax(profile))
    features = [
        inside.mean() / 255,
        contrast / 255,
        (half - low) / contrast,
        (high - low) / contrast,
        np.log(fine[0] + 0.1) - np.log(fine[1] + 0.1),
        np.log(coarse[0] + 0.1) - np.log(coarse[1] + 0.1),
        np.log((fine[0] + fine[1] + 0.1) / (coarse[0] + coarse[1] + 0.1)),
        np.abs(np.diff(middle)).mean(),
        np.abs(np.diff(line, n=2)).mean(),
        line.std() / SHRUNKEN,
        spread.mean() / SHRUNKEN,
        spread.std() / SHRUNKEN,
        alike[len(alike) // 2],
        alike[len(alike) // 10],
        far[len(far) // 2],
        (above - low) / contrast,
        (below - low) / contrast,
        (profile[brightest] - half) / contrast,
        brightest / SHRUNKEN,
        weight.std() / weight.mean(),
        np.abs(picture - smooth).mean() / contrast,
        np.abs(smooth - smoother).mean() / contrast,
        fill.mean(),
    ]
    if not rate:
        return np.array(features, np.float64), {}
    noise = (
        np.median(np.abs(np.diff(picture, axis=1))[~fill[:, 1:]]) / 0.954 if (~fill).any() else 0
    )  # of N(0, 1) twice
    steps = np.sort((picture[2:] - picture[:-2]).max(0))
    bright = smooth > quarter + contrast / 2
    free = ~fill
    touches = (bright[:_EDGE] & free[:_EDGE]).any(0) | (bright[-_EDGE:] & free[-_EDGE:]).any(0)
    parts = {
        "signal": contrast / (noise + 1),
        "sharpness": steps[SHRUNKEN // 2] / contrast,
        "unclipped": 1 - float((inside >= _BRIGHT).mean()),
        "unfilled": 1 - float(fill.mean()),
        "whole": 1 - float(touches.mean()),
    }
    return np.array(features, np.float64), {name: float(value) for name, value in parts.items()}
