"""A server's process that dies is replaced, ends when it is asked to, and never outlives the one that started it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from asking import ask, png, server_of

from oct_hf import supervised
from oct_hf.data.phantom import draw
from oct_hf.errors import OCTError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process is killed as POSIX systems do it")
REPLACED = pytest.mark.promise("A server's process that dies is replaced, and the port stays its own meanwhile.")


def count(file: Path) -> int:
    """The how manieth start this is."""
    with open(file, "a+") as starts:
        starts.write("x")
        return starts.tell()


def dies_at_first(file: Path, times: int, code: int) -> int:
    if count(file) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return code


def refuses() -> int:
    raise OCTError("no such model")


def lingers(taken: socket.socket) -> int:
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    taken.listen()
    print(taken.getsockname()[1], flush=True)
    while not asked.wait(0.05):
        pass
    taken.close()
    print("closed", flush=True)
    time.sleep(1)
    return 1


@REPLACED
def test_it_is_started_again_until_it_ends_by_itself(tmp_path, capfd):
    assert supervised.run_replaced(dies_at_first, tmp_path / "starts", 2, 7) == 7
    assert (
        capfd.readouterr().err.splitlines()
        == ["the server's process was ended by SIGKILL; another one takes its place"] * 2
    )


def test_one_that_dies_each_time_is_given_up(tmp_path):
    with pytest.raises(OCTError, match="died 5 times in a row, each within 2 minutes of its start, at last by SIG"):
        supervised.run_replaced(dies_at_first, tmp_path / "starts", 99, 0)
    assert count(tmp_path / "starts") == 6


def test_deaths_that_come_late_are_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "EARLY", 0.0)
    assert supervised.run_replaced(dies_at_first, tmp_path / "starts", 7, 3) == 3


def test_what_it_refuses_is_refused_here():
    with pytest.raises(OCTError, match="no such model"):
        supervised.run_replaced(refuses)


def test_no_handler_of_signals_is_left():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(OCTError):
        supervised.run_replaced(refuses)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_both_end_together_and_take_nothing_more(number, code):
    program = "import socket, sys\nfrom oct_hf.supervised import run_replaced\nfrom test_supervised import lingers\n"
    program += "sys.exit(run_replaced(lingers, socket.create_server(('127.0.0.1', 0))))"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
    port = int(process.stdout.readline())
    socket.create_connection(("127.0.0.1", port)).close()
    process.send_signal(number)
    assert process.stdout.readline() == "closed\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert process.wait(30) == code
    assert process.stdout.read() == ""  # which ends when the child has


@REPLACED
@pytest.mark.skipif(sys.platform != "linux", reason="children are found as Linux tells them")
def test_a_server_that_is_killed_answers_again(finished_run, cases):
    pytest.importorskip("onnxruntime")
    image = png(draw("DME", 5, height=96, width=96).image)
    command = [sys.executable, "-m", "oct_hf.cli", "serve", str(finished_run), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+)", process.stderr.readline())[1])
        first = ask(port, image)
        for _ in range(cases(1, 4)):
            os.kill(server_of(process.pid), signal.SIGKILL)
            assert ask(port, image)[::2] == first[::2]  # asked at once: it waits for the next process
            assert "ended by SIGKILL; another one takes its place" in process.stderr.readline()
            assert f":{port} " in process.stderr.readline()
    finally:
        process.terminate()
        assert process.wait(60) == 143
        process.stderr.close()
