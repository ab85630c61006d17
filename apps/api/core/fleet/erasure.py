"""Deleting a tenant with all that it has, in batches, each a transaction that also counts what went.

`begin` makes sure that nobody does anything for the tenant any more. From then on any instance may take the next step,
one at a time, until nothing is left: who asked, and where that one dies or gives up, every instance's upkeep.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import Table

from apps.api import audit, invalidations
from apps.api.core.context import Core
from apps.api.core.files import manifest
from apps.api.core.files.objects import StoreFailed
from apps.api.core.fleet.suspension import forget_keys
from apps.api.core.sessions import deletion
from apps.api.core.sessions.deletion import CONTENT, Gone
from apps.api.core.tasks import Loop
from apps.api.db import SWEEP_BATCH, Database
from apps.api.errors import Conflict, NotFound
from apps.api.models import Base

SESSIONS_AT_ONCE = 20
"""Sessions that one step takes."""

OBJECTS_AT_ONCE = 500
"""Stored files that one step removes, about."""

PATIENCE = 8.0
"""Seconds for which who asks waits; what is left then is removed without being asked for."""

OTHERS_PAUSE = 0.2
"""Seconds between looks while somebody else takes the steps."""


@dataclass(frozen=True, slots=True)
class Erased:
    """How far the deletion of a tenant has come.

    Attributes:
        removed: all rows that have gone since it began, by table.
        whole: whether the tenant is gone.
        instances: those that live, each of which removes the files of the tenant's sessions on its host.
    """

    tenant_id: UUID
    removed: dict[str, Gone]
    whole: bool
    instances: list[UUID]


async def begin(core: Core, tenant: str, own: UUID) -> UUID:
    """Refuse a tenant's keys for good, and have it deleted. Returns its id. May be repeated until it is gone.

    Raises:
        NotFound: `tenant_not_found`.
        Conflict: `own_tenant`, of who asks.
    """
    async with core.db.transaction() as connection:
        row = await connection.fetchrow("SELECT id, deleting_at FROM tenants WHERE name = $1 FOR NO KEY UPDATE", tenant)
        if row is None:
            raise NotFound.of("tenant")
        tenant_id: UUID = row["id"]
        if tenant_id == own:
            raise Conflict("This is the tenant of the key that you use: it would lock itself out.", code="own_tenant")
        if row["deleting_at"] is not None:
            return tenant_id
        told = await forget_keys(core, connection, tenant_id)
        # Suspended, too: so nothing begins, runs end, and webhooks are silent.
        await connection.execute(
            "UPDATE tenants SET deleting_at = now(), suspended_at = coalesce(suspended_at, now()), removed = '{}'"
            " WHERE id = $1",
            tenant_id,
        )
        await connection.execute(
            "UPDATE api_keys SET revoked_at = now() WHERE tenant_id = $1 AND revoked_at IS NULL", tenant_id
        )
        await audit.note(connection, "tenant.deleted", tenant_id)
    invalidations.obey(core.redis, told)
    return tenant_id


async def erase(core: Core, tenant_id: UUID, seconds: float = PATIENCE) -> Erased:
    """Take steps until the tenant is gone, or for so many seconds. Returns how far it has come: not all of it also
    where the store of files fails, which `go_on` tries again."""
    until = asyncio.get_running_loop().time() + seconds
    before = await _removed(core.db, tenant_id)
    while asyncio.get_running_loop().time() < until:
        try:
            removed = await _step(core, tenant_id)
        except StoreFailed:  # which is logged
            break
        if removed is not None:
            before = removed
        elif (now := await _removed(core.db, tenant_id)) is None:
            return Erased(tenant_id, before or {}, True, await _instances(core.db))
        else:  # somebody else is at it
            before = now
            await asyncio.sleep(OTHERS_PAUSE * random.uniform(0.5, 1.5))
    return Erased(tenant_id, before or {}, False, await _instances(core.db))


async def go_on(core: Core, loop: Loop) -> bool:
    """Take a step for each tenant that is being deleted, where nobody else does. Returns whether one was taken. A
    tenant at which that fails is the loop's item."""
    rows = await core.db.pool.fetch(
        "SELECT id FROM tenants WHERE deleting_at IS NOT NULL AND id <> ALL($1::uuid[])", loop.spared
    )
    taken = False
    for row in rows:
        with loop.one(row["id"]):
            taken |= await _step(core, row["id"]) is not None
    return taken


async def _removed(db: Database, tenant_id: UUID) -> dict[str, Gone] | None:
    row = await db.pool.fetchrow("SELECT removed FROM tenants WHERE id = $1 AND deleting_at IS NOT NULL", tenant_id)
    return None if row is None else _read(row["removed"])


def _read(stored: Mapping[str, Any]) -> dict[str, Gone]:
    return {table: Gone(*gone) for table, gone in stored.items()}


async def _instances(db: Database) -> list[UUID]:
    return [row["id"] for row in await db.pool.fetch("SELECT id FROM instances WHERE lease_expires_at > now()")]


# --- one step ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Hold:
    """The tenant's row, locked for one step, and what has been removed so far."""

    connection: asyncpg.Connection
    tenant_id: UUID
    removed: dict[str, Gone]

    def add(self, table: str, gone: Gone) -> None:
        if any(gone):
            self.removed[table] = self.removed.get(table, Gone(0)).plus(gone)


