"""Augmentations for training B-scans: albumentations pipelines, named in a recipe and stored with the run.

Stateless: the random numbers of an image come from (seed, epoch, content hash), so a resumed run, another count of
workers or another machine sees the same pictures. Images arrive already resized, antialiased, as the image processor
does it; nothing here is needed at prediction time, because native loaders couldn't repeat it.
"""

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks for updates over the network when imported

import albumentations as A
import cv2
import numpy as np

from oct_hf.data.course import retina_course
from oct_hf.data.speckle import smooth_noise, speckle
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
        _, bright = cv2.threshold(img, self.threshold - 1, 255, cv2.THRESH_BINARY)
        _, marks, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
        height, width = img.shape[:2]
        left, top, w, h, area = stats.T
        touches = (left == 0) | (top == 0) | (left + w == width) | (top + h == height)
        is_wedge = (touches & (area >= 0.002 * height * width)).astype(np.uint8)
        is_wedge[0] = 0  # the background
        if not is_wedge.any():
            return img
        # One pixel more: resizing has blurred the wedge's edge.
        mask = cv2.dilate(np.take(is_wedge, marks.astype(np.int32, copy=False)), np.ones((3, 3), np.uint8))
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


class Bend(A.DualTransform):
    """Gives the retina another course and another aspect, as another eye, device or field of view would.

    Columns move up and down by a share of what would flatten the retina, a tilt, a curve and a slow wave; height and
    width are scaled apart. What comes in from outside is mirrored, black, or white as some exports have it.

    Args:
        flatten: bounds of the share of the retina's own course that is taken away; below 0 it is exaggerated.
        tilt, curve: bounds, shares of the height between the image's sides, and from its middle to its sides.
        wave: standard deviation of the slow wave, share of the height.
        scale: bounds of the factor by which height and width each grow.
        shift: bounds, share of the side.
    """

    def __init__(
        self,
        flatten: tuple[float, float] = (-0.3, 1.0),
        tilt: float = 0.2,
        curve: float = 0.1,
        wave: float = 0.01,
        scale: tuple[float, float] = (0.75, 1.45),
        shift: float = 0.08,
        p: float = 0.8,
    ):
        super().__init__(p=p)
        self.flatten, self.scale = tuple(flatten), tuple(scale)
        self.tilt, self.curve, self.wave, self.shift = tilt, curve, wave, shift

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        image, u = data["image"], self.py_random.uniform
        height, width = image.shape[:2]
        x = np.linspace(-1, 1, width, dtype=np.float32)
        low, high = np.log(self.scale[0]), np.log(self.scale[1])
        from_x = x / np.float32(np.exp(u(low, high))) + np.float32(2 * u(-self.shift, self.shift))
        course = np.float32(u(*self.flatten)) * retina_course(image)(from_x)
        course += np.float32(u(-self.tilt, self.tilt) / 2) * x + np.float32(u(-self.curve, self.curve)) * x**2
        course += np.float32(self.wave) * smooth_noise(self.random_generator, 1, width, 6)[0]
        course += np.float32(u(-self.shift, self.shift))
        y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] / np.float32(np.exp(u(low, high)))
        rows = (0.5 + y + course) * (height - 1)
        columns = np.broadcast_to((0.5 + 0.5 * from_x) * (width - 1), rows.shape)
        outside = self.py_random.choices((None, 0, 255), (3, 3, 1))[0]
        return {"rows": rows, "columns": np.ascontiguousarray(columns), "outside": outside}

    def apply(self, img: np.ndarray, rows, columns, outside, **params) -> np.ndarray:
        mode = cv2.BORDER_REFLECT_101 if outside is None else cv2.BORDER_CONSTANT
        return cv2.remap(img, columns, rows, cv2.INTER_LINEAR, borderMode=mode, borderValue=outside or 0)

    def apply_to_mask(self, mask: np.ndarray, rows, columns, outside, **params) -> np.ndarray:
        mode = cv2.BORDER_REFLECT_101 if outside is None else cv2.BORDER_CONSTANT
        return cv2.remap(mask, columns, rows, cv2.INTER_NEAREST, borderMode=mode, borderValue=0)


