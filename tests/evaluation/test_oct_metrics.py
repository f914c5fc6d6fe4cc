import evaluate
import numpy as np
import pytest
from sklearn import metrics as sk

from oct_hf.errors import DataError
from oct_hf.evaluation import oct_metrics
from oct_hf.evaluation.oct_metrics import OCTMetrics, expected_calibration_error, measure

NAMES = ["CNV", "DME", "NORMAL"]


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    logits = rng.normal(0, 1, (400, 3))
    logits[np.arange(400), labels] += 1.3
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def test_every_number_is_scikit_learns(answers):
    probabilities, labels = answers
    predicted = probabilities.argmax(1)
    result = OCTMetrics().compute(predictions=probabilities, references=labels, label_names=NAMES)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "f1": sk.f1_score(labels, predicted, average="macro"),
        "cohen_kappa": sk.cohen_kappa_score(labels, predicted),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "log_loss": sk.log_loss(labels, probabilities),
    }
    for key, value in expected.items():
        assert result[key] == pytest.approx(value, abs=1e-12), key
    assert result["confusion_matrix"] == sk.confusion_matrix(labels, predicted).tolist()
    for c, name in enumerate(NAMES):
        row, true, said = result["per_class"][name], labels == c, predicted == c
        assert row["precision"] == pytest.approx(sk.precision_score(true, said))
        assert row["recall"] == pytest.approx(sk.recall_score(true, said))
        assert row["specificity"] == pytest.approx(sk.recall_score(~true, ~said))
        assert row["f1"] == pytest.approx(sk.f1_score(true, said))
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(true, probabilities[:, c]))
        assert row["auprc"] == pytest.approx(sk.average_precision_score(true, probabilities[:, c]))
        assert row["n"] == true.sum()


def test_calibration_error_of_a_hand_worked_example():
    # Two bins: confidences 0.6, 0.6 with one hit (gap 0.1); 0.9, 0.9 with two hits (gap 0.1).
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.9, 0.1], [0.6, 0.4]])
    assert expected_calibration_error(probabilities, np.array([0, 0, 0, 1]), bins=2) == pytest.approx(0.1)
    assert expected_calibration_error(probabilities, np.array([0, 0, 1, 1]), bins=2) == pytest.approx(0.25)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large_one():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, 20_000)
    labels = (rng.random(20_000) > p).astype(int)
    assert expected_calibration_error(np.stack([p, 1 - p], 1), labels) < 0.015
    sure = np.clip(p + 0.2, 0, 0.999)
    assert expected_calibration_error(np.stack([sure, 1 - sure], 1), labels) > 0.1


def test_what_can_not_be_computed_is_none_and_never_nan():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    result = measure(probabilities, np.array([0, 0]), NAMES)
    assert result["auroc"] is None and result["mcc"] is None and result["cohen_kappa"] is None
    assert result["per_class"]["CNV"]["specificity"] is None and result["per_class"]["CNV"]["auroc"] is None
    assert result["per_class"]["DME"]["recall"] is None and result["per_class"]["DME"]["precision"] is None
    flat = [v for row in result["per_class"].values() for v in row.values()] + [v for k, v in result.items()]
    assert not any(isinstance(value, float) and np.isnan(value) for value in flat)
    assert result["balanced_accuracy"] == 1.0


def test_it_loads_as_a_local_file_of_evaluate(answers):
    probabilities, labels = answers
    loaded = evaluate.load(oct_metrics.__file__)
    result = loaded.compute(predictions=probabilities, references=labels)
    assert result["accuracy"] == measure(probabilities, labels, list("012"))["accuracy"]
    both = evaluate.combine([OCTMetrics()])
    assert both.compute(predictions=probabilities, references=labels)["n"] == 400


@pytest.mark.parametrize(
    "probabilities, labels, text",
    [
        ([[0.5, 0.5, 0.5]], [0], "row 0 of the predictions sums to 1.5"),
        ([[0.2, 0.3, 0.5], [np.nan, 0.5, 0.5]], [0, 1], "row 1 of the predictions has negative or undefined"),
        ([[1.2, -0.2, 0.0]], [0], "row 0"),
        ([[0.2, 0.3, 0.5]], [3], "true labels must lie in 0..2"),
        ([[0.5, 0.5]], [0], "2 classes, the labels 3"),
        ([[0.2, 0.3, 0.5]], [0, 1], "1 predictions, but 2 true labels"),
        (np.zeros((0, 3)), [], "expected n rows"),
    ],
)
def test_what_is_no_probability_is_refused_with_its_row(probabilities, labels, text):
    with pytest.raises(DataError, match=text):
        measure(np.array(probabilities), np.array(labels, int), NAMES)


def test_very_many_cases_have_the_mcc_of_few(answers):
    probabilities, labels = answers
    few, many = (
        measure(probabilities, labels, NAMES),
        measure(np.tile(probabilities, (200, 1)), np.tile(labels, 200), NAMES),
    )
    assert many["mcc"] == pytest.approx(few["mcc"], abs=1e-12)
