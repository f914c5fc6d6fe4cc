"""A conversation with a Hub, the same for every verb: a token that works, one line a fault, bars for people only."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from oct_hf.hub.patience import Patience, one_try_a_request
from oct_hf.hub.plain_errors import PublishError, plain_errors


def usable_token(token: str | None = None) -> str:
    """The token given, or the one that `hf auth login` stored.

    Raises:
        PublishError: there is none, or it holds a line break and would come back in an error about a bad header.
    """
    token = token or get_token()
    if not token:
        raise PublishError("no token: run `hf auth login`, or set HF_TOKEN")
    if not re.fullmatch(r"[!-~]+", token):
        raise PublishError("the token has a character in it that no token has (a blank, a line break); copy it again")
    return token


@contextmanager
def talking_to(api: HfApi, repo: str, again: str, patience: Patience) -> Iterator[None]:
    """Within the block each request is made once, for `patience` to repeat, and a fault is a PublishError.

    Args:
        api: with the token that must not show in any text.
        repo: `you/name`.
        again: what to do after a fault, for its line.
        patience: with the Hub; its limit on silence holds for each request.
    """
    token = api.token if isinstance(api.token, str) else None
    with plain_errors(repo, api.endpoint, again, token), one_try_a_request(patience.stall_s), _bars_on_terminals():
        if repo.count("/") != 1:
            raise HFValidationError("the account is missing")
        yield


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """huggingface_hub draws a bar for each large file wherever it runs; a log is no place for them."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules or are_progress_bars_disabled():
        yield
        return
    with warnings.catch_warnings(action="ignore"):  # HF_HUB_DISABLE_PROGRESS_BARS=0 wants them everywhere
        disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
