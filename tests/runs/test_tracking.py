"""What trackers are told of a training, where it stays, and that it changes nothing."""

import csv
import dataclasses
import importlib.util
import json
import socket
import sqlite3
import sys

import numpy as np
import pytest
from PIL import Image

from oct_hf.errors import RecipeError
from oct_hf.runs import tracking
from oct_hf.runs.facts import public_recipe
from oct_hf.runs.folder import check_free, differing
from oct_hf.runs.run import train_and_predict
from oct_hf.runs.tracking import Tracking, samples
from oct_hf.runs.training import Stopped
from oct_hf.training.recipe_file import make_recipe

INSTALLED = [name for name in tracking.TRACKERS if importlib.util.find_spec(name)]


@pytest.fixture(scope="module")
def told(tiny, tmp_path_factory):
    """A run that told every tracker that is installed, and how many connections were asked for meanwhile."""
    folder, store = tmp_path_factory.mktemp("told") / "run", tmp_path_factory.mktemp("trackio")
    with socket.socket() as guard, pytest.MonkeyPatch.context() as patch:
        guard.bind(("127.0.0.1", 0))
        guard.listen()
        guard.setblocking(False)
        for name in ("WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "NO_PROXY", "no_proxy"):
            patch.delenv(name, raising=False)
        # Whoever would go out asks here first.
        for name in ("WANDB_BASE_URL", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "http_proxy"):
            patch.setenv(name, f"http://127.0.0.1:{guard.getsockname()[1]}")
        patch.setenv("TRACKIO_DIR", str(store))
        patch.setenv("WANDB_API_KEY", "a" * 40)  # an account that is logged in asks for nothing either
        recipe = dataclasses.replace(tiny, report_to=tuple(INSTALLED))
        train_and_predict(recipe, folder)
        try:
            guard.accept()
            asked = True
        except BlockingIOError:
            asked = False
    epochs = list(csv.DictReader((folder / "log" / "epochs.csv").read_text().splitlines()))
    return folder, store, [float(row["balanced_accuracy"]) for row in epochs], asked


def test_nothing_leaves_the_machine_unasked(told):
    assert len(INSTALLED) >= 1 and told[3] is False


def test_tensorboard_has_every_epoch_with_confusion_matrix_and_samples(told):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, _, accuracies, _ = told
    events = accumulator.EventAccumulator(str(folder / "log" / "tensorboard"), {"images": 0}).Reload()
    scalars = events.Scalars("validation/balanced_accuracy")
    assert [one.step for one in scalars] == [1, 2, 3] and [one.value for one in scalars] == pytest.approx(accuracies)
    assert len(events.Scalars("train/loss")) == 3
    for name, least in (("validation/confusion", 300), ("samples", 200)):
        pictures = events.Images(name)
        assert [one.step for one in pictures] == [1, 2, 3] and all(one.width >= least for one in pictures)
    tables = {bytes(one.tensor_proto.string_val[0]) for one in events.Tensors("samples/text_summary")}
    assert len(tables) == 3  # another epoch, other answers


def test_trackio_has_every_epoch_in_its_own_folder(told):
    trackio = pytest.importorskip("trackio")
    _, store, accuracies, _ = told
    assert trackio.context_vars.current_run.get() is None  # or it would speak on stdout when the program ends
    (database,) = store.glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = [json.loads(row[0]) for row in connection.execute("select metrics from metrics order by step")]
    assert [row["validation/balanced_accuracy"] for row in rows] == pytest.approx(accuracies)
    assert all(row["validation/confusion"]["_type"] == "trackio.image" for row in rows)
    assert len(rows[0]["samples/answers"]["_value"]) == len(samples(np.zeros(100)))
    assert len(list((store / "media").rglob("*.png"))) == 6


def test_wandb_writes_offline_files_that_hold_every_epoch(told):
    pytest.importorskip("wandb")
    folder, _, accuracies, _ = told
    (place,) = (folder / "log" / "wandb").glob("offline-run-*")
    found = []
    for record in wandb_records(next(place.glob("*.wandb")).read_bytes()):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            found.append(json.loads(row["validation/balanced_accuracy"]))
    assert found == pytest.approx(accuracies)
    assert len(list(place.rglob("*.png"))) == 6


def wandb_records(data: bytes):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_a_run_that_goes_on_tells_each_epoch_once(tiny, tmp_path, monkeypatch, interrupt_when_saved):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    recipe, folder = dataclasses.replace(tiny, report_to=tuple(INSTALLED)), tmp_path / "goes-on"
    interrupt_when_saved(folder)
    with pytest.raises(Stopped):
        train_and_predict(recipe, folder)
    train_and_predict(recipe, folder)
    events = accumulator.EventAccumulator(str(folder / "log" / "tensorboard")).Reload()
    assert [one.step for one in events.Scalars("validation/balanced_accuracy")] == [1, 2, 3]
    if "trackio" in INSTALLED:
        from trackio.utils import TRACKIO_DIR  # read once, when it is imported

        (database,) = TRACKIO_DIR.glob("*.db")
        with sqlite3.connect(database) as connection:
            told = connection.execute("select step from metrics where run_name = 'goes-on' order by step").fetchall()
        assert [step for (step,) in told] == [1, 2, 3]
    if "wandb" in INSTALLED:  # one run of two parts
        parts = list((folder / "log" / "wandb").glob("offline-run-*"))
        assert len(parts) == 2 and len({part.name.rpartition("-")[2] for part in parts}) == 1


class Listening:
    """A tracker that keeps what it is told."""

    def __init__(self, at_home: bool):
        self.at_home, self.told, self.ended = at_home, [], False

    def log(self, epoch, numbers, pictures, rows):
        self.told.append((epoch, numbers, pictures, rows))

    def finish(self):
        self.ended = True


@pytest.mark.parametrize("public", [False, True])
def test_pictures_of_patients_stay_here_unless_the_set_is_public(tiny, tmp_path, monkeypatch, public):
    here, away = Listening(at_home=True), Listening(at_home=False)
    monkeypatch.setitem(tracking.TRACKERS, "trackio", lambda *_: here)
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda *_: away)
    monkeypatch.setattr("oct_hf.runs.run.check_trackers", lambda names: None)
    data = dataclasses.replace(tiny.data, public=public)
    train = dataclasses.replace(tiny.train, epochs=2, freeze_epochs=0)
    recipe = dataclasses.replace(tiny, data=data, train=train, report_to=("trackio", "wandb"))
    train_and_predict(recipe, tmp_path / "run")
    for tracker, shown in ((here, True), (away, public)):
        assert tracker.ended and [epoch for epoch, *_ in tracker.told] == [1, 2]
        _, numbers, pictures, rows = tracker.told[-1]
        assert ("samples" in pictures) is shown and "validation/confusion" in pictures
        assert {row["true"] for row in rows} == {"CNV", "DME", "DRUSEN", "NORMAL"}
        for row in rows:
            assert sum(value for key, value in row.items() if key.startswith("p ")) == pytest.approx(1, abs=1e-3)
        assert numbers["train/learning_rate"] >= 0


