"""Models that other software wrote: a folder of transformers, and one of timm with nothing but its own files."""

import json

import numpy as np
import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from oct_hf import Predictor
from oct_hf.errors import ModelError
from oct_hf.images import Preprocessing

NAMES = ["CNV", "DME", "NORMAL"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small vision transformer, as transformers' save_pretrained leaves it."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: n for n, name in enumerate(NAMES)}}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(image_size=64, **size, **labels)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["center", "squash"])
def timms(request, tmp_path_factory):
    """A repository as timm writes it, and its network and transform."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3, pretrained_cfg_overlay={"crop_mode": request.param})
    save_for_hf(network, str(folder), {"label_names": NAMES}, safe_serialization=True)
    transform = create_transform(**resolve_data_config(model=network), is_training=False)
    return folder, network.eval(), transform


def test_a_folder_of_transformers_predicts_as_its_own_pipeline(run, vit, finished_run):
    examples = sorted((finished_run / "model" / "examples").glob("*.png"))
    theirs = pipeline("image-classification", model=str(vit))
    code, out, _ = run("predict", examples[0].parent, "--model", vit, "--json")
    assert code == 0
    for row, file in zip(json.loads(out), examples, strict=True):
        for answer in theirs(str(file)):
            assert row[f"p_{answer['label']}"] == pytest.approx(answer["score"], abs=2e-3)


def test_a_repository_of_timm_predicts_as_timm(run, timms, real_files):
    from PIL import Image

    folder, network, transform = timms
    code, out, _ = run("predict", *real_files, "--model", folder, "--json")
    assert code == 0
    for row, file in zip(json.loads(out), real_files, strict=True):
        with torch.inference_mode():
            logits = network(transform(Image.open(file).convert("RGB"))[None])
        assert [row[f"p_{name}"] for name in NAMES] == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("shape", [(496, 768), (400, 300), (160, 160), (17, 900)])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_pixels_are_those_of_timms_transform(shape, mode):
    from PIL import Image

    cfg = {"input_size": [3, 160, 160], "crop_pct": 0.95, "crop_mode": mode, "interpolation": "bicubic"}
    cfg |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    theirs = create_transform(**resolve_data_config(pretrained_cfg=cfg), is_training=False)(Image.fromarray(image))
    assert Preprocessing.of_timm(cfg)(image) == pytest.approx(theirs.numpy(), abs=1e-6)


@pytest.mark.parametrize("change", [{"crop_mode": "border"}, {"interpolation": "lanczos"}, {"mean": None}])
def test_steps_that_cannot_be_followed_are_refused(timms, tmp_path, change):
    config = json.loads((timms[0] / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="can't be followed here"):
        Predictor(tmp_path)


def test_the_app_answers_with_them_and_says_what_they_lack(vit, timms, browser, real_files):
    pytest.importorskip("gradio")
    from oct_hf import serving
    from oct_hf.inference.app import LAST_SECONDS
    from oct_hf.inference.app.server import running_app

    for folder in (vit, timms[0]):
        taken = serving.take_port(0)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        with running_app(str(folder)) as app, serving.running(app, taken, LAST_SECONDS):
            page.goto(f"http://127.0.0.1:{taken.getsockname()[1]}/")
            page.wait_for_selector("#files input[type=file]", state="attached")
            page.set_input_files("#files input[type=file]", str(real_files[0]))
            page.wait_for_selector("#detail table.bars")
            shown = page.inner_text("#detail")
            (answer,) = Predictor(folder).predict([real_files[0]])
            assert "Probabilities, not calibrated" in shown and f"{answer.probabilities['DME']:.3f}" in shown
            page.check("#heat input[type=checkbox]")
            page.wait_for_selector("#picture img.heat")
            page.click("[role=tab]:has-text('Model card')")
            assert "This model has no card" in page.inner_text("body")
            page.close()
