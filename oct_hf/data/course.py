"""Where the retina runs in a B-scan, roughly: enough to flatten or bend a training picture.

No segmentation: the parabola is robust where lesions, shadows and speckle hide every layer's edge.
"""

from collections.abc import Callable

import cv2
import numpy as np


def retina_course(image: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The retina's course: a parabola through what is brightest in each column.

    Args:
        image: uint8 `(height, width)`; what is nearly white counts as a wedge and not as retina.

    Returns:
        a function from places in the width, -1 to 1, to shares of the height, about a mean of 0; flat beyond the sides.
    """
    dark = np.where(image > 250, np.uint8(0), image)
    small = cv2.resize(dark, (32, 48), interpolation=cv2.INTER_AREA).astype(np.float32)
    weight = np.maximum(small - small.mean(), 0) ** 2
    mass = weight.sum(0)
    if not mass.any():
        return np.zeros_like
    rows = (weight * np.linspace(0, 1, 48, dtype=np.float32)[:, None]).sum(0) / np.maximum(mass, 1e-6)
    x = np.linspace(-1, 1, 32)
    fit = np.polynomial.polynomial.polyfit(x, rows, 2, w=np.sqrt(np.minimum(mass, np.median(mass) + 1e-6)))
    mean = np.polynomial.polynomial.polyval(x, fit).mean()
    return lambda at: np.polynomial.polynomial.polyval(np.clip(at, -1, 1), fit).astype(np.float32) - np.float32(mean)
