"""A program that is killed while it publishes, before each of its requests."""

import signal

import pytest
from killing import Killing


@pytest.mark.promise("A push whose program is killed leaves the old or the new model; the same command completes it.")
def test_killed_before_any_request_a_push_is_completed_by_the_same_command(bench, tmp_path, cases):
    killing = Killing(tmp_path, bench.environment)
    try:

        def push(name: str, **kill):
            return killing.run(["publish", bench.run, "--repo", f"clinic/{name}"], tmp_path, **kill)

        bench.empty_large()
        name = next(bench.names)
        whole = push(name)
        assert whole.code == 0, whole.said
        bench.check_finished(name)
        requests = [number for number, event in enumerate(whole.events) if event.startswith("request")]
        assert len(requests) >= 15, whole.events
        count = cases(3, len(requests))
        for place in range(count):
            at = requests[(2 * place + 1) * len(requests) // (2 * count)]
            bench.empty_large()
            name = next(bench.names)
            assert push(name, at=at).code == -signal.SIGKILL
            bench.check_whole(name)
            again = push(name)
            assert again.code == 0, (whole.events[at], again.said)
            bench.check_finished(name)
    finally:
        killing.close()
