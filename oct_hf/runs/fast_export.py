"""`oct-hf export`: a trained model as a file for another runtime, checked before anyone gets it.

What is written into the model's folder is recorded in its run.json, stands on its card and travels with it; what is
written elsewhere is for the user's own use. An int8 file exists only where the held-out B-scans say that it may.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm import tqdm

from oct_hf.data.encoded import Encoded
from oct_hf.errors import DataError, ModelError, OCTError, did_you_mean
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.quantised import compare_int8, in_words
from oct_hf.hub.download import download
from oct_hf.hub.fast import answers_of, fast_facts
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.inference import export_torch
from oct_hf.inference.export import can_export
from oct_hf.inference.export_gray import write_gray_onnx, write_gray_openvino
from oct_hf.inference.fast_files import (
    GRAY_ONNX,
    GRAY_OPENVINO,
    INT8_ONNX,
    INT8_OPENVINO,
    ONNX_FILE,
    files_of,
    load_fast,
)
from oct_hf.inference.predictor import Predictor
from oct_hf.model.folder import model_folder
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.parallel import in_order
from oct_hf.runs.again import drawn_data, labelled
from oct_hf.runs.changed import changed
from oct_hf.runs.folder import read_run, write_json
from oct_hf.runs.labelled import LabelledSet

FILES = {
    "onnx": GRAY_ONNX,
    "openvino": GRAY_OPENVINO,
    "onnx-int8": INT8_ONNX,
    "openvino-int8": INT8_OPENVINO,
    "torch-export": export_torch.FILE,
}
DESCRIPTION = ("config.json", "preprocessor_config.json")  # what a folder of fast files needs to be used
PREDICTIONS = "predictions.parquet"
BATCH = 16  # images a forward pass


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: paths; the first is the one to give to the runtime.
        report: of an int8 file, what `compare_int8` gives.
    """

    files: tuple[Path, ...]
    report: dict | None = None


def export_model(model: str | Path, to: str, out: str | Path | None = None, data: str | Path | None = None) -> Exported:
    """Writes a model for another runtime.

    Args:
        model: a run, a model folder or a Hub id.
        to: of `FILES`.
        out: a folder for the user's own use; without it the file goes into the model's folder and onto its card (of
            torch-export beside it: nothing that is executed may be published).
        data: where the model's data lie now; int8 needs them.

    Raises:
        OCTError: an unknown kind, an extra that is missing, no `out` where the model lies on a Hub; or what the data
            say against it.
        ModelError: the network can't be exported, its answers aren't torch's, or int8 costs more than it may; nothing
            is written then but the report.
    """
    if to not in FILES:
        raise OCTError(f"no export to {to}{did_you_mean(to, FILES)}; there are {', '.join(FILES)}")
    _check_installed(to)
    local = model_folder(model).is_dir()
    if out is None and not local:
        raise OCTError(f"{model} isn't a folder here: say with --out where the file shall go")
    folder = model_folder(model) if local else download(str(model)).folder
    predictor = Predictor(folder, device="cpu")
    if not isinstance(predictor.model, OCTForImageClassification):
        raise ModelError(f"{model}: no model of oct-hf")
    predictor.model.to(memory_format=torch.contiguous_format)  # as it was saved
    if to == "torch-export":
        if out is None and model_folder(model) == Path(model):
            raise OCTError(f"{model} is what will be published, and torch's archive may not be: give --out")
        path = Path(out or model) / export_torch.FILE
        export_torch.write_torch_export(predictor.model, predictor.preprocessing, path)
        return Exported((path,))
    if to in ("onnx-int8", "openvino-int8"):
        return _export_int8(Path(model), folder, predictor, FILES[to], out, data)
    with _place(folder, out) as place:
        path = place / FILES[to]
        if to == "onnx":
            _write_onnx(folder, predictor, path)
        else:
            with _gray_onnx(folder, predictor) as source:
                write_gray_openvino(predictor.model, predictor.preprocessing, source, path)
    return Exported(tuple(Path(out or folder) / name for name in files_of(FILES[to])))


def _check_installed(to: str) -> None:
    if to != "torch-export" and not can_export():
        raise OCTError('exporting needs onnx, onnxscript and ONNX Runtime: pip install "oct-hf[onnx]"')
    if (to.startswith("openvino") and find_spec("openvino") is None) or (
        to.endswith("int8") and find_spec("nncf") is None
    ):
        raise OCTError(f'{to} needs OpenVINO and NNCF: pip install "oct-hf[openvino]"')


