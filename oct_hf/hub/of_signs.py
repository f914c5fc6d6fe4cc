"""What a repository tells of a model that answers signs, several a B-scan: the functions of `of_labels.py`, for these.

Each sign is told of as the yes-or-no question it is, and so is the disease that follows by the rule.
"""

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
