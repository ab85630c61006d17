"""Files of sessions for clients: where they are now, and how to get at them there.

Those of a session that an instance owns are on its host, and only it may touch them. Those of others are in the store,
where any instance reads and changes them, as long as nobody takes the session.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from apps.api.core.context import Core
from apps.api.core.files import manifest, restoring
from apps.api.core.files.manifest import Entries
from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.snapshots import Limits
from apps.api.core.files.stored_tree import TRIES, StoredTree
from apps.api.core.files.views import Tree
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
SELECT stored, owner_id IS NOT NULL AS owned, generation, config ?| ARRAY['repository', 'resources'] AS is_given
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
    is_given: bool = False

    async def load(self) -> Entries:
        for _ in range(TRIES):
            row = await self.core.db.pool.fetchrow(_LOAD, self.session_id, self.tenant_id)
            if row is None:
                raise NotFound.of("session")
            if row["owned"]:
                raise Conflict("The session has just begun to run; try again.", code="files_busy")
            self.generation, self.is_given = row["generation"], row["is_given"]
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
        if self.name is None and self.is_given:
            message = "The session's repository and resources come before its first run, into an empty workspace."
            raise Conflict(message, code="workspace_not_begun")
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
