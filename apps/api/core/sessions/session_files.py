"""Files of sessions for clients: where they are now, and how to get at them there.

Those of a session that an instance owns are on its host, and only it may touch them. Those of others are in the store,
where any instance reads and changes them, as long as nobody takes the session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from apps.api.core.context import Core
from apps.api.core.files import manifest, restoring
from apps.api.core.files.manifest import Entries
from apps.api.core.files.snapshots import Limits
from apps.api.core.files.stored_tree import StoredTree
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
SELECT stored, owner_id IS NOT NULL AS owned, generation, config ? 'repository' AS has_repository
FROM sessions WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL
"""

_COMMIT = """
UPDATE sessions SET stored = $3, stored_before = stored, stored_at = now(), stored_bytes = $4, workspace_bytes = $4,
  last_active_at = now()
WHERE id = $1 AND owner_id IS NULL AND stored IS NOT DISTINCT FROM $2 AND deleted_at IS NULL RETURNING id
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
        row = await self.core.db.pool.fetchrow(_LOAD, self.session_id, self.tenant_id)
        if row is None:
            raise NotFound.of("session")
        if row["owned"]:
            raise Conflict("The session has just begun to run; try again.", code="files_busy")
        if self.entries is None or self.name != row["stored"]:
            self.name, self.entries = row["stored"], {}
            if self.name is not None:
                self.entries = await restoring.read(self.core.objects, self.core.blocking.stores, self.name)
        self.generation, self.has_repository = row["generation"], row["has_repository"]
        return self.entries

    async def commit(self, entries: Entries) -> bool:
        if self.name is None and self.has_repository:
            message = "The session's repository is cloned before its first run, into an empty workspace."
            raise Conflict(message, code="repository_not_cloned")
        core, threads = self.core, self.core.blocking.stores
        name = manifest.name_of(self.tenant_id, self.session_id, self.generation)
        await core.objects.put(name, await threads.run(manifest.encode, entries))
        size = manifest.size_of(entries.values())
        if await core.db.pool.fetchval(_COMMIT, self.session_id, self.name, name, size) is None:
            await core.objects.remove([name])
            return False
        return True


def stored_tree(core: Core, tenant_id: UUID, session_id: UUID) -> StoredTree:
    """The workspace of a session that nobody owns. It raises Conflict `files_busy` when somebody does by then."""
    files = _Files(core, tenant_id, session_id)
    objects, threads = core.objects, core.blocking.stores
    return StoredTree(objects, threads, tenant_id, limits(core.settings), files.load, files.commit)


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
