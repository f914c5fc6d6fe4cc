"""What a predictor may answer beside one label: several, or that it wasn't shown a B-scan.

Everything here is applied from plain numbers that lie in a repository; what fits and measures them is
`evaluation/abstention.py`. numpy alone is needed, so it serves in every loader.
"""

import numpy as np

TOLERANCE = 1e-5  # of a score: stored probabilities are float32, and ONNX Runtime's are within 1e-5 of torch's


def lac(probabilities: np.ndarray) -> np.ndarray:
    """1 - p, `(n, k)`: the smallest sets on average (Sadinle, Lei & Wasserman, JASA 2019)."""
    return 1 - np.asarray(probabilities, np.float64)


def aps(probabilities: np.ndarray) -> np.ndarray:
    """Sum of all probabilities that are at least a label's own, `(n, k)` (Romano, Sesia & Candès, NeurIPS 2020).

    Without their random tie-break: the same B-scan always gets the same set, and the sets are a little larger.
    """
    values = np.asarray(probabilities, np.float64)
    return (values[:, None, :] * (values[:, None, :] >= values[:, :, None])).sum(-1)


SCORES = {"lac": lac, "aps": aps}


def prediction_sets(probabilities: np.ndarray, conformal: dict) -> np.ndarray:
    """Which labels can't be ruled out at the level of `conformal`.

    The most probable label is always in: an empty set says only that the B-scan is unlike those of the fit, and a
    larger set never covers less.

    Args:
        probabilities: `(n, k)`.
        conformal: of `evaluation.abstention.fit_conformal`; `threshold` is a number, or one a label in the order of
            the columns; None rules no label out.

    Returns:
        bool `(n, k)`.
    """
    probabilities = np.asarray(probabilities)
    found = within(probabilities, conformal)
    found[np.arange(len(found)), probabilities.argmax(1)] = True
    return found


def within(probabilities: np.ndarray, conformal: dict) -> np.ndarray:
    """As `prediction_sets`, where a set may be empty."""
    threshold = conformal["threshold"]
    limits = list(threshold.values()) if isinstance(threshold, dict) else [threshold]
    limits = np.array([np.inf if limit is None else limit for limit in limits])
    return SCORES[conformal["score"]](probabilities) <= limits + TOLERANCE
