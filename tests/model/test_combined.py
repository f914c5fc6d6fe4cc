"""Joined features, nearest neighbours and ensembles as networks, against what they are said to compute."""

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from oct_hf import OCTForImageClassification
from oct_hf.evaluation.explain import stages
from oct_hf.inference.export import write_onnx
from oct_hf.model.combined import NearestNeighbours, Renormalised, pass_on

BACKBONES = ["test_efficientnet", "test_resnet"]
MEANS = {"test_efficientnet": ([0.5] * 3, [0.5] * 3), "test_vit": ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])}


def member(name: str, size: int, **model_args) -> dict:
    mean, std = MEANS[name]
    about = {"architecture": name, "num_classes": 2, "size": [size, size], "mean": mean, "std": std}
    return about | {"model_args": model_args}


def test_joined_features_are_those_of_each_backbone_on_its_own_pixels():
    torch.manual_seed(0)
    network = timm.create_model("joined", num_classes=0, backbones=BACKBONES).eval()
    raw = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found = network((raw - 0.5) / 0.5)
        parts = []
        for backbone in network.backbones:
            mean, std = (torch.tensor(backbone.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
            parts.append(backbone((raw - mean) / std).mean((2, 3)))
    assert torch.allclose(found, torch.cat(parts, 1), atol=1e-5)
    assert BACKBONES[1] != "" and network.backbones[0].pretrained_cfg["mean"] != (0.5, 0.5, 0.5)


def test_what_gives_no_map_can_not_be_joined():
    with pytest.raises(ValueError, match="test_vit gives no map of features"):
        OCTForImageClassification.from_timm("joined", ["A", "B"], image_size=160, backbones=["test_vit"])


def test_the_votes_of_neighbours_by_hand():
    layers = NearestNeighbours(cases=3, features=2, classes=2, k=2, temperature=0.5)
    layers.cases.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    layers.labels.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    layers.chosen.copy_(torch.tensor([2, 0]))
    # the features chosen are (3, 4): similarities 0.6, 0.8 and -0.6, so that the first two cases vote
    vote = np.exp(0.8 / 0.5) / (np.exp(0.8 / 0.5) + np.exp(0.6 / 0.5))
    expected = np.log([(2 * (1 - vote) + 0.5) / 3, (2 * vote + 0.5) / 3])
    assert np.allclose(layers(torch.tensor([[4.0, 9.0, 3.0]]))[0].numpy(), expected, atol=1e-6)


@pytest.fixture(scope="module")
def mixed() -> OCTForImageClassification:
    """Members of two sizes, of which one is a transformer."""
    torch.manual_seed(0)
    members = [member("test_efficientnet", 96), member("test_vit", 64, img_size=[64, 64])]
    model = OCTForImageClassification.from_timm("ensemble", ["A", "B"], image_size=96, members=members).eval()
    for own in model.timm_model.members:
        torch.nn.init.normal_(own.get_classifier().weight)
    pass_on(model.timm_model.fc)
    return model


def test_an_ensembles_probabilities_are_the_mean_of_its_members_on_their_own_pixels(mixed):
    raw = torch.rand(3, 3, 96, 96)
    each = []
    with torch.inference_mode():
        for own, name, size in zip(mixed.timm_model.members, MEANS, (96, 64), strict=True):
            mean, std = (torch.tensor(values)[:, None, None] for values in MEANS[name])
            pixels = functional.interpolate((raw - mean) / std, (size, size), mode="bilinear", antialias=True)
            each.append(own(pixels).softmax(-1))
        found = mixed(pixel_values=(raw - 0.5) / 0.5).logits.softmax(-1)
    assert (each[0] - each[1]).abs().max() > 0.05
    assert torch.allclose(found, (each[0] + each[1]) / 2, atol=1e-5)


def test_an_ensemble_of_several_sizes_is_exported_and_has_no_single_map(mixed, tmp_path):
    write_onnx(mixed, tmp_path / "model.onnx")  # it compares them itself
    assert stages(mixed.timm_model, torch.zeros(1, 3, 96, 96)) == []


def test_an_ensemble_without_members_says_so():
    with pytest.raises(ValueError, match="an ensemble has members, all with the same classes"):
        OCTForImageClassification.from_timm("ensemble", ["A", "B"])


def test_pixels_normalised_anew_are_those_of_the_other_normalisation():
    raw, mean, std = torch.rand(1, 3, 4, 4), [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    own = Renormalised(mean, std)((raw - 0.5) / 0.5)
    assert torch.allclose(own, (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None], atol=1e-5)
