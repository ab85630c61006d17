"""Files of sessions for clients: where they are now, and how to get at them there.

Those of a session that an instance owns are on its host, and only it may touch them. Those of others are in the store,
where any instance reads and changes them, as long as nobody takes the session.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from apps.api.core.context import Core
from apps.api.core.files import manifest, restoring
from apps.api.core.files import paths as names
from apps.api.core.files.manifest import Entries
from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.patches import Change
from apps.api.core.files.snapshots import Limits
from apps.api.core.files.stored_tree import TRIES, StoredTree
from apps.api.core.files.views import Item, Tree
from apps.api.core.sessions import stored
from apps.api.errors import Conflict, NotFound
from apps.api.settings import Settings


class Live(Protocol):
    """A session that this instance owns."""

    async def tree(self) -> Tree:
        """Its workspace, once its files are here. Raises what bringing them raises."""


def limits(settings: Settings) -> Limits:
    """How much the files of one session may be."""
    return Limits(settings.workspace_max_bytes, settings.workspace_max_files)


_LOAD = """
SELECT stored, owner_id IS NOT NULL AS owned, generation, config ? 'repository' AS has_repository
FROM sessions WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL
"""

_COMMIT = """
UPDATE sessions SET stored = $3, stored_at = now(), stored_bytes = $4, workspace_bytes = $4, last_active_at = now()
WHERE id = $1 AND owner_id IS NULL AND stored IS NOT DISTINCT FROM $2 AND deleted_at IS NULL
RETURNING stored_before IS DISTINCT FROM $2
"""


@dataclass(slots=True)
class _Files:
    """What is stored of a session that nobody owned when somebody asked."""

    core: Core
    tenant_id: UUID
    session_id: UUID
    name: str | None = None
    entries: Entries | None = None
    generation: int = 0
    has_repository: bool = False

    async def load(self) -> Entries:
        for _ in range(TRIES):
            row = await self.core.db.pool.fetchrow(_LOAD, self.session_id, self.tenant_id)
            if row is None:
                raise NotFound.of("session")
            if row["owned"]:
                raise Conflict("The session has just begun to run; try again.", code="files_busy")
            self.generation, self.has_repository = row["generation"], row["has_repository"]
            if self.entries is not None and self.name == row["stored"]:
                return self.entries
            try:
                self.entries = await self._read(row["stored"])
            except restoring.Missing:  # somebody has changed the files, and removed what they were before
                if self.name == row["stored"]:
                    raise
                self.name, self.entries = row["stored"], None
                continue
            self.name = row["stored"]
            return self.entries
        raise Conflict("The session's files are being changed by others; try again.", code="files_busy")

    async def _read(self, name: str | None) -> Entries:
        return await restoring.read(self.core.objects, self.core.blocking.stores, name) if name is not None else {}

    async def commit(self, entries: Entries) -> bool:
        if self.name is None and self.has_repository:
            message = "The session's repository is cloned before its first run, into an empty workspace."
            raise Conflict(message, code="repository_not_cloned")
        core, threads = self.core, self.core.blocking.stores
        name = manifest.name_of(self.tenant_id, self.session_id, self.generation)
        await core.objects.put(name, await threads.run(manifest.encode, entries))
        size = manifest.size_of(entries.values())
        is_nobodys = await core.db.pool.fetchval(_COMMIT, self.session_id, self.name, name, size)
        if is_nobodys is None:
            await core.objects.remove([name])
            return False
        if is_nobodys and self.name is not None:
            with suppress(StoreFailed):  # which is logged; it is found as garbage
                await core.objects.remove([self.name])
        return True


def stored_tree(core: Core, tenant_id: UUID, session_id: UUID) -> StoredTree:
    """The workspace of a session that nobody owns. It raises Conflict `files_busy` when somebody does by then."""
    files = _Files(core, tenant_id, session_id)
    objects, threads = core.objects, core.blocking.stores
    return StoredTree(
        objects, threads, tenant_id, limits(core.settings), objects.turn(session_id), files.load, files.commit
    )


_ROOM = """
SELECT least(
  (t.limits ->> 'workspace_bytes')::bigint - (SELECT coalesce(sum(workspace_bytes), 0) FROM sessions o
    WHERE o.tenant_id = t.id AND o.workspace_bytes > 0 AND o.deleted_at IS NULL),
  (k.limits ->> 'workspace_bytes')::bigint - (SELECT coalesce(sum(workspace_bytes), 0) FROM sessions o
    WHERE o.tenant_id = t.id AND o.taken_by = k.id AND o.workspace_bytes > 0 AND o.deleted_at IS NULL))::bigint
FROM sessions s JOIN tenants t ON t.id = s.tenant_id LEFT JOIN api_keys k ON k.id = s.taken_by WHERE s.id = $1
"""


async def room(core: Core, session_id: UUID) -> int | None:
    """Bytes that may be added to a session's files by the limits of its tenant, and of the key that its prompts came
    by;
    negative: there is too much already. None: any."""
    found: int | None = await core.db.pool.fetchval(_ROOM, session_id)
    return found


MAX_CHANGED, MAX_DIFFED, MAX_DIFFED_BYTES = 1_000, 100, 500_000
"""Files that are named as changed; whose contents are compared; and bytes of one of them."""


@dataclass(slots=True)
class Changed:
    """Paths of files that have changed, the first MAX_CHANGED, and what the first of them were and are."""

    paths: list[str]
    contents: list[Change]


@dataclass(slots=True)
class Before:
    """The files of a session when the last run began that changed some."""

    tree: StoredTree

    async def changes(self, now: Tree) -> tuple[Changed, bool]:
        """What has changed, and whether the contents of some are left out."""
        ours, theirs = await _files(now), await _files(self.tree)
        paths = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
        omitted, contents = len(paths) > MAX_DIFFED, list[Change]()
        for path in paths[:MAX_DIFFED]:
            sides = (theirs.get(path), self.tree), (ours.get(path), now)
            if any(item is not None and item.size > MAX_DIFFED_BYTES for item, _ in sides):
                omitted = True
                continue
            was, is_now = [await _content(tree, item) for item, tree in sides]
            contents.append(Change(names.shown(path), was, is_now))
        return Changed([names.shown(path) for path in paths[:MAX_CHANGED]], contents), omitted


async def _files(tree: Tree) -> dict[str, Item]:
    return {item.path: item for item in await tree.items("", recursive=True) if item.kind == "file"}


async def _content(tree: Tree, item: Item | None) -> bytes | None:
    return None if item is None else b"".join([piece async for piece in tree.read(item, 0, item.size)])


async def before(core: Core, tenant_id: UUID, session_id: UUID) -> Before:
    """Raises what reading the store raises."""
    found = await stored.find(core.db.pool, session_id)
    entries = await restoring.read(core.objects, core.blocking.stores, found.before) if found.before else {}

    async def load() -> Entries:
        return entries

    async def commit(_: Entries) -> bool:
        return False

    turn = asyncio.Lock()  # nothing is changed
    return Before(StoredTree(core.objects, core.blocking.stores, tenant_id, limits(core.settings), turn, load, commit))
