"""What a repository tells of a model that answers one label a B-scan: its scores and thresholds."""

from oct_hf.inference.recorded import views_of

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


def score_names() -> dict[str, str]:
    """The scores that a card shows, by their key in the results."""
    return {key: name for key, (_, name) in _SCORES.items()}


def operating_rows(found: dict) -> list[tuple[str, str, dict]]:
    """Question, target and point of each threshold that could be chosen."""
    views = views_of(found)
    targets = {f"at_{kind}": f"{kind} {found['targets'][kind]:g}" for kind in ("specificity", "sensitivity")}
    return [
        (name, target, view[key]) for name, view in views.items() for key, target in targets.items() if view.get(key)
    ]
