import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import compute_class_weights
from torch.nn import functional

from oct_hf.errors import RecipeError
from oct_hf.training.losses import class_weights, effective_weights, make_loss, plain_loss
from oct_hf.training.recipe import LOSSES, TrainRecipe

NAMES = ["A", "B", "C"]
LABELS = np.repeat([0, 1, 2], [60, 30, 10])  # of the training side
LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-2.0, 3.0, 0.0], [0.0, -1.0, 1.5]])
Y = torch.tensor([0, 2, 1, 0])
P = softmax(LOGITS.double().numpy(), axis=1)
P_TRUE = P[np.arange(4), Y.numpy()]


def loss_of(name: str, several: bool = False, **settings):
    options = settings.pop("options", {})
    labels = np.eye(3, dtype=int)[LABELS] if several else LABELS
    return make_loss(TrainRecipe(loss=name, loss_options=options, **settings), labels, NAMES, several)


def test_cross_entropy_is_that_of_scikit_learn():
    assert loss_of("cross_entropy")(LOGITS, Y).item() == pytest.approx(log_loss(Y, P), abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_the_papers(gamma):
    loss = loss_of("focal", options={"gamma": gamma})
    expected = np.mean(-((1 - P_TRUE) ** gamma) * np.log(P_TRUE))
    assert loss(LOGITS, Y).item() == pytest.approx(expected, abs=1e-6)
    sure = torch.tensor([[90.0, 0.0, 0.0]], requires_grad=True)
    loss(sure, torch.tensor([0])).backward()
    assert sure.grad.isfinite().all()


def test_class_balanced_focal_loss_weighs_as_cui_does():
    weights = (1 - 0.99) / (1 - 0.99 ** np.array([60, 30, 10.0]))
    weights = (weights * 3 / weights.sum())[Y.numpy()]
    expected = np.sum(weights * (1 - P_TRUE) ** 2 * -np.log(P_TRUE)) / weights.sum()
    loss = loss_of("focal", class_weights="effective", class_weights_beta=0.99)
    assert loss(LOGITS, Y).item() == pytest.approx(expected, abs=1e-6)


def test_weights_of_classes_are_those_of_timm_and_scikit_learn():
    counts = np.bincount(LABELS)
    _, timms = compute_class_weights(counts, len(LABELS), "effective_num", beta=0.99)
    assert torch.allclose(effective_weights(torch.tensor(counts), 0.99), timms)
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    assert class_weights("auto", LABELS, NAMES).tolist() == pytest.approx(balanced)


def test_ldam_has_margins_by_rarity_and_weighs_only_late():
    loss = loss_of("ldam", options={"margin": 0.4, "scale": 3.0, "reweight_from": 0.75, "beta": 0.99})
    margins = np.array([60, 30, 10.0]) ** -0.25
    margins *= 0.4 / margins.max()
    moved = LOGITS.double().numpy() - margins * np.eye(3)[Y.numpy()]
    each = -np.log(softmax(3 * moved, axis=1)[np.arange(4), Y.numpy()])
    assert loss(LOGITS, Y, progress=0.74).item() == pytest.approx(each.mean(), abs=1e-6)
    weights = 0.01 / (1 - 0.99 ** np.array([60, 30, 10.0]))[Y.numpy()]
    assert loss(LOGITS, Y, progress=0.75).item() == pytest.approx(np.average(each, weights=weights), abs=1e-6)


def test_gce_is_the_papers_between_cross_entropy_and_absolute_error():
    assert loss_of("gce")(LOGITS, Y).item() == pytest.approx(np.mean((1 - P_TRUE**0.7) / 0.7), abs=1e-6)
    absolute = np.abs(np.eye(3)[Y.numpy()] - P).sum(1).mean() / 2
    assert loss_of("gce", options={"q": 1.0})(LOGITS, Y).item() == pytest.approx(absolute, abs=1e-6)
    assert loss_of("gce", options={"q": 1e-4})(LOGITS, Y).item() == pytest.approx(log_loss(Y, P), abs=1e-3)


def test_symmetric_cross_entropy_is_the_papers():
    reverse = np.mean(4.0 * (1 - P_TRUE))  # -sum over the other classes of p log 0, log 0 = -4
    assert loss_of("symmetric")(LOGITS, Y).item() == pytest.approx(0.1 * log_loss(Y, P) + reverse, abs=1e-6)


def test_elr_pulls_towards_what_the_network_said_of_the_same_image_before():
    loss = loss_of("elr", options={"lambda": 2.0, "beta": 0.6})
    index, other = torch.tensor([5, 0, 99, 7]), LOGITS.flip(1)
    first = 0.4 * P
    expected = log_loss(Y, P) + 2 * np.mean(np.log(1 - (first * P).sum(1)))
    assert loss(LOGITS, Y, index).item() == pytest.approx(expected, abs=1e-6)
    q = softmax(other.double().numpy(), axis=1)
    second = 0.6 * first + 0.4 * q
    expected = log_loss(Y, q) + 2 * np.mean(np.log(1 - (second * q).sum(1)))
    assert loss(other, Y, index).item() == pytest.approx(expected, abs=1e-6)
    assert list(loss.state_dict()) == ["targets"] and loss.targets[1].sum() == 0


def test_asymmetric_loss_is_the_papers_for_several_labels_and_for_one():
    y = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
    p, hot = expit(LOGITS.double().numpy()), y.numpy()
    shifted = np.maximum(p - 0.05, 0)
    each = hot * (1 - p) * np.log(p) + (1 - hot) * shifted**4 * np.log(1 - shifted)
    assert loss_of("asymmetric", several=True)(LOGITS, y).item() == pytest.approx(-each.sum() / 4, abs=1e-5)
    expected = np.mean(-(1 - P_TRUE) * np.log(P_TRUE))  # of one label the negatives' target is 0, so gamma_pos is left
    assert loss_of("asymmetric")(LOGITS, Y).item() == pytest.approx(expected, abs=1e-6)
    smooth, hot = 0.9 * np.eye(3)[Y] + 0.1 / 3, np.eye(3)[Y]
    each = smooth * np.where(hot, 1 - P, P**4) * np.log(P)
    loss = loss_of("asymmetric", label_smoothing=0.1)
    assert loss(LOGITS, Y).item() == pytest.approx(-each.sum() / 4, abs=1e-5)


def test_several_labels_have_a_binary_loss_each_and_refuse_what_is_for_one():
    y = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
    expected = np.mean(
        [log_loss(y[:, c].numpy(), expit(LOGITS[:, c].double().numpy()), labels=[0, 1]) for c in range(3)]
    )
    assert loss_of("cross_entropy", several=True)(LOGITS, y).item() == pytest.approx(expected, abs=1e-6)
    assert plain_loss(LOGITS, y).item() == pytest.approx(expected, abs=1e-6)
    p = expit(LOGITS.double().numpy())
    p_true = np.where(y.numpy() == 1, p, 1 - p)
    focal = np.mean((1 - p_true) ** 2 * -np.log(p_true))
    assert loss_of("focal", several=True)(LOGITS, y).item() == pytest.approx(focal, abs=1e-6)
    with pytest.raises(RecipeError, match="gce is for one label an image; for several: cross_entropy, focal"):
        loss_of("gce", several=True)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("elr", "asymmetric")])