def test_a_tracker_that_fails_is_left_out_with_a_line(tiny, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"

    class InTheWay(Tracking):
        def on_train_begin(self, args, state, control, **kwargs):
            (folder / "log" / "tensorboard").write_text("a file where a folder is wanted")
            super().on_train_begin(args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oct_hf.runs.training.Tracking", InTheWay)
        train_and_predict(dataclasses.replace(tiny, report_to=("tensorboard",)), folder)
    assert "report_to: tensorboard is left out from here on" in capsys.readouterr().err


def test_a_library_that_is_missing_is_told_before_any_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(RecipeError, match=r'report_to: trackio isn\'t installed: pip install "oct-hf\[trackio\]"'):
        train_and_predict(dataclasses.replace(tiny, report_to=("trackio",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_who_is_told_is_no_part_of_the_run(tiny, finished_run):
    recipe = make_recipe({**tiny.to_dict(), "report_to": "trackio, tensorboard"})
    assert recipe.report_to == ("trackio", "tensorboard") and public_recipe(recipe).report_to == ()
    assert differing(recipe.to_dict(), tiny.to_dict()) == ["report_to"]
    check_free(finished_run, recipe, False)
    with pytest.raises(RecipeError, match='did you mean "trackio"'):
        make_recipe({**tiny.to_dict(), "report_to": "trackoi"})


def test_samples_take_turns_of_the_labels():
    assert samples(np.array([0, 0, 0, 1, 1, 2]), 4) == [0, 1, 3, 5]
    assert samples(np.array([[0, 1], [0, 1], [1, 1]]), 2) == [0, 2]


def test_the_sheet_holds_each_sample_under_its_answer(tiny, tmp_path, bscan):
    from oct_hf.data.pixels import Pixels

    side = Pixels(np.stack([np.asarray(Image.fromarray(bscan).resize((64, 64)))] * 5), [0, 1, 0, 1, 0], ["h"] * 5)
    watching = Tracking(tmp_path, tiny, {}, ["CNV", "DME"], side, lambda: None)
    probabilities = np.array([[0.9, 0.1]] * 5)
    rows = watching._told(probabilities, side.labels)
    assert [row["true"] for row in rows] == ["CNV", "DME", "CNV", "DME", "CNV"]
    sheet = watching._sheet(rows)
    assert sheet.shape == (2 * (224 + 28), 4 * 224, 3) and sheet.dtype == np.uint8
    assert (sheet[:28, :224] < 128).any() and np.array_equal(sheet[252:, 224:], np.full_like(sheet[252:, 224:], 255))
