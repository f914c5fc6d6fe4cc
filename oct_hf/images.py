"""From the bytes of a file to the model's pixels, with numpy and pillow alone.

Training, evaluation, prediction and serving all come through here, so they see the same pixels. The arithmetic is that
of transformers' image processor on its pillow backend, to the last bit, without importing transformers.
"""

import io
import json
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from oct_hf.errors import BadImageError, ModelError

# Pillow warns of odd metadata and large pictures. What matters is checked here, and images are read on threads, where
# catching warnings isn't safe.
warnings.filterwarnings("ignore", module=r"PIL\.")

EXTENSIONS = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")
MIN_SIDE = 16  # pixels; below this nothing of a retina is left
ORIENTATION = 0x0112  # EXIF's tag; from 5 on the picture lies on its side
_FULL_SCALES = (255.0, 4095.0, 65535.0)
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # what a float32 can hold
MOST_INPUT = 2048 * 2048  # pixels of a model's input; B-scans have fewer, and a batch of these is 800 MB
# Where which bytes tell it, and what it then is.
_OTHER_KINDS = (
    (128, b"DICM", "DICOM: its name must end in .dcm"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a zip"),
    (0, b"\x1f\x8b", "gzip"),
)
MAX_PIXELS = 100_000_000  # a B-scan has under 3 million; more is a mistake or a decompression bomb


def read_image(source: bytes | str | Path, name: str | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes one B-scan whole, so that a truncated or corrupt file is found here and not later.

    16-bit gray is scaled to 8 bits by the smallest full scale that holds its values (255, 4095 or 65535: devices store
    8 or 12 bits in 16-bit files); floating point by its largest value. Transparency is dropped and EXIF rotation
    applied, as transformers' own loader does.

    Args:
        source: the encoded file, or its path.
        name: what to call it in an error.
        max_pixels: refused above it; decoding takes up to 15 bytes of memory a pixel.

    Returns:
        uint8, `(height, width)` where the picture is gray, `(height, width, 3)` where it is truly coloured.

    Raises:
        BadImageError: it can't be read, holds several frames, has a side under 16 pixels, or too many pixels.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "image")
    if not isinstance(source, bytes):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise BadImageError(name, f"can't be opened ({error.strerror or error})") from None
    if not source:
        raise BadImageError(name, "is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(source)) as image:
            _check_shape(image, name, max_pixels)
            return _gray_where_gray(_eight_bits(ImageOps.exif_transpose(image)))
    except Image.UnidentifiedImageError:
        raise BadImageError(name, f"is not an image ({_other_kind(source)})") from None
    except Image.DecompressionBombError:
        raise BadImageError(name, f"has more than {max_pixels // 10**6} megapixels") from None
    except BadImageError:
        raise
    except Exception as error:  # pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise BadImageError(name, f"can't be decoded ({_without_quotes(error)})") from None


def _other_kind(source: bytes) -> str:
    """What a file is that is no image. Its bytes aren't shown: they may be somebody's name."""
    for at, magic, kind in _OTHER_KINDS:
        if source.startswith(magic, at):
            return f"it is {kind}"
    head = source[:64]
    return "it is text" if head.isascii() and b"\0" not in head else "it begins as none does that is read"


def _without_quotes(error: Exception) -> str:
    """A decoder's words without what they quote of the file, for the same reason."""
    return re.sub(r"b?(['\"]).*?\1", "…", " ".join(str(error).split()))


def picture_size(source: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the file's header, turned as EXIF says; of a file that `read_image` can read."""
    with Image.open(io.BytesIO(source)) as image:
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def _check_shape(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError(name, f"has {width}x{height} pixels, more than {max_pixels // 10**6} megapixels")
    if min(width, height) < MIN_SIDE:
        raise BadImageError(name, f"has {width}x{height} pixels; a B-scan needs at least {MIN_SIDE}x{MIN_SIDE}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadImageError(name, f"holds {frames} frames; save each B-scan as a file of its own")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        image.load()
        return image
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode[0] in "IF":
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
        largest = values.max()
        full_scale = largest or 1.0 if image.mode == "F" else next((t for t in _FULL_SCALES if largest <= t), largest)
        return Image.fromarray(np.clip(np.rint(values * (255.0 / full_scale)), 0, 255).astype(np.uint8))
    return image.convert("L" if image.mode == "1" else "RGB")


def _gray_where_gray(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        first = pixels[..., 0]
        if np.array_equal(first, pixels[..., 1]) and np.array_equal(first, pixels[..., 2]):
            return np.ascontiguousarray(first)
    return pixels


def to_gray(image: np.ndarray) -> np.ndarray:
    """Gray `(height, width)` uint8 of a gray or coloured image (ITU-R 601 luma, as pillow has it)."""
    return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))


@dataclass(frozen=True)
class Preprocessing:
    """What turns a decoded image into a model's input: resize to the whole input (squash), scale to 0..1, normalise.

    Attributes:
        height, width: input size in pixels.
        interpolation: "bicubic" or "bilinear" (antialiased).
        mean, std: per channel, of the values scaled to 0..1.
        before_crop: of models of other software, of which only the centre is seen: what the shorter side (a number) or
            height and width (a pair) are resized to, before the centre is cut out.
    """

    height: int = 224
    width: int = 224
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    before_crop: int | tuple[int, int] | None = None

    def __post_init__(self):
        """Raises ModelError of numbers that no model's input has: they may come from a stranger's file."""
        sides = (self.height, self.width)
        if not all(isinstance(side, int) and side > 0 for side in sides) or self.height * self.width > MOST_INPUT:
            raise ModelError(f"an input of {self.height!r:.20}x{self.width!r:.20} pixels can't be")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(isinstance(v, int | float) and abs(v) <= _MOST for v in values):
                raise ModelError(f"its preprocessing can't be followed here: {name} is {values!r:.80}")
        if min(self.std) < _LEAST:
            raise ModelError(f"its preprocessing can't be followed here: std is {self.std!r:.80}")

    @classmethod
    def from_pretrained_cfg(cls, cfg: dict) -> "Preprocessing":
        """Reads timm's `pretrained_cfg` (`input_size`, `interpolation`, `mean`, `std`)."""
        _, height, width = cfg["input_size"]
        kind = cfg.get("interpolation", "bicubic")
        return cls(
            height, width, kind if kind in _RESAMPLE else "bicubic", tuple(cfg["mean"][:3]), tuple(cfg["std"][:3])
        )

    @classmethod
    def of_timm(cls, cfg: dict) -> "Preprocessing":
        """What timm itself does before a model with this `pretrained_cfg`: mostly a centre crop, not a squash.

        Raises:
            ModelError: it asks for a step that this package doesn't do.
        """
        try:
            plain, share = cls.from_pretrained_cfg(cfg), cfg.get("crop_pct") or 0.875  # timm's own defaults
            if not 0.1 <= share <= 10:
                raise ModelError(f"its preprocessing can't be followed here: crop_pct is {share!r:.20}")
            mode, scaled = cfg.get("crop_mode") or "center", (int(plain.height / share), int(plain.width / share))
            followed = mode == "squash" or (mode == "center" and plain.height == plain.width)
            if not followed or cfg.get("interpolation", "bicubic") not in _RESAMPLE:
                raise ModelError(f"its preprocessing can't be followed here: {mode} crop, {cfg.get('interpolation')}")
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"its preprocessing can't be followed here: {error!r} in config.json") from None
        if mode == "center":
            return replace(plain, before_crop=scaled[0])
        return replace(plain, before_crop=None if scaled == (plain.height, plain.width) else scaled)

    @classmethod
    def from_dict(cls, config: dict) -> "Preprocessing":
        """Reads a `preprocessor_config.json`.

        Raises:
            ModelError: it asks for a step that this package doesn't do.
        """
        try:
            kind = {int(number): name for name, number in _RESAMPLE.items()}[config.get("resample", 2)]
            size, mean, std = config["size"], config["image_mean"], config["image_std"]
            return cls(size["height"], size["width"], kind, tuple(mean[:3]), tuple(std[:3]))
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"its preprocessing can't be followed here: {error!r} in preprocessor_config.json"
            ) from None

    def to_dict(self) -> dict:
        """`preprocessor_config.json` as transformers' readers from 4.51 on understand it."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "feature_extractor_type": "ViTFeatureExtractor",  # what 4.51 looks for
            "do_resize": True,
            "size": {"height": self.height, "width": self.width},
            "resample": int(_RESAMPLE[self.interpolation]),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }

    def save(self, folder: Path) -> None:
        """Writes `preprocessor_config.json` into a model's folder."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")

    def resize(self, image: np.ndarray, gap: float | None = None) -> np.ndarray:
        """uint8 `(height, width[, 3])`, antialiased, of an image of any size.

        Args:
            image: uint8 `(any height, any width[, 3])`.
            gap: pillow's `reducing_gap`, for speed: large images are first halved, or more. Pixels then differ a little
                from the image processor's.
        """
        if self.before_crop is not None:
            return self._centre(image)
        if image.shape[:2] == (self.height, self.width):
            return image
        size, how = (self.width, self.height), _RESAMPLE[self.interpolation]
        resized = Image.fromarray(image).resize(size, how, reducing_gap=gap)
        return np.asarray(resized)

    def _centre(self, image: np.ndarray) -> np.ndarray:
        """As timm's and torchvision's Resize and CenterCrop on pillow, to the last bit."""
        height, width = image.shape[:2]
        size = self.before_crop or (self.height, self.width)
        if isinstance(size, int):
            wide, shorter = height <= width, min(height, width)
            longer = int(size * max(height, width) / shorter)
            size = (size, longer) if wide else (longer, size)
        if size != (height, width):
            image = np.asarray(Image.fromarray(image).resize((size[1], size[0]), _RESAMPLE[self.interpolation]))
        top, left = (round((have - want) / 2) for have, want in zip(size, (self.height, self.width), strict=True))
        return image[top : top + self.height, left : left + self.width]

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """float32 `(3, height, width)` of a uint8 image of the input size; gray is repeated on three channels."""
        table = self.table()
        if image.ndim == 2:
            return np.stack([table[c][image] for c in range(3)])
        return np.stack([table[c][image[..., c]] for c in range(3)])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The model's input, float32 `(3, height, width)`, of a decoded uint8 image of any size."""
        return self.normalise(self.resize(image))

    def table(self) -> np.ndarray:
        """float32 `(3, 256)`: what each gray level becomes in each channel."""
        # The processor scales in float64, rounds to float32, then normalises in float32. 256 values say it all.
        scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return ((scaled[:, None] - mean) / std).T


_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
