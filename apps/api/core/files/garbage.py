"""Removing what is stored and nothing refers to any more: manifests that are no session's, and packs of no manifest
and of no file that the tenant has uploaded.

Sessions are stored meanwhile, by any instance. What a manifest names that is stored later is either

* named by a manifest that a session has now or had before that, since unchanged files keep their pieces, and forks name
  what those name: the database is asked for these after the collection has begun, and all of them are read;
* or a pack that is young: who stores one again makes it so, and who believes that one stays has seen it younger than
  `snapshots.FRESH`, and has `snapshots.PROMPTLY` for the manifest.

Between the last look at a pack and its removal there is a moment, in which storing it again would be lost. So a pack is
moved aside first, where readers find it, too. Later collections move it back if a manifest names it by then, and remove
it for good when it is old there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import structlog

from apps.api import clock
from apps.api.core.files import manifest, restoring, snapshots
from apps.api.core.files.manifest import Damaged, Entries
from apps.api.core.files.objects import Flight, Found, Objects, StoreFailed
from apps.api.core.tasks import Loop
from apps.api.db import Database
from apps.api.threads import Threads

log = structlog.get_logger(__name__)

EVERY = 6 * 3600.0
"""Seconds between two collections of one tenant, at least."""

SOON = 3600.0
"""The same where something was deleted: each reads all manifests that the tenant has."""

KEPT = snapshots.FRESH + snapshots.PROMPTLY + 3600.0
"""Seconds for which all stays that was stored; the last of them for clocks of machines where commands run."""

REST = 3.0
"""Times as long as something has taken a collection rests after it."""

AT_A_TIME = 8
"""Packs that are looked at and removed."""

PAGE = 500

_MANIFEST = re.compile(r"tenants/[0-9a-f-]{36}/sessions/([0-9a-f-]{36})/[0-9]{12,}-[0-9a-f]{32}")
_REMOVED = re.compile(r"tenants/[0-9a-f-]{36}/removed/([0-9a-f]{64})")
_PACK = re.compile(r"tenants/[0-9a-f-]{36}/packs/[0-9a-f]{2}/([0-9a-f]{64})")


@dataclass(slots=True)
class Collected:
    """What was removed. `size`: bytes of the packs."""

    manifests: int = 0
    packs: int = 0
    size: int = 0


# Another instance may begin one while this goes on, when something is deleted: each is safe by itself.
_TURN = """
UPDATE tenants SET collected_at = now() WHERE id = (
  SELECT id FROM tenants WHERE (collected_at IS NULL OR collected_at < now() - make_interval(secs => $1))
    AND deleting_at IS NULL AND id <> ALL($2::uuid[])
  ORDER BY collected_at NULLS FIRST LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
) RETURNING id
"""

_HASTEN = """
UPDATE tenants SET collected_at = now() - make_interval(secs => $2)
WHERE id = $1 AND collected_at > now() - make_interval(secs => $2)
"""


async def hasten(on: asyncpg.Connection | asyncpg.Pool, tenant_id: UUID) -> None:
    """A tenant has garbage: let it be collected SOON."""
    await on.execute(_HASTEN, tenant_id, EVERY - SOON)


async def collect(db: Database, objects: Objects, threads: Threads, loop: Loop) -> None:
    """Collect the garbage of every tenant whose turn it is and that no other instance takes. One at which that fails is
    the loop's item, and has its turn again after EVERY."""
    while (tenant_id := await db.pool.fetchval(_TURN, EVERY, loop.spared)) is not None:
        with loop.one(tenant_id):
            collected = await collect_of(db, objects, threads, tenant_id)
            if collected != Collected():
                found = {name: getattr(collected, name) for name in Collected.__slots__}
                log.info("garbage.collected", tenant_id=str(tenant_id), **found)


async def collect_of(db: Database, objects: Objects, threads: Threads, tenant_id: UUID) -> Collected:
    """Collect the garbage of one tenant. Raises StoreFailed, also of a manifest that cannot be read: then no pack is
    removed."""
    collection = _Collection(db, objects, threads, tenant_id)
    await collection.take_manifests()
    await collection.read_named()
    await collection.read_uploads()
    await collection.settle_removed()
    await collection.remove_packs()
    await objects.discard_unfinished(manifest.below_tenant(tenant_id), KEPT, threads)
    return collection.collected


@asynccontextmanager
async def _resting() -> AsyncIterator[None]:
    """Nobody waits for a collection, and others wait for the store and for the processor."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    yield
    await asyncio.sleep(REST * (loop.time() - began))


def _key(pack: str) -> int:
    """What is remembered of a pack's name. Two with the same key are both kept if one is."""
    return int(pack[:16], 16)


# In this order a fork comes after what it was made of, so that one of the two is seen with the files of both.
_NAMED = """
SELECT id, created_at, stored, stored_before FROM sessions
WHERE tenant_id = $1 AND deleted_at IS NULL AND stored IS NOT NULL
  AND ($2::timestamptz IS NULL OR (created_at, id) > ($2, $3::uuid))
ORDER BY created_at, id LIMIT $4
"""

_NAMED_OF = """
SELECT id, stored, stored_before FROM sessions WHERE id = ANY($1::uuid[]) AND deleted_at IS NULL AND stored IS NOT NULL
"""


