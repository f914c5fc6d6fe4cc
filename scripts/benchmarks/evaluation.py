"""Intervals, report and comparison of 10,000 predictions, against scikit-learn in a loop."""

import json
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.material import PAIRS, median, small_run


def benchmark_evaluation(
    scratch: Path, predictions: int = 10_000, patients: int = 1000, resamples: int = 2000, few: int = 10
) -> dict:
    """Intervals over patients for every metric, against scikit-learn called on the rows of each resample of patients.

    The loop runs on `few` resamples and is taken as many times longer as there are more of them; in it each metric is
    computed once, as `OCTMetrics` does. Then everything that a run says of so many test B-scans, its report with all
    figures, and the comparison of two models with its 10,000 swaps.
    """
    import numpy as np

    from oct_hf.evaluation.assessment import assess, calibrate
    from oct_hf.evaluation.comparison import compare
    from oct_hf.evaluation.intervals import intervals
    from oct_hf.evaluation.oct_metrics import measure
    from oct_hf.evaluation.predictions import Predictions
    from oct_hf.runs.report_page import write_report

    rng = np.random.default_rng(0)
    names = ("CNV", "DME", "DRUSEN", "NORMAL")
    group = rng.integers(0, patients, predictions)
    labels = rng.integers(0, 4, patients)[group]
    scores = rng.normal(size=(patients, 4))[group] + rng.normal(size=(predictions, 4))
    scores[np.arange(predictions), labels] += 2.5
    powers = np.exp(scores)
    probabilities = powers / powers.sum(1, keepdims=True)
    text = lambda values: np.array(list(values), dtype=object)  # noqa: E731
    columns = (text(map(str, range(predictions))), text(map(str, group)), text(names[i] for i in labels))
    given = Predictions(names, *columns, text(["test"] * predictions), probabilities.astype(np.float32))
    rows = [np.flatnonzero(group == patient) for patient in range(patients)]

    def loop() -> float:
        began = time.perf_counter()
        for _ in range(few):
            drawn = np.concatenate([rows[patient] for patient in rng.integers(0, patients, patients)])
            measure(probabilities[drawn], labels[drawn], names)
        return (time.perf_counter() - began) * resamples / few

    def ours() -> float:
        began = time.perf_counter()
        intervals(given, resamples)
        return time.perf_counter() - began

    ours(), loop()  # warm up
    pairs = [(ours(), loop()) for _ in range(PAIRS)]
    run = json.loads((small_run(scratch) / "run.json").read_text())
    sides = text(["validation"] * (predictions // 4) + ["test"] * (predictions - predictions // 4))
    began = time.perf_counter()
    calibrated, note = calibrate(replace(given, sides=sides))
    facts = assess(calibrated, run["recipe"]["evaluation"], note)
    write_report(scratch / "report.html", run | facts, calibrated, [])
    report = time.perf_counter() - began
    began = time.perf_counter()
    compare(given, given)
    return {
        "evaluation_and_report_s": round(report, 1),
        "predictions": predictions,
        "patients": patients,
        "resamples": resamples,
        "intervals_s": median(p[0] for p in pairs),
        "scikit_learn_loop_s": median(p[1] for p in pairs),
        "scikit_learn_resamples_run": few,
        "speed_ratio": median(p[1] / p[0] for p in pairs),
        "speed_ratios": [round(p[1] / p[0], 1) for p in pairs],
        "comparison_s": round(time.perf_counter() - began, 1),
    }
