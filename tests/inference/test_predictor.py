import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from oct_hf import Predictor, read_image
from oct_hf.errors import BadImageError, ModelError, OCTError
from oct_hf.inference.inputs import find_images


def test_files_bytes_and_arrays_give_the_same_answers_in_order(finished_run, real_files):
    predictor = Predictor(finished_run / "model", batch_size=4)
    by_file = [list(a.probabilities.values()) for a in predictor.predict(real_files)]
    by_bytes = [list(a.probabilities.values()) for a in predictor.predict([f.read_bytes() for f in real_files])]
    by_array = [list(a.probabilities.values()) for a in predictor.predict([read_image(f) for f in real_files])]
    assert by_file == by_bytes == by_array
    alone = [list(next(predictor.predict([f])).probabilities.values()) for f in real_files]
    assert np.abs(np.array(alone) - by_file).max() <= 1e-6


def test_coloured_images_give_the_pipelines_answer(finished_run, bscan, tmp_path):
    colour = np.stack([bscan, np.roll(bscan, 9, 1), 255 - bscan], -1)
    Image.fromarray(colour).save(tmp_path / "screenshot.png")
    classify = pipeline("image-classification", model=str(finished_run / "model"), top_k=None)
    piped = {a["label"]: a["score"] for a in classify(str(tmp_path / "screenshot.png"))}
    answer = next(Predictor(finished_run / "model").predict([tmp_path / "screenshot.png"]))
    assert max(abs(answer.probabilities[label] - score) for label, score in piped.items()) <= 2e-3


def test_an_unreadable_file_is_an_answer_with_its_reason(finished_run, bscan, tmp_path):
    (tmp_path / "a.jpeg").write_text("no image")
    Image.fromarray(bscan).save(tmp_path / "b.png")
    answers = list(Predictor(finished_run / "model").predict([tmp_path / "a.jpeg", tmp_path / "b.png"]))
    assert answers[0].predicted is None and "not an image" in answers[0].error
    assert answers[1].error is None and answers[1].predicted in ("CNV", "DME", "DRUSEN", "NORMAL")


def test_a_transformers_vit_of_other_software_predicts_too(tmp_path, bscan):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    answer = next(Predictor(tmp_path).predict([bscan]))
    assert answer.predicted in ("LABEL_0", "LABEL_1") and sum(answer.probabilities.values()) == pytest.approx(1)


def test_a_runs_folder_is_its_model(finished_run, bscan):
    (of_run,), (of_model,) = (list(Predictor(path).predict([bscan])) for path in (finished_run, finished_run / "model"))
    assert of_run == of_model


def test_what_is_no_model_is_said(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json, so this is no model folder"):
        Predictor(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no model that can be loaded"):
        Predictor(tmp_path)


def test_images_are_found_below_folders_in_order(clinic, tmp_path):
    (clinic / "readme.txt").write_text("x")
    found = find_images([clinic / "NORMAL", clinic / "DME/D0/1.png"])
    assert len(found) == 13 and found[:12] == sorted(found[:12]) and found[-1].name == "1.png"
    with pytest.raises(BadImageError, match="no such file"):
        find_images([tmp_path / "gone"])


def test_a_model_in_memory_comes_with_its_preprocessing(finished_run):
    predictor = Predictor(finished_run / "model", backend="torch")
    assert Predictor(predictor.model, predictor.preprocessing).labels == predictor.labels
    with pytest.raises(OCTError, match=r"Predictor\(model, preprocessing\)"):
        Predictor(predictor.model)
