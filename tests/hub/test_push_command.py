"""`oct-hf publish` as people and logs see it: stopped, on a terminal, on a full disk, and where something is wrong."""

import os
import re
import resource
import signal
import subprocess
import termios
import time

from bench import TOKEN
from faults import free_port

from oct_hf.hub.local.accounts import User


def test_ctrl_c_ends_a_push_that_hangs_at_once_and_the_next_one_completes_it(bench):
    bench.empty_large()
    name = next(bench.names)
    bench.proxy.seen.clear()
    bench.proxy.plan = lambda number, method, path: "stall" if method == "PUT" else None
    push = subprocess.Popen(bench.command(name), env=bench.environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(bench.sent()) == 4)
    push.send_signal(signal.SIGINT)
    _, said = push.communicate(timeout=20)  # the client would wait 60 seconds for each upload
    assert push.returncode == 130 and said.splitlines() == ["stopped; the same command goes on where it was"], said
    bench.check_whole(name)
    bench.proxy.plan = lambda number, method, path: None
    done = subprocess.run(bench.command(name), env=bench.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bench.check_finished(name)


def wait_for(happened) -> None:
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_push_writes_nothing_on_this_machine(bench):
    def nothing() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    bench.empty_large()
    bench.proxy.plan = lambda number, method, path: None
    name = next(bench.names)
    environment = bench.environment | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(bench.command(name), env=environment, capture_output=True, text=True, preexec_fn=nothing)
    assert done.returncode == 0, done.stderr
    bench.check_finished(name)


def test_bars_are_for_terminals_and_a_log_gets_one_line(bench):
    bench.empty_large()
    bench.proxy.plan = lambda number, method, path: None
    name = next(bench.names)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    push = subprocess.Popen(bench.command(name), env=bench.environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = read_all(ours)
    push.communicate()
    assert push.returncode == 0 and "Ctrl-C stops it" in shown and "model.safetensors: 100%" in shown, shown
    bench.empty_large()
    name = next(bench.names)
    done = subprocess.run(bench.command(name), env=bench.environment, capture_output=True, text=True)
    assert re.fullmatch(r"\d+ files in one commit, tagged v1\n", done.stderr), done.stderr


def read_all(terminal: int) -> str:
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # Linux says that the other side is closed in this way
        pass
    os.close(terminal)
    return shown.decode()


def test_what_a_user_can_mend_is_one_line_and_exit_code_2(bench, tmp_path):
    bench.proxy.plan = lambda number, method, path: None
    own = bench.environment
    none = {key: value for key, value in own.items() if key != "HF_TOKEN"} | {"HF_HOME": str(tmp_path)}
    bench.push("taken")
    bench.repository("taken").commit("main", User("clinic"), "x", {"thesis.md": b"x"}, list(bench.wanted("taken")[0]))
    dead = own | {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    cases = (
        ("no token: run `hf auth login`", none, bench.command("none")),
        ("not allowed (401)", own | {"HF_TOKEN": "hf_stolen"}, bench.command("stolen")),
        ("holds something else (thesis.md", own, bench.command("taken")),
        ("is no repository id (you/name)", own, bench.command("no spaces")),
        ("can't be reached", dead, bench.command("dead", "--tries", "1")),
        ("offline mode is enabled", own | {"HF_HUB_OFFLINE": "1"}, bench.command("offline")),
        ("expected auto or manual", own, bench.command("gate", "--gated", "perhaps")),
    )
    for text, environment, command in cases:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert text in done.stderr and done.stderr.startswith("error: "), done.stderr
        assert TOKEN not in done.stderr and "hf_stolen" not in done.stderr and not done.stdout
