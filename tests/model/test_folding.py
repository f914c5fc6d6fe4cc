"""A temperature in the weights: every loader applies it, a warm start undoes it, and what can't hold it is refused."""

import json

import pytest
import timm
import torch
from transformers import AutoModelForImageClassification, TimmWrapperForImageClassification

from oct_hf import OCTForImageClassification
from oct_hf.inference.export import onnx_probabilities, write_onnx

LABELS = ["CNV", "DME", "NORMAL"]
T = 2.3
PIXELS = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def network(name="test_efficientnet", size=64, **options) -> OCTForImageClassification:
    """A network with random weights whose logits lie some units apart."""
    torch.manual_seed(0)
    model = OCTForImageClassification.from_timm(name, LABELS, image_size=size, **options).eval()
    with torch.no_grad():
        spread = logits(model, torch.randn(8, 3, size, size)).std()
        for name in _names(model):
            layer = model.timm_model.get_submodule(name)
            layer.weight.mul_(2 / spread)
            if layer.bias is not None:
                layer.bias.normal_()
    return model


def _names(model):
    name = model.timm_model.pretrained_cfg["classifier"]
    return (name,) if isinstance(name, str) else name


def logits(model, pixels=PIXELS) -> torch.Tensor:
    with torch.inference_mode():
        answer = model(pixels)
    return getattr(answer, "logits", answer)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A saved model with T in its weights, and the logits it gave before."""
    folder = tmp_path_factory.mktemp("folded")
    model = network()
    before = logits(model)
    model.fold_temperature(T)
    model.save_pretrained(folder)
    return folder, model, before


@pytest.mark.parametrize(
    "load",
    [
        OCTForImageClassification.from_pretrained,
        AutoModelForImageClassification.from_pretrained,
        TimmWrapperForImageClassification.from_pretrained,
        lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    ],
    ids=["package", "auto", "native", "timm"],
)
def test_every_loader_gives_the_calibrated_probabilities(folded, load):
    folder, _, before = folded
    wanted = (before / T).softmax(-1)
    assert (wanted - before.softmax(-1)).abs().max() > 0.05, "a temperature that changes nothing would prove nothing"
    assert (logits(load(folder).eval()).softmax(-1) - wanted).abs().max() <= 1e-6


def test_onnx_gives_the_calibrated_probabilities(folded, tmp_path):
    _, model, before = folded
    write_onnx(model, tmp_path / "model.onnx")
    given = onnx_probabilities(tmp_path / "model.onnx", PIXELS.numpy())
    assert abs(given - (before / T).softmax(-1).numpy()).max() <= 1e-5


def test_the_temperature_is_recorded_and_folding_again_multiplies_it(folded, tmp_path):
    folder, _, before = folded
    assert json.loads((folder / "config.json").read_text())["calibration_temperature"] == T
    again = OCTForImageClassification.from_pretrained(folder).eval()
    again.fold_temperature(0.5)
    assert again.config.calibration_temperature == pytest.approx(T / 2)
    again.save_pretrained(tmp_path)
    loaded = OCTForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(loaded), before / (T / 2), atol=1e-5)
    loaded.unfold_temperature()
    assert torch.allclose(logits(loaded), before, atol=1e-5)
    assert "calibration_temperature" not in loaded.config.to_dict()
    loaded.unfold_temperature()  # nothing is left to undo
    assert torch.allclose(logits(loaded), before, atol=1e-5)


def test_a_warm_start_from_a_calibrated_folder_has_the_logits_before_calibration(folded):
    folder, _, before = folded
    warm = OCTForImageClassification.from_timm(str(folder), LABELS).eval()
    assert torch.allclose(logits(warm), before, atol=1e-5)
    assert "calibration_temperature" not in warm.config.to_dict()
    other = OCTForImageClassification.from_timm(str(folder), ["A", "B"]).eval()  # a new head: nothing to undo
    assert logits(other).shape == (4, 2) and other.timm_model.classifier.weight.abs().max() < 0.1


def test_each_sigmoid_output_may_have_its_own_temperature(tmp_path):
    model = network()
    before, temperatures = logits(model), [0.5, 1.0, 3.0]
    model.fold_temperature(temperatures)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(loaded), before / torch.tensor(temperatures), atol=1e-5)
    assert json.loads((tmp_path / "config.json").read_text())["calibration_temperature"] == temperatures
    warm = OCTForImageClassification.from_timm(str(tmp_path), LABELS).eval()
    assert torch.allclose(logits(warm), before, atol=1e-5)


@pytest.mark.parametrize(
    "name, size", [("crossvit_9_240", 240), ("test_vit", 160), ("test_convnext", 64), ("efficientvit_b0", 64)]
)
def test_classifiers_of_several_layers_or_deep_in_a_head_are_scaled_too(name, size):
    model = network(name, size)
    pixels = torch.randn(1, 3, size, size)
    before = logits(model, pixels)
    model.fold_temperature(T)
    assert torch.allclose(logits(model, pixels), before / T, atol=1e-5)


def test_convolutional_and_biasless_classifiers_are_scaled_too():
    model = network()
    linear = model.timm_model.classifier
    model.timm_model.classifier = torch.nn.Linear(linear.in_features, 3, bias=False)
    before = logits(model)
    model.fold_temperature(T)
    assert torch.allclose(logits(model), before / T, atol=1e-6)
    convolution = torch.nn.Conv2d(linear.in_features, 3, 1)
    model.timm_model.classifier = convolution
    model.timm_model.global_pool = torch.nn.AdaptiveAvgPool2d(1)
    model.timm_model.forward_head = lambda x, pre_logits=False: convolution(model.timm_model.global_pool(x)).flatten(1)
    before = logits(model)
    model.fold_temperature(T)
    assert torch.allclose(logits(model), before / T, atol=1e-6)


def test_a_network_whose_logits_do_not_follow_its_classifier_is_refused_and_left_as_it_was():
    model = network()
    straight = model.timm_model.forward_head
    model.timm_model.forward_head = lambda x, pre_logits=False: straight(x, pre_logits).tanh()
    before, training = logits(model), model.train().training
    with pytest.raises(ValueError, match="classifier: the logits don't scale with this classifier") as caught:
        model.fold_temperature(T)
    assert "\n" not in str(caught.value)
    assert model.timm_model.training == training and "calibration_temperature" not in model.config.to_dict()
    assert torch.equal(logits(model.eval()), before)
    model.timm_model.classifier = torch.nn.Sequential(model.timm_model.classifier)
    with pytest.raises(ValueError, match=r"linear or convolutional classifiers, not into classifier \(Sequential\)"):
        model.fold_temperature(T)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), [1.0, 2.0], [[1.0, 1.0, 1.0]]])
def test_what_is_no_temperature_is_refused(folded, wrong):
    with pytest.raises(ValueError, match="a temperature is one number above 0, or one for each of 3 outputs"):
        folded[1].fold_temperature(wrong)
