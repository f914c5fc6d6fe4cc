import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import NAMES, pixels, trainer
from transformers import TrainerCallback

from oct_hf import Preprocessing
from oct_hf.data.oct import builder_of, prepare
from oct_hf.data.prepared import write_prepared
from oct_hf.data.stream import StreamedPixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import RecipeError
from oct_hf.training.callbacks import StopOnSignal
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.losses import class_weights
from oct_hf.training.trainer import EpochSampler, OCTTrainer, normalise

NAMES_OF_PHANTOMS = ("DME", "NORMAL")


class Recorder(TrainerCallback):
    def __init__(self, look):
        self.look, self.seen = look, []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(self.look(model))


def head_and_stem(model) -> tuple:
    network = model.timm_model
    return (
        network.conv_stem.weight.detach().clone(),
        network.classifier.weight.detach().clone(),
        network.bn1.running_mean.clone(),
    )


def test_a_frozen_backbone_stays_as_it_was_while_the_head_learns(tmp_path):
    recorder = Recorder(head_and_stem)
    run = trainer(tmp_path, [recorder], freeze_epochs=1)
    start = head_and_stem(run.model)
    run.train()
    stem, head, statistics = recorder.seen[2]  # the last step of the first epoch
    assert torch.equal(stem, start[0]) and torch.equal(statistics, start[2]) and not torch.equal(head, start[1])
    stem, _, statistics = recorder.seen[3]
    assert not torch.equal(stem, start[0]) and not torch.equal(statistics, start[2])


