"""A fine-tuning that is killed wherever it may be, and ends as one that never was."""

import json
import random
import shutil
import signal

import pytest
from killing import RECIPE, Killing, Runs

from oct_hf.model.folder import model_folder
from oct_hf.training.checkpoints import CHECKSUMS, damage
from oct_hf.whole import file_sha256

KILLED = pytest.mark.promise(
    "A fine-tuning that is killed at any moment ends, by the same command, with the same weights to the last bit."
)
PARTS = 4  # which workers of a test run share


@pytest.fixture(scope="module")
def killing(tmp_path_factory):
    killing = Killing(tmp_path_factory.mktemp("killing"))
    yield killing
    killing.close()


@pytest.fixture(scope="module")
def runs(killing, tmp_path_factory) -> Runs:
    return Runs(killing, tmp_path_factory.mktemp("killed"), RECIPE)


@KILLED
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_before_any_write_or_rename_and_in_the_middle_of_any_write(runs, cases, part):
    kills = runs.kills()[part::PARTS]
    assert len(kills) >= 25
    count = cases(1, len(kills))
    for place in range(count):
        at, torn = kills[(2 * place + 1) * len(kills) // (2 * count)]
        root = runs.new()
        ended = runs.run(root, at=at, torn=torn)
        assert ended.code == -signal.SIGKILL, ended.said
        runs.check_ends_the_same(root, (at, torn, runs.whole.events[at]))


@KILLED
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_random_moments(runs, cases, part):
    moments = random.Random(part)
    for _ in range(cases(1 if part < 2 else 0, 7)):
        root, after = runs.new(), moments.uniform(0, runs.whole.seconds)
        ended = runs.run(root, after_s=after)
        assert ended.code in (-signal.SIGKILL, 0), ended.said
        runs.check_ends_the_same(root, after)


@KILLED
def test_killed_again_and_again(runs, cases):
    """Each start comes a little further than the one before it."""
    root, moments, kills = runs.new(), random.Random(9), 0
    for number in range(cases(2, 6)):
        ended = runs.run(root, at=len(runs.whole.events) * (number + 1) // 12, torn=moments.random() < 0.5)
        kills += ended.code == -signal.SIGKILL
    assert kills >= 2
    runs.check_ends_the_same(root, "again and again")


@KILLED
def test_killed_while_it_replaces_another_run(runs, cases):
    """`--overwrite` is part of the command that is given again."""
    root = runs.new()
    shutil.copytree(runs.folder / "0", root, dirs_exist_ok=True)
    whole = runs.run(root, "--overwrite")
    removing = [n for n, event in enumerate(whole.events) if event.startswith(("os.remove /run/", "os.rmdir /run/"))]
    begin = next(n for n, event in enumerate(whole.events) if event.startswith("os.mkdir /run/log"))
    assert whole.code == 0 and len([n for n in removing if n < begin]) > 20
    for at in random.Random(0).sample(range(removing[0], begin), cases(1, 12)):
        assert runs.run(root, "--overwrite", at=at).code == -signal.SIGKILL
        ended = runs.run(root, "--overwrite")
        assert ended.code == 0, (whole.events[at], ended.said)
    runs.check_ends_the_same(root, "overwritten")


@KILLED
def test_killed_after_the_training_with_its_last_checkpoint_damaged(runs):
    """Of a training that was over, too, the checkpoint before is gone on from and not taken for the end."""
    root = runs.new()
    shutil.copytree(runs.folder / "0", root, dirs_exist_ok=True)
    shutil.rmtree(root / "run/model")
    facts = json.loads((root / "run/run.json").read_text())
    assert facts["training"]["best_epoch"] == 3
    (root / "run/run.json").write_text(json.dumps(facts | {"status": "trained"}))
    (root / "run/checkpoints/checkpoint-6/ema.safetensors").write_bytes(b"")
    runs.check_ends_the_same(root, "damaged")


@pytest.mark.promise("SIGTERM saves a checkpoint and ends with exit code 143; the same command goes on from it.")
def test_sigterm_saves_and_exits_with_143(runs, cases):
    moments = random.Random(1)
    for _ in range(cases(1, 8)):
        root = runs.new()
        there = root / "run/checkpoints/checkpoint-2"
        ended = runs.run(root, number=signal.SIGTERM, once_there=there, after_s=moments.uniform(0, 0.05))
        assert ended.code == 143, ended.said
        assert "stopped; the same command goes on from the checkpoint" in ended.said
        kept = [path for path in (root / "run/checkpoints").iterdir()]
        assert kept and all(damage(path) is None for path in kept)
        runs.check_ends_the_same(root, ended.said)


@pytest.mark.promise("A disk that gets full is one line, and the last checkpoint is whole.")
def test_a_full_disk_is_one_line_and_leaves_a_whole_checkpoint(runs, own_disk, cases):
    """Whatever is being written when it gets full: the libraries tell of it in different ways."""
    place, remount = own_disk
    sizes = (1500, 2500, *range(700, 3700, 250))  # KB; all that is written takes more
    kept = 0
    for size in sizes[: cases(2, len(sizes))]:
        root = place / str(size)
        root.mkdir()
        remount(f"size={size}k")
        ended = runs.run(root)
        assert ended.code == 2 and "No space left on device" in ended.said.splitlines()[-1], ended.said
        assert "Traceback" not in ended.said
        checkpoints = list((root / "run/checkpoints").glob("*"))
        assert all((path / CHECKSUMS).is_file() and damage(path) is None for path in checkpoints), ended.said
        kept += bool(checkpoints)
        remount("size=50000k")
        runs.check_ends_the_same(root, size)
    assert kept


@KILLED
def test_sections_with_a_state_of_their_own_are_killed_too(killing, tmp_path, cases):
    """Pretraining, a teacher, a learning rate that is searched for."""
    recipe = RECIPE | {
        "pretrain": {"phantoms": 16, "epochs": 1, "batch_size": 8, "image_size": 64},
        "teacher": {"base": "test_efficientnet", "weights": "random", "epochs": 2, "batch_size": 8, "phantoms": 4},
        "train": RECIPE["train"] | {"epochs": 2, "learning_rate": "find"},
    }
    runs = Runs(killing, tmp_path, recipe)
    before = [n for n, event in enumerate(runs.whole.events) if "/run/" in event and "/run/model.partial" not in event]
    for at in random.Random(2).sample(before, cases(1, 12)):
        root, torn = runs.new(), runs.whole.events[at - 1].startswith(("open", "write"))
        assert runs.run(root, at=at, torn=torn).code == -signal.SIGKILL
        runs.check_ends_the_same(root, runs.whole.events[at])


@pytest.mark.promise("A model's folder whose change is killed is the old one or the new one, whole; nothing else.")
def test_a_killed_change_of_a_finished_model_leaves_the_old_or_the_new_one(killing, runs, clinic, cases):
    command = ["evaluate", "run", "--data", clinic, "--record"]

    def changed(root, **kill):
        command[1] = root / "run"
        return killing.run(command, root, **kill)

    def content(root):
        model = model_folder(root / "run")
        files = {p.relative_to(model).as_posix(): file_sha256(p) for p in model.rglob("*") if p.is_file()}
        recorded = json.loads((model / "run.json").read_text())["files"]
        assert recorded.items() <= files.items() and files.keys() - recorded == {"run.json", "README.md"}
        return files

    whole = runs.new()
    shutil.copytree(runs.folder / "0", whole, dirs_exist_ok=True)
    old = content(whole)
    ended = changed(whole)
    assert ended.code == 0, ended.said
    new = content(whole)
    lie = sorted(path.name for path in (whole / "run").iterdir())
    assert old != new and not any(name.startswith("model.") for name in lie)
    events = [number for number, event in enumerate(ended.events) if " /run/model" in event]
    renamed = [number for number in events if ended.events[number] == "os.rename /run/model"]
    assert len(events) > 10 and renamed
    count = cases(3, len(events) - 1)
    chosen = {events[(2 * place + 1) * len(events) // (2 * count)] for place in range(count - 1)} | {renamed[-1] + 1}
    for at in sorted(chosen):
        root = runs.new()
        shutil.copytree(runs.folder / "0", root, dirs_exist_ok=True)
        (root / "run/model.old").mkdir()  # the user's own
        assert changed(root, at=at).code == -signal.SIGKILL
        assert content(root) in (old, new), ended.events[at]
        again = changed(root)
        assert again.code == 0 and content(root) == new, (ended.events[at], again.said)
        assert sorted(path.name for path in (root / "run").iterdir()) == sorted([*lie, "model.old"])
        shutil.rmtree(root)
