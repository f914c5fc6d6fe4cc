import io
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from oct_hf.data.deidentify import without_metadata
from oct_hf.errors import BadImageError
from oct_hf.images import read_image

NAME = "Erika Mustermann"


def jpeg(pixels: np.ndarray, **options) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=90, **options)
    return encoded.getvalue()


def exif(orientation: int = 1) -> Image.Exif:
    found = Image.Exif()
    found[0x010E], found[0x013B], found[0x0112] = NAME, NAME, orientation  # description, artist, orientation
    return found


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def crowded(data: bytes) -> bytes:
    """A JPEG with the name everywhere that readers skip."""
    text = NAME.encode()
    extra = segment(0xFE, text) + segment(0xED, b"Photoshop 3.0\0" + text) + segment(0xE2, b"ICC_PROFILE\0" + text)
    jfif = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\2\1" + text[:6])  # a thumbnail of 2 x 1 pixels
    rest = data[2 + 2 + int.from_bytes(data[4:6]) :]
    return data[:2] + jfif + b"\xff\xff" + extra[1:] + rest[:-2] + segment(0xFE, text) + rest[-2:] + text


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("coloured", [False, True])
def test_a_jpeg_keeps_its_compressed_pixels_and_nothing_else(bscan, progressive, coloured):
    pixels = np.dstack([bscan, bscan // 2, 255 - bscan]) if coloured else bscan
    clean = jpeg(pixels, progressive=progressive)
    full = crowded(jpeg(pixels, progressive=progressive, exif=exif(), comment=NAME))
    assert full.count(NAME.encode()) >= 6 and b"Erika" in full
    bare = without_metadata(full)
    assert b"Erika" not in bare and b"Exif" not in bare and b"ICC" not in bare and b"Photoshop" not in bare
    assert bare == clean  # what an encoder writes that knows no metadata, to the byte


def test_a_cmyk_jpeg_keeps_what_says_how_its_colours_are_coded(bscan):
    encoded = io.BytesIO()
    Image.fromarray(np.dstack([bscan] * 4), "CMYK").save(encoded, "JPEG", comment=NAME)
    bare = without_metadata(encoded.getvalue())
    assert bare[:2] == b"\xff\xd8" and NAME.encode() not in bare
    assert np.array_equal(read_image(bare), read_image(encoded.getvalue()))


def test_a_rotation_in_the_metadata_is_carried_out(bscan):
    full = jpeg(bscan, exif=exif(orientation=6))
    bare = without_metadata(full)
    assert Image.open(io.BytesIO(bare)).format == "PNG" and b"Erika" not in bare
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bare))), read_image(full))
    assert read_image(full).shape == bscan.shape[::-1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_every_other_kind_becomes_a_png_of_the_same_pixels(bscan, kind):
    options = {"exif": exif()} if kind in ("PNG", "TIFF", "WEBP") else {}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Patient", NAME)
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", NAME)
    if kind == "TIFF":
        options["tiffinfo"] = TiffImagePlugin.ImageFileDirectory_v2()
        options["tiffinfo"][270] = NAME
    encoded = io.BytesIO()
    Image.fromarray(bscan).save(encoded, kind, lossless=True, comment=NAME, **options)
    full = encoded.getvalue() + NAME.encode()
    bare = without_metadata(full)
    chunks, at = [], 8
    while at < len(bare):
        chunks.append(bare[at + 4 : at + 8])
        at += 12 + int.from_bytes(bare[at : at + 4])
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"} and at == len(bare)
    assert np.array_equal(read_image(bare), read_image(full))


def test_real_jpegs_keep_their_pixels_and_stay_jpegs(real_files):
    for path in real_files:
        data = path.read_bytes()
        bare = without_metadata(crowded(data) if data[2:4] == b"\xff\xe0" else data)
        assert bare[:2] == b"\xff\xd8" and len(bare) <= len(data) and b"Erika" not in bare
        assert np.array_equal(read_image(bare), read_image(data))


def test_a_broken_file_is_refused_and_never_passed_on(bscan):
    full = jpeg(bscan, comment=NAME)
    for end in (0, 3, 30, len(full) // 2):
        with pytest.raises(BadImageError):
            without_metadata(full[:end])
