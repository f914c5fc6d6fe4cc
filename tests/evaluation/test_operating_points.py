import json

import numpy as np
import pytest
from sklearn import metrics as sk

from oct_hf.errors import DataError
from oct_hf.evaluation.operating_points import (
    at_prevalence,
    counts,
    decision_curves,
    net_benefit,
    operating_points,
    referral_levels,
    scores,
    threshold_for_sensitivity,
    threshold_for_specificity,
    weighted_error,
)
from oct_hf.evaluation.predictions import Predictions
from oct_hf.labels import DESCRIPTIONS, LABEL_SETS, REFERRAL, REFERRAL_COST, REFERRAL_LEVELS

OCT2017 = LABEL_SETS["oct2017"]


def answers(names=OCT2017, n=400, seed=0, decimals=2) -> Predictions:
    """A validation and a test side of a middling model; rounded, so that many scores are tied."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), n)
    logits = rng.normal(0, 1.2, (n, len(names)))
    logits[np.arange(n), labels] += 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = p.round(decimals)
    text = np.array([f"{i:03}" for i in range(n)], dtype=object)
    sides = np.where(np.arange(n) < n // 2, "validation", "test")
    probabilities = (p / p.sum(1, keepdims=True)).astype(np.float32)
    return Predictions(tuple(names), text, text, np.array(names, dtype=object)[labels], sides, probabilities)


def of_side(predictions, side, wanted):
    part = predictions.of(side)
    return scores(part.probabilities, part.names, wanted), np.isin(part.labels, wanted)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_thresholds_are_the_best_of_scikit_learns_roc_curve_that_reach_the_target(target, seed):
    score, positive = of_side(answers(seed=seed), "validation", ["CNV"])
    false, true, cut = sk.roc_curve(positive, score, drop_intermediate=False)
    reach = (1 - false >= target - 1e-12) & np.isfinite(cut)
    best = cut[reach].min() if reach.any() else None
    assert threshold_for_specificity(score, positive, target) == best
    assert threshold_for_sensitivity(score, positive, target) == cut[true >= target - 1e-12].max()


def test_counts_are_scikit_learns():
    score, positive = of_side(answers(), "test", ["CNV", "DME"])
    found = counts(score, positive, 0.4)
    tn, fp, fn, tp = sk.confusion_matrix(positive, score >= 0.4).ravel()
    assert (found["tn"], found["fp"], found["fn"], found["tp"]) == (tn, fp, fn, tp)
    assert found["sensitivity"] == sk.recall_score(positive, score >= 0.4)
    assert found["ppv"] == sk.precision_score(positive, score >= 0.4)
    assert found["specificity"] == tn / (tn + fp) and found["npv"] == tn / (tn + fn)
    nobody = counts(score[positive], positive[positive], 2.0)
    assert nobody["sensitivity"] == 0 and nobody["specificity"] is nobody["ppv"] is None and nobody["npv"] == 0


def test_tied_scores_stand_on_one_side_and_the_target_is_kept():
    # Of four negatives, three are tied at 0.3: a threshold of 0.3 keeps one of four below, only the next score more.
    score = np.array([0.1, 0.3, 0.3, 0.3, 0.3, 0.6, 0.9])
    positive = np.array([False, False, False, False, True, True, True])
    assert threshold_for_specificity(score, positive, 0.25) == 0.3
    assert threshold_for_specificity(score, positive, 0.5) == 0.6
    assert threshold_for_sensitivity(score, positive, 0.5) == 0.6
    assert threshold_for_sensitivity(score, positive, 0.95) == 0.3
    highest = np.array([0.1, 0.9, 0.9]), np.array([True, False, True])
    assert threshold_for_specificity(*highest, 0.95) is None


def test_a_view_is_cut_on_validation_and_counted_on_both_sides():
    predictions = answers()
    found = operating_points(predictions)
    views = {**found["diseases"], "urgent": found["urgent"], "any": found["any_disease"]}
    assert list(views) == ["CNV", "DME", "DRUSEN", "urgent", "any"]
    assert found["urgent"]["labels"] == ["CNV", "DME"] and found["any_disease"]["labels"] == ["CNV", "DME", "DRUSEN"]
    for view in views.values():
        sensitive, specific = view["at_sensitivity"], view["at_specificity"]
        assert specific["validation"]["specificity"] >= 0.95 and sensitive["validation"]["sensitivity"] >= 0.95
        for point in (sensitive, specific):
            assert point["validation"] == counts(
                *of_side(predictions, "validation", view["labels"]), point["threshold"]
            )
            assert point["test"] == counts(*of_side(predictions, "test", view["labels"]), point["threshold"])
    test, levels = predictions.of("test"), referral_levels(OCT2017)
    said = weighted_error((test.probabilities, test.indices()), OCT2017, levels)
    assert found["referral"] == {"levels": levels, **said} and said["weighted_error"] > 0
    rearranged = Predictions(
        *(getattr(predictions, c) for c in ("names", "hashes", "groups")),
        np.where(predictions.sides == "test", "NORMAL", predictions.labels),
        predictions.sides,
        predictions.probabilities,
    )
    other = operating_points(rearranged)
    assert other["urgent"]["at_specificity"]["threshold"] == found["urgent"]["at_specificity"]["threshold"]
    assert other["urgent"]["at_specificity"]["test"]["sensitivity"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_any_disease_is_one_minus_normal():
    part = answers()
    assert np.allclose(scores(part.probabilities, OCT2017, OCT2017[:3]), 1 - part.probabilities[:, 3], atol=1e-6)
    tiny = np.array([[1e-12, 1.0]], np.float32)
    assert scores(tiny, ("DME", "NORMAL"), ["DME"])[0] == pytest.approx(1e-12)


def test_what_can_not_be_had_is_none_and_says_why():
    found = operating_points(answers(LABEL_SETS["neh_2018"]))
    assert found["urgent"]["at_specificity"] is None and found["any_disease"]["at_specificity"] is not None
    assert found["urgent"]["why"] == "no source gives AMD one level of referral"
    assert found["referral"]["weighted_error"] is None and found["referral"]["levels"]["AMD"] is None
    own = operating_points(
        answers(LABEL_SETS["neh_2018"]), levels={"AMD": "urgent", "DME": "urgent", "NORMAL": "observation"}
    )
    assert own["urgent"]["at_specificity"] and own["referral"]["weighted_error"] > 0
    assert operating_points(answers(("DRUSEN", "NORMAL")))["urgent"]["why"] == "no label is urgent"
    fluid = operating_points(answers(("SRF", "NoSRF")))
    assert fluid["any_disease"]["why"] == "the model has no label for a normal retina"
    whole = answers()
    rows = ~((whole.sides == "validation") & (whole.labels == "DME"))
    columns = (getattr(whole, c)[rows] for c in ("hashes", "groups", "labels", "sides", "probabilities"))
    found = operating_points(Predictions(whole.names, *columns))
    assert found["diseases"]["DME"]["at_sensitivity"] is None
    assert found["diseases"]["DME"]["why"].startswith("no positive case among ")
    assert found["diseases"]["CNV"]["why"] is None
    nothing = whole.of("nowhere")
    found = operating_points(nothing)
    assert found["diseases"]["CNV"]["why"] == "no positive case among 0 validation images"
    assert found["referral"]["why"] == "there is no test image" and decision_curves(nothing) == {}
    sick = Predictions(whole.names, *(getattr(whole.of("validation"), c)[:2] for c in COLUMNS))
    sick = Predictions(sick.names, sick.hashes, sick.groups, np.array(["CNV", "DME"]), sick.sides, sick.probabilities)
    assert operating_points(sick)["any_disease"]["why"] == "no negative case among 2 validation images"


COLUMNS = ("hashes", "groups", "labels", "sides", "probabilities")


def test_every_referral_level_has_a_source_and_labels_that_span_two_have_none():
    assert set(REFERRAL) <= set(DESCRIPTIONS)
    assert all(level in REFERRAL_LEVELS and source for level, source in REFERRAL.values())
    assert referral_levels(OCT2017) == dict(zip(OCT2017, ("urgent", "urgent", "routine", "observation"), strict=True))
    assert not {"AMD", "ABNORMAL", "RVO", "SRF"} & set(REFERRAL)
    with pytest.raises(DataError, match="CNV: referral is urgent, routine, observation, not soon"):
        referral_levels(OCT2017, {"CNV": "soon"})


def test_the_weighted_error_of_a_hand_worked_example():
    # CNV seen as NORMAL costs 4 of 4; DME as CNV 0 of 4, both urgent; NORMAL as DRUSEN 1 of 2; DRUSEN right 0 of 2.
    probabilities = np.eye(4)[[3, 0, 2, 2]]
    found = weighted_error((probabilities, np.array([0, 1, 3, 2])), OCT2017, referral_levels(OCT2017))
    assert found["weighted_error"] == pytest.approx((4 + 0 + 1 + 0) / (4 + 4 + 2 + 2))
    assert found["confusion"] == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
    for i, true in enumerate(REFERRAL_LEVELS):
        for j, said in enumerate(REFERRAL_LEVELS):
            assert REFERRAL_COST[true][said] == (2 * (j - i) if j > i else i - j)


def test_predictive_values_follow_bayes():
    # Liver scans of Altman and Bland (BMJ 1994): 231 of 258 abnormal and 54 of 86 normal ones told; at a prevalence of
    # 0.25 instead of 0.75 they give 0.45 and 0.95.
    found = at_prevalence(231 / 258, 54 / 86, 0.25)
    assert (round(found["ppv"], 2), round(found["npv"], 2)) == (0.45, 0.95)
    found = at_prevalence(231 / 258, 54 / 86, 258 / 344)
    assert found["ppv"] == pytest.approx(231 / 263) and found["npv"] == pytest.approx(54 / 81)
    cut = counts(*of_side(answers(), "test", ["CNV"]), 0.4)
    share = (cut["tp"] + cut["fn"]) / (cut["tp"] + cut["fn"] + cut["fp"] + cut["tn"])
    again = at_prevalence(cut["sensitivity"], cut["specificity"], share)
    assert again["ppv"] == pytest.approx(cut["ppv"]) and again["npv"] == pytest.approx(cut["npv"])
    assert at_prevalence(0, 1, 0.1)["ppv"] is None and at_prevalence(1, 0, 0.1)["npv"] is None
    assert at_prevalence(1, 1, 0.1) == {"ppv": 1.0, "npv": 1.0}
    with pytest.raises(DataError, match="prevalence lies between 0 and 1"):
        at_prevalence(0.9, 0.9, 5)


def test_net_benefit_of_hand_worked_cases():
    # Ten cases, four with disease; at t = 0.2 three of them and two healthy ones are treated: 3/10 - 2/10 * 0.25.
    score = np.array([0.9, 0.7, 0.2, 0.1, 0.3, 0.25, 0.1, 0.1, 0.0, 0.0])
    positive = np.arange(10) < 4
    found = net_benefit(score, positive, [0.2, 0.5])
    assert found["model"] == pytest.approx([0.3 - 0.2 * 0.25, 0.2])
    assert found["treat_all"] == pytest.approx([0.4 - 0.6 * 0.25, 0.4 - 0.6])
    assert found["treat_none"] == [0.0, 0.0]


def test_net_benefit_keeps_the_limits_of_the_formula():
    score, positive = of_side(answers(), "test", ["CNV"])
    found = net_benefit(score, positive)
    share, t = positive.mean(), np.array(found["threshold"])
    assert len(t) == 99 and (t[0], t[-1]) == (0.01, 0.99)
    assert max(found["model"]) <= share
    assert np.interp(share, t, found["treat_all"]) == pytest.approx(0, abs=5e-3)  # nothing to gain where t = prevalence
    perfect = net_benefit(positive.astype(float), positive)
    assert np.allclose(perfect["model"], share)
    everyone = net_benefit(np.ones(len(score)), positive)
    assert np.allclose(everyone["model"], everyone["treat_all"])
    nobody = net_benefit(np.zeros(len(score)), positive)
    assert nobody["model"] == nobody["treat_none"]
    curves = decision_curves(answers())
    assert list(curves) == ["CNV", "DME", "DRUSEN", "urgent referral", "any disease"] and curves["CNV"] == found
    for wrong, text in (([0.0], "between 0 and 1"), ([1.0], "between 0 and 1")):
        with pytest.raises(DataError, match=text):
            net_benefit(score, positive, wrong)
    with pytest.raises(DataError, match="needs cases"):
        net_benefit([], [])


@pytest.mark.parametrize("target", [0, 1.1, float("nan")])
def test_targets_out_of_range_are_refused(target):
    with pytest.raises(DataError, match="a target of sensitivity or specificity"):
        operating_points(answers(), specificity=target)
