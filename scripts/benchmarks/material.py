"""What the parts work on: B-scans as files, a small finished run, and how often a pair is measured."""

import io
import os
import statistics
import subprocess
import sys
from pathlib import Path

PAIRS = 5
# Of processes that are measured: this one's own may change while the package works (how threads wait, for one), and
# whoever is compared with it must not inherit that.
ENVIRONMENT = dict(os.environ)
# Of a process that a benchmark starts: `most` is the most private memory so far, in MB.
WATCH = """
import threading, time

def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

def watch():
    global most
    while True:
        most = max(most, private())
        time.sleep(0.02)

most = private()
threading.Thread(target=watch, daemon=True).start()
"""
B0 = """
import sys
from pathlib import Path
import torch
from oct_hf import OCTForImageClassification, Preprocessing
from oct_hf.inference.export import write_onnx
from oct_hf.inference.export_gray import write_gray_onnx, write_gray_openvino
from oct_hf.inference.fast_files import GRAY_ONNX, GRAY_OPENVINO, ONNX_FILE
folder = Path(sys.argv[1])
torch.manual_seed(0)
labels = ["CNV", "DME", "DRUSEN", "NORMAL"]
model = OCTForImageClassification.from_timm("tf_efficientnetv2_b0", labels, image_size=224).eval()
model.save_pretrained(folder)
preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
preprocessing.save(folder)
write_onnx(model, folder / ONNX_FILE)
write_gray_onnx(model, preprocessing, folder / GRAY_ONNX, folder / ONNX_FILE)
write_gray_openvino(model, preprocessing, folder / GRAY_ONNX, folder / GRAY_OPENVINO)
"""


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


def model_of(given: Path | None, scratch: Path) -> Path:
    """The model folder that was given, or EfficientNetV2-B0 at 224 pixels with random weights and its fast files."""
    if given is not None:
        return given / "model" if (given / "model").is_dir() else given
    folder = scratch / "b0"
    if not folder.exists():
        subprocess.run([sys.executable, "-c", B0, folder], check=True, capture_output=True)
    return folder


def has(model: Path, name: str) -> bool:
    """Whether a backend can run a model here; if not, why is printed."""
    from oct_hf.errors import OCTError
    from oct_hf.inference.backends import open_network
    from oct_hf.inference.description import load_description

    try:
        open_network(load_description(model), name)
    except OCTError as error:
        print(f"  without {name}: {error}")
        return False
    return True


def median(values) -> float:
    return round(statistics.median(values), 4)
