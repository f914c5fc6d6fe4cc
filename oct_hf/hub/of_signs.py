"""What a repository tells of a model that answers signs, several a B-scan: the functions of `of_labels.py`, for these.

Each sign is told of as the yes-or-no question it is, and so is the disease that follows by the rule.
"""

from pathlib import Path

from oct_hf.evaluation.calibration import reliability
from oct_hf.evaluation.curves import curves
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.report import confusion_matrix_figure, curves_figure, reliability_figure

_POINTS = ("at_sensitivity", "at_specificity", "at_youden")


def metadata_scores(run: dict) -> list[tuple[str, str, float]]:
    """What stands in the card's metadata: type as the Hub names it, name, and value on the test side."""
    found = run["signs"]
    disease = found["disease"]["test"]["balanced_accuracy"]
    rows = [
        ("roc_auc", "AUROC (mean over the signs)", found["mean"]["auroc"]["value"]),
        ("average_precision", "AUPRC (mean over the signs)", found["mean"]["auprc"]),
        ("balanced_accuracy", "Balanced accuracy (of the disease that follows)", disease["value"]),
    ]
    for name, one in found["signs"].items():
        results = one["results"]["test"]
        rows.append(("roc_auc", f"AUROC ({name})", results["auroc"]["value"]))
        rows.append(("average_precision", f"AUPRC ({name})", results["auprc"]["value"]))
    return [row for row in rows if row[2] is not None]


def card_facts(run: dict) -> dict:
    """What the template gets beside what every card gets."""
    found = run["signs"]
    true = [name for name in found["disease"]["test"]["labels"] if name in found["disease"]["test"]["recall"]]
    return {
        "signs": found["signs"],
        "mean": found["mean"],
        "rule": found["rule"],
        "disease": found["disease"],
        "true_diseases": true,
        "points": _points(run),
        "without_threshold": [
            (name, one["why"]) for name, one in found["signs"].items() if not all(one[key] for key in _POINTS)
        ],
    }


def headline(run: dict) -> str:
    """The result in a few words, such as for a commit."""
    value = run["signs"]["disease"]["test"]["balanced_accuracy"]["value"]
    return f"balanced accuracy {value:.3f} of the disease that follows from the signs on the test side"


def compared(run: dict) -> list[tuple[str, float | None, dict]]:
    """What another training is compared by: name, value on the test side and its interval, or why there is none."""
    found = run["signs"]
    areas = {f"AUROC ({name})": one["results"]["test"]["auroc"] for name, one in found["signs"].items()}
    disease = found["disease"]["test"]["balanced_accuracy"]
    rows = {"balanced accuracy of the disease": disease, "mean AUROC": found["mean"]["auroc"], **areas}
    return [(name, row["value"], row) for name, row in rows.items()]


def example_labels(run: dict) -> list[str]:
    """Of what there should be example pictures: the diseases, whose phantoms show the signs."""
    return list(run["split"]["sides"]["test"]["classes"])


def draw(place: Path, run: dict, predictions: Predictions) -> None:
    """Draws into the folder `place` what run.json's results and the predictions look like."""
    test, disease = predictions.of("test"), run["signs"]["disease"]["test"]
    signs = {name: test.of_sign(name) for name in test.names}
    title = f"{run['name']}: {disease['n']} test B-scans of {len(set(test.groups))} {run['data']['grouped_by']}s"
    true = [name for name in disease["labels"] if name in disease["recall"]]
    confusion = disease["confusion"][: len(true)]  # the others are no B-scan's disease, so their rows hold nothing
    confusion_matrix_figure(confusion, disease["labels"], place / "confusion_matrix.png", title, true)
    curves_figure({name: curves(answers)[name] for name, answers in signs.items()}, place / "curves.png")
    bins = {name: reliability(answers.probabilities, answers.indices()) for name, answers in signs.items()}
    reliability_figure(bins, place / "reliability.png", "confidence in the answer yes or no")


def _points(run: dict) -> list[tuple[str, str, dict]]:
    """Sign, how it was chosen in validation, and point of each threshold that could be chosen."""
    wanted = run["recipe"]["evaluation"]
    targets = {f"at_{kind}": f"{kind} {wanted[kind]:g}" for kind in ("sensitivity", "specificity")}
    targets["at_youden"] = "largest sum of both (of the rule)"
    return [
        (name, target, one[key])
        for name, one in run["signs"]["signs"].items()
        for key, target in targets.items()
        if one[key]
    ]
