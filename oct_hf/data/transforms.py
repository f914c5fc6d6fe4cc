"""Augmentations for training B-scans: albumentations pipelines, named in a recipe and stored with the run.

Stateless: the random numbers of an image come from (seed, epoch, content hash), so a resumed run, another count of
workers or another machine sees the same pictures. Images arrive already resized, antialiased, as the image processor
does it; nothing here is needed at prediction time, because native loaders couldn't repeat it.
"""

import hashlib
import os
import random
from collections.abc import Callable, Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks for updates over the network when imported

import albumentations as A
import cv2
import numpy as np

from oct_hf.data.speckle import speckle
from oct_hf.errors import RecipeError, did_you_mean

cv2.setNumThreads(0)  # images are small, and the other cores belong to the network


class RemoveWedge(A.ImageOnlyTransform):
    """Blackens the white wedges that an export leaves where it rotated the B-scan's canvas.

    A wedge is a connected region of nearly white pixels that touches the border and covers at least 0.2 % of them all.
    """

    def __init__(self, threshold: int = 245, p: float = 1.0):
        super().__init__(p=p)
        self.threshold = threshold

    def apply(self, img: np.ndarray, **params) -> np.ndarray:
        if max(img[0].max(), img[-1].max(), img[:, 0].max(), img[:, -1].max()) < self.threshold:
            return img  # nothing bright touches the border
        bright = cv2.compare(img, self.threshold - 1, cv2.CMP_GT)
        _, marks, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
        height, width = img.shape[:2]
        left, top, w, h, area = stats.T
        touches = (left == 0) | (top == 0) | (left + w == width) | (top + h == height)
        is_wedge = (touches & (area >= 0.002 * height * width)).astype(np.uint8)
        is_wedge[0] = 0  # the background
        if not is_wedge.any():
            return img
        # One pixel more: resizing has blurred the wedge's edge.
        mask = cv2.dilate(np.take(is_wedge, marks), np.ones((3, 3), np.uint8))
        some = img[::8, ::8]
        vitreous = some[some < 64]
        return np.where(mask, np.uint8(np.median(vitreous) if len(vitreous) else 0), img)


class Speckle(A.ImageOnlyTransform):
    """Multiplies by fully developed speckle of mean 1, averaged over `looks` looks (two bounds, 1 to 31)."""

    def __init__(self, looks: tuple[int, int] = (8, 31), p: float = 0.5):
        super().__init__(p=p)
        self.looks = tuple(looks)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        looks = self.py_random.randint(*self.looks)
        return {"noise": speckle(self.random_generator, looks, *data["image"].shape[:2])}

    def apply(self, img: np.ndarray, noise: np.ndarray, **params) -> np.ndarray:
        return cv2.multiply(img, noise, dtype=cv2.CV_8U)


class VesselShadow(A.ImageOnlyTransform):
    """Darkens one to `count` narrow columns, as retinal vessels do to all that lies below them."""

    def __init__(self, count: int = 3, depth: tuple[float, float] = (0.2, 0.6), p: float = 0.5):
        super().__init__(p=p)
        self.count = count
        self.depth = tuple(depth)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        width = data["image"].shape[1]
        columns = np.arange(width, dtype=np.float32)
        gain = np.ones(width, np.float32)
        for _ in range(self.py_random.randint(1, self.count)):
            centre, sigma = self.py_random.uniform(0, width), width * self.py_random.uniform(0.004, 0.015)
            gain *= 1 - self.py_random.uniform(*self.depth) * np.exp(-0.5 * ((columns - centre) / sigma) ** 2)
        return {"gain": gain}

    def apply(self, img: np.ndarray, gain: np.ndarray, **params) -> np.ndarray:
        return cv2.multiply(img, np.broadcast_to(gain, img.shape), dtype=cv2.CV_8U)


