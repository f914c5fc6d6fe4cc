import numpy as np
import pytest
import timm
import torch
from torch import nn

from oct_hf.errors import ModelError, OCTError
from oct_hf.evaluation import explain as explaining
from oct_hf.evaluation.explain import METHODS, explain, feature_maps, overlay, stages


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=4)


class OneRegion(nn.Module):
    """Class 1 is how bright the rows 40 to 56 and columns 8 to 24 are; the rest of the image is never looked at."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 4, stride=4, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 48)
        self.relu = nn.ReLU(inplace=True)
        region = torch.zeros(2, 2, 16, 16)
        region[1, :, 10:14, 2:6] = 1
        self.head = nn.Linear(512, 2, bias=False)
        self.head.weight.data = region.reshape(2, -1)

    def forward(self, pixels):
        return self.head(self.relu(self.conv(pixels)).flatten(1))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("gradcam", "gradcam_fine")])
def test_what_the_answer_depends_on_is_where_a_map_points(method):
    image = np.random.default_rng(1).uniform(0.5, 1, (2, 3, 64, 64)).astype(np.float32)
    for heat in explain(OneRegion(), image, [1, 1], method):
        assert heat.max() == 1
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert 40 <= row < 56 and 8 <= column < 24
        # All that lies outside is what smoothing and interpolation spill over the region's border.
        assert heat[32:64, 0:32].sum() > 0.97 * heat.sum()


def test_grad_cam_alone_loses_the_place_where_the_head_is_not_pooled():
    # It averages the gradients over the map first, the flaw that HiResCAM's paper shows.
    image = np.random.default_rng(1).uniform(0.5, 1, (1, 3, 64, 64)).astype(np.float32)
    heat = explain(OneRegion(), image, [1], "gradcam")[0]
    assert heat[32:64, 0:32].sum() < 0.5 * heat.sum()


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_the_inputs_size_range_and_are_the_same_again(network, pixels, method):
    random, dice = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = explain(network, pixels, [0, 1, 2], method)
    assert first.shape == (3, 64, 64) and first.dtype == np.float32
    assert first.min() >= 0 and all(heat.max() in (0, 1) for heat in first) and first.any()
    assert np.array_equal(first, explain(network, pixels, [0, 1, 2], method))
    assert not np.array_equal(first, explain(network, pixels, [3, 3, 3], method))
    assert torch.equal(random, torch.get_rng_state()) and np.array_equal(dice, np.random.get_state()[1])


@pytest.mark.parametrize("method", ["hirescam", "layercam_stages", "integrated_gradients", "occlusion"])
def test_the_model_comes_back_as_it_was(pixels, method):
    network = timm.create_model("test_efficientnet", num_classes=4).train()
    network.bn1.eval()
    network.conv_stem.weight.requires_grad_(False)
    network.classifier.weight.grad = torch.ones_like(network.classifier.weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode():
        explain(network, pixels[:1], [0], method)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training and not network.bn1.training and network.blocks.training
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["conv_stem.weight"]
    assert [n for n, p in network.named_parameters() if p.grad is not None] == ["classifier.weight"]
    assert not any(module._forward_hooks for module in network.modules())


def test_the_most_probable_class_is_explained_where_none_is_named(network, pixels):
    with torch.no_grad():
        predicted = network.eval()(torch.from_numpy(pixels)).argmax(1).tolist()
    assert np.array_equal(explain(network, pixels, None, "hirescam"), explain(network, pixels, predicted, "hirescam"))


def test_batches_change_no_map(network, pixels, monkeypatch):
    whole = explain(network, pixels, [0, 1, 2], "hirescam_fine")
    monkeypatch.setattr(explaining, "BATCH", 2)
    assert np.allclose(whole, explain(network, pixels, [0, 1, 2], "hirescam_fine"), atol=1e-5)


def test_a_cam_on_pooled_features_is_the_classifiers_weights_on_them(network, pixels):
    # Zhou et al. 2016: with a mean and a linear layer after the map, Grad-CAM and HiResCAM are CAM itself.
    with torch.no_grad():
        features = network.eval().forward_features(torch.from_numpy(pixels))
    weights = network.classifier.weight.detach()
    cam = torch.einsum("k,nkij->nij", weights[2] - weights.mean(0), features).clamp(min=0).numpy()
    cells = np.array(
        [
            heat[[16, 16, 48, 48], [16, 48, 16, 48]].reshape(2, 2)
            for heat in explain(network, pixels, [2] * 3, "hirescam")
        ]
    )
    assert np.allclose(
        explain(network, pixels, [2] * 3, "gradcam"), explain(network, pixels, [2] * 3, "hirescam"), atol=1e-5
    )
    for one, other in zip(cells, cam, strict=True):
        assert one.argmax() == other.argmax()


@pytest.mark.parametrize(
    ("architecture", "ends"),
    [
        ("test_efficientnet", ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "bn2"]),
        ("resnet10t", ["act1", "layer1", "layer2", "layer3", "layer4"]),
        ("test_convnext", ["stages.0", "stages.1", "stages.2", "norm_pre"]),
        ("test_vit", [f"blocks.{block}.norm1" for block in range(6)]),
    ],
)
def test_stages_end_where_timm_says_and_a_method_works_on_each_kind_of_network(architecture, ends, pixels):
    size = {"img_size": 64} if architecture == "test_vit" else {}
    network = timm.create_model(architecture, num_classes=3, **size).eval()
    assert stages(network, torch.from_numpy(pixels[:1])) == ends
    assert explain(network, pixels, [0, 1, 2], "layercam_stages").any()
    maps = feature_maps(network, pixels)
    assert list(maps) == ends and all(value.ndim == 4 and len(value) == 3 for value in maps.values())


def test_feature_maps_are_what_the_layers_give(network, pixels):
    maps = feature_maps(network, pixels, ["blocks.2"])
    with torch.no_grad():
        network.eval()
        expected = network.blocks[:3](network.bn1(network.conv_stem(torch.from_numpy(pixels))))
    assert np.allclose(maps["blocks.2"], expected.numpy(), atol=1e-6)
    with pytest.raises(ModelError, match=r'no layer "block.2" \(did you mean "blocks.2"'):
        feature_maps(network, pixels, ["block.2"])
    with pytest.raises(ModelError, match="classifier gives no map"):
        feature_maps(network, pixels, ["classifier"])


def test_an_unknown_method_is_one_line(network, pixels):
    with pytest.raises(OCTError, match=r'no method hirecam \(did you mean "hirescam"'):
        explain(network, pixels, [0, 0, 0], "hirecam")


def test_a_network_without_maps_has_no_cam_but_can_be_occluded():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    with pytest.raises(ModelError, match="use occlusion"):
        explain(network, image, [0], "gradcam")
    assert explain(network, image, [0], "occlusion").any()


def test_an_overlay_is_gray_without_heat_and_brighter_with_more():
    bscan = np.full((40, 60), 90, np.uint8)
    heat = np.zeros((20, 30), np.float32)
    assert (overlay(bscan, heat) == 90).all() and overlay(bscan, heat).shape == (40, 60, 3)
    shown = overlay(bscan, np.linspace(0, 1, 60)[None].repeat(40, 0))[0].astype(int)
    assert np.ptp(shown[-1]) > 20  # coloured, not gray
    lightness = shown @ [0.2126, 0.7152, 0.0722]
    assert lightness[-1] > lightness[40] > lightness[20]
