"""Environments: where agents of sessions work, and what they reach there.

What a session's agents may reach is pinned when it is created, so that a change of its environment changes no session
that exists. Profile and server may allow less: the strictest holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
from pydantic import Field

from apps.api import audit
from apps.api.core.codec import timestamp
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import Part
from apps.api.core.config.parts import RegisteredServer, StdioServer
from apps.api.core.config.profiles import Profile, reach_of
from apps.api.core.config.reach import narrowed
from apps.api.core.context import Core
from apps.api.core.pages import Page, read_cursor, write_cursor
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound, ValidationError
from apps.api.settings import HOST

Host = Annotated[str, Field(pattern=HOST, max_length=260)]
"""As `settings.HOST` says."""

MAX_ENVIRONMENTS = 1_000
"""Of a tenant, archived ones included."""


class Network(Part):
    """What agents may reach at most beside the model.

    Attributes:
        allowed_hosts: those that are named.
        mcp_servers: the hosts of a session's own MCP servers, too.
        registries: those of the registries of packages, too, which PACKAGE_REGISTRIES names.
    """

    allowed_hosts: tuple[Host, ...] = ()
    mcp_servers: bool = False
    registries: bool = False


def kept(core: Core, profile: Profile | None = None) -> bool:
    """Whether this server can hold agents back from the network at all."""
    return ((profile and profile.isolation) or core.settings.agent_isolation) != "off"


async def network_of(
    core: Core, tenant_id: UUID, environment_id: UUID, profile: Profile | None, config: AgentConfig
) -> dict[str, Any] | None:
    """What a session's agents may reach that begins there; None: whatever its profile and the server allow.

    Raises:
        NotFound: `environment_not_found`.
        ValidationError: it is archived, or what it says cannot be kept here.
    """
    row = await _find(core.db, tenant_id, environment_id)
    if row["archived_at"] is not None:
        raise ValidationError.of("environment_id", "is archived: no session begins there")
    if row["network"] is None:
        return None
    if not kept(core, profile):
        raise ValidationError.of("environment_id", "limits the network, and this server does not isolate its agents")
    asked = Network.model_validate(row["network"])
    hosts = [*asked.allowed_hosts, *(core.settings.package_registries if asked.registries else ())]
    if asked.mcp_servers:
        for field, server in config.servers().items():
            if isinstance(server, RegisteredServer):
                raise ValidationError.of(field, "its host is not known here: name it in the environment")
            if not isinstance(server, StdioServer):
                parts = urlsplit(server.url)
                hosts.append(f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname))
    network = {"allowed_hosts": list(dict.fromkeys(hosts))}
    reach = reach_of(profile, core.settings).within(narrowed(network))
    for field, server in config.servers().items():
        if not isinstance(server, RegisteredServer | StdioServer) and (why := reach.reason_against(server.url)):
            raise ValidationError.of(f"{field}.url", why)
    return network


_COLUMNS = "id, name, description, metadata, network, created_at, updated_at, archived_at"


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "environment_id": str(row["id"]),
        "name": row["name"],
        "description": row["description"],
        "metadata": row["metadata"],
        "network": row["network"],
        "created_at": timestamp(row["created_at"]),
        "updated_at": timestamp(row["updated_at"]),
        "archived_at": timestamp(row["archived_at"]) if row["archived_at"] else None,
    }


async def _find(db: Database, tenant_id: UUID, environment_id: UUID) -> asyncpg.Record:
    row = await db.pool.fetchrow(
        f"SELECT {_COLUMNS} FROM environments WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL",  # noqa: S608
        environment_id,
        tenant_id,
    )
    if row is None:
        raise NotFound.of("environment")
    return row


async def get(db: Database, tenant_id: UUID, environment_id: UUID) -> dict[str, Any]:
    """An environment. Raises NotFound."""
    return _shown(await _find(db, tenant_id, environment_id))


_CREATE = f"""
INSERT INTO environments (tenant_id, name, description, metadata, network) SELECT $1, $2, $3, $4, $5
WHERE (SELECT count(*) FROM environments WHERE tenant_id = $1 AND deleted_at IS NULL) < {MAX_ENVIRONMENTS}
RETURNING {_COLUMNS}
"""  # noqa: S608 - ours


async def create(
    db: Database,
    tenant_id: UUID,
    name: str,
    description: str | None,
    metadata: Mapping[str, str],
    network: Network | None,
) -> dict[str, Any]:
    """Store an environment; others may have its name. Raises Conflict `too_many_environments`."""
    async with db.transaction() as connection:
        given = network.model_dump(mode="json") if network else None
        row = await connection.fetchrow(_CREATE, tenant_id, name, description, dict(metadata), given)
        if row is None:
            raise Conflict(f"There are {MAX_ENVIRONMENTS} environments already.", code="too_many_environments")
        await audit.note(connection, "environment.created", tenant_id, row["id"], name=name)
        return _shown(row)


async def change(db: Database, tenant_id: UUID, environment_id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change `name`, `description`, `metadata` or `network`, each as a whole. Sessions keep what they have.

    Raises NotFound, Conflict `environment_archived`."""
    columns = {name: changes[name] for name in ("name", "description", "metadata", "network") if name in changes}
    sets = "".join(f", {name} = ${place}" for place, name in enumerate(columns, 3))
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            f"UPDATE environments SET updated_at = now(){sets} WHERE id = $1 AND tenant_id = $2"  # noqa: S608 - ours
            f" AND deleted_at IS NULL AND archived_at IS NULL RETURNING {_COLUMNS}",
            environment_id,
            tenant_id,
            *columns.values(),
        )
        if row is None:
            await _find(db, tenant_id, environment_id)
            raise Conflict("This environment is archived and changes no more.", code="environment_archived")
        await audit.note(connection, "environment.changed", tenant_id, environment_id, name=row["name"])
        return _shown(row)


