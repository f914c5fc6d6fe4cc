import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from scipy.stats import entropy
from small import assert_same, gradients_of_two_steps, stopped_and_resumed

from oct_hf import OCTForImageClassification, Preprocessing
from oct_hf.data.phantom import draw
from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import ModelError, RecipeError
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.distillation import (
    DistillingTrainer,
    Hints,
    Teacher,
    draw_phantoms,
    entering_classifier,
    feature_loss,
    logit_loss,
    maps_loss,
)
from oct_hf.training.recipe import TeacherRecipe, TrainRecipe
from oct_hf.training.unlabelled import NO_LABEL

NAMES = ["DME", "NORMAL"]
SMALL = Preprocessing(64, 64)


def pixels(count: int = 24, seed: int = 0) -> Pixels:
    """Noise whose mean tells the label: learnable in a few steps."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = np.clip(rng.normal(90 + 60 * labels[:, None, None], 40, (count, 64, 64)), 0, 255).astype(np.uint8)
    return Pixels(images, labels, [f"{seed} {i}" for i in range(count)], Augmentation("light", 1))


def network(seed: int = 0):
    torch.manual_seed(seed)
    return OCTForImageClassification.from_timm("test_efficientnet", NAMES, image_size=64, drop_rate=0.2)


def trainer(folder, callbacks=(), others=(), teacher=None, recipe=None, **settings) -> DistillingTrainer:
    settings = {"epochs": 3, "batch_size": 8, "workers": 0, "bf16": False, "learning_rate": 3e-3, **settings}
    return DistillingTrainer(
        network(),
        TrainRecipe(**settings),
        SMALL,
        pixels(),
        pixels(16, seed=9),
        folder,
        lambda probabilities, labels: measure(probabilities, labels, NAMES),
        callbacks,
        teacher=teacher or Teacher(network(5), SMALL, SMALL),
        settings=recipe or TeacherRecipe("test_efficientnet"),
        others=others,
    )


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_logit_loss_is_the_divergence_of_softened_answers_by_hand_and_by_scipy():
    # At T=2: the teacher says softmax([ln 3, 0]) = (3/4, 1/4), the student (1/2, 1/2).
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[1.0, 1.0]])
    by_hand = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert logit_loss(student, teacher, 2.0).item() == pytest.approx(by_hand, rel=1e-6)
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    expected = 9 * entropy(softmax(other / 3, axis=1), softmax(one / 3, axis=1), axis=1).mean()
    assert logit_loss(torch.from_numpy(one), torch.from_numpy(other), 3.0).item() == pytest.approx(expected)


def test_the_feature_loss_is_one_minus_the_cosine_by_hand():
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])
    teacher = torch.tensor([[4.0, 3.0], [0.0, 5.0], [0.1, 0.0]])
    assert feature_loss(student, teacher).item() == pytest.approx(1 - (24 / 25 + 0 + 1) / 3)


def test_the_maps_loss_is_the_share_that_is_not_explained():
    teacher = (
        torch.randn(6, 5, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6)[:, None, None] + 3
    )
    told = (teacher - teacher.mean((0, 2, 3), keepdim=True)) / teacher.std((0, 2, 3), correction=0, keepdim=True)
    assert maps_loss(told, teacher).item() == pytest.approx(0, abs=1e-6)
    assert maps_loss(torch.zeros_like(told), teacher).item() == pytest.approx(1, abs=1e-3)
    assert maps_loss(told / 2, teacher).item() == pytest.approx(0.25, abs=1e-3)
    larger = teacher.repeat_interleave(2, 2).repeat_interleave(3, 3)
    assert maps_loss(told, larger).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_of_a_batch_is_the_three_parts_by_their_weights(tmp_path):
    recipe = TeacherRecipe("test_efficientnet", logits=0.5, features=3.0, labels=0.25, temperature=2.0)
    run = trainer(tmp_path, recipe=recipe, label_smoothing=0.1)
    labels = torch.tensor([0, 1, NO_LABEL, NO_LABEL])
    batch = run._prepare_inputs({"pixel_values": torch.from_numpy(pixels().images[:4]), "labels": labels})
    model, teacher = run.model.train(), run.teacher.model
    model.timm_model.drop_rate = 0.0
    loss = run.compute_loss(model, batch).item()
    with torch.no_grad():
        logits, told = (m(pixel_values=batch["pixel_values"]).logits for m in (model, teacher))
        features, seen = (
            m.timm_model.forward_head(m.timm_model.forward_features(batch["pixel_values"]), pre_logits=True)
            for m in (model, teacher)
        )
        crossed = torch.nn.functional.cross_entropy(logits[:2], labels[:2], label_smoothing=0.1)
        parts = crossed, logit_loss(logits, told, 2.0), feature_loss(run.projection(features), seen)
    assert loss == pytest.approx(0.25 * parts[0].item() + 0.5 * parts[1].item() + 3 * parts[2].item(), rel=1e-5)


def test_maps_add_the_mean_of_what_is_not_explained_at_each_stride(tmp_path):
    recipe = TeacherRecipe("test_efficientnet", logits=0.0, features=0.0, labels=0.0, maps=2.0)
    run = trainer(tmp_path, recipe=recipe, teacher=Teacher(network(5), SMALL, SMALL, with_maps=True))
    batch = {"pixel_values": torch.from_numpy(pixels().images[:4]), "labels": torch.zeros(4, dtype=torch.long)}
    batch = run._prepare_inputs(batch)
    model = run.model.train()
    loss = run.compute_loss(model, batch).item()
    assert run.hints.student.strides == run.teacher.maps[0].strides == [4, 8, 16, 32]
    stages = {4: "blocks.1", 8: "blocks.2", 16: "blocks.3", 32: "blocks.4"}
    expected = []
    for stride, name in stages.items():
        maps = []
        for network_ in (model.timm_model, run.teacher.model.timm_model):
            hook = network_.get_submodule(name).register_forward_hook(
                lambda _, __, output, maps=maps: maps.append(output)
            )
            network_(batch["pixel_values"])
            hook.remove()
        assert maps[0].shape[2] == 64 // stride
        expected.append(maps_loss(run.hints.projections[0][str(stride)](maps[0]), maps[1]).item())
    assert loss == pytest.approx(2 * sum(expected) / 4, rel=1e-5)


def test_a_student_without_the_teachers_maps_is_refused(tmp_path):
    student = Preprocessing(160, 160)
    model = OCTForImageClassification.from_timm("test_vit", NAMES, image_size=160).timm_model
    with pytest.raises(ModelError, match=r"teacher.maps: student and teacher have no feature maps in common"):
        Hints(model, Teacher(network(5), student, student, with_maps=True), student, 0)


def test_while_evaluating_the_loss_is_plain_cross_entropy(tmp_path):
    run = trainer(tmp_path, label_smoothing=0.3)
    batch = {"pixel_values": torch.from_numpy(pixels().images[:8]), "labels": torch.from_numpy(pixels().labels[:8])}
    batch = run._prepare_inputs(batch)
    loss, outputs = run.compute_loss(run.model.eval(), batch, return_outputs=True)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(outputs.logits, batch["labels"]).item())


def test_a_teacher_sees_the_same_picture_in_its_own_normalisation_and_size():
    own = Preprocessing(96, 96, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    model, image = network(3).eval(), pixels().images[:2]
    student = torch.from_numpy(np.stack([SMALL.normalise(picture) for picture in image]))
    features, logits = Teacher(model, Preprocessing(64, 64, mean=own.mean, std=own.std), SMALL)(student)
    expected = torch.from_numpy(np.stack([own.normalise(picture) for picture in image]))
    with torch.no_grad():
        assert torch.allclose(logits, model(pixel_values=expected).logits, atol=1e-5)
    assert features.shape == (2, model.config.num_features)
    seen = []
    model.timm_model.conv_stem.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2:]))
    Teacher(model, own, SMALL)(student)
    assert seen == [(96, 96)]


def test_the_look_at_features_leaves_nothing_on_the_network():
    model = network().timm_model
    with entering_classifier(model) as seen:
        model(torch.zeros(2, 3, 64, 64))
    model(torch.zeros(2, 3, 64, 64))
    assert [tuple(one.shape) for one in seen] == [(2, model.num_features)]


# --- the training ----------------------------------------------------------------------------------------------------


class ByBrightness:
    """A teacher that knows what the noise's labels are by."""

    features, model = 2, torch.nn.Identity()

    def to(self, device):
        return self

    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        excess = 20 * (pixel_values.mean((1, 2, 3)) + 0.05)
        logits = torch.stack([-excess, excess], 1)
        return logits, logits


