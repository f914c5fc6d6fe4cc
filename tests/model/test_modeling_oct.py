import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TimmWrapperForImageClassification, pipeline

from oct_hf import OCTForImageClassification, Preprocessing, read_image

LABELS = ["CNV", "DME", "NORMAL"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An EfficientNetV2-B0 with random weights that answer differently to different pictures."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = OCTForImageClassification.from_timm("tf_efficientnetv2_b0", LABELS, image_size=96).eval()
    with torch.no_grad():
        model.timm_model.classifier.weight.normal_(0, 20)
    model.save_pretrained(folder)
    preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
    preprocessing.save(folder)
    return folder, model, preprocessing


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
def test_every_loader_gives_the_same_probabilities_from_the_same_tensor(saved, load):
    folder, model, _ = saved
    pixels = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    loaded = load(folder).eval()
    with torch.inference_mode():
        wanted = model(pixels).logits.softmax(-1)
        answer = loaded(pixels)
    answer = getattr(answer, "logits", answer).softmax(-1)
    assert wanted.std() > 0.05, "the test model must not answer the same to all"
    assert (answer - wanted).abs().max() <= 1e-6


def test_files_give_the_same_probabilities_in_pipeline_timm_and_package(saved, real_files):
    folder, model, preprocessing = saved
    classify = pipeline("image-classification", model=str(folder), top_k=None)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    for file in real_files:
        with torch.inference_mode():
            ours = model(torch.from_numpy(preprocessing(read_image(file)))[None]).logits.softmax(-1)[0].numpy()
            timms = network(transform(Image.open(file).convert("RGB"))[None]).softmax(-1)[0].numpy()
        piped = {answer["label"]: answer["score"] for answer in classify(str(file))}
        assert np.abs(ours - [piped[label] for label in LABELS]).max() <= 2e-3
        assert np.abs(ours - timms).max() <= 1e-6


def test_a_process_that_cannot_import_the_package_loads_the_folder(saved):
    folder, _, _ = saved
    code = f"""
import sys
sys.modules["oct_hf"] = None
from transformers import pipeline
p = pipeline("image-classification", model={str(folder)!r})
assert sorted(p.model.config.id2label.values()) == {sorted(LABELS)!r}
assert p.image_processor.size == {{"height": 96, "width": 96}}, p.image_processor
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_saved_keys_are_timms_and_nothing_is_said_of_where_the_weights_came_from(saved, tmp_path):
    folder, _, _ = saved
    assert set(load_file(folder / "model.safetensors")) == set(timm.create_model("tf_efficientnetv2_b0").state_dict())
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "timm_wrapper" and "auto_map" not in config and "model_args" not in config
    assert config["pretrained_cfg"]["crop_mode"] == "squash" and "url" not in config["pretrained_cfg"]
    again = OCTForImageClassification.from_pretrained(folder)
    again.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == config
    first, second = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_local_weights_arrive_whole_with_a_new_head(saved):
    folder, model, _ = saved
    fresh = OCTForImageClassification.from_timm(
        "tf_efficientnetv2_b0", ["A", "B"], weights=str(folder / "model.safetensors"), image_size=64
    )
    assert torch.equal(fresh.timm_model.conv_stem.weight, model.timm_model.conv_stem.weight)
    assert fresh.timm_model.classifier.weight.shape[0] == 2
    from_folder = OCTForImageClassification.from_timm(str(folder), ["A", "B"])
    assert torch.equal(from_folder.timm_model.conv_head.weight, model.timm_model.conv_head.weight)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "mobilenetv3_small_050", "test_convnext"])
def test_any_timm_classifier_works(name, tmp_path):
    size = {"test_vit": 160}.get(name, 64)
    model = OCTForImageClassification.from_timm(name, LABELS, image_size=size).eval()
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, size, size)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert (loaded(pixels).logits - model(pixels).logits).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"architecture": "efficientnetv2_bo"}, "timm knows no model efficientnetv2_bo .did you mean"),
        ({"architecture": "resnet10t", "weights": "FOLDER/model.safetensors"}, "resnet10t: the weights .* don't fit"),
        ({"architecture": "resnet10t", "weights": "FOLDER/config.json"}, "resnet10t: the weights .* don't fit"),
    ],
)
def test_a_wrong_base_is_said_in_one_line(saved, arguments, text):
    arguments = {key: value.replace("FOLDER", str(saved[0])) for key, value in arguments.items()}
    with pytest.raises(ValueError, match=text) as caught:
        OCTForImageClassification.from_timm(labels=LABELS, **arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match="no weights file"):
        OCTForImageClassification.from_timm("resnet10t", LABELS, weights="gone.safetensors")


def test_a_base_without_a_classification_head_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no timm model"):
        OCTForImageClassification.from_timm(str(tmp_path), LABELS)

    @timm.models.register_model
    def headless_test_network(pretrained=False, **kwargs):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
        network.pretrained_cfg = {}
        return network

    with pytest.raises(ValueError, match="headless_test_network is not a classifier"):
        OCTForImageClassification.from_timm("headless_test_network", LABELS)
