import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from oct_hf import finetune
from oct_hf.data.phantom import LABELS, draw
from oct_hf.data.splits import read_split_table
from oct_hf.errors import DataError, RunError
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.images import Preprocessing, read_image
from oct_hf.runs import generated
from oct_hf.runs.facts import public_recipe
from oct_hf.runs.generated import FACTS, generate_by_diffusion, generate_from_run, learned_by_heart
from oct_hf.runs.labelled import assign_sides, load_data
from oct_hf.runs.other_pictures import generated_pictures, without_labels
from oct_hf.runs.training import Stopped
from oct_hf.training.adversarial import GENERATOR_FILE
from oct_hf.training.diffusion import DiffusionGenerator, DiffusionSettings
from oct_hf.training.recipe_file import load_recipe, make_recipe
from tests.conftest import TINY
from tests.training.small import StopAtStep

QUICK = TINY | {"train": TINY["train"] | {"epochs": 2, "freeze_epochs": 0}, "evaluation": {"explain": 0}}
TINY_DIFFUSION = DiffusionSettings(image_size=32, epochs=2, batch_size=8, width=8, steps=2)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """A folder of B-scans of other patients, without labels."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for number in range(9):
        Image.fromarray(draw(LABELS[number % 4], 70, number, 0, 96, 96).image).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def recipe(unlabelled):
    return make_recipe(QUICK | {"adversarial": {"latent": 8, "width": 2, "unlabelled": str(unlabelled)}})


@pytest.fixture(scope="module")
def adversarial_run(recipe, tmp_path_factory):
    """The folder of a finished run with a generator."""
    folder = tmp_path_factory.mktemp("runs") / "gan"
    finetune(recipe, folder)
    return folder


@pytest.fixture(scope="module")
def drawn(tiny, tmp_path_factory):
    """A folder of a diffusion generator's pictures."""
    folder = tmp_path_factory.mktemp("generated") / "drawn"
    generate_by_diffusion(tiny, folder, TINY_DIFFUSION, 3)
    return folder


# --- a run with a generator ------------------------------------------------------------------------------------------


def test_a_run_with_a_generator_is_published_and_verified_like_any_other(adversarial_run, unlabelled, recipe):
    run = json.loads((adversarial_run / "model" / "run.json").read_text())
    assert run["adversarial"]["unlabelled"] == 9
    assert run["training"]["images"] == run["split"]["sides"]["train"]["images"]
    card = (adversarial_run / "model" / "README.md").read_text()
    assert "tell real B-scans, 9 without labels among them, from generated ones (weight 0.5;" in card
    assert (adversarial_run / GENERATOR_FILE).is_file()
    assert not list((adversarial_run / "model").rglob(GENERATOR_FILE))  # it may know patients
    assert not any("start" in key for key in load_file(adversarial_run / "model" / "model.safetensors"))
    checks = verify(download(str(adversarial_run / "model")))
    assert [check.faults for check in checks] == [()] * len(checks)
    assert str(unlabelled) not in (adversarial_run / "model" / "recipe.yaml").read_text()
    assert public_recipe(recipe).adversarial.unlabelled == unlabelled.name


def test_its_pictures_are_labelled_by_its_model_and_written_by_class(adversarial_run, tmp_path):
    facts = generate_from_run(adversarial_run, tmp_path / "out", 2)
    written = {path.name: len(list(path.iterdir())) for path in (tmp_path / "out" / "pictures").iterdir()}
    assert written == {k: row["drawn"] - row["near_duplicates"] for k, row in facts["classes"].items()}
    assert 2 <= sum(written.values()) <= 8 and facts["kind"] == "adversarial" and facts["image_size"] == 64
    with pytest.raises(RunError, match="no finished run with a section adversarial"):
        generate_from_run(tmp_path, tmp_path / "other", 2)


# --- a diffusion generator -------------------------------------------------------------------------------------------


