"""How often the intervals of oct_hf/evaluation/intervals.py hold the true value, on simulated patients.

python scripts/interval_coverage.py [--sets N] [--out FILE]

Each patient has 1 to 30 images that are alike. Accuracy: right or wrong by a beta-binomial, for which plain Wilson and
a percentile bootstrap are measured too. All metrics: scores of three classes (a half, 30 % and 20 % of the patients) by
a Gaussian with a share that a patient's images have in common; the true values are those of a million patients with one
image each. The data sets depend on the setting alone, so that methods are compared on the same ones. Prints what
oct_hf/evaluation/coverage.py holds.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from oct_hf.evaluation import clustered, oct_metrics
from oct_hf.evaluation.coverage import reaches_an_edge
from oct_hf.evaluation.intervals import METRICS, PER_CLASS, intervals
from oct_hf.evaluation.predictions import Predictions

PATIENTS = (20, 50, 100, 500)
ACCURACIES, CORRELATIONS = (0.5, 0.7, 0.9, 0.98, 0.998), (0.0, 0.1, 0.3, 0.6)
# What images of a patient have in common, how far apart the classes are, and how overconfident the model is.
MODELS = (
    (0.2, 1.5, 1.0),
    (0.7, 1.5, 1.0),
    (0.5, 2.5, 1.0),
    (0.5, 2.5, 2.0),
    (0.7, 3.2, 1.0),
    (0.5, 2.0, 1.3),
)
NAMES, SHARES = ("often", "less often", "seldom"), (0.5, 0.3, 0.2)


def of_accuracy(patients: int, accuracy: float, correlation: float, sets: int, resamples: int = 1000) -> dict:
    """Shares of `sets` simulated data sets whose 95 % interval holds `accuracy`, by method."""
    rng = np.random.default_rng([patients, round(1000 * accuracy), round(1000 * correlation)])
    images = rng.integers(1, 31, (sets, patients))
    chance = np.full((sets, patients), accuracy)
    if correlation:
        strength = (1 - correlation) / correlation
        chance = rng.beta(accuracy * strength, (1 - accuracy) * strength, (sets, patients))
    right = rng.binomial(images, chance)
    drawn = rng.multinomial(patients, np.full(patients, 1 / patients), resamples).astype(np.float32)
    resampled = (drawn @ right.T.astype(np.float32)) / (drawn @ images.T.astype(np.float32))
    found = {
        "cluster Wilson": clustered.proportion(right, images, 0.95),
        "plain Wilson": clustered.wilson(right.sum(1) / images.sum(1), images.sum(1), 0.95),
        "percentile bootstrap": np.quantile(resampled, (0.025, 0.975), axis=0),
    }
    near = [
        reaches_an_edge("accuracy", {"low": low, "high": high})
        for low, high in zip(*found["cluster Wilson"], strict=True)
    ]
    return {"near": float(np.mean(near))} | {
        name: float(((low <= accuracy) & (accuracy <= high)).mean()) for name, (low, high) in found.items()
    }


def draw(rng: np.random.Generator, images: np.ndarray, common: float, apart: float, sure: float) -> tuple:
    """Answers of one data set, calibrated where `sure` is 1.

    Args:
        images: int `(patients,)`, how many each has.

    Returns:
        probabilities `(n, 3)`, labels and patients `(n,)`, and the calibrated probabilities.
    """
    patients = len(images)
    group = np.repeat(np.arange(patients), images)
    labels = rng.choice(3, patients, p=SHARES)[group]
    scores = np.sqrt(common) * rng.normal(size=(patients, 3))[group]
    scores += np.sqrt(1 - common) * rng.normal(size=(len(group), 3))
    scores[np.arange(len(group)), labels] += apart
    logits = apart * scores + np.log(SHARES)
    calibrated, given = (np.exp(s * (logits - logits.max(1, keepdims=True))) for s in (1.0, sure))
    return given / given.sum(1, keepdims=True), labels, group, calibrated / calibrated.sum(1, keepdims=True)


def truth(model: tuple[float, float, float], patients: int = 1_000_000) -> dict[str, float]:
    """The metrics of very many patients; the calibration error without the chance of their labels."""
    probabilities, labels, _, calibrated = draw(np.random.default_rng(0), np.ones(patients, int), *model)
    found = oct_metrics.measure(probabilities, labels, NAMES)
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    gap = (confidence - calibrated[np.arange(patients), predicted])[np.argsort(confidence, kind="stable")]
    found["ece"] = float(sum(abs(rows.sum()) for rows in np.array_split(gap, oct_metrics.ECE_BINS)) / patients)
    return {name: found[name] for name in METRICS} | {
        f"seldom: {n}": found["per_class"]["seldom"][n] for n in PER_CLASS
    }


def of_metrics(patients: int, model: tuple[float, float, float], true: dict, sets: int, resamples: int = 200) -> dict:
    """Shares of the data sets whose interval holds the true value, and mean widths, by metric and for "seldom"."""
    rng = np.random.default_rng([patients, *(round(10 * number) for number in model)])
    held, widths, near = ({name: [] for name in true} for _ in range(3))
    for number in range(sets):
        probabilities, labels, group, _ = draw(rng, rng.integers(1, 31, patients), *model)
        text = lambda values: np.array(list(values), dtype=object)  # noqa: E731
        columns = (text(map(str, range(len(labels)))), text(f"{g:05}" for g in group), text(NAMES[i] for i in labels))
        data = Predictions(NAMES, *columns, text(["test"] * len(labels)), probabilities.astype(np.float32))
        found = intervals(data, resamples, seed=number)
        rows = found["metrics"] | {f"seldom: {n}": row for n, row in found["per_class"].get("seldom", {}).items()}
        for name, row in rows.items():
            if "low" in row:
                held[name].append(row["low"] <= true[name] <= row["high"])
                widths[name].append(row["high"] - row["low"])
                near[name].append(reaches_an_edge(name, row))
    means = {"held": held, "width": widths, "near": near}
    return {n: {"true": true[n]} | {key: float(np.mean(found[n])) for key, found in means.items()} for n in true}


def main() -> None:
    """Simulates, prints the lowest, mean and highest coverage by number of patients, and writes every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="data sets a setting; four times so for accuracy alone")
    parser.add_argument("--patients", type=int, nargs="+", default=PATIENTS, help="in a data set")
    parser.add_argument("--out", type=Path, default=Path("interval_coverage.json"))
    given = parser.parse_args()
    simple = [(p, a, c) for p in given.patients for a in ACCURACIES for c in CORRELATIONS]
    with ProcessPoolExecutor(2) as pool:
        simple = [(s, pool.submit(of_accuracy, *s, 4 * given.sets)) for s in simple]
        true = dict(zip(MODELS, pool.map(truth, MODELS), strict=True))
        whole = [((p, m), pool.submit(of_metrics, p, m, true[m], given.sets)) for p in given.patients for m in MODELS]
        accuracy = [{"patients": p, "accuracy": a, "correlation": c, **job.result()} for (p, a, c), job in simple]
        metrics = [{"patients": p, "model": list(m), "metrics": job.result()} for (p, m), job in whole]
    found = {"sets": given.sets, "accuracy": accuracy, "metrics": metrics}
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    report(found)


