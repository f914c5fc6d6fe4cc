"""What a repository tells of a model that answers one label a B-scan: its scores, and the pictures of its run."""

from pathlib import Path

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
)

_SCORES = {
    "accuracy": ("accuracy", "Accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "auroc": ("roc_auc", "AUROC (macro, one-vs-rest)"),
    "auprc": ("average_precision", "AUPRC (macro, one-vs-rest)"),
    "f1": ("f1", "F1 (macro)"),
    "cohen_kappa": ("cohen_kappa", "Cohen's kappa"),
    "mcc": ("matthews_correlation", "Matthews correlation coefficient"),
    "log_loss": ("log_loss", "Log loss"),
    "ece": ("ece", "Expected calibration error"),
}


def metadata_scores(run: dict) -> list[tuple[str, str, float]]:
    """What stands in the card's metadata: type as the Hub names it, name, and value on the test side."""
    results = run["results"]["test"]
    return [(kind, name, results[key]) for key, (kind, name) in _SCORES.items() if results[key] is not None]


def card_facts(run: dict) -> dict:
    """What the template gets beside what every card gets."""
    return {
        "test": run["results"]["test"],
        "validation": run["results"]["validation"],
        "spans": run["intervals"],
        "points": operating_rows(run["operating_points"]),
        "scores": score_names(),
    }


def headline(run: dict) -> str:
    """The result in a few words, such as for a commit."""
    return f"balanced accuracy {run['results']['test']['balanced_accuracy']:.3f} on the test side"


def compared(run: dict) -> list[tuple[str, float | None, dict]]:
    """What another training is compared by: name, value on the test side and its interval, or why there is none."""
    results, spans = run["results"]["test"], run["intervals"]["metrics"]
    names = ("balanced_accuracy", "accuracy", "auroc", "log_loss", "ece")
    return [(name, results[name], spans[name]) for name in names]


def example_labels(run: dict) -> list[str]:
    """Of what there should be example pictures."""
    return run["labels"]


def draw(place: Path, run: dict, predictions: Predictions) -> None:
    """Draws into the folder `place` what run.json's results and the predictions look like."""
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


def score_names() -> dict[str, str]:
    """The scores that a card shows, by their key in the results."""
    return {key: name for key, (_, name) in _SCORES.items()}


def operating_rows(found: dict) -> list[tuple[str, str, dict]]:
    """Question, target and point of each threshold that could be chosen."""
    views = {**found["diseases"], "urgent referral": found["urgent"], "any disease": found["any_disease"]}
    targets = {f"at_{kind}": f"{kind} {found['targets'][kind]:g}" for kind in ("specificity", "sensitivity")}
    return [
        (name, target, view[key]) for name, view in views.items() for key, target in targets.items() if view.get(key)
    ]


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