@contextmanager
def _place(folder: Path, out: str | Path | None) -> Iterator[Path]:
    """Where to write: a folder of the user's; or a copy of the model's, which then takes its place, its card anew."""
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        for name in DESCRIPTION:
            shutil.copyfile(folder / name, Path(out) / name)
        yield Path(out)
        return
    if not (folder / "run.json").is_file() or not (folder / PREDICTIONS).is_file():
        raise ModelError(f"{folder}: no run.json and {PREDICTIONS} in it, so nothing can be recorded there; give --out")
    with changed(folder) as (partial, run):
        yield partial
        run["fast"] = fast_facts(partial, Predictions.read(partial / PREDICTIONS))


def _write_onnx(folder: Path, predictor: Predictor, path: Path) -> None:
    source = folder / ONNX_FILE
    write_gray_onnx(predictor.model, predictor.preprocessing, path, source if source.is_file() else None)


@contextmanager
def _gray_onnx(folder: Path, predictor: Predictor) -> Iterator[Path]:
    """The fast ONNX file, which the others are made of."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "gray.onnx"
        _write_onnx(folder, predictor, path)
        yield path


def _export_int8(
    model: Path, folder: Path, predictor: Predictor, name: str, out: str | Path | None, data: str | Path | None
) -> Exported:
    from oct_hf.inference.quantise import CALIBRATION_IMAGES, quantise

    if not (folder / PREDICTIONS).is_file():
        raise DataError(f"{model}: no {PREDICTIONS} in it, so what int8 costs can't be measured")
    own = Predictions.read(folder / PREDICTIONS)
    found = labelled(folder, _data_at(model, folder, data), None)
    training, held_out = _training(found, model, CALIBRATION_IMAGES), _held_out(found, own, model)
    report_file = (Path(out) if out else model) / f"{Path(name).parent}_int8.json"
    with TemporaryDirectory() as scratch, _gray_onnx(folder, predictor) as source:
        path = Path(scratch) / name
        quantise(source, path, np.stack([*_grays(found, training, predictor.preprocessing, "calibrating")]))
        int8 = own.with_probabilities(_answers(path, _grays(found, held_out, predictor.preprocessing, "measuring")))
        sizes = {"bytes": sum((Path(scratch) / part).stat().st_size for part in files_of(name))}
        report = {"file": name, **sizes, **compare_int8(own, int8), "calibrated_on": len(training)}
        if out or read_run(model):
            report_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(report_file, report)
        if not report["within_rule"]:
            raise ModelError(f"{name} is not written: {in_words(report)}")
        with _place(folder, out) as place:
            (place / name).parent.mkdir(exist_ok=True)
            for part in files_of(name):
                shutil.copyfile(Path(scratch) / part, place / part)
            int8.write(place / answers_of(name))
    return Exported(tuple(Path(out or folder) / part for part in files_of(name)), report)


def _data_at(model: Path, folder: Path, data: str | Path | None) -> str | None:
    """Where the model's data lie: as given, else where its run found them; None for phantoms, which are drawn."""
    if data is not None or drawn_data(download(str(folder))):
        return None if data is None else str(data)
    known = read_run(model) or read_run(folder.resolve().parent)
    path = known["recipe_given"]["data"]["path"] if known else None
    if path is None or not Path(path).exists():
        where = f"{path} is gone" if path else "it doesn't say where they lie"
        raise DataError(f"{model}: int8 is calibrated and measured on the model's data, and {where}; give --data PATH")
    return path


def _training(found: LabelledSet, model: Path, count: int) -> list[int]:
    """Rows of the training side, at most so many, drawn at random."""
    rows = np.flatnonzero(found.sides == "train")
    if not len(rows):
        raise DataError(f"{model}: the data hold no B-scan of its training side, and int8 is calibrated on these")
    return np.sort(np.random.default_rng(0).permutation(rows)[:count]).tolist()


def _held_out(found: LabelledSet, own: Predictions, model: Path) -> list[int]:
    """The rows of the B-scans that were predicted, in the order of the predictions."""
    row = {value: number for number, value in enumerate(found.hashes)}
    missing = sum(value not in row for value in own.hashes)
    if missing:
        raise DataError(f"{missing} of the {len(own.hashes)} held-out B-scans of {model} are not in the data given")
    return [row[value] for value in own.hashes]


def _grays(found: LabelledSet, rows: Sequence[int], preprocessing: Preprocessing, doing: str) -> Iterator[np.ndarray]:
    """uint8 `(height, width)` of the model's size, one by one; coloured pictures as gray."""
    encoded = Encoded(found.dataset)
    work = in_order(lambda row: preprocessing.resize(to_gray(read_image(encoded[row]))), rows)
    for _, gray in tqdm(work, doing, len(rows), unit="image", disable=None, leave=False):
        yield gray


def _answers(path: Path, grays: Iterator[np.ndarray]) -> np.ndarray:
    """float32 `(n, labels)` of a fast file; only a batch of pictures is in memory."""
    run, found = load_fast(path), []
    while batch := list(islice(grays, BATCH)):
        found.append(run(np.stack(batch)))
    return np.concatenate(found)
