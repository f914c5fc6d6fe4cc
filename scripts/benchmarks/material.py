"""What the parts work on: B-scans as files, a small finished run, and how often a pair is measured."""

import io
import statistics
import sys
from pathlib import Path

PAIRS = 5


def bscans(folder: Path | None) -> list[bytes]:
    """JPEGs to prepare: those of a folder, or 200 phantoms of a device's size."""
    if folder is not None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg"))
        if not files:
            sys.exit(f"{folder}: no JPEG in it")
        return [file.read_bytes() for file in files]
    from PIL import Image

    from oct_hf import draw_phantom

    encoded = []
    for number in range(200):
        data = io.BytesIO()
        Image.fromarray(draw_phantom(("CNV", "DME", "DRUSEN", "NORMAL")[number % 4], patient=number).image).save(
            data, "JPEG", quality=75
        )
        encoded.append(data.getvalue())
    return encoded


def small_run(scratch: Path) -> Path:
    """A finished run of a few phantoms."""
    from oct_hf import finetune
    from oct_hf.training.recipe_file import load_recipe

    few = ["data.patients=8", "data.scans=1", "model.image_size=64", "train.epochs=1", "train.batch_size=8"]
    finetune(load_recipe("demo", few), scratch / "run")
    return scratch / "run"


def median(values) -> float:
    return round(statistics.median(values), 4)
