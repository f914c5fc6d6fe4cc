import math
from functools import partial

import numpy as np
import pytest
import torch
from small import assert_same, pixels, stopped_and_resumed, trainer
from torch.nn.functional import cross_entropy

from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import RecipeError
from oct_hf.training.batches import collate
from oct_hf.training.fixmatch import FixMatchTrainer, TwoViews, consistency_loss
from oct_hf.training.recipe import SemiRecipe
from oct_hf.training.unlabelled import NO_LABEL

STRONG = Augmentation(["flip", {"name": "contrast", "p": 1.0, "contrast": 0.4}, "erase"], 1)


def fixmatch(folder, callbacks=(), others=None, semi=None, **settings) -> FixMatchTrainer:
    semi = SemiRecipe(**{"ratio": 3, "threshold": 0.6, **(semi or {})})
    more = {"settings": semi, "others": [pixels(30, seed=4)] if others is None else others, "strong": STRONG}
    return trainer(folder, callbacks, FixMatchTrainer, more, **settings)


def batch_of(run: FixMatchTrainer) -> dict:
    """The first batch as the network gets it: 2 labelled pictures and 6 in two views."""
    run.model.train()
    run.model.timm_model.drop_rate = 0.0
    return run._prepare_inputs(next(run.endless_batches()))


def test_only_sure_answers_are_learned_from_by_hand():
    weak = torch.tensor([[math.log(19), 0.0], [0.0, math.log(9)], [0.0, math.log(99)]], requires_grad=True)
    strong = torch.tensor([[0.0, 0.0], [0.0, 0.0], [math.log(3), 0.0]], requires_grad=True)
    # 0.95 passes, 0.9 doesn't, 0.99 does: -ln(1/2) and -ln(1/4) over all three
    loss, passed = consistency_loss(strong, weak, 0.95)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 3) and passed.item() == pytest.approx(2 / 3)
    loss.backward()
    assert weak.grad is None and strong.grad[1].abs().sum() == 0 and strong.grad[2, 1] < 0


def test_a_picture_without_a_label_comes_in_two_views_that_follow_from_epoch_and_content():
    pictures = pixels(6, seed=2)
    views = TwoViews(pictures, STRONG)
    item, again, later = views[3, 1], views[3, 1], views[4, 1]
    assert item["labels"] == NO_LABEL and pictures.labels[1] == 1
    assert np.array_equal(item["pixel_values"], pictures[3, 1]["pixel_values"])
    assert np.array_equal(item["strong"], again["strong"]) and not np.array_equal(item["strong"], later["strong"])
    assert not np.array_equal(item["strong"], item["pixel_values"])
    both = collate([pictures[3, 0], item])
    assert np.array_equal(both["strong"][0], both["pixel_values"][0])  # a labelled one has one view


def test_the_loss_is_that_of_the_labels_and_the_weighted_one_of_sure_answers(tmp_path):
    run = fixmatch(tmp_path, semi={"weight": 2.5, "threshold": 0.5}, label_smoothing=0.1)
    batch = batch_of(run)
    assert (batch["labels"] == NO_LABEL).tolist() == [False] * 2 + [True] * 6
    loss = run.compute_loss(run.model, batch)
    with torch.no_grad():
        both = torch.cat([batch["pixel_values"][:2], batch["strong"][2:]])
        logits, weak = (run.model(pixel_values=part).logits for part in (both, batch["pixel_values"][2:]))
    labelled = cross_entropy(logits[:2], batch["labels"][:2], label_smoothing=0.1)
    sure, told = weak.softmax(-1).max(-1)
    each = cross_entropy(logits[2:], told, reduction="none") * (sure >= 0.5)
    assert loss.item() == pytest.approx((labelled + 2.5 * each.mean()).item(), rel=1e-5)
    plain = run.compute_loss(run.model.eval(), {key: batch[key][:2] for key in ("pixel_values", "labels")})
    with torch.no_grad():
        logits = run.model(pixel_values=batch["pixel_values"][:2]).logits
    assert plain.item() == pytest.approx(cross_entropy(logits, batch["labels"][:2]).item(), rel=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_strong_views_teach_every_layer_in_either_precision(tmp_path, bf16):
    run = fixmatch(tmp_path, semi={"threshold": 0.01})
    batch = batch_of(run)
    gradients = []
    for weight in (1.0, 1000.0):
        object.__setattr__(run.settings, "weight", weight)
        run.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            run.compute_loss(run.model, dict(batch)).backward()
        gradients.append([p.grad.clone() for p in run.model.parameters()])
    assert all(torch.isfinite(g).all() for g in gradients[1])
    assert all((b - a).abs().sum() > 0 for a, b in zip(*gradients, strict=True))


def test_labels_that_a_picture_of_the_others_carries_change_nothing(tmp_path):
    given = pixels(30, seed=4)
    turned = Pixels(given.images, 1 - given.labels, list(given.hashes), given.augmentation)
    weights = []
    for number, others in enumerate((given, turned)):
        run = fixmatch(tmp_path / str(number), others=[others], epochs=1)
        run.train()
        weights.append(run.model.state_dict())
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())
    assert 0 <= run.state.log_history[0]["sure"] <= 1


def test_without_weight_the_same_steps_are_taken_on_the_labelled_ones_alone(tmp_path):
    weights = []
    for number, seed in enumerate((4, 5)):
        run = fixmatch(tmp_path / str(number), others=[pixels(30, seed=seed)], semi={"weight": 0.0}, epochs=1)
        run.train()
        weights.append(run.model.state_dict())
        assert run.state.global_step == 12  # each of the 24 labelled ones once, 2 a step
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())


def test_a_step_in_several_passes_sees_the_same_pictures(tmp_path):
    whole, parts = (fixmatch(tmp_path / str(n), accumulate=n)._get_train_sampler() for n in (1, 2))
    for sampler in (whole, parts):
        sampler.set_epoch(2)
    whole, parts = list(whole), list(parts)
    assert len(whole) == len(parts)
    for start in range(0, len(whole), 8):
        assert sorted(whole[start : start + 8]) == sorted(parts[start : start + 8])
        assert [index >= 24 for _, index in parts[start : start + 4]] == [False] + [True] * 3


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"loss": "elr", "accumulate": 2, "start_size": 32}])
def test_a_resumed_fixmatch_ends_with_the_same_weights(tmp_path, settings):
    whole, again = stopped_and_resumed(partial(fixmatch, **settings), tmp_path, 17)  # in the middle of epoch 2
    assert whole.state.global_step == again.state.global_step == 36
    assert_same(whole.model, again.model)


def test_a_batch_without_room_for_both_kinds_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"semi.ratio: 100.0 of a batch of 8 leaves no picture of one kind"):
        fixmatch(tmp_path, semi={"ratio": 100})