class Corners(A.DualTransform):
    """Cuts off the top or the bottom, or both alike, along a slanting line, as the canvas of a turned B-scan shows it.

    Args:
        size: the most that goes on one side, share of the height.
    """

    def __init__(self, size: float = 0.2, p: float = 0.3):
        super().__init__(p=p)
        self.size = size

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        height, width = data["image"].shape[:2]
        left, right = self.py_random.choice(((1.0, -0.3), (-0.3, 1.0), (1.0, 0.6)))
        size = height * self.py_random.uniform(0.2, 1) * self.size
        top = np.array([(0, size * left), (width, size * right), (width, -1), (0, -1)])
        bottom = np.array((width, height)) - top  # the same line, turned by half a turn
        chosen = self.py_random.choice(((top,), (bottom,), (top, bottom)))
        return {"cut": [np.rint(c).astype(np.int32) for c in chosen], "level": self.py_random.choice((0, 0, 0, 255))}

    def apply(self, img: np.ndarray, cut, level, **params) -> np.ndarray:
        return cv2.fillPoly(img.copy(), cut, level)

    def apply_to_mask(self, mask: np.ndarray, cut, level, **params) -> np.ndarray:
        return cv2.fillPoly(mask.copy(), cut, 0)


class Tone(A.ImageOnlyTransform):
    """Maps gray levels along a random rising curve: another device's compression, black level and white level.

    Args:
        gamma: bounds of the exponent's natural logarithm, both ways.
        wave: standard deviation of the logarithm of the curve's slope, from eighth to eighth of the range.
        black, white: bounds of what 0 and 1 become; beyond 0 and 1 it is cut off, as an export that clips noise does.
    """

    def __init__(
        self,
        gamma: float = 0.5,
        wave: float = 0.35,
        black: tuple[float, float] = (-0.1, 0.12),
        white: tuple[float, float] = (0.75, 1.25),
        p: float = 0.8,
    ):
        super().__init__(p=p)
        self.gamma, self.wave, self.black, self.white = gamma, wave, tuple(black), tuple(white)

    def get_params(self) -> dict:
        u = self.py_random.uniform
        steps = np.exp(self.wave * self.random_generator.standard_normal(8))
        curve = np.concatenate([[0], np.cumsum(steps) / steps.sum()])
        level = np.linspace(0, 1, 256) ** np.exp(u(-self.gamma, self.gamma))
        black, white = u(*self.black), u(*self.white)
        level = black + (white - black) * np.interp(level, np.linspace(0, 1, 9), curve)
        return {"table": np.clip(np.rint(255 * level), 0, 255).astype(np.uint8)}

    def apply(self, img: np.ndarray, table: np.ndarray, **params) -> np.ndarray:
        return cv2.LUT(img, table)


class Shading(A.ImageOnlyTransform):
    """Uneven light: slowly along the width, fading to one side (a pupil's vignette) and with depth (roll-off).

    Args:
        size: standard deviation of the gain along the width.
        falloff: the most that is lost from top to bottom or from bottom to top.
    """

    def __init__(self, size: float = 0.15, falloff: float = 0.35, p: float = 0.5):
        super().__init__(p=p)
        self.size, self.falloff = size, falloff

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        height, width = data["image"].shape[:2]
        along = 1 + np.float32(self.size) * smooth_noise(self.random_generator, 1, width, 4)
        lost = self.py_random.uniform(-self.falloff, self.falloff)
        down = 1 - np.linspace(max(-lost, 0), max(lost, 0), height, dtype=np.float32)[:, None]
        return {"gain": np.clip(along, 0.3, 1.5) * down}

    def apply(self, img: np.ndarray, gain: np.ndarray, **params) -> np.ndarray:
        return cv2.multiply(img, gain, dtype=cv2.CV_8U)


