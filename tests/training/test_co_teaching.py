from functools import partial

import pytest
import torch
from small import assert_same, gradients_of_two_steps, network, pixels, stopped_and_resumed, trainer
from torch.nn.functional import cross_entropy

from oct_hf.training.co_teaching import CoTeachingTrainer, kept_share, small_losses
from oct_hf.training.recipe import CoTeachingRecipe


def co_teaching(folder, callbacks=(), forget_rate=0.25, gradual=1, **settings) -> CoTeachingTrainer:
    more = {"peer": network(5), "settings": CoTeachingRecipe(forget_rate, gradual)}
    return trainer(folder, callbacks, CoTeachingTrainer, more, **settings)


def batch_of(run: CoTeachingTrainer, count: int = 8) -> dict:
    given = pixels()
    batch = {"pixel_values": torch.from_numpy(given.images[:count]), "labels": torch.from_numpy(given.labels[:count])}
    for model in (run.model.train(), run.peer.train()):
        model.timm_model.drop_rate = 0.0
    return run._prepare_inputs(batch)


def test_what_is_left_out_rises_to_the_forget_rate_epoch_by_epoch():
    shares = [kept_share(CoTeachingRecipe(0.4, 4), epoch) for epoch in range(7)]
    assert shares == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6])


def test_the_smallest_losses_of_a_batch_are_chosen():
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [5.0, 0.0], [0.0, 5.0], [5.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 0, 0, 0])
    assert small_losses(logits, labels, 0.8).tolist() == [2, 4, 0, 1]  # of equal ones the first
    assert small_losses(logits, labels, 0.6).tolist() == [2, 4, 0]
    assert small_losses(logits, labels, 0.1).tolist() == [2]


def test_each_network_learns_from_what_the_other_chose(tmp_path):
    run = co_teaching(tmp_path, forget_rate=0.5)
    batch = batch_of(run)
    run.state.max_steps, run.state.num_train_epochs, run.state.global_step = 9, 3, 3  # of the second epoch
    loss = run.compute_loss(run.model, batch)
    labels = batch["labels"]
    with torch.no_grad():
        own, other = (model(pixel_values=batch["pixel_values"]).logits for model in (run.model, run.peer))
    losses = [cross_entropy(logits, labels, reduction="none") for logits in (own, other)]
    picked = [set(each.argsort()[:4].tolist()) for each in losses]
    assert picked[0] != picked[1]
    expected = losses[0][list(picked[1])].mean() + losses[1][list(picked[0])].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    run.state.global_step = 0  # in the first epoch nothing is left out
    assert run.compute_loss(run.model, batch).item() == pytest.approx(sum(e.mean().item() for e in losses), rel=1e-5)
    plain = run.compute_loss(run.model.eval(), batch)
    with torch.no_grad():
        assert plain.item() == pytest.approx(cross_entropy(run.model(**batch).logits, labels).item(), rel=1e-5)


def test_both_networks_learn_and_stay_two(tmp_path):
    run = co_teaching(tmp_path)
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in (run.model, run.peer)]
    run.train()
    for model, old in zip((run.model, run.peer), before, strict=True):
        moved = [not torch.equal(value, old[key]) for key, value in model.state_dict().items()]
        assert all(moved)
    assert not torch.equal(*(model.timm_model.get_classifier().weight for model in (run.model, run.peer)))
    rates = {group["lr"] for group in run.optimizer.param_groups}
    assert len(rates) == 1  # one schedule for both


def test_a_peer_that_leaves_nothing_out_changes_nothing(tmp_path):
    run, plain = co_teaching(tmp_path / "two", forget_rate=0.0), trainer(tmp_path / "one")
    run.train()
    plain.train()
    for (name, one), other in zip(plain.model.state_dict().items(), run.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_gradients_of_the_peer_are_those_of_the_last_batch_alone_and_clipped(tmp_path):
    run = co_teaching(tmp_path, max_grad_norm=0.01)
    run.train()
    gradients = gradients_of_two_steps(run, run.peer, run.peer.timm_model.get_classifier().weight)
    assert torch.allclose(*gradients, atol=1e-6)
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.peer.parameters()])
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_the_peer_is_frozen_and_thawed_as_the_model_is(tmp_path):
    run = co_teaching(tmp_path, epochs=2, freeze_epochs=2)
    before = {key: value.clone() for key, value in run.peer.state_dict().items()}
    head = {f"timm_model.{key}" for key, _ in run.peer.timm_model.named_parameters() if key.startswith("classifier")}
    run.train()
    changed = {key for key, value in run.peer.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == head


@pytest.mark.parametrize(
    "settings",
    [{"ema": 0.9}, {"accumulate": 2, "freeze_epochs": 1, "layer_decay": 0.8}, {"optimizer": "schedule_free"}],
)
def test_a_resumed_co_teaching_ends_with_the_same_weights(tmp_path, settings):
    whole, again = stopped_and_resumed(partial(co_teaching, **settings), tmp_path, 7)  # in the middle of epoch 3
    assert_same(whole.model, again.model)
    assert_same(whole.peer, again.peer)
