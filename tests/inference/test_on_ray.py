"""Answers from a Ray cluster: each picture once, whatever is killed or stopped in between."""

import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oct_hf import Predictor
from oct_hf.data.phantom import draw
from oct_hf.errors import OCTError
from oct_hf.inference.on_ray import predict_on_ray
from oct_hf.inference.parts import SUMMARY
from oct_hf.inference.places import list_places
from oct_hf.inference.ray_actor import Options

ray = pytest.importorskip("ray")
ONNX = Options(batch_size=4, backend="onnx")  # which a process has loaded in a tenth of torch's time


@pytest.fixture(scope="module")
def model(fast_model) -> Path:
    return fast_model


@pytest.fixture(scope="module")
def cluster():
    """Two processes of this machine at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        own = {"address": "local", "num_cpus": 2, "include_dashboard": False}
        ray.init(**own, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()


@pytest.fixture
def scans(tmp_path) -> Path:
    """24 pictures in two folders, one of them corrupt."""
    from PIL import Image

    folder = tmp_path / "scans"
    for number in range(24):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        kind = ("CNV", "DME", "DRUSEN", "NORMAL")[number % 4]
        Image.fromarray(draw(kind, 5, number, 0, 96, 96).image).save(place / f"{number:02d}.png")
    (folder / "a" / "12.png").write_bytes(b"no picture")
    return folder


class Pictures(SimpleHTTPRequestHandler):
    """Serves a folder; of one file the test decides when, and knows which process asks."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path.endswith(self.server.special):
            self.server.act(self.client_address[1])
        with suppress(ConnectionError):  # who asked was killed
            super().do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def over_http(folder: Path, special: str, act):
    """The address of a folder; `act` is given the process that asks for the special file, before it gets it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Pictures, directory=str(folder)))
    server.asked, server.special = [], special
    server.act = lambda port: act(_process_at(port, server.server_port))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()


def _process_at(port: int, to: int) -> psutil.Process:
    """Which of the processes below this one has a connection from a port to another."""
    for process in psutil.Process().children(recursive=True):
        try:
            found = [(line.laddr.port, line.raddr.port) for line in process.net_connections("tcp") if line.raddr]
            if (port, to) in found:
                return process
        except psutil.NoSuchProcess:
            pass
    raise AssertionError("a process of another machine asked")


def table(folder: Path) -> dict[str, dict]:
    """Rows by the name of the file inside the place; each name once."""
    rows = pq.read_table(folder).to_pylist()
    by_name = {"/".join(row["file"].split("/")[-2:]): row for row in rows}
    assert len(by_name) == len(rows) == 24
    return by_name


def assert_as_one_process(model: Path, scans: Path, found: dict[str, dict]) -> None:
    files = sorted(scans.rglob("*.png"))
    for file, answer in zip(files, Predictor(model, backend="onnx", batch_size=4).predict(files), strict=True):
        row = found["/".join(file.parts[-2:])]
        if answer.error:
            assert row["error"] and row["p_DME"] is None and "not an image" in row["error"]
        else:
            got = {label: row[f"p_{label}"] for label in answer.probabilities}
            assert got == pytest.approx(answer.probabilities, abs=1e-6) and row["error"] is None


def test_a_process_killed_in_the_middle_costs_no_picture_and_doubles_none(cluster, model, scans, tmp_path):
    killed = []

    def kill_once(process):
        if not killed:
            killed.append(process.name())
            process.send_signal(signal.SIGKILL)

    with over_http(scans, "b/13.png", kill_once) as (address, asked):
        done = predict_on_ray([address], model, str(tmp_path / "out"), ONNX, workers=2)
    assert killed and killed[0].startswith("ray::") and done.lost == 1
    assert asked.count("/b/13.png") == 2
    assert (done.images, done.before, done.failed) == (24, 0, 1)
    assert_as_one_process(model, scans, table(tmp_path / "out"))


def test_a_run_that_was_stopped_goes_on_with_what_is_left(cluster, model, scans, tmp_path):
    out, begun = tmp_path / "out", []

    def stop_once(_):
        if begun and begun[0].poll() is None:
            while not list(out.glob("part-*.parquet")):
                time.sleep(0.01)
            begun[0].send_signal(signal.SIGINT)
            begun[0].wait()

    with over_http(scans, "b/23.png", stop_once) as (address, _):
        command = [sys.executable, "-m", "oct_hf.cli", "predict", address, "--model", model, "--out", out]
        command += ["--engine", "ray", "--workers", "2", "--backend", "onnx", "--batch-size", "4"]
        begun.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        begun[0].communicate()
        assert begun[0].returncode == 130 and not (out / SUMMARY).exists()
        kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
        done = predict_on_ray([address], model, str(out), ONNX, workers=2)
        assert 0 < done.before < 24 and done.images == 24
        assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
        assert_as_one_process(model, scans, table(out))
        again = predict_on_ray([address], model, str(out), ONNX, workers=2)
        assert (again.images, again.before) == (24, 24)


def test_a_picture_that_ends_its_process_each_time_costs_that_picture(cluster, model, scans, tmp_path):
    for file in sorted(scans.rglob("*.png"))[6:]:
        file.unlink()

    with over_http(scans, "a/06.png", lambda process: process.kill()) as (address, asked):
        done = predict_on_ray([address], model, str(tmp_path / "out"), ONNX, workers=2)
    rows = {row["file"].rpartition("/")[2]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert len(rows) == 6 == done.images and asked.count("/a/06.png") == 3
    assert [name for name, row in rows.items() if row["error"]] == ["06.png"]
    assert "died 3 times" in rows["06.png"]["error"]


def test_a_table_of_local_files_is_that_of_one_process(cluster, model, scans, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("predict", "scans", "--model", model, "--backend", "onnx", "--out")
    assert run(*command, "one.csv")[0] == 0
    code, _, said = run(*command, "many.csv", "--engine", "ray", "--workers", "2")
    assert code == 0 and "23 of 24 files classified: many.csv" in said and "1 file(s) couldn't be read" in said
    one, many = ((tmp_path / name).read_text().splitlines() for name in ("one.csv", "many.csv"))
    assert one[0] == many[0] and len(many) == 25
    rounded = [sorted(re.sub(r"(\.\d{5})\d+", r"\1", line) for line in lines) for lines in (one, many)]
    assert [line.split(",")[:2] for line in rounded[0]] == [line.split(",")[:2] for line in rounded[1]]
    assert not (tmp_path / "many.csv.parts").exists()
    code, _, said = run(*command, "many.csv", "--engine", "ray")
    assert code == 2 and "is there already" in said


def test_rows_of_parquet_files_are_pictures(cluster, model, scans, tmp_path):
    files = sorted(scans.rglob("*.png"))
    content = pa.table({"image": [{"bytes": file.read_bytes(), "path": None} for file in files], "label": [0] * 24})
    (tmp_path / "set/data").mkdir(parents=True)
    pq.write_table(content.slice(0, 10), tmp_path / "set/data/0.parquet", row_group_size=4)
    pq.write_table(content.slice(10), tmp_path / "set/data/1.parquet", row_group_size=4)
    predict_on_ray([f"file://{tmp_path}/set"], model, str(tmp_path / "out"), ONNX, workers=2)
    rows = {row["file"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert len(rows) == 24
    found = {}
    for number, file in enumerate(files):
        name = f"0.parquet#{number}" if number < 10 else f"1.parquet#{number - 10}"
        found["/".join(file.parts[-2:])] = rows[f"{tmp_path}/set/data/{name}"]
    assert_as_one_process(model, scans, found)


def test_a_machine_that_does_not_see_the_pictures_is_named(cluster, model, scans, tmp_path, monkeypatch):
    with over_http(scans, "none", None) as (address, _):
        listing = list_places([address])
    monkeypatch.setattr("oct_hf.inference.on_ray.list_places", lambda places: listing)  # the server is gone by now
    with pytest.raises(OCTError, match=r"a machine of the Ray cluster: .*can't be read there") as caught:
        predict_on_ray([address], model, str(tmp_path / "out"), ONNX, workers=2)
    assert "\n" not in str(caught.value)
    # One of these that asks for a block after the cluster went ends the process without a word.
    names = ("StreamingExecutor", "iter_threaded", "Prefetcher")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(names)]
