"""What a model of signs is worth: each sign measured as the yes-or-no question it is, and the disease that follows.

A sign's answers are read as those of a classifier with two labels (`Predictions.of_sign`), so that its metrics,
intervals, thresholds and calibration are those of every other model here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit, logit
from sklearn import metrics

from oct_hf.data import quality
from oct_hf.data.splits import HELD_OUT
from oct_hf.evaluation import clustered
from oct_hf.evaluation.abstention import fit_likeness
from oct_hf.evaluation.calibration import describe_calibration, fit_temperatures
from oct_hf.evaluation.intervals import AREA, MEAN, WILSON, intervals
from oct_hf.evaluation.operating_points import counts, operating_points
from oct_hf.evaluation.predictions import Predictions
from oct_hf.inference.gate import SignGate
from oct_hf.labels import DISEASE_BY_SIGNS, UNDETERMINED

LEVEL = 0.95
_RULES = [f"{disease} where {' or '.join(signs)}" for disease, signs in DISEASE_BY_SIGNS]
RULE = f"the first of: {'; '.join(_RULES)}; else NORMAL"
_CALIBRATION = ("n", "log_loss", "brier", "ece", "ece_if_perfect")


def calibrate_signs(predictions: Predictions) -> tuple[Predictions, dict]:
    """Fits one temperature a sign on the validation side and applies them to both: sigmoid(logit(p) / T).

    Returns:
        the calibrated answers; and by sign `temperature`, `why` (it isn't the minimum of the log loss), `n` and
        `patients`.
    """
    fitted = predictions.of("validation")
    found = fit_temperatures(_logits(fitted.probabilities), fitted.truth, fitted.groups)
    notes = {
        name: {"temperature": one.value, "why": one.why, "n": one.n, "patients": one.patients}
        for name, one in zip(predictions.names, found, strict=True)
    }
    return rescale_signs(predictions, [one.value for one in found]), notes


def rescale_signs(predictions: Predictions, temperatures) -> Predictions:
    """The answers at other temperatures, one a sign; `1 / T` undoes `T`."""
    return predictions.with_probabilities(expit(_logits(predictions.probabilities) / np.asarray(temperatures)))


def refit_signs(predictions: Predictions, temperatures) -> dict:
    """What `calibrate_signs` says where these temperatures are undone first; the same ones, if they are true."""
    return calibrate_signs(rescale_signs(predictions, 1 / np.asarray(temperatures)))[1]


def sign_facts(predictions: Predictions, settings: dict, calibration: dict | None = None) -> dict:
    """The facts of run.json that follow from the predictions: `signs` and `gate`; arguments as of `assess_signs`."""
    found = assess_signs(predictions, settings, calibration)
    return {"signs": found, "gate": make_sign_gate(predictions, found["thresholds"]).to_dict()}


def assess_signs(predictions: Predictions, settings: dict, calibration: dict | None = None) -> dict:
    """Everything that follows from the answers on validation and test sides.

    Args:
        predictions: with `truth`, and diseases as labels.
        settings: the recipe's `evaluation`: `sensitivity` and `specificity`.
        calibration: what `calibrate_signs` gave, where the answers are calibrated; None where nobody asked for it; by
            sign `temperature` None and `why` where it couldn't be.

    Returns:
        `signs`, by name what `_of_sign` gives; `mean`, `auroc` and `auprc` over the signs on the test side, the former
        with an interval; `thresholds` of the rule, by sign; `rule`, in words; and `disease`, by side, see `_disease`.

    Raises:
        DataError: a side without rows, or values that are no probabilities.
    """
    found = {name: _of_sign(predictions.of_sign(name), settings) for name in predictions.names}
    notes = calibration or {name: {"temperature": None} for name in predictions.names}
    temperatures = [notes[name]["temperature"] for name in predictions.names]
    before = None if None in temperatures else rescale_signs(predictions, 1 / np.array(temperatures))
    for name, one in found.items():
        undone = {"before": _by_side(before.of_sign(name), _calibration)} if before else {}
        one["calibration"] |= undone | notes[name]
    thresholds = {name: (one["at_youden"] or {}).get("threshold") for name, one in found.items()}
    return {
        "signs": found,
        "mean": _mean_areas(predictions.of("test"), found),
        "thresholds": thresholds,
        "rule": RULE,
        "disease": _by_side(predictions, partial(_disease, thresholds=thresholds)),
    }


def assess_known_signs(predictions: Predictions, thresholds: dict[str, float | None]) -> dict:
    """What B-scans of another set show, of the signs about which their labels say something.

    Args:
        predictions: all rows; `truth` is NaN where nothing is known.
        thresholds: of the model's rule, by sign.

    Returns:
        by sign `results` and, where it has a threshold, `at_youden` with the counts on these B-scans.
    """
    found = {}
    for name in predictions.names:
        answers = predictions.of_sign(name)
        if len(answers.hashes):
            cut = thresholds[name]
            at = None if cut is None else {"threshold": cut, "test": _at(answers, cut)}
            found[name] = {"results": separation(answers), "at_youden": at, "calibration": _calibration(answers)}
    return found


def make_sign_gate(predictions: Predictions, thresholds: dict[str, float | None]) -> SignGate:
    """What lets the model decline a picture, fitted on the validation side, and the thresholds of its rule."""
    fitted, likeness = predictions.of("validation"), None
    if "likeness" in fitted.traits:
        likeness = fit_likeness(fitted.traits["likeness"].astype(np.float64), fitted.groups)
    version = None if likeness is None else quality.version()
    return SignGate(predictions.names, None, likeness, version, tuple(thresholds[name] for name in predictions.names))


def sign_scores(probabilities: np.ndarray, truth: np.ndarray) -> dict:
    """What a training is watched by, means over the signs that some of the pictures show and some don't.

    Args:
        probabilities: `(n, k)`.
        truth: 0 and 1, `(n, k)`.

    Returns:
        `auroc`; `balanced_accuracy` and `accuracy` at each sign's own best threshold on these pictures (Youden's), so
        that no loss is preferred for where it puts 0.5; and `log_loss`.
    """
    rows = []
    for p, there in zip(np.asarray(probabilities, np.float64).T, np.asarray(truth, bool).T, strict=True):
        if there.any() and not there.all():
            said = counts(p, there, youden(p, there))
            rows.append(
                {
                    "auroc": metrics.roc_auc_score(there, p),
                    "balanced_accuracy": (said["sensitivity"] + said["specificity"]) / 2,
                    "accuracy": (said["tp"] + said["tn"]) / len(p),
                    "log_loss": metrics.log_loss(there, p, labels=[False, True]),
                }
            )
    keys = ("auroc", "balanced_accuracy", "accuracy", "log_loss")
    return {key: float(np.mean([row[key] for row in rows])) if rows else 0.0 for key in keys}


def youden(score: np.ndarray, positive: np.ndarray) -> float:
    """The seen score with the largest sensitivity + specificity (Youden, "Index for rating diagnostic tests", 1950).

    Args:
        score: float `(n,)`.
        positive: bool `(n,)`, both kinds present.
    """
    false, true, thresholds = metrics.roc_curve(positive, score, drop_intermediate=False)
    return float(thresholds[1 + np.argmax((true - false)[1:])])  # the first is infinite: nobody is positive


def separation(answers: Predictions) -> dict:
    """`n`, `positive`, `groups`, and `auroc` and `auprc` with their intervals over groups, of one sign's answers."""
    name, found = answers.names[1], answers.measure()
    spans = intervals(answers)["per_class"][name]
    own = found["per_class"][name]
    areas = {key: {"value": own[key], **spans[key]} for key in ("auroc", "auprc")}
    return {"n": found["n"], "positive": own["n"], "groups": found["groups"], **areas}