def test_mixed_labels_give_the_mixture_of_the_losses(name):
    # Every loss here but symmetric's clipped log, and LDAM's margin, is linear in the labels.
    loss, other = loss_of(name), Y.roll(1)
    shares = 0.3 * functional.one_hot(Y, 3).float() + 0.7 * functional.one_hot(other, 3).float()
    hard = loss(LOGITS, functional.one_hot(Y, 3).float())
    assert hard.item() == pytest.approx(loss(LOGITS, Y).item(), abs=1e-6)
    if name not in ("symmetric", "ldam"):
        mixed = 0.3 * loss(LOGITS, Y) + 0.7 * loss(LOGITS, other)
        assert loss(LOGITS, shares).item() == pytest.approx(mixed.item(), abs=1e-6)
    else:
        assert loss(LOGITS, shares).isfinite()


def test_smoothing_reaches_every_loss_that_takes_it():
    for name in ("cross_entropy", "focal", "ldam", "gce", "symmetric"):
        assert loss_of(name)(LOGITS, Y) != loss_of(name, label_smoothing=0.2)(LOGITS, Y)
    expected = functional.cross_entropy(LOGITS, Y, label_smoothing=0.2).item()
    assert loss_of("focal", label_smoothing=0.2, options={"gamma": 0})(LOGITS, Y).item() == pytest.approx(expected)