async def archive(db: Database, tenant_id: UUID, environment_id: UUID) -> dict[str, Any]:
    """Let no session begin there any more. Once is enough. Raises NotFound."""
    if (found := await _find(db, tenant_id, environment_id))["archived_at"] is not None:
        return _shown(found)
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "UPDATE environments SET archived_at = coalesce(archived_at, now())"  # noqa: S608 - ours
            f" WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL RETURNING {_COLUMNS}",
            environment_id,
            tenant_id,
        )
        if row is None:
            raise NotFound.of("environment")
        await audit.note(connection, "environment.archived", tenant_id, environment_id, name=row["name"])
        return _shown(row)


_DELETE = """
UPDATE environments SET deleted_at = now() WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL
AND NOT EXISTS (SELECT 1 FROM sessions WHERE environment_id = $1 AND tenant_id = $2 AND deleted_at IS NULL)
RETURNING name
"""


async def delete(db: Database, tenant_id: UUID, environment_id: UUID) -> None:
    """Remove an environment. Raises NotFound, Conflict `environment_in_use` while there are sessions in it."""
    async with db.transaction() as connection:
        name = await connection.fetchval(_DELETE, environment_id, tenant_id)
        if name is None:
            await _find(db, tenant_id, environment_id)
            raise Conflict("Sessions are in this environment: delete them, or archive it.", code="environment_in_use")
        await audit.note(connection, "environment.deleted", tenant_id, environment_id, name=name)


_PAGE = f"""
SELECT {_COLUMNS} FROM environments WHERE tenant_id = $1 AND deleted_at IS NULL AND ($2 OR archived_at IS NULL)
AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid)) ORDER BY created_at DESC, id DESC LIMIT $5
"""  # noqa: S608 - ours


async def list_page(db: Database, tenant_id: UUID, *, archived: bool, limit: int, cursor: str | None) -> Page:
    """Environments, newest first. `archived`: those, too. Raises ValidationError."""
    after = read_cursor(cursor) if cursor else (None, None)
    rows = await db.pool.fetch(_PAGE, tenant_id, archived, *after, limit + 1)
    page, last = rows[:limit], rows[limit - 1] if len(rows) > limit else None
    return Page([_shown(row) for row in page], write_cursor(last["created_at"], last["id"]) if last else None)
