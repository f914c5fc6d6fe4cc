"""Who a token of the loopback Hub belongs to, and where its owner may write."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from oct_hf.errors import OCTError
from oct_hf.hub.local.refusals import HubError


@dataclass(frozen=True)
class User:
    """Who a token belongs to; `write` is false for a read-only token."""

    name: str
    write: bool = True


@dataclass(frozen=True)
class Accounts:
    """The users of a site, by token."""

    tokens: dict[str, User]

    def user(self, authorization: str | None) -> User | None:
        """Whom an Authorization header names; None without one.

        Raises:
            HubError: 401, a token that nobody has.
        """
        if not authorization:
            return None
        user = self.tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, authorization: str | None, namespace: str | None = None) -> User:
        """The user, who must be allowed to write (to `namespace`).

        Raises:
            HubError: 401 without a token, 403 with one that may not.
        """
        user = self.user(authorization)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not user.write or namespace not in (None, user.name):
            raise HubError(403, f"Forbidden: this token may not write to {namespace or 'this Hub'}.")
        return user


def read_tokens(path: Path) -> dict[str, User]:
    """Who may do what, from a JSON file `{token: {"name": …, "write": true}}`; a new one has one writer, "local".

    Raises:
        OCTError: the file is not of that form.
    """
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(json.dumps({f"hf_{secrets.token_hex(16)}": {"name": "local", "write": True}}, indent=1))
    try:
        return {token: User(**about) for token, about in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        raise OCTError(f'{path}: expected {{token: {{"name": "someone", "write": true}}}}') from None