def test_the_averaged_weights_are_evaluated_and_kept_and_the_raw_ones_go_on(tmp_path):
    recorder = Recorder(head_and_stem)
    run = trainer(tmp_path, [recorder], ema=0.9)
    run.train()
    average = None
    for step, (stem, *_) in enumerate(recorder.seen, 1):
        decay = min(0.9, 1 - (1 + step) ** (-2 / 3))  # timm's warm-up of the decay
        average = stem if average is None else average
        average = average * decay + stem * (1 - decay)
    best = tmp_path / f"checkpoint-{run.state.best_global_step}"
    kept, raw = load_file(best / "ema.safetensors"), load_file(best / "model.safetensors")
    assert torch.equal(run.model.timm_model.conv_stem.weight, kept["timm_model.conv_stem.weight"])
    assert not torch.equal(kept["timm_model.conv_stem.weight"], raw["conv_stem.weight"])
    during = {row["step"]: row["eval_log_loss"] for row in run.state.log_history if "eval_log_loss" in row}
    assert run.evaluate()["eval_log_loss"] == pytest.approx(during[run.state.best_global_step], abs=1e-6)
    assert torch.allclose(run.ema.module.timm_model.conv_stem.weight, average, atol=0.02)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    class StopAtStep(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            self.stopped = 2 if state.global_step == 4 else None  # in the middle of the second epoch
            super().on_step_end(args, state, control, **kwargs)

    settings = {"ema": 0.9, "freeze_epochs": 1, "layer_decay": 0.8, "label_smoothing": 0.1, "patience": 2}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    trainer(tmp_path / "cut", [StopAtStep()], **settings).train()
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint.name == "checkpoint-4"
    again = trainer(tmp_path / "cut", **settings)
    again.train(resume_from_checkpoint=checkpoint)
    for (name, one), other in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    raw = [load_file(tmp_path / f / "checkpoint-9" / "model.safetensors") for f in ("whole", "cut")]
    assert all(torch.equal(raw[0][key], raw[1][key]) for key in raw[0])


def test_worker_processes_change_nothing(tmp_path):
    alone, helped = (trainer(tmp_path / str(n), epochs=2, workers=n) for n in (0, 2))
    for run in (alone, helped):
        run.train_dataset.augmentation = Augmentation("strong", 1)
        run.train()
    for (name, one), other in zip(alone.model.state_dict().items(), helped.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_from_shards_ends_with_the_same_weights(tmp_path, workers):
    class StopAtStep(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            self.stopped = 2 if state.global_step == 4 else None  # in the middle of the second epoch
            super().on_step_end(args, state, control, **kwargs)

    builder = builder_of("phantom", patients=6, scans=1, labels=NAMES_OF_PHANTOMS, height=64, width=64)
    write_prepared(builder, str(tmp_path / "shards"), 1)
    index = prepare("parquet", tmp_path / "shards", stream=True)[0]

    def streaming(folder, callbacks=()) -> OCTTrainer:
        run = trainer(folder, callbacks, workers=workers, batch_size=4)
        run.train_dataset = StreamedPixels(index, Preprocessing(64, 64), Augmentation("light", 1), 0, 4)
        return run

    whole = streaming(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 9
    streaming(tmp_path / "cut", [StopAtStep()]).train()
    again = streaming(tmp_path / "cut")
    again.train(resume_from_checkpoint=last_checkpoint(tmp_path / "cut"))
    for (name, one), other in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_training_stops_early_and_keeps_the_best_epoch(tmp_path):
    run = trainer(tmp_path, epochs=12, patience=2, learning_rate=1e-5)
    run.train()
    scores = [row["eval_selection"] for row in run.state.log_history if "eval_loss" in row]
    assert len(scores) < 12 or scores.index(max(scores)) >= 9
    assert run.state.best_global_step == 3 * (1 + scores.index(max(scores)))


def test_equal_accuracies_are_told_apart_by_the_log_loss(tmp_path):
    run = trainer(tmp_path)

    class Answer:
        label_ids = np.array([0, 1])

        def __init__(self, scale):
            self.predictions = scale * np.array([[1.0, -1.0], [-1.0, 1.0]])

    assert run._compute_metrics(Answer(3))["selection"] > run._compute_metrics(Answer(1))["selection"]


def test_learning_rates_fall_towards_the_stem(tmp_path):
    groups = trainer(tmp_path, layer_decay=0.5).create_optimizer().param_groups
    rates = [group["lr"] for group in groups]
    assert max(rates) == pytest.approx(3e-3) and min(rates) < 1e-3
    stems = [g["lr"] for g in groups if any(p.shape[1:] == (3, 3, 3) for p in g["params"] if p.ndim == 4)]
    assert stems == [min(rates)]
    assert {g["weight_decay"] for g in groups} == {0.0, 0.05}


@pytest.mark.parametrize("setting, expected", [(None, None), ("auto", [2 / 3, 2.0]), ({"A": 1, "B": 3}, [1.0, 3.0])])
def test_class_weights(setting, expected):
    weights = class_weights(setting, np.array([0, 0, 0, 1]), NAMES)
    assert weights is None if expected is None else weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("setting, text", [({"A": 1, "BB": 2}, 'did you mean "B"'), ({"A": 1}, "no weight for B")])
def test_class_weights_for_other_labels_are_refused(setting, text):
    with pytest.raises(RecipeError, match=text):
        class_weights(setting, np.array([0, 1]), NAMES)


def test_class_weights_reach_the_training_loss_and_not_the_validation_loss(tmp_path):
    plain, weighted = trainer(tmp_path / "a"), trainer(tmp_path / "b", class_weights={"A": 1.0, "B": 9.0})
    batch = {"pixel_values": torch.from_numpy(pixels().images[:8]), "labels": torch.from_numpy(pixels().labels[:8])}
    losses = []
    for run in (plain, weighted):
        run.model.eval()
        losses.append([run.compute_loss(run.model, run._prepare_inputs(dict(batch))).item()])
        torch.manual_seed(1)
        run.model.train()
        losses[-1].append(run.compute_loss(run.model, run._prepare_inputs(dict(batch))).item())
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_normalised_batches_are_what_prediction_sees(bscan):
    preprocessing = Preprocessing(*bscan.shape, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batch = normalise(torch.from_numpy(bscan)[None], preprocessing)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(batch[0].numpy() - preprocessing.normalise(bscan)).max() < 1e-6


def test_each_epoch_visits_every_image_once_in_an_order_of_its_own():
    sampler, orders = EpochSampler(20, seed=4), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert {e for e, _ in pairs} == {epoch} and sorted(i for _, i in pairs) == list(range(20))
        orders.append([i for _, i in pairs])
    assert orders[0] != orders[1] != orders[2]
    again = EpochSampler(20, seed=4)
    again.set_epoch(2)
    assert [i for _, i in again] == orders[2]
