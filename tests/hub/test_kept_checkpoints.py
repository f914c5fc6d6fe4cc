"""`hub.checkpoints`: a machine that disappears while it trains and an empty one that goes on, over the loopback Hub."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from killing import RECIPE, Ended, Killing, Runs

from oct_hf.hub.local.accounts import User
from oct_hf.hub.local.bare_git import Repository

KILLED = pytest.mark.promise(
    "A fine-tuning that is killed at any moment ends, by the same command, with the same weights to the last bit."
)
KEPT = pytest.mark.promise(
    "Checkpoints kept on the Hub let an empty machine go on by the same command, to the same weights to the last bit."
)


@pytest.fixture(scope="module")
def runs(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    (folder / "runs").mkdir()
    killing = Killing(folder, site.environment)
    yield Runs(killing, folder / "runs", RECIPE)
    killing.close()


def repository(site, name: str) -> Repository:
    return Repository(site.root / "models" / "clinic" / f"{name}.git")


def steps_kept(site, name: str) -> list[int]:
    kept = repository(site, name)
    if not kept.path.exists():
        return []
    paths = (entry["path"] for entry in kept.files("main"))
    return sorted({int(path.partition("/")[0].rpartition("-")[2]) for path in paths if path.startswith("checkpoint-")})


def kept_at(runs: Runs, name: str, **kill) -> tuple[Path, Ended]:
    root = runs.new()
    return root, runs.run(root, f"hub.checkpoints=clinic/{name}", **kill)


def empty_large(site) -> None:
    """What one run has sent isn't there for the next, which makes the same requests."""
    for path in (site.root / "large").iterdir():
        path.unlink()


@KEPT
def test_an_empty_machine_goes_on_wherever_the_other_was_lost(runs, site, cases):
    root, whole = kept_at(runs, "whole")
    assert whole.code == 0, whole.said
    assert steps_kept(site, "whole")[-1] == 6 and repository(site, "whole").private
    requests = [number for number, event in enumerate(whole.events) if event.startswith("request")]
    assert len([number for number in requests if "/commit/" in whole.events[number]]) == 3
    # While the third checkpoint is written, the first two are there; then anywhere in the talk with the Hub.
    third = Path("run/checkpoints/unfinished/checkpoint-6")
    moments = [{"after_s": 0.0}, *({"at": at} for at in random.Random(0).sample(requests, len(requests)))]
    for number, moment in enumerate(moments[: cases(2, 16)]):
        empty_large(site)
        name, place = f"lost-{number}", runs.new()
        kill = moment if "at" in moment else moment | {"once_there": place / third}
        lost = runs.run(place, f"hub.checkpoints=clinic/{name}", **kill)
        assert lost.code == -signal.SIGKILL, lost.said
        shutil.rmtree(place)
        steps = steps_kept(site, name)
        root, again = kept_at(runs, name)
        assert again.code == 0, (kill, again.said)
        assert (f"going on from the checkpoints in clinic/{name}" in again.said) == bool(steps)
        assert json.loads((root / "run/run.json").read_text())["training"]["resumed"] == bool(steps)
        assert number or 4 in steps
        runs.check_ends_the_same(root, kill)


def test_what_is_kept_is_whole_private_and_names_no_place(runs, site):
    root, ended = kept_at(runs, "place", at=None)
    assert ended.code == 0
    kept = repository(site, "place")
    assert kept.private
    names = {entry["path"].rpartition("/")[2] for entry in kept.files("main")}
    assert names == {
        *("training.json", ".gitattributes", "config.json", "model.safetensors", "ema.safetensors", "optimizer.pt"),
        *("scheduler.pt", "rng_state.pth", "trainer_state.json", "checksums.json"),
    }
    for entry in kept.files("main"):
        assert str(root).encode() not in kept.git("show", f"main:{entry['path']}")
    for path in (root / "run/checkpoints").rglob("*.*"):
        assert str(root).encode() not in path.read_bytes(), path
    assert "clinic/place" not in (root / "run/model/recipe.yaml").read_text()


def test_other_repositories_are_refused_before_any_work(runs, site):
    kept_at(runs, "first")
    first = repository(site, "first")
    for name in ("open", "foreign"):
        shutil.copytree(first.path, repository(site, name).path)
    repository(site, "open").set_up(private=False)
    names = [entry["path"] for entry in first.files("main")]
    repository(site, "foreign").commit("main", User("clinic"), "notes", {"notes.md": b"x"}, names)
    for name, text in (
        ("clinic/first", "holds another training's"),
        ("clinic/open", "is public, and checkpoints are for nobody else"),
        ("clinic/foreign", "holds something else"),
        ("other/kept", "other/kept"),
    ):
        ended = runs.run(runs.new(), f"hub.checkpoints={name}", "train.seed=5")
        assert ended.code == 2 and text in ended.said and len(ended.said.splitlines()) == 1, ended.said


@KILLED
def test_killed_while_it_publishes(runs, site, cases):
    """With push_to_hub: while the best weights go out, and the finished model."""

    def publishing(root: Path, name: str, **kill) -> Ended:
        return runs.run(root, "push_to_hub=true", f"hub.repo=clinic/{name}", **kill)

    root = runs.new()
    whole = publishing(root, "published")
    assert whole.code == 0, whole.said
    wanted = sorted(entry["path"] for entry in repository(site, "published").files("main"))
    requests = [number for number, event in enumerate(whole.events) if event.startswith("request")]
    for number, at in enumerate(random.Random(1).sample(requests, cases(1, 12))):
        empty_large(site)
        root = runs.new()
        assert publishing(root, f"killed-{number}", at=at).code == -signal.SIGKILL
        again = publishing(root, f"killed-{number}")
        assert again.code == 0, (whole.events[at], again.said)
        there = repository(site, f"killed-{number}")
        assert sorted(entry["path"] for entry in there.files("main")) == wanted
        assert {ref for ref, _ in there.refs()} == {"refs/heads/main", "refs/heads/remote-code", "refs/tags/v1"}
        content = there.git("show", "main:run.json")
        assert content == (root / "run/model/run.json").read_bytes()
        same = "push_to_hub=true", f"hub.repo=clinic/killed-{number}"
        runs.check_ends_the_same(root, whole.events[at], *same)
