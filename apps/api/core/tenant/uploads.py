"""Files that a tenant has uploaded: for the workspaces of its sessions, until it deletes them or their time is over.

Their content is stored as that of sessions' files is, among the tenant's packs: see `core/files`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from apps.api.core.codec import timestamp
from apps.api.core.context import Core
from apps.api.core.files import garbage, restoring, snapshots
from apps.api.core.files.manifest import Piece
from apps.api.core.files.snapshots import Content
from apps.api.core.pages import read_cursor, write_cursor
from apps.api.core.tenant import quotas
from apps.api.core.tenant.idempotency import Idempotency, forget, remember, repeated, reused
from apps.api.core.tenant.quotas import FILE_LASTS
from apps.api.db import Database
from apps.api.errors import NotFound

MAX_SECONDS = 366 * 86_400
"""For which a file may be asked to stay, where it is to go at all."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file.

    Attributes:
        digest: SHA-256 of its content, in hexadecimal.
    """

    id: UUID
    name: str
    media_type: str
    size: int
    digest: str
    pieces: tuple[Piece, ...]
    created_at: datetime
    expires_at: datetime | None

    def public(self) -> dict[str, Any]:
        """As a client is told of it."""
        return {
            "file_id": str(self.id),
            "name": self.name,
            "media_type": self.media_type,
            "size": self.size,
            "sha256": self.digest,
            "created_at": timestamp(self.created_at),
            "expires_at": timestamp(self.expires_at) if self.expires_at else None,
        }


@dataclass(frozen=True, slots=True)
class Given:
    """What a client says of a file. `seconds`: for how long it is to stay; None: until it is deleted."""

    name: str
    media_type: str
    seconds: int | None


_ROOM = f"""
SELECT least(
  (t.limits ->> 'file_bytes')::bigint
    - (SELECT coalesce(sum(size), 0) FROM files WHERE tenant_id = t.id AND {FILE_LASTS}),
  (k.limits ->> 'file_bytes')::bigint
    - (SELECT coalesce(sum(size), 0) FROM files WHERE api_key_id = k.id AND {FILE_LASTS})
)::bigint FROM tenants t LEFT JOIN api_keys k ON k.id = $2 WHERE t.id = $1
"""  # noqa: S608 - ours

_COLUMNS = "id, name, media_type, size, digest, pieces, created_at, expires_at"
_THERE = f"tenant_id = $1 AND {FILE_LASTS}"

_ADD = f"""
INSERT INTO files (id, tenant_id, api_key_id, name, media_type, size, digest, pieces, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9)) RETURNING {_COLUMNS}
"""  # noqa: S608 - ours

_PAGE = f"""
SELECT {_COLUMNS} FROM files WHERE {_THERE} AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
ORDER BY created_at DESC, id DESC LIMIT $4
"""  # noqa: S608 - ours


_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}")
UNKNOWN = "application/octet-stream"


def media_type(given: str) -> str | None:
    """What a client says that a file is, without parameters; None if that says nothing."""
    kind = given.partition(";")[0].strip().lower()
    return kind if kind != UNKNOWN and _MEDIA_TYPE.fullmatch(kind) else None


async def room(on: asyncpg.Connection | asyncpg.Pool, tenant_id: UUID, key_id: UUID | None) -> int | None:
    """Bytes that may be added by the limits of a tenant and a key (`file_bytes`); None: any."""
    left: int | None = await on.fetchval(_ROOM, tenant_id, key_id)
    return left


async def send(core: Core, tenant_id: UUID, content: AsyncIterator[bytes]) -> Content:
    """Store the content of a file as it comes. Raises TooLarge, StoreFailed, what the content raises."""
    return await snapshots.send_content(
        core.objects, core.blocking.stores, tenant_id, content, core.settings.max_file_bytes
    )


async def add(
    core: Core, tenant_id: UUID, key_id: UUID | None, given: Given, content: Content, idempotency: Idempotency | None
) -> Upload:
    """Keep a file whose content is in the store.

    Raises:
        RateLimited: `quota_exceeded`.
        Conflict: `idempotency_key_reused`.
    """
    async with core.db.transaction() as connection:
        if idempotency and (before := await repeated(connection, tenant_id, idempotency)):
            if before.object_id is None:
                raise reused()
            return await find(connection, tenant_id, before.object_id)
        # Held until the end of the transaction, so that two at once do not both find the last room free.
        await connection.execute("SELECT 1 FROM tenants WHERE id = $1 FOR NO KEY UPDATE", tenant_id)
        left = await room(connection, tenant_id, key_id)
        if left is not None and content.size > left:
            raise quotas.no_room(left, "file_bytes")
        row = await connection.fetchrow(
            _ADD,
            file_id := uuid4(),
            tenant_id,
            key_id,
            given.name,
            given.media_type,
            content.size,
            content.digest,
            content.pieces,
            given.seconds,
        )
        if idempotency:
            await remember(connection, tenant_id, idempotency, object_id=file_id)
        return _read(row)


async def find(on: asyncpg.Connection | asyncpg.Pool, tenant_id: UUID, file_id: UUID) -> Upload:
    """One of a tenant's. Raises NotFound."""
    row = await on.fetchrow(f"SELECT {_COLUMNS} FROM files WHERE {_THERE} AND id = $2", tenant_id, file_id)  # noqa: S608
    if row is None:
        raise NotFound.of("file")
    return _read(row)


