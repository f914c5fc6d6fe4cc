"""The figures of a repository: what run.json's numbers and the predictions look like.

Apart from what is told of each kind in words (`of_labels.py`, `of_signs.py`), which needs neither predictions nor
figures: a push writes cards where there is no room to write anything else.
"""

from pathlib import Path

from oct_hf.evaluation.calibration import reliability
from oct_hf.evaluation.curves import curves
from oct_hf.evaluation.operating_points import decision_curves
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.report import (
    confusion_matrix_figure,
    curves_figure,
    decision_figure,
    forest_figure,
    reliability_figure,
    risk_coverage_figure,
    training_figure,
)
from oct_hf.hub.kinds import SIGNS, kind_of


def draw_figures(folder: Path, run: dict, predictions: Predictions) -> None:
    """Draws into `folder/figures` what run.json's numbers and the predictions look like."""
    place, epochs = folder / "figures", run["training"]["history"]
    place.mkdir(exist_ok=True)
    if len(epochs) > 1:
        training_figure(epochs, run["training"]["best_epoch"], place / "training.png")
    draw = _of_signs if kind_of(run) is SIGNS else _of_labels
    draw(place, run, predictions)


def _of_labels(place: Path, run: dict, predictions: Predictions) -> None:
    test = run["results"]["test"]
    title = f"{run['name']}: {test['n']} test B-scans of {test['groups']} {run['data']['grouped_by']}s"
    confusion_matrix_figure(test["confusion_matrix"], run["labels"], place / "confusion_matrix.png", title)
    curves_figure(curves(predictions.of("test")), place / "curves.png")
    calibration = run["calibration"]
    bins = {key: calibration[key]["test"]["bins"] for key in ("before", "after") if key in calibration}
    reliability_figure(bins if len(bins) > 1 else {"this model": bins["after"]}, place / "reliability.png")
    curve = run["abstention"]["selective"]["curve"]
    risk_coverage_figure(curve["coverage"], curve["risk"], place / "risk_coverage.png")
    if run["subgroups"]:
        forest_figure(_forest_rows(run), place / "subgroups.png")
    if decisions := decision_curves(predictions):
        decision_figure(decisions, place / "decision_curves.png")


def _of_signs(place: Path, run: dict, predictions: Predictions) -> None:
    test, disease = predictions.of("test"), run["signs"]["disease"]["test"]
    signs = {name: test.of_sign(name) for name in test.names}
    title = f"{run['name']}: {disease['n']} test B-scans of {len(set(test.groups))} {run['data']['grouped_by']}s"
    true = [name for name in disease["labels"] if name in disease["recall"]]
    confusion = disease["confusion"][: len(true)]  # the others are no B-scan's disease, so their rows hold nothing
    confusion_matrix_figure(confusion, disease["labels"], place / "confusion_matrix.png", title, true)
    curves_figure({name: curves(answers)[name] for name, answers in signs.items()}, place / "curves.png")
    bins = {name: reliability(answers.probabilities, answers.indices()) for name, answers in signs.items()}
    reliability_figure(bins, place / "reliability.png", "confidence in the answer yes or no")


def _forest_rows(run: dict) -> list[dict]:
    """The test side and its subgroups as rows of `forest_figure`."""
    whole = {"value": run["results"]["test"]["balanced_accuracy"], **run["intervals"]["metrics"]["balanced_accuracy"]}
    rows = [{"name": "all", "n": run["results"]["test"]["n"], "unsure": "", **whole}]
    for part in run["subgroups"]:
        found = part["balanced_accuracy"]
        row = {"name": f"{part['by']}: {part['value']}", "n": part["n"], "unsure": part["unsure"]}
        rows.append(row | {"value": found["value"], **found["interval"]})
    return [
        {key: row.get(key) for key in ("value", "low", "high", "unsure")} | {"name": f"{row['name']} (n = {row['n']})"}
        for row in rows
    ]
