"""Every option of the recipe in a real training of two epochs: it learns something, and goes on as if never stopped."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import NAMES, StopAtStep, pixels, trainer
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

from oct_hf import OCTForImageClassification, Preprocessing
from oct_hf.errors import RecipeError, TrainingError
from oct_hf.training.batches import make_mixing, training_size
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.recipe import LOSSES, TrainRecipe
from oct_hf.training.recipe_file import make_recipe

OPTIONS = {  # each optimiser and schedule once, and what else may remember something, spread over them
    "adam": {"optimizer": "adam", "schedule": "linear", "loss": "gce", "label_smoothing": 0.1},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05, "schedule": "one_cycle", "accumulate": 2}
    | {"mixup": 0.4, "cutmix": 1.0},
    "lamb": {
        "optimizer": "lamb",
        "schedule": "cosine_with_min_lr",
        "layer_decay": 0.7,
        "thaw_epochs": 1,
        "loss": "elr",
    },
    "lion": {"optimizer": "lion", "learning_rate": 3e-4, "schedule": "plateau", "loss": "symmetric"},
    "muon": {"optimizer": "muon", "weight_decay": 0.1},
    "schedule_free": {"optimizer": "schedule_free", "warmup": 0.2},
    "swa": {"schedule": "constant_with_warmup", "swa_epochs": 3, "epochs": 3},
    "grow": {"start_size": 32, "loss": "focal", "ema": 0.9, "learning_rate": "find"},
    "ldam": {"loss": "ldam", "class_weights": "effective", "freeze_epochs": 1, "loss_options": {"reweight_from": 0.5}},
}
FOUND = json.dumps({"learning_rate": 2e-3, "curve": []})  # a range test that was done before


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.mark.parametrize("stop", [2, 3], ids=["in an epoch", "at its end"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_with_this_option_learns_and_a_stopped_one_ends_with_the_same_weights(name, stop, tmp_path, wholes):
    if name == "schedule_free":
        pytest.importorskip("schedulefree")
    settings = {"epochs": 2, **OPTIONS[name]}
    trained, last = wholes(name)
    (tmp_path / "learning_rate.json").write_text(FOUND)
    trainer(tmp_path, [StopAtStep(stop)], **settings).train()
    assert last_checkpoint(tmp_path).name == f"checkpoint-{stop}"
    again = trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert same(trained, again.model.state_dict())
    assert same(last, load_file(tmp_path / f"checkpoint-{again.state.max_steps}" / "model.safetensors"))


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Weights kept, and those of the last step, of a training that nothing stopped."""

    @functools.cache
    def of(name: str):
        settings, folder = {"epochs": 2, **OPTIONS[name]}, tmp_path_factory.mktemp(name)
        (folder / "learning_rate.json").write_text(FOUND)
        run = trainer(folder, **settings)
        before = {key: value.clone() for key, value in run.model.state_dict().items()}
        run.train()
        assert not same(before, run.model.state_dict())
        assert all(math.isfinite(row["eval_loss"]) for row in run.state.log_history if "eval_loss" in row)
        return run.model.state_dict(), load_file(folder / f"checkpoint-{run.state.max_steps}" / "model.safetensors")

    return of


