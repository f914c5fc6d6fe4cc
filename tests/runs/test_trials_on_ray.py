import dataclasses
import os
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import datasets
import optuna
import pytest
from searching import SPACE, of_two_epochs

from oct_hf.errors import OCTError, RunError
from oct_hf.runs import trial, trials_on_ray
from oct_hf.runs.training import Stopped
from oct_hf.runs.trial import Outcome
from oct_hf.runs.trials_on_ray import OnRay
from oct_hf.runs.tune import tune

ray = pytest.importorskip("ray")
KEPT = ("fold-*/checkpoints/*/trainer_state.json", "fold-*/epochs.json")  # while a trial isn't finished


@pytest.fixture(scope="module")
def quick(tiny):
    return of_two_epochs(tiny)


@pytest.fixture(scope="module")
def alone(quick, tmp_path_factory):
    return tune(quick, tmp_path_factory.mktemp("tune") / "alone", trials=3, folds=2, space=SPACE)


@pytest.fixture(scope="module")
def cluster():
    """Two machines with a CPU each; the search is on the first."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(datasets.config.HF_DATASETS_CACHE))  # the machines' own, too
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(cluster.address, log_to_driver=False, logging_level="error")  # once: its processes are kept
        warm_up()
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def warm_up() -> None:
    """Has both processes import what they need, so that their first trials begin at one time."""

    def wait_for_the_other(own, other):
        import oct_hf.runs.trials_on_ray  # noqa: F401

        own.touch()
        while not other.exists():
            time.sleep(0.01)

    with tempfile.TemporaryDirectory() as folder:
        places = Path(folder, "one"), Path(folder, "two")
        ray.get([ray.remote(wait_for_the_other).remote(*order) for order in (places, places[::-1])])


def on_ray(recipe, folder, trials=3) -> dict:
    return tune(recipe, folder, trials=trials, folds=2, space=SPACE, engine="ray")


def proposed(found: dict) -> list:
    return [(row["number"], row["state"], row["params"], row["score"], row["folds"]) for row in found["trials"]]


@contextmanager
def when_both_train(folder: Path, act):
    """Acts on a thread as soon as the first two trials are at work at one time and have kept something each.

    Nothing is done any more once the block has ended: a Ctrl-C would end the tests.
    """
    over = threading.Event()

    def watch():
        while not all(any(list((folder / name).glob(kept)) for kept in KEPT) for name in ("trial-001", "trial-002")):
            if over.wait(0.002):
                return
        act()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


@pytest.mark.parametrize(
    "options, text",
    [
        ({"engine": "rai"}, r'--engine: found rai \(did you mean "ray"\?\)'),
        ({"workers": 2}, "--engine ray"),
        ({"engine": "ray"}, "no Ray cluster at 127.0.0.1:1 "),
    ],
)
def test_what_is_no_cluster_is_refused_before_any_work(quick, tmp_path, monkeypatch, options, text):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(OCTError, match=text) as caught:
        tune(quick, tmp_path / "study", space=SPACE, **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "study").exists()


def test_a_cluster_ends_with_the_trials_that_one_process_ends_with(cluster, alone, quick, tmp_path):
    at_once, cache = [], Path(datasets.config.HF_DATASETS_CACHE)
    decoded = set(cache.glob("pixels-*"))  # of this process
    with when_both_train(tmp_path / "study", lambda: at_once.append(True)):
        found = on_ray(quick, tmp_path / "study")
    assert at_once and proposed(found) == proposed(alone)
    assert found["best"]["params"] == alone["best"]["params"]
    assert set(cache.glob("pixels-*")) <= decoded  # the machines keep none
    left = sorted(path.name for path in (tmp_path / "study").iterdir())
    assert left == ["best.yaml", "study.db", "study.json", "study.lock", "trials.csv"]


def test_a_study_stopped_on_a_cluster_goes_on_without_one(cluster, alone, quick, tmp_path, monkeypatch):
    folder, taken_up = tmp_path / "study", []
    interrupt = when_both_train(folder, lambda: os.kill(os.getpid(), signal.SIGINT))
    with interrupt, pytest.raises(Stopped):
        on_ray(quick, folder)
    real = trial.last_checkpoint
    monkeypatch.setattr(trial, "last_checkpoint", lambda place: taken_up.append((place, real(place))) or real(place))
    assert proposed(tune(quick, folder, trials=3, folds=2, space=SPACE)) == proposed(alone)
    # From a checkpoint, or after a fold that was trained whole.
    gone_on = {place.parts[-3]: bool(found) or place.parts[-2] != "fold-0" for place, found in reversed(taken_up)}
    assert gone_on == {"trial-001": True, "trial-002": True, "trial-003": False}


def test_a_machine_that_dies_costs_no_trial(cluster, alone, quick, tmp_path, monkeypatch):
    tries, start = [], OnRay.start
    monkeypatch.setattr(OnRay, "start", lambda self, what, again=1: tries.append(again) or start(self, what, again))
    victim = cluster.worker_nodes.copy().pop()
    with when_both_train(tmp_path / "study", lambda: cluster.remove_node(victim, allow_graceful=False)):
        found = on_ray(quick, tmp_path / "study")
    cluster.add_node(num_cpus=1)
    warm_up()
    assert tries.count(2) == 1 and proposed(found) == proposed(alone)


def test_a_trial_that_fails_costs_that_trial(cluster, quick, tmp_path, monkeypatch, capfd):
    score = {"epoch": 1, "balanced_accuracy": 0.75, "auroc": 0.8, "log_loss": 0.5}
    starts = tmp_path / "starts"
    starts.mkdir()

    def work(shared, proposal, threads):
        (starts / f"{proposal.number}-{time.time_ns()}").touch()
        if proposal.number == 2:
            os._exit(1)
        return Outcome("complete", [score, score])

    monkeypatch.setattr(trials_on_ray, "_work", work)
    found = on_ray(quick, tmp_path / "study", trials=4)
    assert [row["state"] for row in found["trials"]] == ["complete", "failed", "complete", "complete"]
    assert len(list(starts.glob("2-*"))) == 3 and "lost 3 times" in found["trials"][1]["error"]
    assert "trial 2/4  failed" in capfd.readouterr().err
    assert proposed(on_ray(quick, tmp_path / "study", trials=4)) == proposed(found)


def test_a_machine_without_the_data_is_named_and_no_trial_lost(cluster, quick, clinic, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # of this process alone
    recipe = dataclasses.replace(quick, data=dataclasses.replace(quick.data, name="folder", path="~/clinic"))
    with pytest.raises(RunError, match=r"a machine of the Ray cluster: .*clinic.*under one path") as caught:
        on_ray(recipe, tmp_path / "study")
    assert "\n" not in str(caught.value)
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'study' / 'study.db'}")
    assert {trial.state.name for trial in study.trials} == {"RUNNING"}
