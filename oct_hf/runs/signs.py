"""A run that learns signs, several a picture: measured, and checked on B-scans of another set."""

import json
from pathlib import Path

import numpy as np

from oct_hf.errors import DataError, ModelError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.signs import assess_known_signs, assess_signs, calibrate_signs, sign_facts
from oct_hf.inference.predictor import Predictor
from oct_hf.labels import SIGN_OF_LABEL
from oct_hf.runs.labelled import LabelledSet, load_data, predict_sides, public_ids
from oct_hf.training.recipe import DataRecipe

PREDICTIONS = "predictions.parquet"


def measure_signs(model, predictions: Predictions, settings: dict) -> tuple[Predictions, dict]:
    """Calibrates each sign, in the weights and in the predictions, and measures.

    Args:
        model: the network; it keeps its weights where no temperature fits it.
        predictions: its answers.
        settings: the recipe's `evaluation`.

    Returns:
        the answers as they are to be published, and what `sign_facts` gives of them.
    """
    calibration = None
    if settings["calibrate"]:
        calibrated, calibration = calibrate_signs(predictions)
        try:
            model.fold_temperature([calibration[name]["temperature"] for name in predictions.names])
            predictions = calibrated
        except ValueError as error:
            calibration = {name: {"temperature": None, "why": str(error)} for name in predictions.names}
    return predictions, sign_facts(predictions, settings, calibration)


def evaluate_signs(folder: Path, data: DataRecipe | None = None, out: str | Path | None = None) -> dict:
    """Measures a model of signs again from its own predictions, or on B-scans whose labels tell of a sign.

    Args:
        folder: the model's.
        data: a set with labels of `labels.SIGN_OF_LABEL` (SRF, NoSRF); without it, the folder's own predictions.
        out: a Parquet file for the predictions on `data`.

    Returns:
        what `assess_signs` gives; or of other data `signs`, what `assess_known_signs` gives, and `grouped_by`.

    Raises:
        DataError: labels that tell of no sign.
        ModelError: the folder has no run.json of a model of signs.
    """
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        said, settings = run["signs"], run["recipe"]["evaluation"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{folder}: no run.json of a model of signs in it, so there are no thresholds") from None
    if data is None:
        return assess_signs(Predictions.read(folder / PREDICTIONS), settings)
    predictions, whose = _predicted(Predictor(folder, backend="torch"), data)
    if out:
        predictions.write(Path(out))
    return {"signs": assess_known_signs(predictions, said["thresholds"]), "grouped_by": whose}


def _predicted(predictor: Predictor, data: DataRecipe) -> tuple[Predictions, str]:
    """Answers on a labelled set, all on the side "test", with what its labels tell of signs; and what groups are."""
    dataset, _ = load_data(data)
    names = dataset.features["label"].names
    if strange := [name for name in names if name not in SIGN_OF_LABEL]:
        raise DataError(
            f"label(s) {', '.join(strange)} tell of no sign; known are {', '.join(SIGN_OF_LABEL)}: "
            "name their folders so, or choose with data.labels"
        )
    labels = [names[i] for i in dataset["label"][:]]
    truth = np.full((len(labels), len(predictor.labels)), np.nan, np.float32)
    for row, label in enumerate(labels):
        sign, there = SIGN_OF_LABEL[label]
        truth[row, predictor.labels.index(sign)] = there
    patients, hashes = public_ids(dataset["patient_id"][:], data), dataset["content_hash"][:]
    whose = data.grouped_by
    if not any(dataset["patient_id"][:]):
        patients, whose = hashes, "B-scan"  # nobody knows whose they are: each stands for itself
    sides = np.full(len(dataset), "test", dtype="<U10")
    everything = LabelledSet(
        dataset, hashes, labels, names, patients, sides, grouped_by=whose, signs=truth, sign_names=predictor.labels
    )
    return predict_sides(predictor, everything), whose