class Watch(TrainerCallback):
    """Keeps what a function sees at the end of each step."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.seen.append(self.look(model, optimizer))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"schedule": "cosine_with_min_lr", "final_rate": 0.1, "warmup": 0}, {9: 1e-4}),
        ({"schedule": "one_cycle", "warmup": 3 / 9}, {2: 1e-3, 9: 1e-3 / 25 / 1e4}),
        ({"schedule": "linear", "warmup": 0.3}, {3: 1e-3, 6: 5e-4, 9: 0.0}),
        ({"schedule": "constant_with_warmup", "warmup": 0.3}, {1: 1e-3 / 3, 3: 1e-3, 9: 1e-3}),
    ],
)
def test_rates_follow_the_schedule(settings, expected, tmp_path):
    run = trainer(tmp_path, learning_rate=1e-3, **settings)
    optimizer = run.create_optimizer()
    schedule, rates = run.create_scheduler(9), {}
    for step in range(1, 10):
        optimizer.step()
        if step < 9 or settings["schedule"] != "one_cycle":
            schedule.step()
        rates[step] = optimizer.param_groups[0]["lr"]
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=1e-9)


def test_batches_that_make_one_step_together_give_the_gradient_of_one_large_batch(tmp_path):
    weights = []
    for number, (size, parts) in enumerate(((8, 1), (8, 2))):
        run = trainer(
            tmp_path / str(number),
            batch_size=size,
            accumulate=parts,
            epochs=1,
            freeze_epochs=1,
            optimizer="sgd",
            max_grad_norm=9e9,
        )  # frozen: no batch norm, which sees each pass alone
        run.train_dataset.augmentation = None
        run.model.timm_model.drop_rate = 0.0
        watch = Watch(lambda model, _: model.timm_model.classifier.weight.detach().clone())
        run.add_callback(watch)
        run.train()
        weights.append(watch.seen)
    assert len(weights[0]) == len(weights[1]) == 3
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*weights, strict=True))


def test_swa_evaluates_the_mean_of_the_last_epochs_with_statistics_of_its_own(tmp_path):
    watch = Watch(lambda model, _: {k: v.detach().clone() for k, v in model.state_dict().items()})
    run = trainer(tmp_path, [watch], epochs=3, swa_epochs=2, schedule="constant_with_warmup")
    run.train()
    ends = [watch.seen[step] for step in (5, 8)]
    kept = load_file(tmp_path / "checkpoint-9" / "ema.safetensors")
    for key, value in kept.items():
        if "running" in key:
            assert not torch.allclose(value, ends[1][key], atol=1e-6), key
        elif value.dtype.is_floating_point:
            assert torch.allclose(value, (ends[0][key] + ends[1][key]) / 2, atol=1e-6), key
    model = AveragedModel(run.model).module
    model.load_state_dict(kept)
    run.model.load_state_dict(kept)
    measured = [row["eval_log_loss"] for row in run.state.log_history if "eval_loss" in row][2]
    assert run.evaluate()["eval_log_loss"] == pytest.approx(measured, abs=1e-6)


def test_stages_thaw_from_the_head_down_and_what_is_frozen_keeps_its_statistics(tmp_path):
    def look(model, _):
        network = model.timm_model
        return {k: v.clone() for k, v in network.state_dict().items() if v.dtype.is_floating_point}

    watch = Watch(look)
    run = trainer(tmp_path, [watch], epochs=4, freeze_epochs=1, thaw_epochs=2)
    start = look(run.model, None)
    run.train()
    changed = []
    for epoch in range(4):
        now = watch.seen[3 * epoch + 2]
        changed.append({key.split(".")[0] + key.split(".")[1] for key in now if not torch.equal(now[key], start[key])})
        start = now
    assert all(key.startswith("classifier") for key in changed[0])
    assert changed[0] < changed[1] < changed[2] < changed[3]
    assert not any(key.startswith(("conv_stem", "bn1", "blocks0")) for key in changed[1])
    assert any(key.startswith("bn1") for key in changed[3])


def test_pictures_grow_from_epoch_to_epoch_and_validation_sees_them_whole(tmp_path):
    assert [training_size(128, 300, e, 8) for e in range(8)] == [128, 128, 192, 192, 256, 256, 300, 300]
    assert [training_size(64, 64, e, 3) for e in range(3)] == [64] * 3
    assert [training_size(32, 64, e, 1) for e in range(1)] == [64]
    seen = []
    run = trainer(tmp_path, epochs=2, start_size=32)
    run.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((module.training, kwargs["pixel_values"].shape[-1])), with_kwargs=True
    )
    run.train()
    assert seen == [(True, 32)] * 3 + [(False, 64)] * 2 + [(True, 64)] * 3 + [(False, 64)] * 2


def test_a_network_of_one_size_refuses_growing_pictures(tmp_path):
    run = trainer(tmp_path)
    run.model.config.pretrained_cfg["fixed_input_size"] = True
    with pytest.raises(RecipeError, match="start_size: test_efficientnet takes pictures of one size only"):
        type(run)(
            run.model, TrainRecipe(start_size=32), Preprocessing(64, 64), pixels(), pixels(), tmp_path, lambda *_: {}
        )


def test_mixed_pictures_have_the_shares_of_their_pixels():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 32, 32).contiguous()
    labels = torch.tensor([0, 1, 0, 1])
    for settings in ({"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}):
        torch.manual_seed(1)
        mixed, shares = make_mixing(TrainRecipe(**settings), 2)(images, labels)
        own = shares[1, 1].item()
        assert 0 < own < 1 and torch.allclose(shares.sum(1), torch.ones(4))
        assert mixed[1].mean().item() == pytest.approx(own * 1 + (1 - own) * 0, abs=1e-5)
    assert make_mixing(TrainRecipe(), 2) is None


def test_the_range_test_leaves_the_network_as_it_was_and_finds_the_same_rate_again(tmp_path):
    found = []
    for number in range(2):
        run = trainer(tmp_path / str(number), learning_rate="find", loss="elr")
        before = {key: value.clone() for key, value in run.model.state_dict().items()}
        run._find_rate()
        assert same(before, run.model.state_dict()) and not run.loss.targets.any() and run.optimizer is None
        found.append(run.range_test)
    assert found[0] == found[1] == json.loads((tmp_path / "0" / "learning_rate.json").read_text())
    curve = np.array(found[0]["curve"])
    fastest = curve[np.gradient(curve[:, 1]).argmin(), 0]
    assert found[0]["learning_rate"] == pytest.approx(fastest, rel=0.01)
    assert 1e-4 < found[0]["learning_rate"] < 0.1 and run.args.learning_rate == found[0]["learning_rate"]


def test_a_loss_that_is_no_number_ends_the_training_before_the_weights_are_lost(tmp_path):
    run = trainer(tmp_path / "run", epochs=3)

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                with torch.no_grad():
                    model.timm_model.classifier.bias[0] = float("inf")

    run.add_callback(Poison())
    with pytest.raises(TrainingError) as caught:
        run.train()
    text, named = str(caught.value), (tmp_path / "run" / "stopped_batch.txt").read_text().split("\n")[:-1]
    order = np.random.default_rng([0, 1]).permutation(24)[8:16]
    assert named == [pixels().hashes[index] for index in order]
    assert "\n" not in text and text.startswith("step 5: the loss is no number; its batch is " + named[0])
    checkpoint = last_checkpoint(tmp_path / "run")
    assert f"model.base={checkpoint}" in text and checkpoint.name == "checkpoint-3"
    again = OCTForImageClassification.from_timm(str(checkpoint), NAMES, image_size=64)
    kept = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(value, kept[key]) for key, value in again.timm_model.state_dict().items())
    assert all(value.isfinite().all() for value in kept.values())


def test_a_validation_without_a_number_never_becomes_a_checkpoint(tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 6:
                with torch.no_grad():
                    model.timm_model.classifier.bias[0] = float("nan")

    with pytest.raises(TrainingError, match="step 6: the validation loss is no number; try a lower"):
        trainer(tmp_path, [Poison()], epochs=3).train()
    assert last_checkpoint(tmp_path).name == "checkpoint-3"


@pytest.mark.parametrize(
    "fits, text", [(3, "2 fit: train.accumulate=4 takes the same steps"), (0, "one image doesn't fit")]
)
def test_too_large_a_batch_is_told_the_size_that_fits(fits, text, tmp_path):
    run = trainer(tmp_path, epochs=1)

    def hungry(module, args, output):
        if len(output) > fits and module.training:
            torch.empty(2**60, dtype=torch.uint8)  # the allocator's own error

    run.model.timm_model.conv_stem.register_forward_hook(hungry)
    with pytest.raises(TrainingError) as caught:
        run.train()
    assert text in str(caught.value) and str(caught.value).startswith("step 1: out of memory with train.batch_size=8")


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"loss": "focal", "loss_options": {"gama": 1}}, 'no option "gama" (did you mean "gamma"?); focal has gamma'),
        ({"loss_options": {"q": 1}}, 'no option "q"; cross_entropy has none'),
        ({"loss": "gce", "loss_options": {"q": 0}}, "q of gce is above 0"),
        ({"loss": "symmetric", "loss_options": {"log_zero": 1}}, "log_zero of symmetric is below 0"),
        ({"ema": 0.9, "swa_epochs": 2}, "two ways to average weights"),
        ({"swa_epochs": 20}, "train.swa_epochs: 20 of 12 epochs"),
        ({"freeze_epochs": 6, "thaw_epochs": 6}, "leave none of 12 to the whole network"),
        ({"loss": "elr", "mixup": 0.2}, "elr needs each image's own label"),
        ({"optimizer": "schedule_free", "ema": 0.9}, "schedule_free averages weights itself"),
        ({"optimizer": "adamm"}, "train.optimizer: input should be 'adamw'"),
        ({"learning_rate": "seek"}, "train.learning_rate: "),
    ],
)
def test_settings_that_do_not_go_together_are_named_before_anything_is_read(settings, text):
    with pytest.raises(RecipeError) as caught:
        make_recipe({"train": settings})
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_each_loss_of_the_recipe_has_its_options_listed():
    from oct_hf.training import losses

    assert set(LOSSES) == set(losses._LOSSES) == set(TrainRecipe.__dataclass_fields__["loss"].type.__args__)
