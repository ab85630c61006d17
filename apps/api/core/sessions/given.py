"""What a session is given to begin with, changed later: what no agent has been at work on yet is brought with the first
run; where one has been, whoever changes it does so in the workspace, and only the session's list is changed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.resources import MAX_RESOURCES, Resource
from apps.api.core.context import Core
from apps.api.core.sessions import prompts, sessions
from apps.api.core.tenant import provisioning
from apps.api.errors import NotFound, ValidationError, refuse

_FIND = """
SELECT config, archived_at, owner_id IS NOT NULL
  OR EXISTS (SELECT 1 FROM transcript_entries WHERE session_id = $1) AS begun
FROM sessions WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE
"""

_CHANGE = """
WITH queued AS (
  UPDATE runs SET config = (config - 'resources') || $2::jsonb
  WHERE session_id = $1 AND status = 'queued' AND config IS NOT NULL
) UPDATE sessions SET config = (config - 'resources') || $2::jsonb, updated_at = now() WHERE id = $1
"""

Change = Callable[[list[Resource]], list[Resource]]


async def add(core: Core, tenant_id: UUID, session_id: UUID, resource: Resource, *, there: bool = False) -> bool:
    """Give a session one more.

    Args:
        there: it has been put into the workspace.

    Returns:
        Whether the session has it now; False: an agent has been at work, and it is to be put there first.

    Raises:
        NotFound: `session_not_found`; in a ValidationError's place, what the resource names.
        Conflict: `session_archived`.
        ValidationError: about `resources`: there is something at its path, there are too many, or it is not allowed.
    """
    refuse(await provisioning.problems(core, tenant_id, [resource]))

    def added(before: list[Resource]) -> list[Resource]:
        if len(before) >= MAX_RESOURCES:
            raise ValidationError.of("resources", f"has {MAX_RESOURCES} already")
        path = resource.path or resource.own_name or ""
        for one in before:
            other = one.path or one.own_name or ""
            if f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/"):
                raise ValidationError.of("path", f"another resource is at {other}")
        return [*before, resource]

    return await _change(core, tenant_id, session_id, added, there=there)


async def remove(core: Core, tenant_id: UUID, session_id: UUID, path: str, *, gone: bool = False) -> bool:
    """Take the resource at a path from a session, if there is one. `gone`: it is in the workspace no more.

    Returns:
        Whether the session has it no more; False: an agent has been at work, and it is to be removed there first.

    Raises NotFound, Conflict, as `add`.
    """

    def without(before: list[Resource]) -> list[Resource]:
        return [one for one in before if (one.path or one.own_name) != path]

    return await _change(core, tenant_id, session_id, without, there=gone)


async def _change(core: Core, tenant_id: UUID, session_id: UUID, change: Change, *, there: bool) -> bool:
    async with core.db.transaction() as connection:
        row = await connection.fetchrow(_FIND, session_id, tenant_id)
        if row is None:
            raise NotFound.of("session")
        if row["archived_at"] is not None:
            raise prompts.archived()
        resources = change(list(AgentConfig.stored(row["config"]).resources or ()))
        if row["begun"] and not there:
            return False
        await _store(connection, session_id, resources)
    await sessions.forget_cached(core.redis, tenant_id, session_id)
    return True


async def _store(connection: asyncpg.Connection, session_id: UUID, resources: list[Resource]) -> None:
    stored: dict[str, Any] = {"resources": [one.given() for one in resources]} if resources else {}
    await connection.execute(_CHANGE, session_id, stored)
