import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oct_hf import OCTForImageClassification, Preprocessing
from oct_hf.errors import RecipeError
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.training.arguments import images_a_pass
from oct_hf.training.checkpoints import last_checkpoint
from oct_hf.training.recipe import TrainRecipe
from oct_hf.training.trainer import OCTTrainer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def small_trainer(folder, callbacks=(), on_evaluation=lambda images: None) -> OCTTrainer:
    """Three epochs of three steps of eight images in two passes; dropout, averaged weights, a head trained first."""
    from test_trainer import NAMES, pixels

    def score(probabilities, labels):
        on_evaluation(len(labels))
        return measure(probabilities, labels, NAMES)

    torch.manual_seed(0)
    return OCTTrainer(
        OCTForImageClassification.from_timm("test_efficientnet", NAMES, image_size=64, drop_rate=0.2),
        TrainRecipe(
            **{"epochs": 3, "batch_size": 8, "accumulate": 2, "workers": 0, "bf16": False, "learning_rate": 3e-3},
            **{"ema": 0.8, "freeze_epochs": 1},
        ),
        Preprocessing(64, 64),
        pixels(),
        pixels(15, seed=9),  # which two processes can't share evenly
        folder,
        score,
        callbacks,
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that are compared have: sums in another order are amplified by Adam where gradients are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same training on one process, to its end."""
    folder = tmp_path_factory.mktemp("one")
    run = small_trainer(folder)
    run.train()
    return run.state.log_history, folder


@pytest.fixture(scope="module")
def stopped_on_two(tmp_path_factory):
    """The folder of the training that two processes began, and what each of them saw."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, HERE / "on_two_processes.py", folder], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


def epochs(log: list[dict], key: str) -> list[float]:
    return [row[key] for row in log if key in row]


def test_two_processes_train_as_one_with_two_passes(whole, stopped_on_two):
    _, (first, _) = stopped_on_two
    assert epochs(first["log"], "loss")[0] == pytest.approx(epochs(whole[0], "loss")[0], abs=1e-3)
    # The backbone's statistics are frozen in the first epoch, so its validation is the same too.
    assert epochs(first["log"], "eval_log_loss")[0] == pytest.approx(epochs(whole[0], "eval_log_loss")[0], abs=1e-3)
    assert first["evaluated"] == [15]  # each image once


def test_a_signal_that_one_process_hears_stops_both_after_the_same_step(stopped_on_two):
    folder, both = stopped_on_two
    assert [(one["stopped"], one["step"], one["told"]) for one in both] == [(15, 4, "of the first")] * 2
    assert last_checkpoint(folder / "checkpoints").name == "checkpoint-4"


def test_a_run_of_two_processes_goes_on_on_one_and_ends_with_the_same_weights(whole, stopped_on_two):
    folder, _ = stopped_on_two
    run = small_trainer(folder / "checkpoints")
    run.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    assert epochs(run.state.log_history, "loss")[-1] == pytest.approx(epochs(whole[0], "loss")[-1], abs=1e-3)
    for file in ("model.safetensors", "ema.safetensors"):
        one, other = (load_file(place / "checkpoint-9" / file) for place in (whole[1], folder / "checkpoints"))
        for name in one:
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):  # of the first process
                assert torch.allclose(one[name], other[name], atol=1e-4), name


@pytest.mark.parametrize(
    "together, batch_size, accumulate, expected",
    [(1, 32, 1, (32, 1)), (1, 32, 4, (8, 4)), (2, 32, 1, (16, 1)), (2, 32, 4, (8, 2)), (4, 32, 6, (4, 2))],
)
def test_a_step_sees_the_recipes_batch_however_it_is_divided(monkeypatch, together, batch_size, accumulate, expected):
    monkeypatch.setenv("WORLD_SIZE", str(together))
    images, passes = images_a_pass(TrainRecipe(batch_size=batch_size, accumulate=accumulate))
    assert (images, passes) == expected and images * passes * together == batch_size


def test_a_batch_that_can_not_be_divided_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="the 32 images of a step can't be divided into 3 equal passes"):
        images_a_pass(TrainRecipe(batch_size=32))


@pytest.mark.slow
def test_torchrun_of_the_script_writes_one_run_like_that_of_one_process(tmp_path):
    few = ["data.patients=6", "data.scans=2", "data.height=96", "data.width=96", "model.base=test_efficientnet"]
    few += ["model.image_size=64", "train.epochs=2", "train.batch_size=8", "train.accumulate=2", "train.bf16=false"]
    arguments = [ROOT / "scripts" / "finetune.py", "demo", *few, "evaluation.explain=0", "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    runs, said = [], []
    for name, start in (("one", []), ("two", torchrun)):
        command = [sys.executable, *start, *arguments, tmp_path / name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        said.append(done.stdout.replace(str(tmp_path / name), ""))
        runs.append(json.loads((tmp_path / name / "run.json").read_text()))
    losses = [[row["loss"] for row in run["training"]["history"]] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert [run["training"]["processes"] for run in runs] == [1, 2]
    assert {run["training"]["steps"] for run in runs} == {runs[0]["training"]["steps"]}
    assert said[1].count("on the test side") == 1 and said[0].count("\n") == said[1].count("\n")
