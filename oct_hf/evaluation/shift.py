"""How the B-scans of one set differ from those of another: size, gray level and quality, and the classes' shares.

A model that was measured on one hospital's B-scans is a stranger at the next. These numbers say how far the next is.
"""

from collections import Counter
from typing import Any

import numpy as np
from scipy import stats

from oct_hf.evaluation.predictions import Predictions

MEASURED = ("intensity", "quality")
_SIZES = 3  # the most frequent ones are named


def describe_shift(home: Predictions, other: Predictions) -> dict:
    """Compares two sides.

    Args:
        home: what the model was tested on at home.
        other: of another set.

    Returns:
        `sizes`: the most frequent "WIDTHxHEIGHT" of both with their shares; for each of `MEASURED` the median and
        quartiles of both and `ks`, the two-sample Kolmogorov-Smirnov distance (0: one distribution, 1: no overlap);
        `classes`: the share of each label in both. What either doesn't record is None.
    """
    both = {"home": home, "other": other}
    return {
        "sizes": {name: _sizes(side) for name, side in both.items()},
        **{name: _values(name, home, other) for name in MEASURED},
        "classes": {
            label: {name: float(np.mean(side.labels == label)) for name, side in both.items()} for label in home.names
        },
    }


def _sizes(side: Predictions) -> dict[str, float] | None:
    if not {"width", "height"} <= side.traits.keys():
        return None
    pairs = zip(side.traits["width"].tolist(), side.traits["height"].tolist(), strict=True)
    counted = Counter(f"{width}x{height}" for width, height in pairs)
    first = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:_SIZES]
    return {size: count / len(side.labels) for size, count in first}


def _values(name: str, home: Predictions, other: Predictions) -> dict | None:
    if name not in home.traits or name not in other.traits:
        return None
    quartiles = {
        key: [round(float(v), 4) for v in np.quantile(side.traits[name].astype(float), (0.25, 0.5, 0.75))]
        for key, side in (("home", home), ("other", other))
    }
    found: Any = stats.ks_2samp(home.traits[name], other.traits[name])
    return {**quartiles, "ks": float(found.statistic)}
