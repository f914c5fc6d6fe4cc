import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from oct_hf import OCTForImageClassification, Preprocessing
from oct_hf.data import phantom
from oct_hf.errors import RecipeError
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.training.callbacks import StopOnSignal
from oct_hf.training.pretrain import MaskHead, as_bits, coverage, draw_sides, mask_loss, pretrain
from oct_hf.training.recipe import PretrainRecipe, TrainRecipe
from oct_hf.training.recipe_file import load_recipe

SETTINGS = PretrainRecipe(phantoms=48, epochs=2, batch_size=16, learning_rate=3e-3)
FINE_TUNING = TrainRecipe(workers=0, bf16=False)


def network(architecture: str = "test_efficientnet"):
    torch.manual_seed(3)
    return OCTForImageClassification.from_timm(architecture, ["A", "B", "C"], image_size=64)


def run(folder, model=None, callbacks=(), stopped=lambda: False, **changed) -> tuple:
    model = model or network()
    settings = dataclasses.replace(SETTINGS, **changed)

    def score(probabilities, labels):
        return measure(probabilities, labels, phantom.LABELS)

    return model, pretrain(model, settings, FINE_TUNING, folder, score, callbacks, stopped)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp("pretrained")
    return folder, *run(folder)


def test_the_backbone_learns_and_the_classifier_stays_and_no_mask_head_is_left(pretrained):
    _, model, facts = pretrained
    before, after = network().timm_model.state_dict(), model.timm_model.state_dict()
    assert before.keys() == after.keys()
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert not torch.equal(before["conv_stem.weight"], after["conv_stem.weight"])
    assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    assert facts["phantoms"] == 48 and facts["held_out"] == 4 and 0 <= facts["accuracy"] <= 1
    assert 0 <= facts["iou"]["mean"] <= 1
    assert not model.timm_model._modules["blocks"][1]._forward_hooks


def test_what_lies_in_the_folder_is_taken_up_without_training(pretrained):
    folder, model, facts = pretrained

    class Fail(StopOnSignal):
        def on_train_begin(self, *_, **__):
            raise AssertionError("trained again")

    again, same = run(folder, callbacks=[Fail()])
    assert same == facts
    for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(AssertionError, match="trained again"):
        run(folder, callbacks=[Fail()], epochs=3)


