"""How often the intervals of oct_hf/evaluation/intervals.py hold the true value, on simulated patients.

python scripts/interval_coverage.py [--sets N] [--out FILE]

Each patient has 1 to 30 images that are alike. Accuracy: right or wrong by a beta-binomial, for which a percentile
bootstrap is measured too. All metrics: scores of three classes (a half, 30 % and 20 % of the patients) by a Gaussian
with a share that a patient's images have in common; the true values are those of 40,000 patients.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from oct_hf.evaluation import clustered
from oct_hf.evaluation.intervals import METRICS, PER_CLASS, intervals
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.resampled import ByPatient

PATIENTS = (20, 50, 100, 500)
ACCURACIES, CORRELATIONS = (0.7, 0.9, 0.98), (0.0, 0.1, 0.3, 0.6)
# What images of a patient have in common, how far apart the classes are, and how overconfident the model is.
MODELS = ((0.2, 1.5, 1.0), (0.7, 1.5, 1.0), (0.5, 2.5, 1.0), (0.5, 2.5, 2.0), (0.7, 3.2, 1.0))
NAMES = ("often", "less often", "seldom")


def of_accuracy(patients: int, accuracy: float, correlation: float, sets: int, resamples: int = 1000) -> dict:
    """Shares of `sets` simulated data sets whose 95 % interval holds `accuracy`, by method."""
    rng = np.random.default_rng([patients, round(1000 * accuracy), round(1000 * correlation)])
    images = rng.integers(1, 31, (sets, patients))
    chance = np.full((sets, patients), accuracy)
    if correlation:
        strength = (1 - correlation) / correlation
        chance = rng.beta(accuracy * strength, (1 - accuracy) * strength, (sets, patients))
    right = rng.binomial(images, chance)
    estimate = clustered.ratio(right, images)
    drawn = rng.multinomial(patients, np.full(patients, 1 / patients), resamples).astype(np.float32)
    resampled = (drawn @ right.T.astype(np.float32)) / (drawn @ images.T.astype(np.float32))
    found = {
        "cluster Wilson": clustered.wilson(estimate.value, estimate.size, 0.95),
        "plain Wilson": clustered.wilson(estimate.value, images.sum(1), 0.95),
        "percentile bootstrap": np.quantile(resampled, (0.025, 0.975), axis=0),
    }
    return {name: float(((low <= accuracy) & (accuracy <= high)).mean()) for name, (low, high) in found.items()}


def draw(rng: np.random.Generator, patients: int, common: float, apart: float, sure: float) -> tuple:
    """Probabilities `(n, 3)`, labels and patients `(n,)` of one data set; calibrated where `sure` is 1."""
    group = np.repeat(np.arange(patients), rng.integers(1, 31, patients))
    labels = rng.choice(3, patients, p=(0.5, 0.3, 0.2))[group]
    scores = np.sqrt(common) * rng.normal(size=(patients, 3))[group]
    scores += np.sqrt(1 - common) * rng.normal(size=(len(group), 3))
    scores[np.arange(len(group)), labels] += apart
    powers = np.exp(sure * (apart * scores + np.log((0.5, 0.3, 0.2))))
    return powers / powers.sum(1, keepdims=True), labels, group


@cache
def truth(model: tuple[float, float, float], patients: int = 40_000) -> dict[str, float]:
    """The metrics of very many patients."""
    data = ByPatient(*draw(np.random.default_rng(0), patients, *model), patients)
    found = {name: values[0] for name, values in data.all(np.ones((1, patients))).items()}
    return {name: found[name] for name in METRICS} | {f"seldom: {n}": found[f"class_{n}"][2] for n in PER_CLASS}


def of_metrics(patients: int, model: tuple[float, float, float], sets: int, resamples: int = 500) -> dict:
    """Shares of the data sets whose interval holds the true value, and mean widths, by metric and for "seldom"."""
    rng = np.random.default_rng([patients, *(round(10 * number) for number in model)])
    true = truth(model)
    held, widths = {name: [] for name in true}, {name: [] for name in true}
    for number in range(sets):
        probabilities, labels, group = draw(rng, patients, *model)
        text = lambda values: np.array(list(values), dtype=object)  # noqa: E731
        columns = (text(map(str, range(len(labels)))), text(f"{g:05}" for g in group), text(NAMES[i] for i in labels))
        data = Predictions(NAMES, *columns, text(["test"] * len(labels)), probabilities.astype(np.float32))
        found = intervals(data, resamples, seed=number)
        rows = found["metrics"] | {f"seldom: {n}": row for n, row in found["per_class"]["seldom"].items()}
        for name, row in rows.items():
            if "low" in row:
                held[name].append(row["low"] <= true[name] <= row["high"])
                widths[name].append(row["high"] - row["low"])
    return {
        name: {"true": float(true[name]), "held": float(np.mean(held[name])), "width": float(np.mean(widths[name]))}
        for name in true
    }


def main() -> None:
    """Simulates, prints the lowest and highest coverage by number of patients, and writes every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=200, help="data sets in each setting (ten times so for accuracy)")
    parser.add_argument("--out", type=Path, default=Path("interval_coverage.json"))
    given = parser.parse_args()
    simple = [(p, a, c) for p in PATIENTS for a in ACCURACIES for c in CORRELATIONS]
    whole = [(p, model) for p in PATIENTS for model in MODELS]
    with ProcessPoolExecutor(2) as pool:
        simple = [(s, pool.submit(of_accuracy, *s, 10 * given.sets)) for s in simple]
        whole = [(s, pool.submit(of_metrics, *s, given.sets)) for s in whole]
        accuracy = [{"patients": p, "accuracy": a, "correlation": c, **job.result()} for (p, a, c), job in simple]
        metrics = [{"patients": p, "model": list(m), "metrics": job.result()} for (p, m), job in whole]
    given.out.write_text(json.dumps({"sets": given.sets, "accuracy": accuracy, "metrics": metrics}, indent=1) + "\n")
    print(f"{'covered, %: least mean most':<30}" + "".join(f"{p:>18}" for p in PATIENTS))
    for method in ("cluster Wilson", "plain Wilson", "percentile bootstrap"):
        _print(f"accuracy, {method}", {p: [r[method] for r in accuracy if r["patients"] == p] for p in PATIENTS})
    for name in metrics[0]["metrics"]:
        cells = {p: [r["metrics"][name]["held"] for r in metrics if r["patients"] == p] for p in PATIENTS}
        _print(name, cells)


def _print(name: str, cells: dict[int, list[float]]) -> None:
    texts = (f"{100 * min(v):.1f} {100 * np.mean(v):.1f} {100 * max(v):.1f}" for v in cells.values())
    print(f"{name:<30}" + "".join(f"{text:>18}" for text in texts))


if __name__ == "__main__":
    main()