def test_a_student_learns_from_a_teacher_without_one_label(tmp_path):
    recipe = TeacherRecipe("test_efficientnet", labels=0.0, logits=1.0, features=1.0)
    run = trainer(tmp_path, teacher=ByBrightness(), recipe=recipe, epochs=6, learning_rate=1e-2)
    run.train_dataset.labels = 1 - run.train_dataset.labels  # none that could help
    run.args.load_best_model_at_end = False
    run.train()
    seen = pixels(40, seed=9)
    batch = run._prepare_inputs({"pixel_values": torch.from_numpy(seen.images), "labels": torch.zeros(40)})
    with torch.no_grad():
        answers = run.model.eval()(pixel_values=batch["pixel_values"]).logits.argmax(-1).numpy()
    assert (answers == seen.labels).mean() > 0.8


def test_a_teacher_sees_whole_pictures_while_the_students_grow(tmp_path):
    run, seen = trainer(tmp_path, epochs=2, start_size=32), {"teacher": [], "student": []}
    for name, model in (("teacher", run.teacher.model), ("student", run.model)):
        stem = model.timm_model.conv_stem
        stem.register_forward_pre_hook(lambda _, given, name=name: seen[name].append((given[0].shape[3], given[0])))
    batch = {"pixel_values": torch.from_numpy(pixels().images[:4]), "labels": torch.zeros(4, dtype=torch.long)}
    run.model.train()
    run.compute_loss(run.model, run._prepare_inputs(dict(batch)))
    assert [[size for size, _ in sizes] for sizes in (seen["student"], seen["teacher"])] == [[32], [64]]
    expected = torch.from_numpy(np.stack([SMALL.normalise(picture) for picture in pixels().images[:4]]))
    assert torch.allclose(seen["teacher"][0][1], expected, atol=1e-6)
    run.train()
    assert {size for size, _ in seen["student"]} == {32, 64} and {size for size, _ in seen["teacher"]} == {64}