def test_a_pretraining_that_was_stopped_ends_with_the_same_weights(pretrained, tmp_path):
    class StopAtStep(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            self.stopped = 2 if state.global_step == 4 else None  # in the middle of the second epoch
            super().on_step_end(args, state, control, **kwargs)

    stop = StopAtStep()
    _, facts = run(tmp_path, callbacks=[stop], stopped=lambda: stop.stopped is not None)
    assert facts is None and not (tmp_path / "weights.safetensors").exists()
    _, facts = run(tmp_path)
    assert facts["resumed"]
    whole = load_file(pretrained[0] / "weights.safetensors")
    for key, value in load_file(tmp_path / "weights.safetensors").items():
        assert torch.equal(whole[key], value), key


def test_another_run_can_start_from_the_pretrained_weights(pretrained):
    folder, model, _ = pretrained
    other = OCTForImageClassification.from_timm(
        "test_efficientnet", ["X", "Y"], weights=str(folder / "weights.safetensors"), image_size=64
    )
    for key in ("conv_stem.weight", "bn2.running_var"):
        assert torch.equal(other.timm_model.state_dict()[key], model.timm_model.state_dict()[key])
    assert other.timm_model.classifier.weight.shape[0] == 2


def test_a_network_without_feature_maps_is_pretrained_on_labels_alone_or_refused(tmp_path):
    with pytest.raises(RecipeError, match="mask_weight: test_vit has no feature maps"):
        run(tmp_path / "a", network("test_vit"), image_size=None)
    torch.manual_seed(0)
    model = OCTForImageClassification.from_timm("test_vit", ["A", "B"], image_size=160)
    _, facts = run(tmp_path / "b", model, mask_weight=0, phantoms=8, epochs=1)
    assert facts["iou"] is None and facts["image_size"] == 160


def test_the_bits_of_a_phantom_give_its_masks_back_as_coverage():
    drawn = phantom.draw("CNV", 3, height=128, width=96)
    share = coverage(torch.from_numpy(as_bits(drawn))[None], 32, 24)[0]
    assert len(drawn.lesions) > 1
    for k, kind in enumerate(phantom.LESIONS):
        mask = drawn.lesions.get(kind, np.zeros((128, 96), bool))
        cells = mask.reshape(32, 4, 24, 4).mean((1, 3))
        assert np.allclose(share[k], cells, atol=1e-6), kind


def test_a_mask_moves_with_its_picture():
    settings = dataclasses.replace(SETTINGS, phantoms=8, augment="drawn", wide=True)
    train, held_out = draw_sides(settings, Preprocessing(96, 96))
    assert len(train) == 8 and len(held_out) == 4 and not set(train.hashes) & set(held_out.hashes)
    train.images = [np.concatenate([m, (m > 0).astype(np.uint8)]) for m in _blocks()]
    train.augmentation.pipeline.transforms = [
        t for t in train.augmentation.pipeline.transforms if type(t).__name__ in ("HorizontalFlip", "Bend", "Corners")
    ]
    moved = [train[(epoch, 0)] for epoch in range(12)]
    assert len({item["masks"].tobytes() for item in moved}) > 6
    for item in moved:
        found, true = item["pixel_values"] > 100, item["masks"] > 0
        # A white corner is bright and no lesion; within the block both agree but for its edge.
        assert (found & true).sum() > 0.9 * true.sum()


def _blocks():
    block = np.zeros((96, 96), np.uint8)
    block[40:60, 20:50] = 200
    return [block]


def test_the_mask_loss_is_entropy_plus_dice_as_worked_by_hand():
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, 0.0]]]])  # two kinds, two cells, all at 1/2
    truth = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])  # the second kind is absent
    # entropy ln 2; Dice of the first: 1 - 2 * 0.5 / (0.25 + 0.25 + 1)
    assert mask_loss(logits, truth).item() == pytest.approx(np.log(2) + 1 / 3, abs=1e-5)


def test_the_mask_head_answers_on_the_finest_grid():
    maps = [torch.randn(2, 8, 16, 12), torch.randn(2, 16, 8, 6), torch.randn(2, 32, 4, 3)]
    assert MaskHead([8, 16, 32])(maps).shape == (2, len(phantom.LESIONS), 16, 12)


def test_the_section_is_optional_and_its_keys_are_written_whole():
    assert load_recipe("demo").pretrain is None
    recipe = load_recipe("demo", ["pretrain.phantoms=100", "epochs=3"])
    assert recipe.pretrain.phantoms == 100 and recipe.train.epochs == 3 and recipe.pretrain.epochs == 4
    assert load_recipe("demo", ["pretrain.phantoms=100", "pretrain=null"]).pretrain is None
    with pytest.raises(RecipeError, match="mask_weight"):
        load_recipe("demo", ["pretrain.mask_wieght=1"])


def test_a_run_pretrains_once_and_says_so_on_its_card(tiny, tmp_path):
    from oct_hf import finetune

    recipe = dataclasses.replace(
        tiny,
        train=dataclasses.replace(tiny.train, epochs=1, freeze_epochs=0),
        evaluation=dataclasses.replace(tiny.evaluation, explain=0),
        pretrain=dataclasses.replace(SETTINGS, phantoms=16, epochs=1),
    )
    facts = finetune(recipe, tmp_path / "run")
    assert facts["pretraining"]["phantoms"] == 16
    card = (tmp_path / "run/model/README.md").read_text()
    assert "First pretrained on 16 drawn phantoms, 1 epochs at 64×64 pixels" in card
    assert json.loads((tmp_path / "run/model/run.json").read_text())["pretraining"] == facts["pretraining"]
    assert sorted(p.name for p in (tmp_path / "run/pretraining").iterdir()) == ["facts.json", "weights.safetensors"]
