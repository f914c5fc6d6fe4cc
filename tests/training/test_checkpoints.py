"""Checkpoints that were damaged after they were written, and a training that goes on in spite of it."""

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small import StopAtStep, assert_same, trainer

from oct_hf.training.checkpoints import CHECKSUMS, UNFINISHED, damage, last_checkpoint
from oct_hf.training.trainer import EMA_FILE

SETTINGS = {"epochs": 4, "ema": 0.9, "patience": 3}
FILES = ("model.safetensors", EMA_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


HARM = (cut, change, empty, lambda file: file.unlink())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole training of twelve steps, and the folder of one that was stopped after ten, with 6, 9 and 10 in it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    whole = trainer(folder / "whole", **SETTINGS)
    whole.train()
    trainer(folder / "cut", [StopAtStep(10)], **SETTINGS).train()
    return whole, folder / "cut"


@pytest.mark.promise(
    "A checkpoint that is no longer what was written is noticed, and the training goes on from the one before it."
)
def test_any_damage_to_the_newest_checkpoint_is_noticed_and_the_one_before_is_used(trained, tmp_path, cases, capsys):
    whole, stopped = trained
    assert {"checkpoint-9", "checkpoint-10"} <= {path.name for path in stopped.iterdir()}
    assert {path.name for path in (stopped / "checkpoint-10").iterdir()} == {*FILES, CHECKSUMS, "config.json"}
    harmed = [(name, harm) for name in (*FILES, CHECKSUMS) for harm in HARM]
    for number, (name, harm) in enumerate(harmed):
        place = tmp_path / str(number)
        shutil.copytree(stopped, place)
        harm(place / "checkpoint-10" / name)
        assert last_checkpoint(place) == place / "checkpoint-9", (name, harm)
        assert "checkpoint-10 is left out: checkpoint-10" in capsys.readouterr().err
        assert not (place / "checkpoint-10").exists()
    cases.tried += len(harmed)
    again = trainer(place, **SETTINGS)
    again.train(resume_from_checkpoint=last_checkpoint(place))
    assert_same(whole.model, again.model)


def test_of_the_checkpoints_two_are_kept_each_with_its_best(tmp_path):
    """So that the one before the newest is enough to go on, also where the newest is the new best."""
    run = trainer(tmp_path, epochs=6)
    scores = iter([0.5, 0.1, 0.2, 0.9, 0.3, 0.1])
    run._metrics = lambda probabilities, labels: {"balanced_accuracy": next(scores), "log_loss": 1.0}
    kept = []
    real = run._save_checkpoint
    run._save_checkpoint = lambda *given: (real(*given), kept.append(sorted(p.name for p in tmp_path.iterdir())))
    run.train()
    names = [{int(name.rpartition("-")[2]) for name in one} for one in kept]
    assert names == [{3}, {3, 6}, {3, 6, 9}, {3, 9, 12}, {12, 15}, {12, 15, 18}]


def test_where_the_best_checkpoint_is_damaged_the_training_goes_back_to_before_it(trained, tmp_path):
    whole, stopped = trained
    shutil.copytree(stopped, tmp_path / "run")
    best = tmp_path / "run" / f"checkpoint-{whole.state.best_global_step}"
    if best.name == "checkpoint-12":
        best = tmp_path / "run" / "checkpoint-9"
    change(best / EMA_FILE)
    found = last_checkpoint(tmp_path / "run")
    assert found is None or int(found.name.rpartition("-")[2]) < int(best.name.rpartition("-")[2])
    again = trainer(tmp_path / "run", **SETTINGS)
    again.train(resume_from_checkpoint=found)
    assert_same(whole.model, again.model)


def test_a_training_that_was_over_gives_its_best_weights_in_another_place_too(tmp_path):
    """As where a machine is lost between the last checkpoint and the first measurement."""
    run = trainer(tmp_path / "here", epochs=3)
    scores = iter([0.9, 0.1, 0.2])
    run._metrics = lambda probabilities, labels: {"balanced_accuracy": next(scores), "log_loss": 1.0}
    run.train()
    best = load_file(tmp_path / "here/checkpoint-3/model.safetensors")
    shutil.move(tmp_path / "here", tmp_path / "there")
    again = trainer(tmp_path / "there", epochs=3)
    again.train(resume_from_checkpoint=last_checkpoint(tmp_path / "there"))
    for trained in (run, again):
        held = trained.model.timm_model.state_dict()
        assert all(torch.equal(held[name], value) for name, value in best.items())


def test_nothing_is_left_of_a_checkpoint_that_could_not_be_written(tmp_path, monkeypatch):
    run = trainer(tmp_path, epochs=2)
    save = torch.save

    def full(content, place, **options):
        save(content, place, **options)
        if "checkpoint-6" in str(place):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"] and damage(tmp_path / "checkpoint-3") is None


def test_half_a_checkpoint_is_none(tmp_path):
    trainer(tmp_path, epochs=1).train()
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-6", ignore=lambda *_: {CHECKSUMS})
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / UNFINISHED / "checkpoint-9")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3" and not (tmp_path / "checkpoint-6").exists()
    assert last_checkpoint(tmp_path / "none") is None


class Harmful:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return (open, (self.proof, "w"))


@pytest.mark.promise("A checkpoint runs no code when a training goes on from it, whoever made it.")
def test_a_checkpoint_that_would_run_code_is_refused_before_it_does(trained, tmp_path, cases):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        place = tmp_path / name
        shutil.copytree(trained[1], place)
        proof = tmp_path / f"{name}.ran"
        (place / "checkpoint-10" / name).write_bytes(pickle.dumps(Harmful(str(proof)), protocol=2))
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            trainer(place, **SETTINGS).train(resume_from_checkpoint=place / "checkpoint-10")
        assert not proof.exists()
        cases.tried += 1
