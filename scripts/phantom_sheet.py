"""Draws docs/phantoms.png: phantoms of each class, and the same with their lesion masks.

python scripts/phantom_sheet.py [FILE]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from oct_hf import draw_phantom

COLOURS = {
    "drusen": (253, 184, 99),
    "cnv": (227, 74, 51),
    "subretinal_fluid": (67, 162, 202),
    "cyst": (123, 204, 196),
    "exudate": (255, 255, 153),
}
LABELS = ("NORMAL", "DRUSEN", "CNV", "DME")
PATIENT = 26


def tile(label: str, with_lesions: bool) -> Image.Image:
    """One phantom, with its lesions tinted where asked for."""
    drawn = draw_phantom(label, seed=4, patient=PATIENT, scan=1, height=232, width=352)
    picture = np.stack([drawn.image] * 3, -1).astype(np.float32)
    if with_lesions:
        for kind, mask in drawn.lesions.items():
            picture[mask] = 0.45 * picture[mask] + 0.55 * np.array(COLOURS[kind])
    image = Image.fromarray(picture.astype(np.uint8))
    kinds = " + ".join(kind.replace("_", " ") for kind in drawn.lesions) or "no lesion"
    ImageDraw.Draw(image).text((8, 6), kinds if with_lesions else label, fill="white")
    return image


def main(path: Path) -> None:
    """Draws and writes the sheet."""
    rows = [[tile(label, with_lesions) for label in LABELS] for with_lesions in (False, True)]
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(LABELS) * (width + 4) - 4, 2 * (height + 4) - 4))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * (width + 4), y * (height + 4)))
    path.parent.mkdir(exist_ok=True)
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "phantoms.png")
