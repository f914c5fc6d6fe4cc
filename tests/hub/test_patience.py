"""Which faults are tried again and for how long, without a Hub."""

import json

import pytest
from huggingface_hub import get_session

from oct_hf.hub.commit import head_of
from oct_hf.hub.patience import PassingFault, Patience, one_try_a_request
from oct_hf.hub.plain_errors import PublishError


class Step:
    """Fails with these faults in turn, then answers."""

    def __init__(self, *faults: Exception):
        self.faults, self.calls = list(faults), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.faults:
            raise self.faults.pop(0)
        return "done"


def wrapped(cause: Exception) -> RuntimeError:
    """As huggingface_hub gives what went wrong with an upload."""
    error = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = cause
    return error


def test_faults_that_pass_are_tried_again_with_growing_waits_and_told():
    told = []
    step = Step(PassingFault("answered 500"), wrapped(PassingFault("answered 503")), json.JSONDecodeError("", "", 0))
    patience = Patience(tries=4, first_wait_s=0.004, say=told.append)
    assert patience(step) == "done" and step.calls == 4
    assert [line.partition(";")[0] for line in told] == [
        "the Hub answered 500",
        "the Hub answered 503",
        "the Hub gave an answer that breaks off",
    ]


def test_the_last_try_says_how_many_there_were():
    step = Step(*[PassingFault("answered 500")] * 9)
    with pytest.raises(PassingFault, match="answered 500, 3 times"):
        Patience(tries=3, first_wait_s=0)(step)
    assert step.calls == 3


def test_what_does_not_pass_is_not_tried_again():
    for error in (ValueError("no"), wrapped(ValueError("no")), ConnectionError("offline")):
        step = Step(error)
        with pytest.raises((ValueError, ConnectionError)):
            Patience(first_wait_s=0)(step)
        assert step.calls == 1


def test_the_client_of_others_in_this_process_is_as_it_was_afterwards():
    client, before = get_session(), get_session().send
    with pytest.raises(KeyError), one_try_a_request(1):
        assert client.send != before
        raise KeyError
    assert get_session() is client and client.send == before


def test_a_hub_that_tells_no_commit_is_sent_nothing():
    assert head_of("you/name", "c0ffee") == "c0ffee"
    for told in (None, ""):
        with pytest.raises(PublishError, match="you/name: the Hub doesn't say at which commit it is"):
            head_of("you/name", told)
