"""What the Hub, the network or this machine says when publishing fails, as one line that says what to do.

huggingface_hub raises many types, some with the text of a whole page; what a user can mend becomes a `PublishError`, a
defect of this package stays what it is.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from oct_hf.errors import OCTError
from oct_hf.hub.patience import PassingFault


class PublishError(OCTError):
    """The Hub refused or couldn't be reached; the run's folder is as it was."""


@contextmanager
def plain_errors(
    repo: str, endpoint: str, again: str = "the run is whole, publish again later", token: str | None = None
) -> Iterator[None]:
    """One line for what the Hub, the network or this machine says; the token is never part of it."""
    try:
        yield
    except Exception as error:
        said = _plain(error, repo, endpoint, again)
        if said is None:
            raise
        raise PublishError(said.replace(token, "<token>") if token else said) from None


def _plain(error: Exception, repo: str, endpoint: str, again: str) -> str | None:
    """The line; None where the error is no fault of Hub, network or machine, or is a line already."""
    where = f"{repo} on {endpoint}"
    if isinstance(error, OCTError):
        return None
    if isinstance(error, PassingFault):
        return f"{where}: the Hub {error}; {again}"
    if isinstance(error, LocalTokenNotFoundError):
        return "no token: run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        return f"{repo} is no repository id (you/name): {_first_line(error)}"
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return f"{where}: {_first_line(error)}; is the token allowed to see it?"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return f"{where}: {ADVICE.get(status) or _first_line(error)}{_reason(error)}"
    if isinstance(error, OSError) and (error.filename or error.errno in _LOCAL):
        return f"{error.filename or 'this machine'}: {error.strerror}; {again}"
    # huggingface_hub changes its HTTP library between versions (requests, httpx, httpx2)
    if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "requests")):
        return f"{endpoint} can't be reached ({_first_line(error) or type(error).__name__}); {again}"
    if isinstance(error, (ValueError, LookupError, TypeError, AttributeError)) and _raised_by_client(error):
        return f"{where}: an answer or a file that can't be understood ({_first_line(error)}); {again}"
    return None


ADVICE = {
    400: "refused as invalid (400)",
    401: "not allowed (401); run `hf auth login` with a valid token",
    403: "not allowed (403); the token needs write access to this repository",
    409: "conflict (409); somebody else writes there now, publish again",
    412: "somebody else committed meanwhile (412); look at it, then publish again",
    413: "a file is too large for this Hub (413)",
    422: "a file arrived damaged, or changed while it was sent (422); publish again",
    507: "the Hub's disk is full (507); publish again when there is room",
}
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.EROFS)


def _reason(error: HfHubHTTPError) -> str:
    """What the Hub itself said, where our own words may not be all of it."""
    said = (getattr(error, "server_message", None) or "").strip().splitlines()
    return f" ({said[0]})" if said and error.response.status_code in (400, 402, 403, 409, 413, 422) else ""


def _raised_by_client(error: Exception) -> bool:
    """Whether it is huggingface_hub that raised it, and so not a defect of this package."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").startswith("huggingface_hub")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else ""
