"""Is one model better than another on the same images? Paired, over patients.

Both models see the same patients, so most of the chance is common to both and drops out of their difference; two
separate intervals that overlap say little. A model's answers are exchanged for whole patients, never for single images.
"""

import itertools

import numpy as np

from oct_hf.errors import DataError
from oct_hf.evaluation import oct_metrics
from oct_hf.evaluation.intervals import draws
from oct_hf.evaluation.paired import reach_of
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.resampled import BLOCK, ByPatient

COMPARED = ("balanced_accuracy", "accuracy", "auroc", "log_loss", "ece")
_SAME = 1e-12  # differences that are equal but for rounding


def compare(
    first: Predictions,
    second: Predictions,
    permutations: int = 10_000,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict:
    """The differences second - first on the test images that both predicted.

    The interval is `difference ± t sd`, with the standard deviation over bootstrap resamples of patients (both models
    on the same ones) and t of as many degrees of freedom as patients but one. The p value is that of a paired
    permutation test (Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005): the two models' answers
    are swapped for whole patients at random; two-sided, (b + 1) / (m + 1) as in Phipson and Smyth (2010), or exact
    where all swaps are no more than `permutations`. Patients are those that `first` names.

    Args:
        first, second: with a side "test".
        permutations: random swaps.
        seed: of swaps and resamples.
        resamples: for the interval.
        level: of the interval.

    Returns:
        `rows`, `patients`, `only_first` and `only_second` (test rows that the other lacks), `permutations`, `exact`,
        `level`; `metrics`: `first`, `second`, `difference`, `low`, `high` and `p` of each, or `why` there is none.

    Raises:
        DataError: other labels, another true label of the same image, an image twice, or no image in common.
    """
    first, second, only = _paired(first, second)
    patients, group = np.unique(first.groups.astype(str), return_inverse=True)
    labels, count = first.indices(), len(patients)
    columns = [second.names.index(name) for name in first.names]
    answers = [first.probabilities.astype(np.float64), second.probabilities[:, columns].astype(np.float64)]
    for found in answers:
        oct_metrics.check(found, labels, first.names)
    result = {"rows": len(labels), "patients": count, **only, "level": level}
    if count < 2:
        why = {"why": "one patient"}
        return result | {"permutations": 0, "exact": False, "metrics": dict.fromkeys(COMPARED, why)}
    # Each model's answers are a pseudo-patient of their own: a swap is then a weight of 0 or 1.
    both = ByPatient(np.vstack(answers), np.tile(labels, 2), np.concatenate([group, group + count]), 2 * count)
    measured = [{name: float(v[0]) for name, v in _values(both, s).items()} for s in _sides(np.zeros((1, count)))]
    drawn = _differences(both, ((w, np.zeros_like(w)) for w in draws(count, resamples, seed)))
    exact = count < 62 and 2**count <= permutations
    swapped = _differences(both, ((1 - z, z) for z in _swaps(count, None if exact else permutations, seed)))
    reach = reach_of(count, level)
    metrics = {
        name: _row(name, measured[0][name], measured[1][name], drawn[name], swapped[name], reach, exact)
        for name in COMPARED
    }
    return result | {"permutations": len(swapped["accuracy"]), "exact": exact, "metrics": metrics}


def compare_all(named: dict[str, Predictions], permutations: int = 10_000, seed: int = 0) -> dict:
    """Every other run against the first, with p values that hold for all of them together (Holm, 1979).

    Args:
        named: predictions by the run's name; the first one is what the others are compared with.
        permutations, seed: as in `compare`.

    Returns:
        `first`, its name; `runs`, by name, what `compare` gives, and `p_holm` beside each `p`: corrected, metric by
        metric, for the number of runs.

    Raises:
        DataError: as `compare`, with the run's name; or fewer than two runs.
    """
    if len(named) < 2:
        raise DataError(f"a comparison needs two runs or more, found {len(named)}")
    name, *others = named
    runs = {}
    for other in others:
        try:
            runs[other] = compare(named[name], named[other], permutations, seed)
        except DataError as error:
            raise DataError(f"{name} and {other}: {error}") from None
    for metric in COMPARED:
        rows = [run["metrics"][metric] for run in runs.values() if "p" in run["metrics"][metric]]
        for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = corrected
    return {"first": name, "runs": runs}


def holm(values: list[float]) -> list[float]:
    """p values corrected for their number ("A simple sequentially rejective multiple test procedure", 1979)."""
    order = np.argsort(values, kind="stable")
    scaled = np.array(values, dtype=float)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(values) else []
    return corrected.tolist()


def _paired(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions, dict]:
    """The test rows that both have, in one order."""
    if set(first.names) != set(second.names):
        raise DataError(
            f"these models know other labels: {', '.join(first.names)}, and {', '.join(second.names)}; "
            "train both on one label set"
        )
    sides = [first.of("test"), second.of("test")]
    rows = [{value: index for index, value in enumerate(side.hashes)} for side in sides]
    for side, row in zip(sides, rows, strict=True):
        if len(row) < len(side.hashes):
            raise DataError("an image is twice among the test rows of one of the models")
    common = [value for value in rows[0] if value in rows[1]]
    if not common:
        counts = " and ".join(str(len(row)) for row in rows)
        raise DataError(f"the models have no test image in common ({counts} test rows): nothing to compare")
    taken = [_rows(side, [row[value] for value in common]) for side, row in zip(sides, rows, strict=True)]
    contradicting = int((taken[0].labels != taken[1].labels).sum())
    if contradicting:
        raise DataError(f"{contradicting} of the {len(common)} common images have another true label in the two files")
    return taken[0], taken[1], {"only_first": len(rows[0]) - len(common), "only_second": len(rows[1]) - len(common)}


def _rows(side: Predictions, order: list[int]) -> Predictions:
    columns = (getattr(side, c)[order] for c in ("hashes", "groups", "labels", "sides", "probabilities"))
    return Predictions(side.names, *columns)


def _swaps(patients: int, permutations: int | None, seed: int):
    """Blocks `(b, patients)` of 0 and 1; all there are where `permutations` is None."""
    step = max(1, BLOCK // patients)
    if permutations is None:
        every = np.array(list(itertools.product((0.0, 1.0), repeat=patients)))
        yield from (every[start : start + step] for start in range(0, len(every), step))
        return
    rng = np.random.default_rng([seed, 1])
    for start in range(0, permutations, step):
        yield rng.integers(0, 2, (min(step, permutations - start), patients)).astype(np.float64)


def _sides(swapped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.hstack([1 - swapped, swapped]), np.hstack([swapped, 1 - swapped])


def _values(both: ByPatient, weights: np.ndarray) -> dict[str, np.ndarray]:
    found = both.counted(weights) | both.ranked(weights, precision=False) | both.calibrated(weights)
    return {name: found[name] for name in COMPARED}


def _differences(both: ByPatient, blocks) -> dict[str, np.ndarray]:
    """Second minus first; a block is the weights of a patient's own answers, and of those of the other model."""
    parts = []
    for own, other in blocks:
        first, second = _values(both, np.hstack([own, other])), _values(both, np.hstack([other, own]))
        parts.append({name: second[name] - first[name] for name in COMPARED})
    return {name: np.concatenate([part[name] for part in parts]) for name in COMPARED}


def _row(name: str, first: float, second: float, drawn, swapped, reach: float, exact: bool) -> dict:
    if not (np.isfinite(first) and np.isfinite(second)):
        return {"why": "a class has no case on this side" if name == "auroc" else "not defined"}
    difference = second - first
    further = int((np.abs(swapped) >= abs(difference) - _SAME).sum())
    p = further / len(swapped) if exact else (further + 1) / (len(swapped) + 1)
    row = {"first": first, "second": second, "difference": difference, "low": None, "high": None, "p": p}
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) > 1:
        half = float(reach * drawn.std())
        low, high = difference - half, difference + half
        bounded = name != "log_loss"
        row |= {"low": max(low, -1.0) if bounded else low, "high": min(high, 1.0) if bounded else high}
    return row
