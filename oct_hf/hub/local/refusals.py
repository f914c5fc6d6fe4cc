"""What the loopback Hub answers instead of success."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HubError(Exception):
    """An answer other than success, in the form that huggingface_hub turns into its typed errors.

    Attributes:
        status: of HTTP.
        message: for people, in the body and a header.
        code: by which huggingface_hub chooses the error, such as `RepoNotFound`.
    """

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def full_disk() -> HubError:
    """507, there is no room for what was sent."""
    return HubError(507, "This Hub's disk is full")


def disk_error(error: OSError) -> HubError:
    """What a Hub says when it can't write: 507 where its disk is full, else 500."""
    return full_disk() if error.errno in FULL else HubError(500, f"This Hub failed: {error.strerror}")
