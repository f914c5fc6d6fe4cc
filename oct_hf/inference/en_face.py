"""Which B-scans of a volume drove its answer, marked on the fundus: a picture for a person to look at.

Lines have the colour of the probability of the eye's label, from dark blue (0) over green to yellow (1): viridis, which
colour-blind eyes tell apart too. Nothing on the picture names a patient or a file.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from oct_hf.inference.eyes import EyeAnswer

WIDTH = 640  # pixels of the fundus on the picture
_VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
_MARGIN, _HEAD, _FOOT = 24, 64, 64


def colour(probability: float) -> tuple[int, int, int]:
    """RGB of a probability from 0 to 1."""
    place = np.linspace(0, 1, len(_VIRIDIS))
    red, green, blue = (round(float(np.interp(probability, place, channel))) for channel in _VIRIDIS.T)
    return red, green, blue


def mark(answer: EyeAnswer) -> Image.Image:
    """The device's picture of the fundus with a line for each B-scan; the driving ones are wide and numbered from 0.

    Where the file has no such picture, or doesn't say where the B-scans lie in it, a projection of the B-scans stands
    in: one row of it is the mean of one B-scan over its depth, the first on top.
    """
    volume, count = answer.volume, len(answer.bscans)
    purpose = "For research, not for diagnosis."
    if volume.en_face is not None and volume.positions is not None and len(volume.positions) == count:
        ground = Image.fromarray(volume.en_face)
        scale = WIDTH / ground.width
        ground = ground.resize((WIDTH, max(1, round(ground.height * scale))), Image.Resampling.BICUBIC)
        lines = np.asarray(volume.positions, float) * scale
    else:
        ground = Image.fromarray(projection(volume.bscans)).resize((WIDTH, WIDTH), Image.Resampling.BILINEAR)
        heights = (np.arange(count) + 0.5) * WIDTH / count
        lines = np.stack([np.zeros(count), heights, np.full(count, WIDTH - 1), heights], 1)
        purpose += " A projection of the B-scans, the first on top: the file says no places on a fundus picture."
    fundus = ground.convert("RGB")  # lines are drawn on it, and end at its edges
    pen = ImageDraw.Draw(fundus)
    label = answer.labels.index(answer.predicted)
    width = max(1, min(4, round(0.35 * ground.height / count)))
    order = [n for n in range(count) if n not in answer.driving] + list(answer.driving[::-1])
    for number in order:
        x0, y0, x1, y1 = lines[number]
        drives = number in answer.driving
        tone = colour(float(answer.bscans[number, label]))
        if drives:
            pen.line((x0, y0, x1, y1), "white", 2 * width + 4)
        pen.line((x0, y0, x1, y1), tone, 2 * width + 1 if drives else width)
    picture = Image.new("RGB", (WIDTH + 2 * _MARGIN, ground.height + _HEAD + _FOOT), "white")
    picture.paste(fundus, (_MARGIN, _HEAD))
    pen = ImageDraw.Draw(picture)
    taken: list[float] = []
    for number in answer.driving:  # the most telling first: it gets its place
        x1, y1 = lines[number][2] + _MARGIN, float(np.clip(lines[number][3], 0, ground.height)) + _HEAD
        if all(abs(y1 - other) > 16 for other in taken):
            taken.append(y1)
            _tag(pen, (min(x1, WIDTH + _MARGIN) - 4, y1), str(number))
    eye = {"OD": "right eye (OD)", "OS": "left eye (OS)"}.get(volume.laterality, "eye unknown")
    sure = f"{answer.predicted} {answer.probabilities[label]:.2f}"
    pen.text((_MARGIN, 12), f"{sure}, {eye}, {count} B-scans joined by {answer.rule}", "black", _font(18))
    pen.text((_MARGIN, 38), f"numbered: the B-scans that show {answer.predicted} most", "black", _font(13))
    _bar(pen, ground.height + _HEAD + 12, answer.predicted)
    pen.text((_MARGIN, ground.height + _HEAD + 34), purpose, "black", _font(13))
    return picture


def projection(bscans: np.ndarray) -> np.ndarray:
    """uint8 `(n, width)` of uint8 `(n, height, width)`: the mean over the depth, stretched to the whole scale."""
    mean = bscans.mean(1, dtype=np.float32)
    low, high = np.percentile(mean, (1, 99))
    return np.clip((mean - low) * 255 / max(high - low, 1), 0, 255).astype(np.uint8)


def _tag(pen: ImageDraw.ImageDraw, right: tuple[float, float], text: str) -> None:
    font = _font(14)
    pen.rectangle(pen.textbbox(right, f" {text} ", font, anchor="rm"), "white", "black")
    pen.text(right, f" {text} ", "black", font, anchor="rm")


def _bar(pen: ImageDraw.ImageDraw, top: int, label: str) -> None:
    """The colours' meaning."""
    for x in range(200):
        pen.line((_MARGIN + 24 + x, top, _MARGIN + 24 + x, top + 12), colour(x / 199))
    pen.text((_MARGIN + 18, top - 1), "0", "black", _font(13), anchor="ra")
    pen.text((_MARGIN + 230, top - 1), f"1  probability of {label} in the B-scan", "black", _font(13))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
