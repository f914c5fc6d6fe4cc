"""A Hub that is killed in the middle of a push and started again."""

import json
import time

import pytest
from bench import TOKEN, Bench
from faults import Proxy, free_port, start_hub


@pytest.fixture
def killable(small_run, tmp_path):
    """A bench whose Hub is a process, and what kills it and starts it again on the same folder."""
    hub_port, port = free_port(), free_port()
    root = tmp_path / "hub"
    root.mkdir()
    (root / "tokens.json").write_text(json.dumps({TOKEN: {"name": "clinic"}}))
    hubs = [start_hub(root, hub_port, "--address", f"http://127.0.0.1:{port}")]

    def kill_and_restart() -> None:
        hubs[-1].kill()
        hubs[-1].communicate()
        hubs.append(start_hub(root, hub_port, "--address", f"http://127.0.0.1:{port}"))

    with Proxy(port, hub_port) as proxy:
        bench = Bench(tmp_path, small_run, proxy)
        yield bench, kill_and_restart
        bench.close()
    hubs[-1].kill()
    hubs[-1].communicate()


def check_killed_at(bench: Bench, kill_and_restart, index: int, wait: float) -> None:
    def killed() -> None:
        time.sleep(wait)
        kill_and_restart()

    bench.empty_large()
    name = next(bench.names)
    # The connection is cut when the Hub is back, and a start takes a second.
    said = bench.push(name, lambda number, method, path: killed if number == index else None)
    assert said.get("tag") == "v1", (index, said)
    bench.check_whole(name)
    bench.check_finished(name)


def test_a_push_outlives_a_hub_that_is_killed_and_restarted(killable):
    bench, kill_and_restart = killable
    requests = bench.requests_of_a_push()
    for wanted in ("PUT", "POST /api/models/REPO/commit/main", "POST /api/models/REPO/tag"):
        index = next(number for number, request in enumerate(requests) if request.startswith(wanted))
        check_killed_at(bench, kill_and_restart, index, wait=0.01)


@pytest.mark.slow
def test_a_hub_may_be_killed_at_any_request_and_serves_whole_repositories_when_it_is_back(killable):
    bench, kill_and_restart = killable
    for index in range(len(bench.requests_of_a_push())):
        for wait in (0, 0.02):
            check_killed_at(bench, kill_and_restart, index, wait)
