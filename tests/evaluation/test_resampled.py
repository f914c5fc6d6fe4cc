import numpy as np
import pytest
from simulated_patients import simulated

from oct_hf.evaluation.oct_metrics import measure
from oct_hf.evaluation.resampled import ByPatient


@pytest.mark.parametrize("digits", [None, 0], ids=["all scores differ", "many tied scores"])
def test_a_resample_has_the_metrics_of_its_rows_written_out(digits):
    given = simulated(24, 7, seed=1, digits=digits)
    data = ByPatient.of_predictions(given)
    weights = np.random.default_rng(0).multinomial(24, np.full(24, 1 / 24), 12)
    weights[0] = 1
    found = data.all(weights)
    for number, drawn in enumerate(weights):
        rows = np.repeat(np.arange(len(given.labels)), drawn[data.group])
        expected = measure(given.probabilities[rows].astype(np.float64), given.indices()[rows], given.names)
        for name in set(found) & set(expected):
            _same(found[name][number], expected[name], name)
        for c, row in enumerate(expected["per_class"].values()):
            for name in set(row) - {"n"}:
                _same(found[f"class_{name}"][number, c], row[name], name)


def _same(found: float, expected: float | None, name: str):
    assert np.isnan(found) if expected is None else abs(found - expected) < 1e-12, name


def test_a_resample_without_a_class_defines_no_metric_over_all_of_them():
    data = ByPatient.of_predictions(simulated(4, 2, seed=2))
    lacking = (data.group[:, None] == np.arange(4)) & (data.labels == 0)[:, None]
    weights = (~lacking.any(0)).astype(float)[None]
    found = data.all(weights)
    assert np.isnan([found["balanced_accuracy"][0], found["auroc"][0], found["class_recall"][0, 0]]).all()
    assert np.isfinite([found["accuracy"][0], found["log_loss"][0], found["ece"][0]]).all()