# A B-scan mirrored left to right is the fellow eye's; upside down it is no B-scan, so there is no vertical flip.
TRANSFORMS: dict[str, Callable[..., A.BasicTransform]] = {
    "flip": lambda p=0.5: A.HorizontalFlip(p=p),
    "affine": lambda p=0.8, rotate=10.0, shift=0.08, scale=(0.9, 1.15): A.Affine(
        rotate=(-rotate, rotate),
        translate_percent={"x": (-shift, shift), "y": (-shift, shift)},
        scale=tuple(scale),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    ),
    "contrast": lambda p=0.7, brightness=0.1, contrast=0.25: A.RandomBrightnessContrast(
        brightness_limit=brightness, contrast_limit=contrast, p=p
    ),
    "gamma": lambda p=0.3, low=70, high=140: A.RandomGamma(gamma_limit=(low, high), p=p),
    "clahe": lambda p=0.2, clip=4.0: A.CLAHE(clip_limit=(1.0, clip), tile_grid_size=(8, 8), p=p),
    "denoise": lambda p=0.2, sigma=1.2: A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, sigma), p=p),
    "median": lambda p=0.1, size=3: A.MedianBlur(blur_limit=(3, size), p=p),
    "speckle": lambda p=0.4, looks=(8, 31): Speckle(looks=looks, p=p),
    "shadow": lambda p=0.3, count=3, depth=(0.2, 0.6): VesselShadow(count=count, depth=depth, p=p),
    "wedge": lambda p=0.3, threshold=245: RemoveWedge(threshold=threshold, p=p),
    "erase": lambda p=0.2, size=(0.05, 0.2): A.CoarseDropout(
        num_holes_range=(1, 3), hole_height_range=tuple(size), hole_width_range=tuple(size), fill=0, p=p
    ),
}

PIPELINES: dict[str, list[str | dict]] = {
    "none": [],
    "light": ["flip", {"name": "affine", "rotate": 5.0, "shift": 0.05, "scale": [0.95, 1.05]}],
    "standard": ["wedge", "flip", "affine", "contrast", "gamma", "clahe", "denoise", "speckle", "shadow"],
    "strong": [
        "wedge",
        "flip",
        {"name": "affine", "rotate": 15.0, "shift": 0.12, "scale": [0.8, 1.3]},
        {"name": "contrast", "brightness": 0.25, "contrast": 0.4},
        {"name": "gamma", "p": 0.5, "low": 60, "high": 170},
        "clahe",
        "denoise",
        {"name": "speckle", "p": 0.5, "looks": [4, 31]},
        "shadow",
        "erase",
    ],
}


class Augmentation:
    """A pipeline that gives the same picture for the same seed, epoch and content hash.

    Args:
        steps: name of a pipeline, or a list of transform names and `{"name": …, option: …}` entries.
        seed: of the run.

    Raises:
        RecipeError: an unknown name or option.
    """

    def __init__(self, steps: str | Sequence[str | dict] = "standard", seed: int = 0):
        if isinstance(steps, str):
            if steps not in PIPELINES:
                raise RecipeError(
                    f'augment: no pipeline "{steps}"{did_you_mean(steps, PIPELINES)}; known: {", ".join(PIPELINES)}'
                )
            steps = PIPELINES[steps]
        self.seed = seed
        self._use(A.Compose([_build(step) for step in steps]))

    def __call__(self, image: np.ndarray, epoch: int, content_hash: str) -> np.ndarray:
        """uint8 `(height, width)` of a uint8 image of that shape."""
        if not self.pipeline.transforms:
            return image
        digest = hashlib.blake2b(f"{self.seed} {epoch} {content_hash}".encode(), digest_size=24).digest()
        state = {"state": int.from_bytes(digest[:16], "little"), "inc": 1}
        self._numpy.bit_generator.state = {"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0}
        self._python.seed(digest[16:])
        return self.pipeline(image=image)["image"]

    def to_dict(self) -> dict:
        """The pipeline as albumentations serialises it, with the seed; goes into the run's folder."""
        return {"seed": self.seed, "pipeline": A.to_dict(self.pipeline)}

    @classmethod
    def from_dict(cls, stored: dict) -> "Augmentation":
        """The augmentation that `to_dict` described."""
        augmentation = cls("none", stored["seed"])
        augmentation._use(A.from_dict(stored["pipeline"]))
        return augmentation

    def _use(self, pipeline: A.Compose) -> None:
        # All transforms share two generators, so that seeding them anew for each image costs microseconds.
        self.pipeline, self._numpy, self._python = pipeline, np.random.default_rng(0), random.Random(0)
        pipeline.set_random_state(self._numpy, self._python)


def _build(step: str | dict) -> A.BasicTransform:
    options = {"name": step} if isinstance(step, str) else dict(step)
    name = options.pop("name", None)
    if name not in TRANSFORMS:
        raise RecipeError(
            f'augment: no transform "{name}"{did_you_mean(str(name), TRANSFORMS)}; known: {", ".join(TRANSFORMS)}'
        )
    try:
        return TRANSFORMS[name](**options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"augment: {name} can't take {options} ({str(error).splitlines()[0]})") from None
