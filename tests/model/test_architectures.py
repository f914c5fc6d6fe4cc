"""Networks that timm lacks: their parts against their papers, and that they are to timm what its own are."""

import json

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from oct_hf import OCTForImageClassification, Predictor, Preprocessing
from oct_hf.evaluation.explain import stages
from oct_hf.inference.export import write_onnx
from oct_hf.model import architectures
from oct_hf.model.architectures import NETWORKS, CapsuleLayer, WiseSrNet, route, squash

SIZE = 64
MEMBER = {"num_classes": 2, "size": [SIZE, SIZE], "mean": [0.5] * 3, "std": [0.5] * 3}
# What the networks are built with here, where their usual arguments make them large or none.
OPTIONS = {
    "joined": {"backbones": ["test_efficientnet", "test_resnet"]},
    "ensemble": {"members": [MEMBER | {"architecture": "test_efficientnet"}, MEMBER | {"architecture": "test_resnet"}]},
}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    options = OPTIONS | {"roct_net": {"img_size": SIZE}}
    return {name: timm.create_model(name, num_classes=3, **options.get(name, {})).eval() for name in NETWORKS}


@pytest.fixture(params=NETWORKS)
def network(request, networks) -> nn.Module:
    return networks[request.param]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- against the papers ---


def test_the_small_cnn_has_as_many_parameters_as_its_authors(networks):
    # layer by layer from CNN03.ipynb: four convolutions with batch normalisation, then 4096-512-128-3
    convolutions = sum(9 * a * b + b + 2 * b for a, b in ((3, 32), (32, 64), (64, 128), (128, 256)))
    layers = sum(a * b + b for a, b in ((4096, 512), (512, 128), (128, 3)))
    assert count(networks["custom_cnn"]) == convolutions + layers == 2_553_091


def test_roct_net_has_the_papers_channels_and_capsules(networks):
    network = networks["roct_net"]
    # Keras counts 20,861,480 and 4,049,571 for the two without their heads, with 54,528 and 42,023 that aren't trained.
    assert count(network.xception) == 20_861_480 - 54_528
    assert count(network.efficientnet) == 4_049_571 - 42_023
    assert network.num_features == 3328
    assert network.capsules.weight.shape == (3328, 1, 10, 16)
    assert network.capsules.routings == 3
    assert network.fc.in_features == 10 * 16


def test_roct_nets_pooling_sees_the_authors_cells_at_512_pixels():
    # AveragePooling2D(3), then DepthwiseConv2D(5), of a map of 16x16
    assert architectures._map_size(512) == (16, 16)
    pool = WiseSrNet(8, (16, 16))
    assert pool.weight.shape == (8, 1, 5, 5) and pool(torch.randn(2, 8, 16, 16)).shape == (2, 8)


@pytest.mark.parametrize("size", [64, 96, 224, 299, 512])
def test_the_size_of_both_maps_is_known_before_an_image_was_seen(size):
    cells = []
    for halvings in ("xception", "efficientnet"):
        pixels, first = size, halvings == "xception"
        pixels = (pixels - 3) // 2 + 1 - 2 if first else -(-pixels // 2)
        for _ in range(4):
            pixels = -(-pixels // 2)
        cells.append(pixels)
    assert architectures._map_size(size) == (cells[0],) * 2 == (cells[1],) * 2


def test_an_image_that_both_backbones_see_differently_is_refused():
    with pytest.raises(ValueError, match="65x65 pixels differently; take a multiple of 32"):
        OCTForImageClassification.from_timm("roct_net", ["A", "B"], image_size=65)


def test_squash_is_the_papers_equation_1():
    # |(3, 4)| = 5, so its length becomes 25/26
    assert torch.allclose(squash(torch.tensor([3.0, 4.0])), torch.tensor([15.0, 20.0]) / 26)
    x = torch.zeros(2, 3, requires_grad=True)
    squash(x).sum().backward()
    assert torch.equal(squash(x), torch.zeros(2, 3)) and x.grad.isfinite().all()


def test_routing_by_hand():
    # Both input capsules vote (1, 0) for the first output capsule; for the second they contradict each other.
    votes = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]]])
    # Round 1: shares 1/2, s = (1, 0), v = (1/2, 0). Round 2: share 1 / (1 + exp(-1/2)) = 0.62246, s = 1.24492, v =
    # 0.60782. Round 3: share 1 / (1 + exp(-1/2 - 0.60782)) = 0.75172, s = 1.50344, v = 0.69328.
    for routings, length in ((1, 0.5), (2, 0.6078158), (3, 0.6932837)):
        expected = torch.tensor([[[length, 0.0], [0.0, 0.0]]])
        assert torch.allclose(route(votes, routings), expected, atol=1e-6)


def test_a_capsule_votes_by_its_own_matrix_for_each_output():
    layer = CapsuleLayer(2, 3, 4, 5, routings=1)
    x = torch.randn(2, 2, 3)
    by_hand = [squash(sum(x[0, i] @ layer.weight[i, :, j] for i in range(2)) / 4) for j in range(4)]
    assert torch.allclose(layer(x)[0], torch.stack(by_hand), atol=1e-6)


