"""Files in, pictures out: each B-scan beside itself with the heat of what speaks for the model's answer.

The heat is computed on the model's pixels and laid over the B-scan as it was read, so that a reader sees the anatomy.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from oct_hf.data.volumes import is_volume, read_volumes
from oct_hf.errors import BadImageError, DataError, OCTError, did_you_mean
from oct_hf.evaluation.explain import DEFAULT, METHODS, explain, overlay, require_libraries
from oct_hf.evaluation.faithfulness import probabilities
from oct_hf.images import read_image, to_gray
from oct_hf.inference.inputs import find_images
from oct_hf.inference.on_torch import quiet_transformers
from oct_hf.inference.predictor import Predictor
from oct_hf.inference.recorded import recorded
from oct_hf.model.folder import model_folder

_GAP = 8  # white pixels between the B-scan and its copy with the heat


def explain_files(
    paths: Iterable[str | Path], model: str | Path, out: Path, method: str | None = None, label: str | None = None
) -> tuple[list[dict], str, str]:
    """Writes a picture for each B-scan: the B-scan on the left, with the heat over it on the right.

    Args:
        paths: image files, device files, and folders of them.
        model: a run, a model folder or a Hub id.
        out: folder for the pictures, named by number and file (`0001_scan.png`).
        method: a name of METHODS; what the model's own measurement found best where not given.
        label: what to explain in every B-scan; the most probable label of each where not given.

    Returns:
        rows with `file`, `label`, `probability` (of that label), `method`, `picture` (path) and `error`; the method;
        and where it comes from, in words.

    Raises:
        OCTError: an unknown method or label, or the libraries are missing.
        ModelError: the model can't be loaded.
        BadImageError: a path that doesn't exist, or a folder without images.
    """
    require_libraries()
    if method is not None and method not in METHODS:
        raise OCTError(f"--method: no {method}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}")
    quiet_transformers()
    folder = model_folder(model)
    files = find_images(paths)
    predictor = Predictor(folder, backend="torch")
    if predictor.several:
        raise OCTError(f"{model}: its outputs are signs, several a B-scan, and heat maps are drawn of one label alone")
    if label is not None and label not in predictor.labels:
        near = did_you_mean(label, predictor.labels)
        raise OCTError(f"--label: the model has no {label}{near}; its labels are {', '.join(predictor.labels)}")
    chosen, why = (method, "as asked") if method else recorded_method(folder)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, bscan in tqdm(_bscans(files), desc="explaining", unit="B-scan", disable=None, leave=False):
        row = {"file": name, "label": None, "probability": None, "method": chosen, "picture": None, "error": None}
        rows.append(row)
        if isinstance(bscan, str):
            row["error"] = bscan
            continue
        pixels = predictor.read(bscan)[None]
        answer = probabilities(predictor.model, pixels)[0]
        target = int(answer.argmax()) if label is None else predictor.labels.index(label)
        heat = explain(predictor, pixels, [target], chosen)[0]
        picture = out / f"{len(rows):04d}_{Path(name).stem}.png"
        beside(to_gray(bscan), heat).save(picture)
        row |= {"label": predictor.labels[target], "probability": float(answer[target]), "picture": str(picture)}
    return rows, chosen, why


def recorded_method(folder: str | Path) -> tuple[str, str]:
    """The method that the model's run.json names (`explanations.method`), or DEFAULT; and why that, in words."""
    chosen = recorded(folder, "explanations")
    named = chosen.get("method") if isinstance(chosen, dict) else None
    if named in METHODS:
        return named, "the model's own measurement found it best"
    return DEFAULT, "the model's run measured none"


def beside(bscan: np.ndarray, heat: np.ndarray) -> Image.Image:
    """The B-scan, uint8 `(height, width)`, and to its right the same with the heat laid over it."""
    height, width = bscan.shape
    canvas = np.full((height, 2 * width + _GAP, 3), 255, np.uint8)
    canvas[:, :width] = bscan[..., None]
    canvas[:, width + _GAP :] = overlay(bscan, heat)
    return Image.fromarray(canvas)


def _bscans(files: Iterable[Path]) -> Iterator[tuple[str, np.ndarray | str]]:
    """Name and pixels of every B-scan, or why it can't be read; of a device's file `scan.e2e#0/012`."""
    for file in files:
        try:
            if is_volume(file):
                for volume in read_volumes(file):
                    for number, bscan in enumerate(volume.bscans):
                        yield f"{file}#{volume.number}/{number:03d}", bscan
            else:
                yield str(file), read_image(file)
        except BadImageError as error:
            yield str(file), error.reason
        except DataError as error:
            yield str(file), str(error).removeprefix(f"{file}: ")
