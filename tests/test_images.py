import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oct_hf.errors import BadImageError, ModelError
from oct_hf.images import Preprocessing, read_image, to_gray


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "CMYK", "P", "1"])
def test_every_mode_is_read_as_the_same_gray_picture(bscan, mode):
    if mode == "1":
        bscan = np.where(bscan > 127, 255, 0).astype(np.uint8)
    image = (
        Image.fromarray(bscan).convert("RGB").convert(mode) if mode == "CMYK" else Image.fromarray(bscan).convert(mode)
    )
    read = read_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert read.dtype == np.uint8 and read.shape == bscan.shape
    assert np.abs(read.astype(int) - bscan).max() <= 1


@pytest.mark.parametrize("full_scale", [255, 4095, 65535])
def test_sixteen_bits_keep_their_contrast(bscan, full_scale):
    stretched = (bscan.astype(np.float64) / bscan.max() * full_scale).round().astype(np.uint16)
    read = read_image(encoded(Image.fromarray(stretched), "PNG"))
    assert np.abs(read - bscan / bscan.max() * 255).max() <= 0.51


def test_transparent_margin_and_colour_are_what_transformers_loads(bscan):
    from transformers.image_utils import load_image

    colour = np.stack([bscan, np.roll(bscan, 5, 0), bscan], -1)
    image = Image.fromarray(np.dstack([colour, np.full_like(bscan, 90)]), "RGBA")
    assert np.array_equal(read_image(encoded(image)), np.asarray(load_image(image).convert("RGB")))
    assert to_gray(colour).shape == bscan.shape


def test_exif_rotation_is_applied(bscan):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees
    turned = read_image(encoded(Image.fromarray(bscan), "PNG", exif=exif))
    assert np.array_equal(turned, np.rot90(bscan, 3))


def broken_files(bscan) -> dict[str, tuple[bytes, str]]:
    image = Image.fromarray(bscan)
    whole = encoded(image, "JPEG")
    frames = encoded(image, "GIF", save_all=True, append_images=[Image.fromarray(255 - bscan)])
    return {
        "truncated": (whole[: len(whole) // 2], "can't be decoded"),
        "almost whole": (whole[:-200], "can't be decoded"),
        "truncated PNG": (encoded(image)[:-4000], "can't be decoded"),
        "empty": (b"", "empty"),
        "text": (b"patient 12, right eye", "not an image"),
        "animated": (frames, "2 frames"),
        "one pixel": (encoded(Image.new("L", (1, 1))), "1x1"),
        "not finite": (encoded(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF"), "not finite"),
    }


@pytest.mark.parametrize("kind", list(broken_files(np.zeros((64, 64), np.uint8))))
def test_an_unreadable_file_is_named_with_its_reason(bscan, kind):
    data, reason = broken_files(bscan)[kind]
    with pytest.raises(BadImageError, match=reason) as caught:
        read_image(data, "eye.jpeg")
    assert caught.value.file == "eye.jpeg" and "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(BadImageError, match="megapixels"):
        read_image(bomb)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_a_reason_and_nothing_else(data):
    picture = Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    whole = bytearray(encoded(picture, data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        read = read_image(bytes(whole), "eye")
        assert read.dtype == np.uint8 and min(read.shape[:2]) >= 16
    except BadImageError as error:
        assert str(error).startswith("eye: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    "strange", [1e300, 10**400, float("nan"), "0.5", None], ids=["1e300", "10^400", "nan", "text", "none"]
)
def test_a_mean_that_no_pixel_can_have_is_refused(strange):
    with pytest.raises(ModelError, match="mean is"):
        Preprocessing(32, 32, mean=(0.5, 0.5, strange))
    with pytest.raises(ModelError, match="std is"):
        Preprocessing(32, 32, std=(0.5, 1e-300, 0.5))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(BadImageError, match="No such file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_the_image_processors_to_the_last_bit(real_files, interpolation):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    preprocessing = Preprocessing(224, 160, interpolation, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    processor = ViTImageProcessorPil(**{k: v for k, v in preprocessing.to_dict().items() if not k.endswith("_type")})
    for file in real_files:
        wanted = processor(Image.open(file).convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert np.array_equal(preprocessing(read_image(file)), wanted)


def test_preprocessing_survives_its_own_file():
    preprocessing = Preprocessing(96, 128, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


@pytest.mark.parametrize("kind", ["text", "binary", "DICOM", "pdf", "broken PNG", "broken TIFF"])
def test_what_a_broken_file_says_is_not_repeated(bscan, kind):
    name = b"Mustermann^Erika 19550317"
    png = encoded(Image.fromarray(bscan))
    found = {
        "text": name,
        "binary": b"\0\xff" + name,
        "DICOM": name.ljust(128) + b"DICM" + name,
        "pdf": b"%PDF-1.7 " + name,
        "broken PNG": png[:33] + b"\0\0\0\4Must" + name + png[33:],
        "broken TIFF": b"II*\0\x08\0\0\0\xff\xff" + name * 9,
    }
    with pytest.raises(BadImageError) as refused:
        read_image(found[kind])
    said = str(refused.value)
    assert not any(part in said for part in ("Must", "Erika", "1955", name.hex()[:8])), said
    assert kind not in ("text", "DICOM", "pdf") or kind.lower() in said.lower()
