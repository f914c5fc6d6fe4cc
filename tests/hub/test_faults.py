"""Each request of a push meets each fault: the real client and the real Hub, with harm done on the way between them."""

import re
import time
from collections import Counter

import pytest
from bench import Bench, kind
from faults import FAULTS

from oct_hf.hub.local.accounts import User

PROMISE = pytest.mark.promise(
    "A push that meets a fault goes through, or ends in one line and the same command completes it."
)


class Harm:
    """A plan: request number `index` meets a fault, once or at every try."""

    def __init__(self, index: int, fault: str, every_time: bool):
        self.index, self.fault, self.every_time = index, fault, every_time
        self.target = None

    def __call__(self, number: int, method: str, path: str) -> str | None:
        if number == self.index:
            self.target = (method, path)
            return self.fault
        again = self.every_time and number > self.index and (method, path) == self.target
        return self.fault if again else None


def one_case(bench: Bench, index: int, fault: str, every_time: bool) -> str:
    """A push that meets a fault; says how it ended."""
    plan = Harm(index, fault, every_time)
    name, said = bench.push_anew(plan, stalls="stall" in fault)
    case = f"{fault} at {plan.target}{' every time' if every_time else ''}: {said}"
    assert plan.target, case
    if "refused" not in said:
        bench.check_finished(name)
        assert said["tag"] == "v1", case
        return "finished"
    assert every_time, case
    bench.check_whole(name)
    assert f"oct-hf publish {bench.run} --repo clinic/{name}" in said["refused"], case
    arrived = bench.arrived()
    assert "refused" not in bench.push(name), case
    bench.check_finished(name)
    assert not bench.sent() & arrived, case
    return "refused, then finished"


def harmful(request: str, fault: str) -> bool:
    return fault != "cut upload" or not request.startswith("GET")


def first_of_each_kind(requests: list[str]) -> list[int]:
    kinds = [re.sub("(main|remote-code|%2F|[0-9a-f]{40})$", "REVISION", request) for request in requests]
    return [number for number, name in enumerate(kinds) if name not in kinds[:number]]


def run_matrix(bench: Bench, indices, faults, every_time: bool, requests: list[str]) -> Counter:
    cases = [(i, fault) for i in indices for fault in faults if harmful(requests[i], fault)]
    return Counter(one_case(bench, i, fault, every_time) for i, fault in cases)


@PROMISE
def test_a_push_goes_through_when_any_kind_of_request_meets_any_fault_once(bench, cases):
    requests = bench.requests_of_a_push()
    kinds = first_of_each_kind(requests)
    ended = run_matrix(bench, kinds, FAULTS, False, requests)
    cases.tried += ended.total()
    assert set(ended) == {"finished"} and ended.total() >= 90, ended


@PROMISE
def test_a_push_that_meets_a_fault_at_every_try_ends_in_one_line_and_the_next_one_completes_it(bench, cases):
    requests = bench.requests_of_a_push()
    ended = run_matrix(bench, first_of_each_kind(requests), ("500", "cut after"), True, requests)
    cases.tried += ended.total()
    # Where the Hub acts and only its answer is lost, a push may find that it was heard: at the commit, for one.
    assert ended["refused, then finished"] >= 18 and ended["finished"] >= 2, ended


@pytest.mark.slow
@PROMISE
def test_every_request_meets_every_fault_once_and_at_every_try(bench, cases):
    requests = bench.requests_of_a_push()
    once = run_matrix(bench, range(len(requests)), FAULTS, False, requests)
    every_time = run_matrix(bench, range(len(requests)), FAULTS, True, requests)
    cases.tried += once.total() + every_time.total()
    print(f"{len(requests)} requests: {requests}; once: {once}; at every try: {every_time}")
    assert set(once) == {"finished"} and once.total() + every_time.total() >= 300


def at_first(wanted: str, fault):
    """A plan that harms the first request of a push whose kind begins so."""
    met = []

    def plan(number: int, method: str, path: str):
        if number == 0:
            met.clear()
        if kind(method, path).startswith(wanted) and not met:
            met.append(number)
            return fault
        return None

    return plan


def move(bench: Bench, name: str, branch: str) -> None:
    """Somebody else commits."""
    bench.repository(name).commit(branch, User("clinic"), "somebody's", {"notes.md": b"x"}, [])


def test_a_commit_of_somebody_else_between_two_tries_is_not_overwritten(bench):
    for name, fault in (("moved-before", "cut"), ("moved-after", "cut after")):
        name = f"{next(bench.names)}-{name}"
        harmed = at_first("POST /api/models/REPO/commit/main", fault)

        def plan(number, method, path, name=name, harmed=harmed):
            # The next request after the harmed commit asks where the branch is.
            if bench.proxy.seen and "/commit/main" in bench.proxy.seen[-1][1]:
                move(bench, name, "main")
            return harmed(number, method, path)

        said = bench.push(name, plan)
        assert "somebody else committed meanwhile (412)" in said["refused"], said
        assert "notes.md" in bench.held(name, "refs/heads/main")


def test_a_pull_request_whose_answer_was_lost_is_opened_once(bench):
    for fault in ("cut", "cut after", "cut answer", "500 after", "stall after"):
        harmed = at_first("POST /api/models/REPO/commit/main", fault)
        name, said = bench.push_anew(harmed, stalls="stall" in fault, create_pr=True)
        assert said.get("url", "").endswith("/discussions/1"), said
        assert [ref for ref, _ in bench.repository(name).refs()] == ["refs/heads/main", "refs/pr/1"]
        assert bench.held(name, "refs/pr/1") == bench.wanted(name)[0] and bench.held(name, "refs/heads/main") == {}


def test_a_wait_that_the_hub_asks_for_is_kept_and_one_too_long_is_a_reason_to_stop(bench):
    try:
        bench.proxy.retry_after = "1"
        name = next(bench.names)
        began = time.monotonic()
        assert bench.push(name, at_first("POST /api/models/REPO/commit/main", "429"))["tag"] == "v1"
        assert time.monotonic() - began >= 1
        bench.proxy.retry_after = "86400"
        said = bench.push(next(bench.names), at_first("POST /api/models/REPO/commit/main", "429"))
    finally:
        bench.proxy.retry_after = "0"
    assert "answered 429 and asks to wait 86400 s; run it again" in said["refused"]


def test_a_gate_stands_before_there_is_anything_to_download(bench):
    name = next(bench.names)
    said = bench.push(name, at_first("POST /api/models/REPO/commit/main", "cut"), gated="manual", tries=1)
    assert "--gated manual" in said["refused"]
    assert bench.repository(name).gated == "manual" and bench.held(name, "refs/heads/main") == {}
    assert bench.push(name, gated="manual")["tag"] == "v1"
    assert not [path for _, path in bench.proxy.seen if path.endswith("/settings")]  # it is as it should be


def test_a_second_push_asks_little_and_sends_nothing(bench):
    name = next(bench.names)
    bench.push(name)
    assert bench.push(name) == {"done": None, "tag": None, "url": bench.push(name)["url"]}
    assert len(bench.proxy.seen) == 5 and {method for method, _ in bench.proxy.seen[1:]} == {"GET"}