_UPLOADS = """
SELECT id, created_at, pieces FROM files
WHERE tenant_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) > ($2, $3::uuid))
ORDER BY created_at, id LIMIT $4
"""


class _Collection:
    def __init__(self, db: Database, objects: Objects, threads: Threads, tenant_id: UUID) -> None:
        self._db, self._objects, self._threads, self._tenant_id = db, objects, threads, tenant_id
        self._young = clock.now().timestamp() - KEPT
        self._read_ones, self._live = set[int](), set[int]()
        self._damaged: StoreFailed | None = None
        self.collected = Collected()

    # --- manifests ---------------------------------------------------------------------------------------------

    async def take_manifests(self) -> None:
        """Read all that are there, and remove those that are no session's: their packs go the next time."""
        async for page in self._objects.below(f"{manifest.below_tenant(self._tenant_id)}/sessions"):
            mine = {found.name: found for found in page if _MANIFEST.fullmatch(found.name)}
            for name in mine:
                try:
                    await self._read(name)
                except restoring.Missing:
                    continue  # removed meanwhile: what its session has now is read later
            dead = await self._dead([found for found in mine.values() if found.modified < self._young])
            await self._objects.remove(dead)
            self.collected.manifests += len(dead)

    async def _read(self, name: str) -> None:
        if hash(name) in self._read_ones:
            return
        async with _resting():
            try:
                entries = await restoring.read(self._objects, self._threads, name)
            except StoreFailed as error:
                if not isinstance(error.__cause__, Damaged):
                    raise
                self._damaged = error  # if it is nobody's, it is in nobody's way the next time
                return
            self._live |= await self._threads.run(_packs, entries)
            self._read_ones.add(hash(name))

    async def _dead(self, old: Sequence[Found]) -> list[str]:
        ids = {UUID(found[1]) for one in old if (found := _MANIFEST.fullmatch(one.name))}
        rows = await self._db.pool.fetch(_NAMED_OF, list(ids)) if ids else []
        named = {row[column] for row in rows for column in ("stored", "stored_before")}
        return [one.name for one in old if one.name not in named]

    async def read_named(self) -> None:
        """Read those that sessions have now and that were not listed. Raises StoreFailed if one of all could not be
        read."""
        async for rows in self._pages(_NAMED):
            for row in rows:
                await self._read_of(row)
        if self._damaged is not None:
            raise self._damaged

    async def _read_of(self, row: asyncpg.Record) -> None:
        """What a session has: also the manifest before, of which a fork may be made at this moment. Raises Missing if
        that is not there."""
        while True:
            try:
                await self._read(row["stored"])
                if row["stored_before"] is not None:
                    await self._read(row["stored_before"])
                return
            except restoring.Missing:  # perhaps it has another one by now
                now = await self._db.pool.fetchrow(_NAMED_OF, [row["id"]])
                if now is None:
                    return
                if now["stored"] == row["stored"]:
                    raise
                row = now

    async def read_uploads(self) -> None:
        """Those that files have which the tenant has uploaded."""
        async for rows in self._pages(_UPLOADS):
            self._live |= {_key(pack) for row in rows for pack, _, _ in row["pieces"]}

    async def _pages(self, query: str) -> AsyncIterator[list[asyncpg.Record]]:
        """All rows of a query of the tenant's that goes by time and id, some at a time."""
        after: tuple[datetime | None, UUID | None] = (None, None)
        while rows := await self._db.pool.fetch(query, self._tenant_id, *after, PAGE):
            yield rows
            after = (rows[-1]["created_at"], rows[-1]["id"])

    # --- packs -------------------------------------------------------------------------------------------------

    async def settle_removed(self) -> None:
        """Take back what a manifest names that was moved aside, and remove what has been there for long."""
        async for page in self._objects.below(f"{manifest.below_tenant(self._tenant_id)}/removed"):
            async with _resting(), Flight(AT_A_TIME) as flight:
                for found in page:
                    if known := _REMOVED.fullmatch(found.name):
                        await flight.add(self._settle(found, known[1]))

    async def _settle(self, found: Found, pack: str) -> None:
        name = manifest.pack_name(self._tenant_id, pack)
        if _key(pack) in self._live and await self._objects.modified(name) is None:
            log.warning("garbage.taken_back", object=name)
            await self._objects.copy(found.name, name)
        if found.modified < self._young:
            await self._objects.remove([found.name])

    async def remove_packs(self) -> None:
        """Move those aside that no manifest names that was read, and that are old."""
        async for page in self._objects.below(f"{manifest.below_tenant(self._tenant_id)}/packs"):
            async with _resting(), Flight(AT_A_TIME) as flight:
                for found in page:
                    known = _PACK.fullmatch(found.name)
                    if known and found.modified < self._young and _key(known[1]) not in self._live:
                        await flight.add(self._remove(found, known[1]))

    async def _remove(self, found: Found, pack: str) -> None:
        modified = await self._objects.modified(found.name)
        if modified is None or modified >= self._young:  # stored again since it was listed
            return
        if await self._objects.copy(found.name, manifest.removed_name(self._tenant_id, pack)):
            await self._objects.remove([found.name])
            self.collected.packs += 1
            self.collected.size += found.size


def _packs(entries: Entries) -> set[int]:
    return {_key(pack) for entry in entries.values() for pack, _, _ in entry.pieces}
