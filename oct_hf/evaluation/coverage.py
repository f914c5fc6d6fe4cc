"""How often the intervals of intervals.py were measured to hold the true value: `python scripts/interval_coverage.py`.

By number of patients and metric: the least and the most, in per cent, that nominal 95 % intervals held the true value
in any setting simulated. `COVERAGE` has the settings whose true value is at least 0.005 from 0 and 1, `EDGE` the rest;
"class" is every metric of the rarest of three classes. Chance alone moves such a number by 0.7 to 1.2 points.
"""

COVERAGE: dict[int, dict[str, tuple[float, float]]] = {
    20: {
        "accuracy": (92, 98),
        "balanced_accuracy": (95, 98),
    },
}
EDGE: dict[int, dict[str, tuple[float, float]]] = {
    20: {
        "accuracy": (96, 98),
    },
}

BAND = (93.0, 97.0)  # what a 95 % interval is to keep
NEAR = 0.005  # of 0 or 1: where EDGE is told

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
    told = COVERAGE[patients]
    kept = [limits for limits in told.values() if BAND[0] <= limits[0] and limits[1] <= BAND[1]]
    parts = [_within(name, limits) for name, limits in told.items() if limits not in kept]
    near = [name for name, row in found["metrics"].items() if "low" in row and _reaches_an_edge(name, row)]
    parts += [f"{_within(name, EDGE[patients][name])} near 0 or 1" for name in near if name in EDGE[patients]]
    if kept:
        least, most = min(low for low, _ in kept), max(high for _, high in kept)
        parts = [f"in {least:g} to {most:g} % of the data sets", *parts]
    return f"in simulations with {patients} patients such 95 % intervals held the true value " + "; ".join(parts)


def _within(name: str, limits: tuple[float, float]) -> str:
    return f"those of {_NAMES[name]} in {limits[0]:g} to {limits[1]:g} %"


def _reaches_an_edge(name: str, row: dict) -> bool:
    return row["low"] < NEAR or (name != "log_loss" and row["high"] > 1 - NEAR)
