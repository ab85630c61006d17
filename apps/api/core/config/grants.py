"""Client tokens: what a page or an app may do with one session, in the name of a key, without having that key.

A token says all that there is to know of it, so that no database is asked whether it is one: sealed (Fernet, that is
AES-128-CBC with HMAC-SHA-256) with keys that are derived from ENCRYPTION_KEYS: the first seals, all of them open. It
names its key by the hash of that key's secret, which is as little for others to read as a stored secret: hence sealed,
not only signed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Literal, get_args
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr, StringConstraints, TypeAdapter

from apps.api.errors import Forbidden, NotFound, Unavailable

PREFIX = "cat_"
"""Of every token."""

MAX_SECONDS = 3600

MAX_LENGTH = 3_000
"""Of a token, with the longest end user and origin."""

Action = Literal["read", "prompt", "decide", "files"]
ACTIONS: tuple[Action, ...] = get_args(Action)

ORIGIN = r"^https?://([a-z0-9._-]{1,253}|\[[0-9a-f:]{2,45}\])(:[0-9]{1,5})?$"
"""As browsers write one: nothing else would ever be equal to it."""

Origin = Annotated[str, StringConstraints(pattern=ORIGIN, max_length=270)]

_PURPOSE = b"claude-agent-api client tokens v1"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a client token allows, of what its key may do.

    Attributes:
        end_user: for whom its prompts and answers are.
        origin: the only one from which a browser may use it; None: any.
    """

    session_id: UUID
    allow: tuple[Action, ...]
    expires_at: datetime
    end_user: str | None = None
    origin: str | None = None

    def require(self, action: Action | None) -> None:
        """Raises Forbidden `client_token_not_permitted` unless it allows this; None is what none allows."""
        if action not in self.allow:
            what = f"This client token does not allow {action!r}." if action else "No client token allows this."
            raise Forbidden(what, code="client_token_not_permitted")

    def require_session(self, session_id: UUID | None) -> None:
        """Raises NotFound for any session but its own, whether there is one or not."""
        if session_id is not None and session_id != self.session_id:
            raise NotFound.of("session")

    def require_origin(self, origin: str | None) -> None:
        """Raises Forbidden `origin_not_permitted` for a page of an origin that it is not for. None is no page."""
        if self.origin is not None and origin is not None and origin != self.origin:
            raise Forbidden("This client token may not be used from this origin.", code="origin_not_permitted")


@dataclass(frozen=True, slots=True)
class _Sealed:
    """What a token says, by short names."""

    k: str
    g: Grant


_SEALED = TypeAdapter(_Sealed)


@lru_cache(maxsize=4)
def _box(keys: tuple[str, ...]) -> MultiFernet:
    # Keys of their own, so that nothing that was sealed for another purpose is ever a token.
    derived = (hmac.digest(base64.urlsafe_b64decode(key), _PURPOSE, hashlib.sha256) for key in keys)
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in derived])


def seal(keys: Sequence[SecretStr], secret_hash: str, grant: Grant) -> str:
    """A token. Raises Unavailable `encryption_not_configured` without keys."""
    if not keys:
        raise Unavailable(
            "This server makes no client tokens, because its operator has not set ENCRYPTION_KEYS.",
            code="encryption_not_configured",
        )
    said = _SEALED.dump_json(_Sealed(secret_hash, grant))
    return PREFIX + _box(tuple(key.get_secret_value() for key in keys)).encrypt(said).decode().rstrip("=")


def unseal(keys: Sequence[SecretStr], token: str) -> tuple[str, Grant] | None:
    """The hash of the secret of its key, and what a token allows, if it is one of ours; it may be too old."""
    if not keys or not token.startswith(PREFIX) or len(token) > MAX_LENGTH or not token.isascii():
        return None
    sealed = token.removeprefix(PREFIX)
    try:
        said = _box(tuple(key.get_secret_value() for key in keys)).decrypt(sealed + "=" * (-len(sealed) % 4))
        found = _SEALED.validate_json(said)
    except (InvalidToken, ValueError):
        return None
    return found.k, found.g


def until(moment: datetime, key_expires_at: datetime | None) -> datetime:
    """When a token ends that is made to end at `moment`: with its key at the latest. In UTC."""
    ends = moment if key_expires_at is None else min(moment, key_expires_at)
    return ends.astimezone(UTC)
