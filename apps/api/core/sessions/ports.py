"""Previews: what the programs of an agent serve on ports, reachable through every instance.

Only the owner of a session can reach its ports. Other instances pass requests on to it, each with a ticket for that one
port: a signature with a key that the two read from the database. Browsers, which cannot send a key, are let in by a
ticket in the URL, which the session's own key has signed: it is of use for one port of one session, for a while.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from apps.api import clock
from apps.api.codes import ErrorCode
from apps.api.db import Database
from apps.api.errors import NotFound, Unauthorized, Unavailable

TICKET_SECONDS = 12 * 3600
FORWARD_SECONDS = 60
_MAC_BYTES = 24


@dataclass(frozen=True, slots=True)
class PortAccess:
    """A session as previews need it.

    Attributes:
        ports: those that are open, as far as was told.
        owner: the instance that owns it, if one does.
        url: where that instance is reached, if it has said so.
        forward_key: what requests that are passed on to it are signed with.
    """

    session_id: UUID
    tenant_id: UUID
    key: UUID
    ports: list[int]
    owner: UUID | None
    url: str | None
    forward_key: UUID | None

    def ticket(self, port: int, *, forwarded: bool = False, seconds: int = TICKET_SECONDS) -> str:
        """A ticket to a port, for that many seconds; `forwarded`: for the owner, else for a browser."""
        key = self.forward_key if forwarded else self.key
        assert key is not None  # noqa: S101 - for the type checker
        expires = int(clock.timestamp()) + seconds
        made = self.tenant_id.bytes + expires.to_bytes(5, "big") + self._mac(key, port, expires)
        return base64.urlsafe_b64encode(made).decode().rstrip("=")

    def admits(self, ticket: str, port: int) -> bool:
        """Whether it is one that `ticket` has made for a browser, and not too old."""
        read = _read(ticket)
        return read is not None and self._made(self.key, read, port) and not read.is_old

    def _made(self, key: UUID, ticket: _Ticket, port: int) -> bool:
        return hmac.compare_digest(ticket.mac, self._mac(key, port, ticket.expires))

    def _mac(self, key: UUID, port: int, expires: int) -> bytes:
        signed = b"%s.%s.%d.%d" % (self.tenant_id.bytes, self.session_id.bytes, port, expires)
        return hmac.digest(key.bytes, signed, hashlib.sha256)[:_MAC_BYTES]

    def urls(self, base: str, ports: Iterable[int] | None = None) -> dict[str, str]:
        """Port → URL for a browser, below `base` (without a slash at its end)."""
        listed = self.ports if ports is None else ports
        return {str(port): f"{base}/preview/{self.session_id}/{port}/~{self.ticket(port)}/" for port in listed}


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What a ticket says; nothing of it is known to be so before its signature (`mac`) is."""

    tenant_id: UUID
    expires: int
    mac: bytes

    @property
    def is_old(self) -> bool:
        return clock.timestamp() >= self.expires


def _read(ticket: str) -> _Ticket | None:
    try:
        raw = base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4))
    except ValueError:
        return None
    if len(raw) != 21 + _MAC_BYTES:
        return None
    return _Ticket(UUID(bytes=raw[:16]), int.from_bytes(raw[16:21], "big"), raw[21:])


def _read_or_refuse(ticket: str) -> _Ticket:
    """Raises Unauthorized for what is no ticket."""
    if (read := _read(ticket)) is None:
        raise refused()
    return read


def tenant_of(ticket: str) -> UUID:
    """Of whom a ticket says that it is; nothing is known of it yet. Raises Unauthorized for what is no ticket."""
    return _read_or_refuse(ticket).tenant_id


def refused() -> Unauthorized:
    """For a ticket that is none, or too old."""
    return Unauthorized("This preview link is not valid, or not any more.", code="preview_link_invalid")


_GET = """
SELECT s.preview_key, s.ports, i.id AS owner, i.url, i.forward_key
FROM sessions s LEFT JOIN instances i ON i.id = s.owner_id AND i.lease_expires_at > now()
WHERE s.id = $1 AND s.tenant_id = $2 AND s.deleted_at IS NULL
"""

_FORWARD_KEY = "SELECT forward_key FROM instances WHERE id = $1"


async def store(connection: asyncpg.Connection, session_id: UUID, ports: Iterable[int]) -> None:
    """Note which ports of a session are open, for its owner: in the transaction that tells of them."""
    await connection.execute("UPDATE sessions SET ports = $2 WHERE id = $1", session_id, list(ports))


async def get(db: Database, tenant_id: UUID, session_id: UUID) -> PortAccess:
    """The previews of a session. Raises NotFound."""
    row = await db.pool.fetchrow(_GET, session_id, tenant_id)
    if row is None:
        raise NotFound.of("session")
    ports = row["ports"] if row["owner"] else []
    owner = (row["owner"], row["url"], row["forward_key"])
    return PortAccess(session_id, tenant_id, row["preview_key"], ports, *owner)


async def get_forwarded(
    db: Database, ticket: str, session_id: UUID, port: int, instance_id: UUID, *, code: ErrorCode
) -> PortAccess:
    """The previews of a session that this instance owns, for another one that has let the client in.

    A good ticket is too late when the session has changed hands, or its sender was stopped, on the way: that is not
    the client's doing, and nothing was begun.

    Raises:
        Unauthorized: no instance has made this ticket for this one.
        NotFound: there is no such session any more.
        Unavailable: it comes too late; the code is `code`.
    """
    read = _read_or_refuse(ticket)
    access = await get(db, read.tenant_id, session_id)
    mine = access.owner == instance_id
    key = access.forward_key if mine else await db.pool.fetchval(_FORWARD_KEY, instance_id)
    if key is None or not access._made(key, read, port):
        raise refused()
    if not mine or read.is_old:
        raise moving(code)
    return access


def moving(code: ErrorCode) -> Unavailable:
    """For what is asked of a session while it changes hands."""
    return Unavailable("The session is changing hands; try again.", code=code, headers={"Retry-After": "1"})
