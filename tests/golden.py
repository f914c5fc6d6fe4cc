"""A network whose weights follow from their names, and what it answers to 30 phantoms: `python tests/golden.py` writes
golden.json anew, for a change that is meant to move the answers.

No weights are committed. Each one comes from the raw bits of numpy's Philox generator, whose stream numpy keeps for
good, keyed by the weight's name: neither torch's generators and initialisers nor numpy's distributions, which may
change from version to version, have a part in it.
"""

import hashlib
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).with_name("golden.json")
NETWORK, SIZE = "test_efficientnet", 64
SHAPES = ((96, 128), (124, 96), (100, 200))  # of B-scans, in pixels: resized in all ways
SPREAD = 30.0  # of the classifier's weights, so that answers differ from picture to picture


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 from -1 to 1, the same for a name wherever and whenever it is asked."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(math.prod(shape))
    return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def weights_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A layer's weights, of a size that keeps what passes through about as large as it was."""
    values = uniform(name, shape)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return 1 + 0.2 * values
    if len(shape) == 1:
        return 0.2 * values
    return values * math.sqrt(6 / math.prod(shape[1:]))


def golden_model(bias: list[float]):
    """The network, and pixels for it as a published model's."""
    import torch

    from oct_hf import OCTForImageClassification
    from oct_hf.data.phantom import LABELS

    model = OCTForImageClassification.from_timm(NETWORK, list(LABELS), image_size=SIZE).eval()
    with torch.no_grad():
        for name, weight in model.timm_model.state_dict().items():
            if weight.dtype.is_floating_point:
                weight.copy_(torch.from_numpy(weights_of(name, tuple(weight.shape))))
        last = model.timm_model.get_classifier()
        last.weight.mul_(SPREAD)
        last.bias.copy_(torch.tensor(bias))
    return model


def pictures() -> list[bytes]:
    """30 phantoms as PNG files."""
    from oct_hf.data.phantom import LABELS, draw

    files = []
    for number in range(30):
        height, width = SHAPES[number % 3]
        drawn = draw(LABELS[number % 4], seed=11, patient=number, scan=number % 2, height=height, width=width).image
        encoded = io.BytesIO()
        Image.fromarray(drawn).save(encoded, "PNG")
        files.append(encoded.getvalue())
    return files


def write_model(folder: Path, bias: list[float], int8: bool = True) -> Path:
    """The network as a model folder with a file for each backend; int8 is calibrated on those phantoms."""
    from oct_hf.images import Preprocessing, read_image, to_gray
    from oct_hf.inference import fast_files
    from oct_hf.inference.export import write_onnx
    from oct_hf.inference.export_gray import write_gray_onnx, write_gray_openvino
    from oct_hf.inference.quantise import quantise

    model, gray = golden_model(bias), folder / fast_files.GRAY_ONNX
    preprocessing = Preprocessing.of_timm(model.config.pretrained_cfg)
    model.save_pretrained(folder)
    preprocessing.save(folder)
    write_onnx(model, folder / fast_files.ONNX_FILE)
    write_gray_onnx(model, preprocessing, gray, folder / fast_files.ONNX_FILE)
    if int8:
        write_gray_openvino(model, preprocessing, gray, folder / fast_files.GRAY_OPENVINO)
        grays = np.stack([preprocessing.resize(to_gray(read_image(file))) for file in pictures()])
        for name in (fast_files.INT8_ONNX, fast_files.INT8_OPENVINO):
            quantise(gray, folder / name, grays)
    return folder


def answers(folder: Path, backend: str) -> np.ndarray:
    """float `(30, classes)`: what a backend answers to the files."""
    from oct_hf import Predictor

    device = {"device": "cpu"} if backend == "torch" else {}
    found = Predictor(folder, backend=backend, **device).predict(pictures())
    return np.array([list(answer.probabilities.values()) for answer in found])


def brightness() -> list[float]:
    """The mean gray level of each phantom: by it a test tells a phantom drawn otherwise from a network that moved."""
    from oct_hf.images import read_image

    return [round(float(read_image(file).mean()), 3) for file in pictures()]


def main() -> None:
    """Writes golden.json: torch's answers, with a bias that spreads them over the classes."""
    from tempfile import TemporaryDirectory

    import torch

    from oct_hf.images import Preprocessing, read_image

    model = golden_model([0.0] * 4)
    ready = Preprocessing.of_timm(model.config.pretrained_cfg)
    pixels = torch.from_numpy(np.stack([ready(read_image(file)) for file in pictures()]))
    with torch.inference_mode():
        logits = model(pixel_values=pixels).logits
    bias = [round(-float(value), 2) for value in logits.mean(0)]
    print("logits' spread over the pictures:", logits.std(0).tolist())
    with TemporaryDirectory() as folder:
        found = answers(write_model(Path(folder), bias, int8=False), "torch")
    rows = [[round(float(value), 6) for value in row] for row in found]
    content = {"bias": bias, "brightness": brightness(), "probabilities": rows}
    lines = ",\n ".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in content.items())
    FILE.write_text("{" + lines + "}\n")


def _lines(value: list) -> str:
    """JSON with a line for each row, so that a change of one answer is a change of one line."""
    if not isinstance(value[0], list):
        return json.dumps(value)
    return "[\n  " + ",\n  ".join(json.dumps(row) for row in value) + "]"


if __name__ == "__main__":
    sys.path.insert(0, str(FILE.parents[1]))
    main()