@asynccontextmanager
async def _held(core: Core, tenant_id: UUID) -> AsyncIterator[_Hold | None]:
    """A transaction for one step; None where the tenant is gone, or another instance takes a step at this moment."""
    async with core.db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT removed FROM tenants WHERE id = $1 AND deleting_at IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED",
            tenant_id,
        )
        if row is None:
            yield None
            return
        hold = _Hold(connection, tenant_id, _read(row["removed"]))
        yield hold
        removed = {table: list(gone) for table, gone in hold.removed.items()}
        await connection.execute("UPDATE tenants SET removed = $2 WHERE id = $1", tenant_id, removed)


async def _step(core: Core, tenant_id: UUID) -> dict[str, Gone] | None:
    """Remove what comes next. Returns what has been removed so far; None when there was nothing to do here. Raises
    StoreFailed."""
    gone: list[UUID] = []
    async with _held(core, tenant_id) as hold:
        if hold is None:
            return None
        # Webhooks first, so that nobody is told of the rest. Few sessions at a time are deleted and not empty.
        more = await _any_rows(hold, _WEBHOOKS) or await _content(hold, gone) or await _sessions(hold, gone)
        last = not more and not await _any_rows(hold, _tables())
    for session_id in gone:
        core.forget(tenant_id, session_id)
    # Not within the transaction: files may take longer than one may.
    if last and await core.objects.remove_below(manifest.below_tenant(tenant_id), OBJECTS_AT_ONCE):
        return await _last_step(core, tenant_id)
    return hold.removed


async def _last_step(core: Core, tenant_id: UUID) -> dict[str, Gone] | None:
    """Remove the tenant, and what somebody was storing for it. Returns as `_step`. Raises StoreFailed."""
    await core.objects.discard_unfinished(manifest.below_tenant(tenant_id), 0, core.blocking.removal)
    async with _held(core, tenant_id) as hold:
        if hold is None:
            return None
        await _tenant(hold)
    return hold.removed


async def _sessions(hold: _Hold, gone: list[UUID]) -> bool:
    rows = await hold.connection.fetch(
        "SELECT id FROM sessions WHERE tenant_id = $1 AND deleted_at IS NULL LIMIT $2", hold.tenant_id, SESSIONS_AT_ONCE
    )
    for row in rows:
        marked = await deletion.mark(hold.connection, hold.tenant_id, row["id"])
        hold.add("runs", Gone(0, marked.removed.get("runs", Gone(0, 0)).size))
        gone.append(row["id"])
    return bool(rows)


async def _content(hold: _Hold, gone: list[UUID]) -> bool:
    rows = await hold.connection.fetch(
        "SELECT id FROM sessions WHERE tenant_id = $1 AND deleted_at IS NOT NULL AND purged_at IS NULL LIMIT $2",
        hold.tenant_id,
        SESSIONS_AT_ONCE,
    )
    left = SWEEP_BATCH
    for row in rows:
        while left > 0:
            if (found := await deletion.remove_some(hold.connection, row["id"])) is None:
                gone.append(row["id"])  # once more: its owner may have told Redis something before it heard of it
                break
            hold.add(*found)
            left -= found[1].rows
    return bool(rows)


_WEBHOOKS = tuple(Base.metadata.tables[name] for name in ("webhook_deliveries", "webhooks"))


async def _any_rows(hold: _Hold, tables: Sequence[Table]) -> bool:
    for table in tables:
        key = ", ".join(column.name for column in table.primary_key)
        count = await hold.connection.fetchval(
            f"WITH gone AS (DELETE FROM {table.name} WHERE ({key}) IN"  # noqa: S608 - of names of ours
            f" (SELECT {key} FROM {table.name} WHERE {_of_tenant(table)} LIMIT $2) RETURNING 1)"
            " SELECT count(*) FROM gone",
            hold.tenant_id,
            SWEEP_BATCH,
        )
        if count:
            hold.add(str(table.name), Gone(count))
            return True
    return False


@cache
def _tables() -> tuple[Table, ...]:
    """All that belongs to tenants, by its references: what refers to something comes before it. Without what sessions
    hold and is found by them alone, since that would be to look through all of them with every step."""
    tables = [table for table in reversed(Base.metadata.sorted_tables) if _of_tenant(table)]
    return tuple(table for table in tables if table.name not in CONTENT or "tenant_id" in table.columns)


@cache
def _of_tenant(table: Table) -> str | None:
    """The condition for rows of tenant $1; None of what is nobody's."""
    for reference in sorted(table.foreign_keys, key=lambda one: one.parent.name):
        above, column = reference.column.table, reference.parent
        if column.nullable or above is table:  # then it may belong to a tenant without that
            continue
        if above.name == "tenants" or ("tenant_id" in table.columns and _of_tenant(above)):
            return "tenant_id = $1"
        if inside := _of_tenant(above):
            return f"{column.name} IN (SELECT {reference.column.name} FROM {above.name} WHERE {inside})"  # noqa: S608
    return None


async def _tenant(hold: _Hold) -> None:
    """The rest, which is little: what came while the last steps were taken goes with the tenant's row."""
    removed = {table: gone._asdict() for table, gone in hold.removed.items()}
    await audit.note(hold.connection, "tenant.removed", hold.tenant_id, removed=removed)
    await hold.connection.execute("DELETE FROM tenants WHERE id = $1", hold.tenant_id)