def test_the_teacher_stays_as_it_was_and_the_projection_learns_apart_from_the_model(tmp_path):
    teacher = Teacher(network(5), SMALL, SMALL)
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    run = trainer(tmp_path, teacher=teacher, epochs=1)
    start = run.projection.weight.detach().clone()
    run.train()
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())
    assert not torch.equal(run.projection.weight, start)
    saved = load_file(last_checkpoint(tmp_path) / "model.safetensors")
    assert saved.keys() == network().timm_model.state_dict().keys()  # what any loader expects, and no more


def test_gradients_of_the_projection_are_those_of_the_last_batch_alone(tmp_path):
    run = trainer(tmp_path, max_grad_norm=1e9)
    run.train()
    gradients = gradients_of_two_steps(run, run.projection, run.projection.weight)
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("phantoms, maps", [(0, 1.0), (20, 0.0)])
def test_a_resumed_distillation_ends_with_the_same_weights(tmp_path, phantoms, maps):
    others = [draw_phantoms(phantoms, SMALL, augmentation=Augmentation("light", 1))] if phantoms else []

    def made(folder, callbacks=(), **settings):
        teacher = Teacher(network(5), SMALL, SMALL, with_maps=maps > 0)
        recipe = TeacherRecipe("test_efficientnet", maps=maps)
        return trainer(folder, callbacks, others, teacher, recipe, ema=0.9, **settings)

    whole, again = stopped_and_resumed(made, tmp_path, 7)  # in the middle of an epoch
    assert_same(whole.model, again.model)
    assert torch.equal(whole.projection.weight, again.projection.weight)
    if maps:
        assert_same(whole.hints, again.hints)
        assert not any(module._forward_hooks for module in whole.model.modules())
        start = made(tmp_path / "start").hints.projections[0]["4"].weight
        assert not torch.equal(whole.hints.projections[0]["4"].weight, start)
    assert (
        load_file(last_checkpoint(tmp_path / "whole") / "model.safetensors").keys()
        == network().timm_model.state_dict().keys()
    )


def test_a_share_that_leaves_no_room_for_one_kind_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"teacher.share: 0.01 of a batch of 8"):
        recipe = TeacherRecipe("test_efficientnet", share=0.01)
        trainer(tmp_path, recipe=recipe, others=[draw_phantoms(4, SMALL)])


# --- what it learns from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, expected",
    [
        (None, [NO_LABEL] * 4),
        (["NORMAL", "DME", "AMD"], [2, 1, 2, 0]),  # CNV, DME, DRUSEN, NORMAL
        (["CNV", "NORMAL"], [0, NO_LABEL, NO_LABEL, 1]),
        (["ABNORMAL", "NORMAL"], [0, 0, 0, 1]),
    ],
)
def test_phantoms_carry_the_labels_that_the_student_knows(names, expected):
    drawn = draw_phantoms(4, SMALL, names)
    assert drawn.labels.tolist() == expected
    assert np.array_equal(drawn.images[2], SMALL.resize(draw("DRUSEN", 0, 2, 0, 248, 256).image))
