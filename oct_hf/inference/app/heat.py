"""The heat map of one B-scan of a page, as a layer to lay over it."""

import io
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from oct_hf.errors import OCTError
from oct_hf.inference.predictor import Predictor


class Heat:
    """Draws heat maps by the method that the model's own measurement found best; loads torch when it is first asked.

    Args:
        folder: a model folder or a Hub id.
    """

    def __init__(self, folder: str | Path):
        self._folder, self._lock, self._predictor = folder, Lock(), None

    def layer(self, pixels: np.ndarray, label: str) -> tuple[bytes, str]:
        """A PNG whose colour and opacity are the heat, and how it was made, in words.

        Args:
            pixels: uint8 of the model's input size, `(height, width[, 3])`.
            label: what to explain.

        Raises:
            OCTError: the libraries are missing, or the network has no such map.
        """
        from oct_hf.evaluation.explain import coloured, explain, require_libraries
        from oct_hf.inference.explained import recorded_method
        from oct_hf.inference.on_torch import quiet_transformers

        require_libraries()
        method, why = recorded_method(self._folder)
        with self._lock:  # gradients of two calls would mix
            if self._predictor is None:
                quiet_transformers()
                self._predictor = Predictor(self._folder, backend="torch")
            if self._predictor.several:
                raise OCTError("this model's outputs are signs, several a B-scan, and heat maps are drawn of one label")
            target = self._predictor.labels.index(label)
            ready = self._predictor.preprocessing.normalise(pixels)[None]
            heat = explain(self._predictor, ready, [target], method)[0]
        layer = np.dstack([coloured(heat), np.rint(255 * heat).astype(np.uint8)])
        picture = io.BytesIO()
        Image.fromarray(layer, "RGBA").save(picture, "PNG")
        return picture.getvalue(), f"{method}: {why}"
