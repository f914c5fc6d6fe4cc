"""How often the intervals of intervals.py were measured to hold the true value: `python scripts/interval_coverage.py`.

By number of patients and metric: the least and the most, in per cent, that nominal 95 % intervals held the true value
in any setting simulated. `COVERAGE` has the settings in which most intervals stay 0.005 away from the metric's bounds,
`EDGE` the rest; "class" is every metric of the rarest of three classes, which a fifth of the patients have. Chance
alone moves such a number by 0.7 points (1,000 data sets a setting).
"""

COVERAGE: dict[int, dict[str, tuple[float, float]]] = {
    20: {
        "accuracy": (93, 98),
        "balanced_accuracy": (95.4, 98.4),
        "auroc": (93.4, 96.5),
        "auprc": (93.5, 95.5),
        "f1": (92.3, 96.3),
        "cohen_kappa": (94, 96.7),
        "mcc": (93.8, 96.6),
        "log_loss": (90.5, 94),
        "class": (92, 99.4),
    },
    50: {
        "accuracy": (93.6, 96.9),
        "balanced_accuracy": (95, 97),
        "auroc": (95.4, 96.2),
        "auprc": (94.1, 95.8),
        "f1": (94.2, 97.3),
        "cohen_kappa": (94.1, 96.4),
        "mcc": (93.6, 96.1),
        "log_loss": (93.9, 95.7),
        "class": (93.1, 97.6),
    },
    100: {
        "accuracy": (92.9, 96.7),
        "balanced_accuracy": (95.6, 97.4),
        "auroc": (94.7, 96.2),
        "auprc": (93.6, 96.7),
        "f1": (93, 96.5),
        "cohen_kappa": (93, 95.9),
        "mcc": (93, 95.8),
        "log_loss": (94.6, 97),
        "ece": (95.5, 95.5),
        "class": (93.3, 97),
    },
    500: {
        "accuracy": (94.6, 96.3),
        "balanced_accuracy": (95.3, 97.1),
        "auroc": (95.4, 95.6),
        "auprc": (94.5, 96.8),
        "f1": (94.7, 96.2),
        "cohen_kappa": (94.4, 96.2),
        "mcc": (94.3, 96.1),
        "log_loss": (94.1, 97.1),
        "ece": (95.6, 96.2),
        "class": (92.9, 97),
    },
}
EDGE: dict[int, dict[str, tuple[float, float]]] = {
    20: {
        "accuracy": (97.5, 98.9),
        "balanced_accuracy": (97, 97),
        "auroc": (93.6, 98.9),
        "auprc": (96.1, 98.8),
        "f1": (96.9, 96.9),
        "cohen_kappa": (98.8, 98.8),
        "mcc": (98.5, 98.5),
        "ece": (93.4, 99.8),
        "class": (97.9, 99.9),
    },
    50: {
        "accuracy": (94.2, 99),
        "auroc": (94.7, 96.4),
        "auprc": (95.1, 97),
        "f1": (96, 96),
        "ece": (93, 99.6),
        "class": (94.5, 99),
    },
    100: {
        "accuracy": (94.5, 98.8),
        "auroc": (93.9, 96.7),
        "auprc": (94.5, 94.5),
        "ece": (94, 98.7),
        "class": (94.5, 99.4),
    },
    500: {
        "accuracy": (96.4, 97.3),
        "auroc": (96.7, 96.7),
        "auprc": (96.8, 96.8),
        "ece": (98.6, 99.3),
        "class": (93.8, 95.2),
    },
}

BAND = (93.0, 97.0)  # what a 95 % interval is to keep
NEAR = 0.005  # of a bound: where EDGE is told

_NAMES = {
    "accuracy": "the accuracy",
    "balanced_accuracy": "the balanced accuracy",
    "auroc": "the AUROC",
    "auprc": "the AUPRC",
    "f1": "F1",
    "cohen_kappa": "Cohen's kappa",
    "mcc": "the MCC",
    "log_loss": "the log loss",
    "ece": "the calibration error",
    "class": "the rarest class",
}


def promise(found: dict) -> str | None:
    """What was measured of 95 % intervals like these, as a sentence; None below the fewest patients simulated.

    Metrics that kept 93 to 97 % are told together, the others one by one, and those near 0 or 1 once more.

    Args:
        found: what `intervals` gives.
    """
    known = [count for count in COVERAGE if count <= found["patients"]]
    if not known:
        return None
    patients = max(known)
    edge = {name: limits for name, limits in EDGE[patients].items() if name in COVERAGE[patients]}
    # Where all settings of a metric were near a bound, what was found there is all that is known.
    told = {name: COVERAGE[patients].get(name) or EDGE[patients][name] for name in _NAMES}
    kept = [limits for limits in told.values() if BAND[0] <= limits[0] and limits[1] <= BAND[1]]
    apart = [f"{_NAMES[name]} in {_range(limits)}" for name, limits in told.items() if limits not in kept]
    near = [n for n, row in found["metrics"].items() if n in edge and "low" in row and reaches_an_edge(n, row)]
    parts = []
    if kept:
        parts.append(f"in {_range((min(low for low, _ in kept), max(high for _, high in kept)))} of the data sets")
    if apart:
        parts.append(("but " if kept else "") + "those of " + ", ".join(apart))
    if near:
        parts.append("near 0 or 1 those of " + ", ".join(f"{_NAMES[name]} in {_range(edge[name])}" for name in near))
    return f"in simulations with {patients} patients such 95 % intervals held the true value " + "; ".join(parts)


def _range(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} %" if limits[0] == limits[1] else f"{limits[0]:g}–{limits[1]:g} %"


def reaches_an_edge(metric: str, row: dict) -> bool:
    """Whether an interval, `low` and `high`, comes within NEAR of a bound of its metric."""
    if metric == "log_loss":
        return False
    return row["high"] > 1 - NEAR or (row["low"] < NEAR and metric not in ("cohen_kappa", "mcc"))