def test_pictures_facts_and_split_of_a_diffusion_generator(drawn, tiny):
    facts = json.loads((drawn / FACTS).read_text())
    assert facts["status"] == "done" and facts["labels"] == list(LABELS)
    data = assign_sides(load_data(tiny.data)[0], tiny)
    assert facts["trained_on"]["images"] == (data.sides == "train").sum()
    for label, row in facts["classes"].items():
        files = list((drawn / "pictures" / label).iterdir())
        assert row["drawn"] == 3 and len(files) == 3 - row["near_duplicates"]
        assert all(read_image(file).shape == (32, 32) for file in files)
    split = read_split_table(drawn / "split.csv")
    assert dict(zip(split["content_hash"], split["side"], strict=True)) == dict(
        zip(data.hashes, data.sides.tolist(), strict=True)
    )
    pairs = {(row["one"], row["other"]) for row in facts["compared"]["pairs"]}
    assert ("training side", "validation side") in pairs and ("generated", "validation side") in pairs
    assert (drawn / "sheet.png").is_file()
    assert DiffusionGenerator(drawn / "generator").pictures([0], steps=2).shape == (1, 32, 32)


def test_only_the_training_side_is_learned_from(tiny, tmp_path, monkeypatch):
    asked = []
    real = generated._side
    monkeypatch.setattr(generated, "_side", lambda _, side, *rest: asked.append(side) or real(_, side, *rest))
    monkeypatch.setattr(generated, "_train", lambda out, settings, seen, classes: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate_by_diffusion(tiny, tmp_path / "out", TINY_DIFFUSION, 3)
    assert asked == ["train"]


def test_a_stopped_generator_goes_on_and_another_asks_for_another_folder(drawn, tiny, tmp_path, monkeypatch):
    class Stop(StopAtStep):
        def __init__(self):
            super().__init__(2)

        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            control.should_save |= self.stopped is not None

    with monkeypatch.context() as patched:
        patched.setattr(generated, "_Stop", Stop)
        with pytest.raises(Stopped):
            generate_by_diffusion(tiny, tmp_path / "out", TINY_DIFFUSION, 3)
    facts = generate_by_diffusion(tiny, tmp_path / "out", TINY_DIFFUSION, 3)
    assert facts["training"]["resumed"]
    file = "generator/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (drawn / file).read_bytes()
    assert generate_by_diffusion(tiny, tmp_path / "out", TINY_DIFFUSION, 3) == facts
    with pytest.raises(RunError, match=r"other pictures \(they differ in images\)"):
        generate_by_diffusion(tiny, tmp_path / "out", TINY_DIFFUSION, 4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="holds something else"):
        generate_by_diffusion(tiny, tmp_path / "mine", TINY_DIFFUSION, 3)


# --- what was learned by heart ---------------------------------------------------------------------------------------


def scans(first: int, count: int, size: int = 64) -> np.ndarray:
    drawn = (draw(LABELS[n % 4], 11, n, 0, 192, 192).image for n in range(first, first + count))
    return np.stack([Preprocessing(size, size).resize(image) for image in drawn])


def test_training_pictures_that_come_out_again_are_found_also_mirrored_and_other_patients_are_not():
    seen, noise = scans(0, 24), np.random.default_rng(0).normal(0, 4, (24, 64, 64))
    brighter = np.clip(1.1 * seen + 5 + noise, 0, 255).astype(np.uint8)
    again = np.concatenate([brighter[:6], brighter[6:12, :, ::-1], scans(100, 12)])
    assert learned_by_heart(again, seen).tolist() == [*range(12), *[-1] * 12]


def test_of_real_bscans_copies_are_found_and_those_of_other_hospitals_are_not(samples):
    def small(pattern: str, step: int) -> np.ndarray:
        files = sorted(samples.glob(pattern))[::step]
        return np.stack([Preprocessing(64, 64).resize(read_image(file)) for file in files])

    seen, others = small("neh_sample/*/*.jpeg", 12), small("oct2017_sample/train/*/*.jpeg", 2)
    noise = np.random.default_rng(0).normal(0, 4, seen.shape)
    found = learned_by_heart(np.concatenate([np.clip(seen + noise, 0, 255).astype(np.uint8), others]), seen)
    assert (found[: len(seen)] >= 0).mean() > 0.95
    assert (found[len(seen) :] >= 0).mean() < 0.05


def test_near_duplicates_are_counted_said_and_not_written(tiny, tmp_path, monkeypatch, capsys):
    def by_heart(self, labels, *rest):
        assert labels == [k for k in range(4) for _ in range(3)]
        data = assign_sides(load_data(tiny.data)[0], tiny)
        seen = generated._side(data, "train", 32)
        own = [np.asarray(seen.images[int(np.flatnonzero(seen.labels == k)[0])]) for k in range(4)]
        return np.stack([own[k] if n == 0 else scans(300 + 3 * k + n, 1, 32)[0] for k in range(4) for n in range(3)])

    monkeypatch.setattr(DiffusionGenerator, "pictures", by_heart)
    facts = generate_by_diffusion(tiny, tmp_path / "out", TINY_DIFFUSION, 3)
    assert [row["near_duplicates"] for row in facts["classes"].values()] == [1] * 4
    assert sum(1 for _ in (tmp_path / "out" / "pictures").rglob("*.png")) == 8
    assert "warning: 4 of 12 generated pictures are near-duplicates of training B-scans" in capsys.readouterr().err


# --- generated pictures to train on ----------------------------------------------------------------------------------


def test_generated_pictures_go_to_the_training_side_alone_and_onto_the_card(drawn, tiny, tmp_path):
    wanted = make_recipe(QUICK | {"data": QUICK["data"] | {"generated": str(drawn)}})
    run = finetune(wanted, tmp_path / "run")
    count = sum(1 for _ in (drawn / "pictures").rglob("*.png"))
    assert run["generated"]["images"] == count > 0
    labelled = run["split"]["sides"]["train"]["images"]
    steps = 2 * math.ceil((labelled + count) / 8)  # two epochs of all of them in batches of 8
    assert run["training"]["images"] == labelled and run["training"]["steps"] == steps > 2 * math.ceil(labelled / 8)
    assert run["results"]["test"]["n"] == run["split"]["sides"]["test"]["images"]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"Generated pictures on the training side: {count} (CNV " in card
    assert run["recipe"]["data"]["generated"] == "drawn"
    checks = verify(download(str(tmp_path / "run" / "model")))
    assert [check.faults for check in checks] == [()] * len(checks)


def test_a_generator_that_saw_a_held_out_patient_is_refused_wherever_its_pictures_are_given(drawn, tiny, tmp_path):
    other = dataclasses.replace(tiny, split=dataclasses.replace(tiny.split, seed=5))
    data = assign_sides(load_data(other.data)[0], other)
    with pytest.raises(DataError, match=r"data.generated: the generator of .* was trained on \d+ of the B-scans"):
        generated_pictures(str(drawn), data, Preprocessing(64, 64), None)
    with pytest.raises(DataError, match=r"adversarial.unlabelled: the generator of"):
        without_labels(str(drawn / "pictures"), "adversarial", other, data, Preprocessing(64, 64), None)
    with pytest.raises(DataError, match=r"has no split.csv and pictures/"):
        generated_pictures(str(tmp_path), data, Preprocessing(64, 64), None)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_was_drawn_and_what_is_wrong_in_one_line(run, clinic, adversarial_run, tmp_path):
    small = ("--image-size", 32, "--epochs", 1, "--width", 8, "--steps", 2, "--images", 2)
    code, text, said = run("generate", "folder", "--data", clinic, "--out", tmp_path / "out", *small, "split.test=0.3")
    assert code == 0 and "DME" in text and "kernel distance" in text and (tmp_path / "out/pictures/NORMAL").is_dir()
    assert "a generator learns from" in said
    for arguments, fault in (
        (["folder", "--data", clinic, "--image-size", 60], "--image-size: "),
        ([adversarial_run, "--data", clinic], "leave out --data"),
        (["foldr"], 'did you mean "folder"'),
    ):
        code, _, said = run("generate", *arguments, "--out", tmp_path / "none")
        assert code == 2 and fault in said and len(said.strip().splitlines()) == 1
    assert load_recipe("folder", ["generated=x"]).data.generated == "x"
