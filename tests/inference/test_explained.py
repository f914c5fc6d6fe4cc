import json
import shutil

import numpy as np
import pytest
from PIL import Image

from oct_hf.data.phantom import draw
from oct_hf.inference.explained import beside, recorded_method


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small untrained model, as a folder."""
    from oct_hf.images import Preprocessing
    from oct_hf.model.modeling_oct import OCTForImageClassification

    folder = tmp_path_factory.mktemp("model")
    made = OCTForImageClassification.from_timm("test_efficientnet", ["AMD", "DME", "NORMAL"], image_size=64)
    made.save_pretrained(folder)
    Preprocessing(64, 64).save(folder)
    return folder


def test_phantoms_and_a_bad_file_from_the_command_line(run, model, tmp_path):
    scans = tmp_path / "scans"
    for label in ("CNV", "DME"):
        (scans / label).mkdir(parents=True)
        Image.fromarray(draw(label, height=96, width=120).image).save(scans / label / "1.png")
    (scans / "DME" / "2.png").write_bytes(b"no picture")
    code, text, said = run("explain", scans, "-m", model, "--out", tmp_path / "out", "--json")
    rows = json.loads(text)
    assert code == 0 and "2 pictures by integrated_gradients (the model's run measured none)" in said
    assert [row["error"] is None for row in rows] == [True, True, False] and "is not an image" in rows[2]["error"]
    assert rows[2]["picture"] is rows[2]["label"] is None and len(list((tmp_path / "out").iterdir())) == 2
    for row in rows[:2]:
        assert row["label"] in ("AMD", "DME", "NORMAL") and 1 / 3 <= row["probability"] <= 1
        picture = np.asarray(Image.open(row["picture"]))
        bscan = np.asarray(Image.open(row["file"]))
        assert picture.shape == (96, 2 * 120 + 8, 3) and np.array_equal(picture[:, :120, 0], bscan)
        assert np.ptp(picture[:, 128:].astype(int), axis=2).max() > 20  # there is colour on the right


def test_a_real_bscan_keeps_its_size_and_a_label_can_be_asked_for(run, model, real_files, tmp_path):
    code, text, _ = run(
        "explain", real_files[0], "-m", model, "--out", tmp_path, "--method", "hirescam", "--label", "DME", "--json"
    )
    (row,) = json.loads(text)
    with Image.open(real_files[0]) as bscan, Image.open(row["picture"]) as picture:
        assert code == 0 and row["label"] == "DME" and row["method"] == "hirescam"
        assert picture.size == (2 * bscan.width + 8, bscan.height)


def test_wrong_names_are_one_line_and_a_table_is_printed(run, model, tmp_path):
    Image.fromarray(draw("DME", height=96, width=96).image).save(tmp_path / "a.png")
    common = ("explain", tmp_path / "a.png", "-m", model, "--out", tmp_path / "out")
    assert run(*common, "--method", "gradcm")[0] == 2 and not (tmp_path / "out").exists()
    assert 'did you mean "gradcam"' in run(*common, "--method", "gradcm")[2]
    code, _, said = run(*common, "--label", "CNV")
    assert code == 2 and "its labels are AMD, DME, NORMAL" in said
    code, text, _ = run(*common, "--method", "hirescam")
    assert code == 0 and "probability" in text and "For research, not for diagnosis." in text


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ({"explanations": {"method": "layercam"}}, "layercam"),
        ({"explanations": {"method": None}}, "integrated_gradients"),
        ({"explanations": {"method": "of a later version"}}, "integrated_gradients"),
        ({"explanations": None}, "integrated_gradients"),
        (None, "integrated_gradients"),
    ],
)
def test_the_models_own_method_is_taken(model, tmp_path, said, method):
    folder = shutil.copytree(model, tmp_path / "model")
    if said is not None:
        (folder / "run.json").write_text(json.dumps(said))
    assert recorded_method(folder)[0] == method


def test_a_picture_without_heat_is_the_bscan_twice(bscan):
    picture = np.asarray(beside(bscan, np.zeros((8, 8), np.float32)))
    assert np.array_equal(picture[:, :256], picture[:, 264:]) and (picture[:, 256:264] == 255).all()