def _of_sign(answers: Predictions, settings: dict) -> dict:
    """One sign: `results` and `calibration` by side; and the points `at_sensitivity`, `at_specificity` (targets on the
    validation side) and `at_youden`, which the rule takes: each `threshold`, and what `_at` gives by side."""
    name, fitted = answers.names[1], answers.of("validation")
    view = operating_points(answers, specificity=settings["specificity"], sensitivity=settings["sensitivity"])
    view, positive = view["diseases"][name], fitted.indices() == 1
    cuts = {key: view[key] and view[key]["threshold"] for key in ("at_sensitivity", "at_specificity")}
    both = positive.any() and not positive.all()
    cuts["at_youden"] = youden(fitted.probabilities[:, 1], positive) if both else None
    points = {
        key: None if cut is None else {"threshold": cut} | _by_side(answers, partial(_at, threshold=cut))
        for key, cut in cuts.items()
    }
    return {
        "results": _by_side(answers, separation),
        "calibration": {"after": _by_side(answers, _calibration)},
        **points,
        "why": view["why"],
    }


def _by_side(answers: Predictions, measure: Callable[[Predictions], dict]) -> dict:
    return {side: measure(answers.of(side)) for side in HELD_OUT}


def _at(answers: Predictions, threshold: float) -> dict:
    """Counts at a threshold, and intervals over groups of sensitivity and specificity."""
    score, positive = answers.probabilities[:, 1], answers.indices() == 1
    found = counts(score, positive, threshold)
    spans = {}
    for key, of, right in (
        ("sensitivity", positive, score >= threshold),
        ("specificity", ~positive, score < threshold),
    ):
        part, whole = (_by_group(answers, rows) for rows in (of & right, of))
        if (whole > 0).sum() < 2:
            spans[key] = {"why": "cases of one patient" if whole.any() else "no such case"}
            continue
        low, high = clustered.proportion(part, whole, LEVEL)
        spans[key] = {"low": float(low), "high": float(high), "method": WILSON}
    return found | {"intervals": spans}