def report(found: dict) -> None:
    """Prints the table, and what coverage.py has of it."""
    patients = sorted({row["patients"] for row in found["metrics"]})
    print(f"{'covered, %: least mean most':<34}" + "".join(f"{p:>18}" for p in patients))
    for method in ("plain Wilson", "percentile bootstrap"):
        cells = {p: [row[method] for row in found["accuracy"] if row["patients"] == p] for p in patients}
        _print(f"accuracy, {method}", cells)
    tables = {"COVERAGE": {p: {} for p in patients}, "EDGE": {p: {} for p in patients}}
    for kind, table in tables.items():
        for name in found["metrics"][0]["metrics"]:
            cells = {p: _cells(found, name, p, kind == "EDGE") for p in patients}
            if any(cells.values()):
                _print(name + (" near a bound" if kind == "EDGE" else ""), cells)
                for p, values in ((p, values) for p, values in cells.items() if values):
                    table[p].setdefault(name if name in METRICS else "class", []).extend(values)
    print(f"{'Monte Carlo standard error':<34}{100 * np.sqrt(0.95 * 0.05 / found['sets']):>18.1f}")
    for kind, table in tables.items():
        limits = lambda cells: (round(100 * min(cells), 1), round(100 * max(cells), 1))  # noqa: E731
        print(kind, {p: {name: limits(cells) for name, cells in row.items()} for p, row in table.items()})


def _cells(found: dict, name: str, patients: int, edge: bool) -> list[float]:
    """Coverage in the settings where most intervals come near a bound, or in the others."""
    cells = [
        (r["metrics"][name]["near"], r["metrics"][name]["held"]) for r in found["metrics"] if r["patients"] == patients
    ]
    if name == "accuracy":
        cells += [(r["near"], r["cluster Wilson"]) for r in found["accuracy"] if r["patients"] == patients]
    return [held for near, held in cells if (near > 0.5) == edge]


def _print(name: str, cells: dict[int, list[float]]) -> None:
    texts = (f"{100 * min(v):.1f} {100 * np.mean(v):.1f} {100 * max(v):.1f}" if v else "" for v in cells.values())
    print(f"{name:<34}" + "".join(f"{text:>18}" for text in texts))


if __name__ == "__main__":
    main()