class Background(A.ImageOnlyTransform):
    """Adds a noise floor, the gray grain that many devices leave in the vitreous and below the choroid.

    Args:
        level: bounds of its mean, gray levels.
        looks: bounds of the speckle's looks, 1 to 31.
    """

    def __init__(self, level: tuple[float, float] = (5, 45), looks: tuple[int, int] = (1, 12), p: float = 0.4):
        super().__init__(p=p)
        self.level, self.looks = tuple(level), tuple(looks)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        looks = self.py_random.randint(*self.looks)
        noise = speckle(self.random_generator, looks, *data["image"].shape[:2])
        return {"noise": noise * np.float32(self.py_random.uniform(*self.level))}

    def apply(self, img: np.ndarray, noise: np.ndarray, **params) -> np.ndarray:
        return cv2.add(img, noise, dtype=cv2.CV_8U)


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
    "bend": lambda p=0.8, flatten=(-0.3, 1.0), tilt=0.2, curve=0.1, wave=0.01, scale=(0.75, 1.45), shift=0.08: Bend(
        flatten=flatten, tilt=tilt, curve=curve, wave=wave, scale=scale, shift=shift, p=p
    ),
    "corners": lambda p=0.3, size=0.2: Corners(size=size, p=p),
    "tone": lambda p=0.8, gamma=0.5, wave=0.35, black=(-0.1, 0.12), white=(0.75, 1.25): Tone(
        gamma=gamma, wave=wave, black=black, white=white, p=p
    ),
    "shading": lambda p=0.5, size=0.15, falloff=0.35: Shading(size=size, falloff=falloff, p=p),
    "background": lambda p=0.4, level=(5, 45), looks=(1, 12): Background(level=level, looks=looks, p=p),
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
    # For B-scans of other devices and exports than those trained on: everything that isn't anatomy varies widely.
    "robust": [
        {"name": "wedge", "p": 0.5},
        "flip",
        "bend",
        "tone",
        {"name": "clahe", "p": 0.1},
        {"name": "denoise", "p": 0.3, "sigma": 1.5},
        "shading",
        "background",
        {"name": "speckle", "p": 0.5, "looks": [4, 31]},
        {"name": "shadow", "p": 0.4, "count": 6},
        "corners",
    ],
    # For phantoms, whose noise, layers and devices vary as it is.
    "drawn": [
        "flip",
        {"name": "bend", "p": 0.7},
        {"name": "tone", "p": 0.7},
        {"name": "denoise", "p": 0.2, "sigma": 1.5},
        {"name": "shading", "p": 0.3},
        {"name": "shadow", "p": 0.3, "count": 6},
        {"name": "corners", "p": 0.2},
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
        return self._run(epoch, content_hash, image=image)["image"]

    def with_mask(self, image: np.ndarray, mask: np.ndarray, epoch: int, content_hash: str) -> tuple:
        """The same picture, and a mask (uint8, that shape) that was moved along with it."""
        done = self._run(epoch, content_hash, image=image, mask=mask)
        return done["image"], done["mask"]

    def _run(self, epoch: int, content_hash: str, **pictures: Any) -> dict:
        if not self.pipeline.transforms:
            return pictures
        digest = hashlib.blake2b(f"{self.seed} {epoch} {content_hash}".encode(), digest_size=24).digest()
        state = {"state": int.from_bytes(digest[:16], "little"), "inc": 1}
        self._numpy.bit_generator.state = {"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0}
        self._python.seed(digest[16:])
        return self.pipeline(**pictures)

    def to_dict(self) -> dict:
        """The pipeline as albumentations serialises it, with the seed; goes into the run's folder."""
        return {"seed": self.seed, "pipeline": A.to_dict(self.pipeline)}

    @classmethod
    def from_dict(cls, stored: dict) -> "Augmentation":
        """The augmentation that `to_dict` described."""
        augmentation = cls("none", stored["seed"])
        pipeline = A.from_dict(stored["pipeline"])
        assert isinstance(pipeline, A.Compose)
        augmentation._use(pipeline)
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
