"""`oct-hf export`: a trained model as a file for another runtime, checked before anyone gets it.

What is written into the model's folder is recorded in its run.json, stands on its card and travels with it; what is
written elsewhere is for the user's own use. An int8 file exists only where the held-out B-scans say that it may.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from oct_hf.errors import ModelError, OCTError, did_you_mean
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.stand_in import in_words
from oct_hf.hub.download import download
from oct_hf.hub.fast import fast_facts
from oct_hf.inference import export_torch
from oct_hf.inference.export import can_export
from oct_hf.inference.export_gray import write_gray_onnx, write_gray_openvino
from oct_hf.inference.fast_files import (
    CASCADE,
    GRAY_ONNX,
    GRAY_OPENVINO,
    INT8_ONNX,
    INT8_OPENVINO,
    ONNX_FILE,
    files_of,
)
from oct_hf.inference.predictor import Predictor
from oct_hf.model.folder import model_folder
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.runs.changed import changed
from oct_hf.runs.fast_measured import PREDICTIONS, HeldOut, make_cascade, make_int8
from oct_hf.runs.folder import read_run
from oct_hf.whole import write_json

FILES = {
    "onnx": GRAY_ONNX,
    "openvino": GRAY_OPENVINO,
    "onnx-int8": INT8_ONNX,
    "openvino-int8": INT8_OPENVINO,
    "cascade": CASCADE,
    "torch-export": export_torch.FILE,
}
MEASURED = ("onnx-int8", "openvino-int8", "cascade")  # which stay only where held-out B-scans say that they may
DESCRIPTION = ("config.json", "preprocessor_config.json")  # what a folder of fast files needs to be used


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: paths; the first is the one to give to the runtime.
        report: of an int8 file, what `compare_int8` gives.
    """

    files: tuple[Path, ...]
    report: dict | None = None


def export_model(
    model: str | Path,
    to: str,
    out: str | Path | None = None,
    data: str | Path | None = None,
    small: str | Path | None = None,
) -> Exported:
    """Writes a model for another runtime.

    Args:
        model: a run, a model folder or a Hub id.
        to: of `FILES`.
        out: a folder for the user's own use; without it the file goes into the model's folder and onto its card (of
            torch-export beside it: nothing that is executed may be published).
        data: where the model's data lie now; int8 and a cascade need them.
        small: for a cascade, the run or model folder of a small model that learned this one's answers.

    Raises:
        OCTError: an unknown kind, an extra that is missing, no `out` where the model lies on a Hub; or what the data
            say against it.
        ModelError: the network can't be exported, its answers aren't torch's, or int8 or a cascade costs more than it
            may; nothing is written then but the report.
    """
    if to not in FILES:
        raise OCTError(f"no export to {to}{did_you_mean(to, FILES)}; there are {', '.join(FILES)}")
    if (to == "cascade") != (small is not None):
        raise OCTError("a cascade needs a small model: --small RUN; no other export takes one")
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
    if to in MEASURED:
        return _export_measured(Path(model), folder, predictor, to, out, data, small)
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
    if ((to.startswith("openvino") or to == "cascade") and find_spec("openvino") is None) or (
        to in MEASURED and find_spec("nncf") is None
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


def _export_measured(
    model: Path,
    folder: Path,
    predictor: Predictor,
    to: str,
    out: str | Path | None,
    data: str | Path | None,
    small: str | Path | None,
) -> Exported:
    held_out = HeldOut(model, folder, data, predictor.preprocessing)
    with TemporaryDirectory() as scratch, _gray_onnx(folder, predictor) as source:
        scratch = Path(scratch)
        if small is not None:  # of a cascade
            of_small = Predictor(small := model_folder(small), device="cpu")
            with _gray_onnx(small, of_small) as its_source:
                made = make_cascade(source, small, its_source, of_small.preprocessing, scratch, held_out)
        else:
            made = make_int8(source, FILES[to], scratch, held_out)
        if out or read_run(model):
            report_file = (Path(out) if out else model) / f"{to.replace('-', '_')}.json"
            report_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(report_file, made.report)
        if not made.report["within_rule"]:
            raise ModelError(f"{FILES[to]} is not written: {in_words(made.report)}")
        with _place(folder, out) as place:
            (place / made.files[0]).parent.mkdir(exist_ok=True)
            for name in made.files:
                shutil.copyfile(scratch / name, place / name)
    return Exported(tuple(Path(out or folder) / name for name in made.files[:-1]), made.report)
