"""A finished model measured: again from its own predictions, or on labelled B-scans that it never had to do with.

What another hospital's B-scans show can be recorded: it then stands on the model's card under its own heading, with its
predictions in the repository, and `oct-hf verify` makes it again.
"""

import json
import re
from pathlib import Path

import numpy as np

from oct_hf.errors import DataError, ModelError
from oct_hf.evaluation.assessment import assess, assess_external
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.download import download
from oct_hf.inference.predictor import Predictor
from oct_hf.inference.recorded import recorded
from oct_hf.labels import label_map
from oct_hf.model.folder import model_folder
from oct_hf.runs.changed import changed
from oct_hf.runs.labelled import LabelledSet, is_public, load_data, predict_sides, public_ids
from oct_hf.runs.run import quiet_libraries
from oct_hf.runs.signs import evaluate_signs
from oct_hf.training.recipe import DataRecipe, EvaluationRecipe

PREDICTIONS = "predictions.parquet"


def evaluate_model(
    model: str | Path, data: DataRecipe | None = None, out: str | Path | None = None, record: bool = False
) -> dict:
    """Measures a model on labelled B-scans, or again from a repository's own predictions.

    Args:
        model: a run, a model folder or a Hub id.
        data: the labelled set; without it, the `predictions.parquet` of the repository is measured.
        out: a Parquet file for the predictions.
        record: write what was found on `data` into the model's folder and onto its card.

    Returns:
        `results`, the metrics as `OCTMetrics` gives them; `intervals`; `subgroups`; `calibration`; of the repository's
        own predictions `operating_points` and `abstention` too, and of other data what `external_facts` has. Of a model
        of signs what `evaluate_signs` gives.

    Raises:
        OCTError: the model or data can't be read, the data's labels are unknown to the model, or the model isn't a
            folder that results can be recorded in.
    """
    quiet_libraries()
    folder = model_folder(model)
    if recorded(folder, "signs"):
        if record:
            raise ModelError(f"{model}: what other data show of signs can't be recorded yet; leave out --record")
        return evaluate_signs(download(str(model)).folder, data, out)
    home = Predictions.read(folder / PREDICTIONS) if (folder / PREDICTIONS).exists() else None
    if data is None:
        if home is None:
            raise DataError(f"{model}: no {PREDICTIONS} in it; give --data to predict anew")
        if not len(home.of("validation").hashes):  # pooled folds: what each chose on its validation side is its own
            return assess_external(None, home.of("test"), _settings(folder))
        return _of_the_test_side(assess(home, _settings(folder)))
    if record and (home is None or not (folder / "run.json").exists()):
        raise ModelError(f"{model}: only a run or a model folder of this package here can record results")
    found, predictions = external_facts(folder, data, home)
    if out:
        predictions.write(Path(out))
    if record:
        _record(folder, found, predictions)
    return found


def external_facts(folder: Path, data: DataRecipe, home: Predictions | None) -> tuple[dict, Predictions]:
    """What B-scans of another set show of a model.

    Args:
        folder: the model's, or its Hub id.
        data: the other set.
        home: the model's own predictions, for what differs between the sets; None where it has none.

    Returns:
        the facts, as run.json has them under `external`; and the predictions, all on the side "test".

    Raises:
        DataError: a label that can't be read as one of the model's.
    """
    predictor = Predictor(folder, backend="torch")
    dataset, _ = load_data(data)
    names = dataset.features["label"].names
    mapped = label_map(names, predictor.labels)
    labels = [mapped[names[i]] for i in dataset["label"][:]]
    patients, hashes = public_ids(dataset["patient_id"][:], data), dataset["content_hash"][:]
    if not any(dataset["patient_id"][:]):
        patients = hashes  # nobody knows whose they are: each stands for itself
    sides = np.full(len(dataset), "test", dtype="<U10")
    whose = data.grouped_by if any(dataset["patient_id"][:]) else "B-scan"
    everything = LabelledSet(dataset, hashes, labels, list(predictor.labels), patients, sides, grouped_by=whose)
    predictions = predict_sides(predictor, everything)
    title = data.title or data.name
    about = {
        "title": title,
        "homepage": data.homepage,
        "license": data.license,
        "public": is_public(data),
        "grouped_by": whose,
        "label_map": mapped,
        "file": f"external/{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-') or 'other'}.parquet",
    }
    return about | assess_external(home, predictions, _settings(folder)), predictions


def _settings(folder: Path) -> dict:
    """The recipe's `evaluation`, or what it is where a model has no recipe."""
    try:
        return json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))["recipe"]["evaluation"]
    except (OSError, ValueError, KeyError, TypeError):
        return vars(EvaluationRecipe())


def _of_the_test_side(facts: dict) -> dict:
    kept = ("intervals", "subgroups", "operating_points", "abstention", "per_eye", "per_patient")
    own = {"results": facts["results"]["test"], "calibration": facts["calibration"]["after"]["test"]}
    return own | {key: facts[key] for key in kept}


def _record(folder: Path, found: dict, predictions: Predictions) -> None:
    """Into the model's folder; a second time replaces the first."""
    with changed(folder) as (partial, run):
        (partial / "external").mkdir(exist_ok=True)
        predictions.write(partial / found["file"])
        others = [one for one in run.get("external", []) if one["file"] != found["file"]]
        run["external"] = sorted([*others, found], key=lambda one: one["file"])
