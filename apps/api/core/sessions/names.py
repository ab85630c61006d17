"""Names: what clients of a surface call a session, or a run of it, where they make that up themselves or are given it.

A chat's id that a browser has made, a conversation that is known by a hash of what was said in it, the id of an answer.
Each is one session's, within its tenant and surface, for as long as that session is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core.codec import decode, encode
from apps.api.db import Database

MAX_LENGTH = 512
"""Characters of a name. Whoever takes one from a client refuses longer ones."""

MAX_FOUND = 1_000
"""Names of a session that are listed at a time."""


class NameTaken(Exception):
    """Another session or run has this name: a surface goes on with that one."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name that is to be given, with what its surface keeps with it: a small JSON object."""

    surface: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Named:
    """What a name stands for: a session, or a run of it."""

    text: str
    session_id: UUID
    run_id: UUID | None
    data: dict[str, Any]


# The name of a session that was deleted is free, also before all of that session is gone.
_GIVE = """
INSERT INTO session_names AS n (tenant_id, surface, name, session_id, run_id, data) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant_id, surface, name) DO UPDATE
SET session_id = excluded.session_id, run_id = excluded.run_id, data = excluded.data, created_at = now()
WHERE (SELECT deleted_at IS NOT NULL FROM sessions s WHERE s.id = n.session_id)
"""

_FIND = """
SELECT n.name, n.session_id, n.run_id, n.data FROM session_names n JOIN sessions s ON s.id = n.session_id
WHERE n.tenant_id = $1 AND n.surface = $2 AND n.name = ANY($3::text[]) AND s.deleted_at IS NULL
"""

_OF_SESSION = """
SELECT n.name, n.session_id, n.run_id, n.data FROM session_names n JOIN sessions s ON s.id = n.session_id
WHERE n.session_id = $2 AND n.tenant_id = $1 AND n.surface = $3 AND s.deleted_at IS NULL
ORDER BY n.created_at DESC, n.name LIMIT $4
"""


async def give(
    connection: asyncpg.Connection | asyncpg.Pool,
    tenant_id: UUID,
    name: Name,
    session_id: UUID,
    run_id: UUID | None = None,
) -> bool:
    """Give a session, or a run of it, a name. False where it is another's: two who give one at once are told apart,
    the second once the first one's transaction is over."""
    data = encode(name.data).decode()
    status = await connection.execute(_GIVE, tenant_id, name.surface, name.text, session_id, run_id, data)
    return bool(status == "INSERT 0 1")


async def find(db: Database, tenant_id: UUID, surface: str, *texts: str) -> dict[str, Named]:
    """What these names stand for, of those that stand for something."""
    rows = await db.pool.fetch(_FIND, tenant_id, surface, list(texts))
    return {row["name"]: _named(row) for row in rows}


async def of_session(db: Database, tenant_id: UUID, session_id: UUID, surface: str) -> Sequence[Named]:
    """The newest MAX_FOUND names that a session, and its runs, have on a surface, the newest first."""
    rows = await db.pool.fetch(_OF_SESSION, tenant_id, session_id, surface, MAX_FOUND)
    return [_named(row) for row in rows]


async def keep(db: Database, tenant_id: UUID, name: Name, before: Mapping[str, Any] | None = None) -> bool:
    """Replace what is kept with a name. False where it stands for nothing, or `before` is not kept with it any more."""
    status = await db.pool.execute(
        "UPDATE session_names SET data = $4 WHERE tenant_id = $1 AND surface = $2 AND name = $3"
        " AND ($5::text IS NULL OR data = $5)",
        tenant_id,
        name.surface,
        name.text,
        encode(name.data).decode(),
        None if before is None else encode(before).decode(),
    )
    return bool(status == "UPDATE 1")


_MOVE = """
UPDATE session_names SET session_id = $5, run_id = $6, data = $7, created_at = now()
WHERE tenant_id = $1 AND surface = $2 AND name = $3 AND session_id = $4
"""


async def move(
    connection: asyncpg.Connection | asyncpg.Pool,
    tenant_id: UUID,
    name: Name,
    before: UUID,
    session_id: UUID,
    run_id: UUID | None = None,
) -> bool:
    """Give a name that is session `before`'s, or nobody's, to another session, or a run of it. False where it is a
    third one's by now."""
    data = encode(name.data).decode()
    status = await connection.execute(_MOVE, tenant_id, name.surface, name.text, before, session_id, run_id, data)
    return status == "UPDATE 1" or await give(connection, tenant_id, name, session_id, run_id)


async def take(db: Database, tenant_id: UUID, surface: str, text: str) -> bool:
    """Take a name away. False where it stands for nothing."""
    status = await db.pool.execute(
        "DELETE FROM session_names WHERE tenant_id = $1 AND surface = $2 AND name = $3", tenant_id, surface, text
    )
    return bool(status == "DELETE 1")


def _named(row: asyncpg.Record) -> Named:
    return Named(row["name"], row["session_id"], row["run_id"], decode(row["data"]))
