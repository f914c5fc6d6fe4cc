"""A denoising autoencoder before the fine-tuning: it learns, its encoder is what is fine-tuned, and it goes on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import digamma, polygamma
from small import StopAtStep

from oct_hf import OCTForImageClassification, Predictor, finetune
from oct_hf.data.phantom import LABELS, draw
from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import DataError, RecipeError
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.training.denoising import DISPLAY_RANGE, NoisyPictures, add_speckle, charbonnier
from oct_hf.training.pretrain import pretrain
from oct_hf.training.recipe import PretrainRecipe, TrainRecipe
from oct_hf.training.recipe_file import load_recipe, make_recipe

SETTINGS = PretrainRecipe(task="denoise", epochs=5, batch_size=8, learning_rate=3e-3, augment="light", looks=(1, 3))
FINE_TUNING = TrainRecipe(workers=0, bf16=False)


def pictures(preprocessing) -> tuple:
    def drawn(numbers, augmentation=None) -> Pixels:
        images = [draw(LABELS[n % 4], 3, n, 0, preprocessing.height, preprocessing.width).image for n in numbers]
        return Pixels(np.stack(images), [0] * len(images), [str(n) for n in numbers], augmentation)

    train = drawn(range(48), Augmentation("light", 0))
    return train, drawn(range(100, 116)), list(train.hashes), {"training_side": 48, "unlabelled": 0}


def run(folder, architecture="test_efficientnet", callbacks=(), stopped=lambda: False, **changed) -> tuple:
    torch.manual_seed(3)
    model = OCTForImageClassification.from_timm(architecture, ["A", "B", "C"], image_size=64)
    settings = dataclasses.replace(SETTINGS, **changed)
    return model, pretrain(model, settings, FINE_TUNING, folder, None, callbacks, stopped, pictures)


@pytest.fixture(scope="module")
def denoised(tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp("denoised")
    return folder, *run(folder)


def test_the_noise_is_speckle_on_a_logarithmic_display():
    gray = np.full((512, 512), 128, np.uint8)
    for looks in (2, 8):
        noisy = add_speckle(gray, looks, np.random.default_rng(0)).astype(float) - 128
        # The logarithm of a gamma variate of shape L and mean 1 (Goodman 2007): the grain of a Spectralis changes both
        # a little, since neighbours are alike.
        level = 255 / DISPLAY_RANGE
        assert noisy.mean() == pytest.approx(level * (digamma(looks) - np.log(looks)), abs=1.5)
        assert noisy.std() == pytest.approx(level * np.sqrt(polygamma(1, looks)), rel=0.15)


def test_charbonnier_is_the_absolute_error_far_and_the_square_near():
    assert charbonnier(torch.tensor([0.5, -0.5])).item() == pytest.approx(0.499, abs=1e-5)
    assert charbonnier(torch.tensor([1e-4])).item() == pytest.approx(1e-8 / 2e-3, rel=0.01)


def test_noise_follows_from_seed_epoch_and_picture_alone():
    train, held_out, *_ = pictures(type("P", (), {"height": 64, "width": 64}))
    noisy = NoisyPictures(train, (1, 4), 5)
    again = NoisyPictures(train, (1, 4), 5)
    assert np.array_equal(noisy[(2, 7)]["pixel_values"], again[(2, 7)]["pixel_values"])
    assert not np.array_equal(noisy[(2, 7)]["pixel_values"], noisy[(3, 7)]["pixel_values"])
    other = NoisyPictures(train, (1, 4), 6)
    assert not np.array_equal(noisy[7]["pixel_values"], other[7]["pixel_values"])
    one = NoisyPictures(held_out, (1, 4), 5)[3]
    assert np.array_equal(one["clean"], held_out.images[3]) and not np.array_equal(one["pixel_values"], one["clean"])


def test_it_learns_to_take_the_noise_off_pictures_it_never_saw(denoised):
    folder, _, facts = denoised
    assert facts["mse"] < 0.9 * facts["mse_noisy"]
    # What noise alone is worth, from the pictures themselves.
    _, held_out, *_ = pictures(type("P", (), {"height": 64, "width": 64}))
    noisy = NoisyPictures(held_out, SETTINGS.looks, SETTINGS.seed)
    pairs = [(noisy[n]["pixel_values"].astype(float), noisy[n]["clean"].astype(float)) for n in range(len(noisy))]
    assert facts["mse_noisy"] == pytest.approx(np.mean([((a - b) / 255) ** 2 for a, b in pairs]), rel=1e-3)
    assert facts["task"] == "denoise" and facts["held_out"] == 16 and facts["training_side"] == 48
    assert (folder / "pictures.txt").read_text().split() == sorted(str(n) for n in range(48))


def test_the_encoder_goes_into_the_classifier_and_no_decoder_is_left(denoised):
    folder, model, _ = denoised
    torch.manual_seed(3)
    fresh = OCTForImageClassification.from_timm("test_efficientnet", ["A", "B", "C"], image_size=64)
    before, after = fresh.timm_model.state_dict(), model.timm_model.state_dict()
    assert before.keys() == after.keys()
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert not torch.equal(before["conv_stem.weight"], after["conv_stem.weight"])
    assert torch.equal(load_file(folder / "weights.safetensors")["conv_stem.weight"], after["conv_stem.weight"])
    assert any(value.abs().max() > 0 for value in load_file(folder / "decoder.safetensors").values())


def test_a_pretraining_that_was_stopped_ends_with_the_same_weights(denoised, tmp_path):
    stop = StopAtStep(9)  # in the middle of the second epoch
    assert run(tmp_path, callbacks=[stop], stopped=lambda: stop.stopped is not None)[1] is None
    _, facts = run(tmp_path)
    assert facts["resumed"] and facts["mse"] == denoised[2]["mse"]
    for name in ("weights.safetensors", "decoder.safetensors"):
        whole = load_file(denoised[0] / name)
        for key, value in load_file(tmp_path / name).items():
            assert torch.equal(whole[key], value), key


def test_a_network_without_feature_maps_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="denoise needs feature maps to decode; custom_cnn"):
        run(tmp_path, "custom_cnn")


def test_a_run_denoises_its_own_training_side_and_a_folder_says_so_and_holds(tiny, clinic, tmp_path):
    change = {"task": "denoise", "epochs": 1, "batch_size": 8, "unlabelled": str(clinic)}
    recipe = dataclasses.replace(
        tiny,
        train=dataclasses.replace(tiny.train, epochs=2, freeze_epochs=0),
        evaluation=dataclasses.replace(tiny.evaluation, explain=0),
        pretrain=PretrainRecipe(**change),
    )
    facts = finetune(recipe, tmp_path / "run")
    before = facts["pretraining"]
    assert before["training_side"] == facts["training"]["images"] and before["unlabelled"] == 24
    assert facts["recipe"]["pretrain"]["unlabelled"] == "clinic"  # no path of this machine
    card = (tmp_path / "run/model/README.md").read_text()
    assert (
        f"as a denoising autoencoder: on {before['training_side']} B-scans of the training side and 24 others" in card
    )
    checks = verify(download(str(tmp_path / "run")))
    assert [check.faults for check in checks] == [()] * len(checks)
    next(Predictor(tmp_path / "run/model", device="cpu").predict([draw("DME", 9).image]))
    names = sorted(path.name for path in (tmp_path / "run/pretraining").iterdir())
    assert names == ["decoder.safetensors", "facts.json", "pictures.txt", "weights.safetensors"]
    assert json.loads((tmp_path / "run/pretraining/facts.json").read_text())["facts"] == before


def test_what_is_held_out_is_not_learned_from(tiny, tmp_path):
    """A folder that holds nothing but the run's own held-out B-scans gives nothing."""
    from oct_hf.images import Preprocessing
    from oct_hf.runs.labelled import assign_sides, load_data
    from oct_hf.runs.other_pictures import pictures_to_denoise

    data = assign_sides(load_data(tiny.data)[0], tiny)
    place = tmp_path / "scans"
    place.mkdir()
    for row in np.flatnonzero(data.sides == "test"):
        (place / f"{row}.png").write_bytes(_bytes_of(data.dataset, int(row)))
    settings = dataclasses.replace(SETTINGS, unlabelled=str(place))
    with pytest.raises(DataError, match=r"unlabelled: every picture of .* is one of the B-scans held out"):
        pictures_to_denoise(settings, data, Preprocessing(64, 64))


def _bytes_of(dataset, row: int) -> bytes:
    import datasets

    return dataset.cast_column("image", datasets.Image(decode=False))[row]["image"]["bytes"]


def test_the_recipe_denoises_and_settings_that_say_nothing_are_refused():
    recipe = load_recipe("denoising_autoencoder")
    assert recipe.pretrain.task == "denoise"
    with pytest.raises(RecipeError, match=r"B-scans without labels are for pretrain\.task=denoise"):
        make_recipe({"pretrain": {"unlabelled": "scans"}})
    with pytest.raises(RecipeError, match="8 to 2 are no bounds"):
        make_recipe({"pretrain": {"task": "denoise", "looks": [8, 2]}})
