"""Likely label errors by confident learning (Northcutt et al., JAIR 2021), with cleanlab on out-of-fold predictions.

The probabilities must come from networks that never saw the image's patient: a network agrees with a wrong label that
it was trained on. The result is a ranking for a person to look at, not a correction.
"""

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oct_hf.data.corrections import Correction, write_corrections
from oct_hf.errors import DataError
from oct_hf.evaluation.predictions import Predictions

# Which images are shown and in which order; chosen on planted errors (scripts/planted_label_errors.py --compare).
FILTER, RANKING = "prune_by_class", "normalized_margin"


@dataclass(frozen=True)
class Suspect:
    """An image whose label is probably wrong.

    Attributes:
        row: of the predictions it was found in.
        content_hash, group: the image, and its patient as it may be published.
        given: its label.
        suggested: the most probable other label.
        score: label quality, 0 (surely wrong) to 1: (1 + p(given) - p(most probable other)) / 2.
        probabilities: of every label.
        unit_suspects, unit_images: how many of the images of its unit (one eye of a patient) with the same label are
            suspects, and how many there are. Where a whole eye was mislabelled, its images are found together.
        unit_score: mean score of these images.
    """

    row: int
    content_hash: str
    group: str
    given: str
    suggested: str
    score: float
    probabilities: dict[str, float]
    unit_suspects: int
    unit_images: int
    unit_score: float


def require_cleanlab() -> None:
    """Raises DataError, before any work is done, where the extra `labels` isn't installed."""
    if importlib.util.find_spec("cleanlab") is None:
        raise DataError('label errors are found with cleanlab: pip install "oct-hf[labels]"')


def find_suspects(
    predictions: Predictions,
    units: Sequence[str] | None = None,
    filter_by: str = FILTER,
    rank_by: str = RANKING,
) -> list[Suspect]:
    """The images that are probably mislabelled, the surest first.

    Args:
        predictions: out of fold, each image once.
        units: what shares a label error, `n` strings such as patient and eye; the groups where not given.
        filter_by, rank_by: cleanlab's names of them.

    Raises:
        DataError: cleanlab isn't installed, or there are too few labels or images to judge.
    """
    require_cleanlab()
    from cleanlab.filter import find_label_issues

    given, values = predictions.indices(), predictions.probabilities.astype(np.float64)
    present = sorted(set(given))
    if len(predictions.names) < 2 or len(present) < len(predictions.names):
        missing = [name for i, name in enumerate(predictions.names) if i not in present]
        raise DataError(f"label errors can't be judged with no image of {', '.join(missing) or 'a second label'}")
    if not np.isfinite(values).all():
        raise DataError("the predictions hold values that are no probabilities")
    values /= values.sum(1, keepdims=True)
    ranked = find_label_issues(given, values, filter_by=filter_by, return_indices_ranked_by=rank_by, n_jobs=1)
    return _described(predictions, values, given, [int(row) for row in ranked], units)


def _described(predictions, values, given, ranked: list[int], units) -> list[Suspect]:
    rows, names = np.arange(len(given)), predictions.names
    others = values.copy()
    others[rows, given] = -1
    suggested = others.argmax(1)
    scores = (1 + values[rows, given] - others[rows, suggested]) / 2
    keys = list(zip(predictions.groups if units is None else units, given.tolist(), strict=True))
    suspects, together = set(ranked), {}
    for row, key in enumerate(keys):
        together.setdefault(key, []).append(row)
    return [
        Suspect(
            row=row,
            content_hash=str(predictions.hashes[row]),
            group=str(predictions.groups[row]),
            given=names[given[row]],
            suggested=names[suggested[row]],
            score=float(scores[row]),
            probabilities=dict(zip(names, values[row].tolist(), strict=True)),
            unit_suspects=sum(other in suspects for other in together[keys[row]]),
            unit_images=len(together[keys[row]]),
            unit_score=float(np.mean(scores[together[keys[row]]])),
        )
        for row in ranked
    ]


def plant_errors(
    hashes: Sequence[str],
    labels: Sequence[str],
    names: Sequence[str],
    share: float,
    seed: int | Sequence[int],
    units: Sequence[str] | None = None,
) -> dict[str, tuple[str, str]]:
    """Makes labels wrong, each into any other with equal chance (symmetric noise).

    Args:
        hashes, labels: `n` content hashes and their labels.
        names: every label there is.
        share: of the units, 0 to 1, whose label becomes wrong.
        seed: of which, and into what.
        units: `n` strings; all images of one get the same shift. Each image on its own where not given.

    Returns:
        content hash -> true label, planted label.
    """
    own, rng = [str(one) for one in (hashes if units is None else units)], np.random.default_rng(seed)
    known, index = np.unique(own), {name: i for i, name in enumerate(names)}
    chosen = rng.choice(known, round(share * len(known)), replace=False)
    steps: list[int] = rng.integers(1, len(names), len(chosen)).tolist()
    shift = dict(zip(chosen.tolist(), steps, strict=True))
    return {
        value: (label, names[(index[label] + shift[one]) % len(names)])
        for value, label, one in zip(hashes, labels, own, strict=True)
        if one in shift
    }


def write_planted(path: Path, wrong: dict[str, tuple[str, str]]) -> None:
    """Writes planted errors as a corrections.csv, by which they enter as any correction does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = enumerate(wrong.items(), 2)
    write_corrections(path, [Correction(value, planted, true, line) for line, (value, (true, planted)) in lines])


def recovered(suspects: Sequence[str], planted: set[str]) -> dict[str, float]:
    """How well planted errors were found: recall and precision of the whole list, and the most recall that the top of
    the ranking reaches while its precision is at least 0.6.

    Args:
        suspects: content hashes, the surest first.
        planted: content hashes of the wrong labels.
    """
    hits = np.array([value in planted for value in suspects], int)
    found = np.array(list(itertools.accumulate(hits)), int)
    precise = found[found / np.arange(1, len(found) + 1) >= 0.6]
    return {
        "planted": len(planted),
        "suspects": len(hits),
        "recall": float(hits.sum() / len(planted)),
        "precision": float(hits.mean()) if len(hits) else 0.0,
        "recall_at_precision_0.6": float(precise.max() / len(planted)) if len(precise) else 0.0,
    }