def test_wise_srnet_is_a_depthwise_convolution_that_starts_as_the_mean():
    pool, x = WiseSrNet(6, (4, 3)), torch.randn(2, 6, 4, 3)
    assert torch.allclose(pool(x), x.mean((2, 3)), atol=1e-6)
    convolution = nn.Conv2d(6, 6, (4, 3), groups=6)
    with torch.no_grad():
        pool.weight.copy_(torch.rand_like(pool.weight))
        pool.bias.normal_()
    convolution.load_state_dict(pool.state_dict())
    assert torch.allclose(pool(x), convolution(x).flatten(1), atol=1e-6)


def test_a_negative_weight_of_wise_srnet_counts_as_none_and_can_come_back():
    pool, x = WiseSrNet(1, (2, 2)), torch.ones(1, 1, 2, 2)
    with torch.no_grad():
        pool.weight.copy_(torch.tensor([[[[1.0, -5.0], [-5.0, 2.0]]]]))
    answer = pool(x)
    answer.sum().backward()
    assert answer.item() == 3 and torch.equal(pool.weight.grad, torch.ones(1, 1, 2, 2))


# --- to timm and to this package ---


def test_features_and_head_are_the_whole_network(network):
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        features = network.forward_features(x)
        assert features.shape[:2] == (2, network.num_features)
        before = network.forward_head(features, pre_logits=True)
        assert before.shape == (2, network.head_hidden_size)
        assert torch.equal(network.get_classifier()(before), network(x))
    assert dict(network.named_modules())[network.pretrained_cfg["classifier"]] is network.get_classifier()


def test_learning_rates_fall_from_the_head_to_the_stem(network):
    scales = {}
    groups = param_groups_layer_decay(network, 0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in groups:
        scales |= {names[id(parameter)]: group["lr_scale"] for parameter in group["params"]}
    first = next(iter(names.values()))
    assert scales[f"{network.pretrained_cfg['classifier']}.weight"] == 1
    assert scales[first] == min(scales.values()) < 1


def test_heat_maps_find_the_last_map(network):
    assert stages(network, torch.randn(1, 3, SIZE, SIZE))[-1] in ("stages", "joined", "network.bn2")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_is_itself_again_and_a_warm_start(name, tmp_path):
    torch.manual_seed(0)
    model = OCTForImageClassification.from_timm(name, ["A", "B"], image_size=SIZE, **OPTIONS.get(name, {})).eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        before = model(pixel_values=x).logits
    model.fold_temperature(2.0)
    model.save_pretrained(tmp_path)
    Preprocessing(SIZE, SIZE).save(tmp_path)
    again = Predictor(tmp_path, device="cpu")
    warm = OCTForImageClassification.from_timm(str(tmp_path), ["A", "B"], image_size=SIZE).eval()
    with torch.inference_mode():
        assert torch.allclose(torch.from_numpy(again.logits(x.numpy())), before / 2, atol=1e-6)
        assert torch.allclose(warm(pixel_values=x).logits, before, atol=1e-6)


def test_what_its_config_says_no_reader_takes_for_a_network_of_timm(tmp_path):
    from transformers import AutoModelForImageClassification

    OCTForImageClassification.from_timm("custom_cnn", ["A", "B"], image_size=SIZE).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "oct_network"
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


def test_weights_that_nobody_published_are_said_to_be_so():
    with pytest.raises(ValueError, match=r"nobody published weights of custom_cnn.*model\.weights=random"):
        OCTForImageClassification.from_timm("custom_cnn", ["A", "B"], pretrained=True)


def test_roct_net_starts_from_the_weights_of_its_backbones(monkeypatch):
    asked = {}
    create = timm.create_model

    def watch(name, pretrained=False, **options):
        asked[name] = pretrained
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(architectures.timm, "create_model", watch)
    architectures.roct_net(pretrained=True, img_size=SIZE)
    assert asked == {"legacy_xception.tf_in1k": True, "tf_efficientnet_b0.in1k": True}


@pytest.mark.parametrize("base", ["test_vit", "roct_net"])
def test_a_network_of_one_size_is_built_for_the_images_it_gets(base, tmp_path):
    """Its size travels in config.json, so that other loaders build the same network."""
    model = OCTForImageClassification.from_timm(base, ["A", "B"], image_size=96).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        expected = model(pixel_values=x).logits
        model.save_pretrained(tmp_path)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert torch.allclose(again(x), expected, atol=1e-6)
    assert model.config.model_args == {"img_size": [96, 96]}


@pytest.mark.parametrize("name", ["custom_cnn", pytest.param("roct_net", marks=pytest.mark.slow)])
def test_onnx_runtime_gives_its_answers(name, tmp_path):
    torch.manual_seed(0)
    model = OCTForImageClassification.from_timm(name, ["A", "B"], image_size=SIZE).eval()
    write_onnx(model, tmp_path / "model.onnx")  # it compares them itself
    assert (tmp_path / "model.onnx").stat().st_size > 4 * count(model) * 0.9