def _calibration(answers: Predictions) -> dict:
    found = describe_calibration(answers.probabilities, answers.indices())
    return {key: found[key] for key in _CALIBRATION}


def _mean_areas(test: Predictions, found: dict) -> dict:
    """Means over the signs, and the AUROC's interval, in which the signs of one patient may be as alike as they are."""
    tested = [one["results"]["test"] for one in found.values()]
    if any(row["auroc"]["value"] is None or "why" in row["auroc"] for row in tested):
        return {"auroc": {"value": None, "why": "a sign that all or none show, or one patient alone"}, "auprc": None}
    assert test.truth is not None  # its outputs are signs
    names, group = np.unique(test.groups.astype(str), return_inverse=True)
    areas = [
        clustered.area(test.probabilities[:, i].astype(np.float64), test.truth[:, i] == 1, group, len(names))
        for i in range(len(test.names))
    ]
    joined = clustered.mean(areas, len(names))
    low, high = clustered.logit(joined.value, clustered.size(joined, LEVEL), LEVEL)
    auroc = {"value": float(joined.value), "low": low, "high": high, "method": AREA}
    return {"auroc": auroc, "auprc": float(np.mean([row["auprc"]["value"] for row in tested]))}


def _disease(side: Predictions, thresholds: dict[str, float | None]) -> dict:
    """The disease that follows from the signs against the true one.

    Returns:
        `n`; `balanced_accuracy` with its interval over groups; `recall` by disease; `labels` (the true diseases, then
        "undetermined") and `confusion`, true ones as rows, in their order.
    """
    gate = SignGate(side.names, thresholds=tuple(thresholds[name] for name in side.names))
    said = np.array([gate.decide(row).predicted for row in side.probabilities], dtype=object)
    true = sorted(set(side.labels))
    labels = [*true, *sorted(set(said) - set(true) - {UNDETERMINED}), UNDETERMINED]
    shares = [
        (_by_group(side, (side.labels == name) & (said == name)), _by_group(side, side.labels == name)) for name in true
    ]
    recall = {name: float(part.sum() / whole.sum()) for name, (part, whole) in zip(true, shares, strict=True)}
    found: dict[str, Any] = {"value": float(np.mean(list(recall.values())))}
    if min((whole > 0).sum() for _, whole in shares) < 2:
        found["why"] = "a disease with cases of one patient"
    else:
        low, high = clustered.mean_proportion(shares, LEVEL)
        found |= {"low": float(low), "high": float(high), "method": MEAN}
    return {
        "n": len(said),
        "balanced_accuracy": found,
        "recall": recall,
        "labels": labels,
        "confusion": metrics.confusion_matrix(side.labels.astype(str), said.astype(str), labels=labels).tolist(),
    }


def _by_group(answers: Predictions, rows: np.ndarray) -> np.ndarray:
    """How many of the chosen rows each group has, float64 `(groups,)`."""
    names, group = np.unique(answers.groups.astype(str), return_inverse=True)
    return np.bincount(group, weights=rows, minlength=len(names))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """float64; probabilities were stored as float32, whose last step below 1 is 6e-8."""
    return logit(np.clip(np.asarray(probabilities, np.float64), 1e-12, 1 - 3e-8))
