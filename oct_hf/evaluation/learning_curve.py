"""What more patients to learn from would bring, told by what fewer of them cost.

Balanced accuracy and AUROC over the logarithm of the number of training patients are close to a straight line in the
middle of a learning curve, and flatten at its end (Figueroa et al., "Predicting sample size required for classification
performance", BMC Medical Informatics and Decision Making 2012). So what the last doubling brought is about the most
that the next one will.
"""

from collections.abc import Sequence

import numpy as np

from oct_hf.errors import DataError
from oct_hf.evaluation.paired import MEASURED, drawn_means, means, paired, reach_of, span
from oct_hf.evaluation.predictions import Predictions


def learning_curve(
    patients: Sequence[float],
    trainings: Sequence[Sequence[Predictions]],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict:
    """What each doubling of the training patients brought, by least squares over the logarithm of their number.

    Args:
        patients: of how many each kind of training learned, folds averaged; ascending, two or more.
        trainings: out-of-fold predictions of each, one set a seed; all of the same test rows.
        resamples, seed: of the test patients. That other training patients could have been drawn is in the interval
            only as far as the means over folds and seeds hide it.
        level: of the intervals.

    Returns:
        `patients` as given; `metrics`, by name: `values` (one a number of patients, with `low` and `high`), and
        with `value`, `low`, `high` what a doubling brought: `per_doubling` on the whole, and `last_doubling` from the
        last number but one to the last.

    Raises:
        DataError: one number of patients alone, other rows in one of the trainings, or a single test patient.
    """
    steps = np.log2(np.asarray(patients, float))
    if len(steps) < 2 or (np.diff(steps) <= 0).any():
        raise DataError("a learning curve needs trainings on two numbers of patients or more, in ascending order")
    measured, _ = paired(trainings)
    count = measured[0][0].groups
    whole, drawn = means(measured, np.ones((1, count))), drawn_means(measured, resamples, seed)
    reach = reach_of(count, level)
    slope = (steps - steps.mean()) / ((steps - steps.mean()) ** 2).sum()
    last = np.zeros(len(steps))
    last[-2:] = np.array([-1, 1]) / (steps[-1] - steps[-2])
    return {
        "patients": list(patients),
        "metrics": {
            name: {
                "values": [span(value, row, reach) for value, row in zip(whole[name][:, 0], drawn[name], strict=True)],
                **{
                    key: span(float(weights @ whole[name][:, 0]), weights @ drawn[name], reach)
                    for key, weights in (("per_doubling", slope), ("last_doubling", last))
                },
            }
            for name in MEASURED
        },
    }