async def missing(db: Database, tenant_id: UUID, file_ids: set[UUID]) -> set[UUID]:
    """Which of these the tenant does not have."""
    if not file_ids:
        return set()
    rows = await db.pool.fetch(f"SELECT id FROM files WHERE {_THERE} AND id = ANY($2::uuid[])", tenant_id, file_ids)  # noqa: S608
    return file_ids - {row["id"] for row in rows}


async def some(db: Database, tenant_id: UUID, file_ids: set[UUID]) -> dict[UUID, Upload]:
    """Those of these that the tenant has, by id."""
    query = f"SELECT {_COLUMNS} FROM files WHERE {_THERE} AND id = ANY($2::uuid[])"  # noqa: S608 - ours
    return {row["id"]: _read(row) for row in await db.pool.fetch(query, tenant_id, file_ids)}


@dataclass(frozen=True, slots=True)
class Uploads:
    """A page of files, and the cursor of the next one."""

    rows: list[Upload]
    next_cursor: str | None


async def list_page(db: Database, tenant_id: UUID, *, limit: int, cursor: str | None) -> Uploads:
    """A tenant's files, newest first. Raises ValidationError."""
    after = read_cursor(cursor) if cursor is not None else (None, None)
    rows = await db.pool.fetch(_PAGE, tenant_id, *after, limit + 1)
    last = rows[limit - 1] if len(rows) > limit else None
    return Uploads([_read(row) for row in rows[:limit]], write_cursor(last["created_at"], last["id"]) if last else None)


def read(core: Core, tenant_id: UUID, upload: Upload, start: int, length: int) -> AsyncIterator[bytes]:
    """So many bytes of a file. Raises StoreFailed."""
    return restoring.read_pieces(core.objects, core.blocking.stores, tenant_id, upload.pieces, start, length)


async def delete(db: Database, tenant_id: UUID, file_id: UUID) -> None:
    """Remove a file, and free the idempotency key that made it. Sessions keep their copies. Raises NotFound."""
    async with db.transaction() as connection:
        if await connection.execute(f"DELETE FROM files WHERE {_THERE} AND id = $2", tenant_id, file_id) != "DELETE 1":  # noqa: S608
            raise NotFound.of("file")
        await forget(connection, tenant_id, file_id)
        await garbage.hasten(connection, tenant_id)


_FORGET = """
WITH gone AS (
  DELETE FROM files WHERE id IN (SELECT id FROM files WHERE expires_at < now() ORDER BY expires_at LIMIT $1)
  RETURNING tenant_id
) SELECT DISTINCT tenant_id FROM gone
"""

FORGOTTEN_AT_A_TIME = 1_000


async def forget_old(db: Database) -> None:
    """Remove files whose time is over."""
    while tenants := await db.pool.fetch(_FORGET, FORGOTTEN_AT_A_TIME):
        for row in tenants:
            await garbage.hasten(db.pool, row["tenant_id"])


def _read(row: asyncpg.Record) -> Upload:
    pieces = tuple((pack, at, size) for pack, at, size in row["pieces"])
    return Upload(**{**row, "pieces": pieces})
