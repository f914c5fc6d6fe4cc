"""Gray pixels in: the same answers as of the three-channel network, on real B-scans and where padding is the catch."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from oct_hf import OCTForImageClassification
from oct_hf.data.phantom import LABELS, draw
from oct_hf.errors import ModelError
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.inference.export_gray import torch_probabilities, write_gray_onnx, write_gray_openvino
from oct_hf.inference.fast_files import fast_probabilities

EQUAL = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEMBERS = [
    {"architecture": name, "num_classes": 3, "size": [64, 64], "mean": mean, "std": std}
    for name, (mean, std) in (("test_efficientnet", EQUAL), ("test_resnet", IMAGENET))
]


def made(name: str, size: int = 64, norm=EQUAL, **model_args) -> tuple[OCTForImageClassification, Preprocessing]:
    """A network with random weights whose answers differ from picture to picture."""
    torch.manual_seed(0)
    model = OCTForImageClassification.from_timm(name, ["A", "B", "C"], image_size=size, **model_args).eval()
    for layer in model.timm_model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # of random weights, or nothing gets through
            layer.reset_running_stats()
            layer.momentum = None
    preprocessing = Preprocessing(size, size, "bicubic", *norm)
    grays = np.random.default_rng(1).integers(0, 256, (16, size, size), dtype=np.uint8)
    pixels = torch.from_numpy(np.stack([preprocessing.normalise(gray // (1 + n)) for n, gray in enumerate(grays)]))
    with torch.inference_mode():
        model.train()(pixel_values=pixels)
        spread = model.eval()(pixel_values=pixels).logits.std(0).max()
        last = model.timm_model.get_classifier()
        last.weight.mul_(0.5 / spread)  # more would blow up rounding too, beyond what an export may be off
    return model, preprocessing


def needs_openvino() -> None:
    if find_spec("openvino") is None or find_spec("nncf") is None:
        pytest.skip("the extra openvino isn't installed")


def grays_of(preprocessing: Preprocessing) -> np.ndarray:
    """Phantoms, each also in negative: white up to the border, where a wrong padding shows."""
    drawn = [preprocessing.resize(draw(label, 1, height=124, width=128).image) for label in LABELS]
    return np.stack([*drawn, *(255 - gray for gray in drawn)])


@pytest.mark.parametrize(
    "name, size, norm, channels",
    [
        ("test_efficientnet", 64, EQUAL, 1),
        ("test_efficientnet", 64, IMAGENET, 2),  # its padding is zeros of the normalised picture
        ("tf_mobilenetv3_small_minimal_100", 64, IMAGENET, 2),  # pads on one side alone
        ("test_vit", 160, IMAGENET, 1),  # patches pad nothing: the means go into the bias
        ("custom_cnn", 64, IMAGENET, 2),
        ("test_nfnet", 64, IMAGENET, 2),  # its weights are normalised, once and for all when exported
    ],
)
def test_folding_the_first_layer_leaves_the_answers(name, size, norm, channels, tmp_path):
    onnx = pytest.importorskip("onnx")
    from oct_hf.inference import gray_graph

    model, preprocessing = made(name, size, norm)
    write_gray_onnx(model, preprocessing, tmp_path / "gray.onnx")
    proto, grays = onnx.load(tmp_path / "gray.onnx"), grays_of(preprocessing)
    assert gray_graph.channels(proto) == channels
    expected = torch_probabilities(model, preprocessing, grays)
    assert np.ptp(expected, axis=0).max() > 0.01, "answers that are all alike would prove nothing"
    assert np.abs(fast_probabilities(tmp_path / "gray.onnx", grays) - expected).max() <= 1e-4
    onnx.checker.check_model(proto, full_check=True)


def test_networks_of_networks_get_three_channels_and_the_same_answers(tmp_path):
    onnx = pytest.importorskip("onnx")
    from oct_hf.inference import gray_graph

    model, preprocessing = made("ensemble", members=MEMBERS)
    write_gray_onnx(model, preprocessing, tmp_path / "gray.onnx")
    assert gray_graph.channels(onnx.load(tmp_path / "gray.onnx")) == 3
    found = fast_probabilities(tmp_path / "gray.onnx", grays_of(preprocessing))
    assert np.abs(found - torch_probabilities(model, preprocessing, grays_of(preprocessing))).max() <= 1e-5


@pytest.mark.parametrize("norm", [EQUAL, IMAGENET])
def test_onnx_from_gray_is_within_1e_5_of_torch_on_every_real_bscan(norm, real_files, tmp_path):
    pytest.importorskip("onnxruntime")
    model, preprocessing = made("test_efficientnet", norm=norm)
    write_gray_onnx(model, preprocessing, tmp_path / "onnx/gray.onnx")
    grays = np.stack([preprocessing.resize(to_gray(read_image(file))) for file in real_files])
    found = fast_probabilities(tmp_path / "onnx/gray.onnx", grays)
    expected = torch_probabilities(model, preprocessing, grays)
    assert found.dtype == np.float32 and np.ptp(expected, axis=0).max() > 0.05
    assert np.abs(found - expected).max() <= 1e-5
    assert np.abs(fast_probabilities(tmp_path / "onnx/gray.onnx", grays[:1]) - expected[:1]).max() <= 1e-5


def test_openvino_is_within_1e_5_of_torch_on_every_real_bscan(real_files, tmp_path):
    needs_openvino()
    model, preprocessing = made("test_efficientnet", norm=IMAGENET)
    write_gray_onnx(model, preprocessing, tmp_path / "gray.onnx")
    write_gray_openvino(model, preprocessing, tmp_path / "gray.onnx", tmp_path / "openvino/gray.xml")
    grays = np.stack([preprocessing.resize(to_gray(read_image(file))) for file in real_files])
    found = fast_probabilities(tmp_path / "openvino/gray.xml", grays)
    expected = torch_probabilities(model, preprocessing, grays)
    assert found.dtype == np.float32 and np.abs(found - expected).max() <= 1e-5
    assert str(tmp_path) not in (tmp_path / "openvino/gray.xml").read_text()


def test_openvino_and_nncf_are_loaded_without_their_telemetry():
    needs_openvino()
    code = """if True:
        import sys
        from oct_hf.inference.intel import load_nncf, load_openvino
        load_openvino(), print("torch" in sys.modules)
        load_nncf(), print({"openvino", "nncf"} < set(sys.modules), "openvino_telemetry" in sys.modules)"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "True", "False"]


def test_a_file_whose_answers_are_not_torchs_is_not_written(tmp_path):
    pytest.importorskip("onnxruntime")
    from oct_hf.inference.export import write_onnx

    model, preprocessing = made("test_efficientnet")
    write_onnx(model, tmp_path / "model.onnx")
    model.timm_model.classifier.bias.data.add_(torch.tensor([0.1, 0, 0]))  # after it was exported
    with pytest.raises(ModelError, match=r"test_efficientnet: ONNX Runtime's probabilities are .* from torch's"):
        write_gray_onnx(model, preprocessing, tmp_path / "gray.onnx", tmp_path / "model.onnx")
    assert not (tmp_path / "gray.onnx").exists()


def test_signs_are_sigmoids_of_their_own(tmp_path):
    pytest.importorskip("onnxruntime")
    model, preprocessing = made("test_efficientnet")
    model.config.problem_type = "multi_label_classification"
    write_gray_onnx(model, preprocessing, tmp_path / "gray.onnx")
    found = fast_probabilities(tmp_path / "gray.onnx", grays_of(preprocessing))
    assert np.abs(found.sum(1) - 1).max() > 0.01
    assert np.abs(found - torch_probabilities(model, preprocessing, grays_of(preprocessing))).max() <= 1e-5
