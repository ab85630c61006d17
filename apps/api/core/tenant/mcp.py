"""MCP servers: what a tenant may connect its agents to, the registry, and what the runner starts them with.

A server is judged twice: when a request names it, for a clear answer, and when an agent starts, because settings,
registry, secrets and addresses may have changed meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID

import asyncpg
from pydantic import TypeAdapter
from pydantic import ValidationError as Misfit

from apps.api import audit
from apps.api.core.codec import timestamp
from apps.api.core.config import environment
from apps.api.core.config.parts import McpServer, OwnServer, RegisteredServer, RemoteServer, StdioServer
from apps.api.core.config.profiles import Profile, permits_server, reach_of
from apps.api.core.config.reach import Reach
from apps.api.core.context import Core
from apps.api.core.network import outbound
from apps.api.core.tenant import vault
from apps.api.db import Database
from apps.api.errors import Conflict, Forbidden, NotFound, Problem, ValidationError, noting
from apps.api.settings import Settings

Servers = Mapping[str, McpServer]
"""By the field of a request that names them."""

MAX_PER_TENANT = 200
WITHHELD = "***"

_OWN: TypeAdapter[OwnServer] = TypeAdapter(OwnServer)


# --- judging -------------------------------------------------------------------------------------------------------


async def problems(core: Core, tenant_id: UUID, servers: Servers, registered: Mapping[str, str]) -> list[Problem]:
    """What is wrong with the servers of a request: with a command line, an address, or a secret or registered server
    that is missing. `registered`: their `kinds`."""

    async def of(field: str, server: McpServer) -> list[Problem]:
        found = list[Problem]()
        with noting(found, field):
            if not isinstance(server, RegisteredServer):
                await check(core, tenant_id, field, server)
            elif server.name not in registered:
                raise _unregistered(field, server.name)
        return found

    # At once: each may wait for its name.
    found = await asyncio.gather(*(of(field, server) for field, server in servers.items()))
    return [problem for listed in found for problem in listed]


async def check(core: Core, tenant_id: UUID, field: str, server: OwnServer) -> None:
    """Judge one server, which stands at `field` of a request, or is all of it ("").

    Raises:
        Forbidden: `mcp_command_not_permitted`.
        ValidationError: naming what is wrong with it, or which secret is missing.
    """
    if isinstance(server, StdioServer):
        _permit(core.settings, field, server)
    else:
        await _permit_url(core, tenant_id, field, server.url, reach_of(None, core.settings))
    await vault.require(core.db, tenant_id, dict.fromkeys(vault.names_in(texts_of(server)), field or "body"))


def _permit(settings: Settings, field: str, server: StdioServer) -> None:
    line = (server.command, *server.args)
    if not any(line[: len(allowed)] == allowed for allowed in settings.mcp_stdio_commands):
        raise Forbidden(
            f"{_inside(field, 'command')}: the operator allows no such command line (MCP_STDIO_COMMANDS).",
            code="mcp_command_not_permitted",
            details={"field": _inside(field, "command")},
        )
    if steering := environment.steering(server.env):
        raise ValidationError.of(_inside(field, "env"), f"reserved by the server: {', '.join(steering)}")


async def _permit_url(core: Core, tenant_id: UUID, field: str, url: str, reach: Reach) -> None:
    if "$" in urlsplit(url).netloc:
        raise ValidationError.of(_inside(field, "url"), "a secret may stand in the path and the query only")
    if reason := reach.reason_against(url):  # the agent's own program connects
        raise ValidationError.of(_inside(field, "url"), reason)
    try:
        await core.outbound.check_url(url, tenant_id)
    except (outbound.Refused, outbound.Failed) as error:
        raise ValidationError.of(_inside(field, "url"), str(error)) from error


def _inside(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def texts_of(server: OwnServer) -> list[str]:
    """Where secrets may be referred to. Not in a command: command lines are no place for secrets."""
    if isinstance(server, StdioServer):
        return list(server.env.values())
    return [server.url, *server.headers.values()]


# --- the registry --------------------------------------------------------------------------------------------------


_PUT = """
INSERT INTO mcp_servers (tenant_id, name, spec, sealed)
SELECT $1, $2, $3, $4 WHERE EXISTS (SELECT 1 FROM mcp_servers WHERE tenant_id = $1 AND name = $2)
  OR (SELECT count(*) FROM mcp_servers WHERE tenant_id = $1) < $5
ON CONFLICT (tenant_id, name) DO UPDATE SET spec = excluded.spec, sealed = excluded.sealed, updated_at = now()
RETURNING xmax = 0
"""


async def put(core: Core, tenant_id: UUID, name: str, server: OwnServer) -> bool:
    """Register a server, or replace it. Returns whether it is new.

    Raises:
        Unavailable: `encryption_not_configured`, if there is something to encrypt.
        Conflict: `too_many_mcp_servers`.
        Forbidden, ValidationError: as `check`.
    """
    await check(core, tenant_id, "", server)
    spec = server.model_dump()
    values = spec[_holder(spec)]
    sealed = vault.seal(core.settings, json.dumps(values)) if values else None
    spec[_holder(spec)] = dict.fromkeys(values, WITHHELD)
    async with core.db.transaction() as connection:
        new: bool | None = await connection.fetchval(_PUT, tenant_id, name, spec, sealed, MAX_PER_TENANT)
        if new is None:
            raise Conflict(f"A tenant has at most {MAX_PER_TENANT} MCP servers.", code="too_many_mcp_servers")
        await audit.note(connection, "mcp_server.put", tenant_id, name, new=new, type=spec["type"])
    return new


def _holder(spec: Mapping[str, Any]) -> str:
    """The field whose values are kept encrypted."""
    return "env" if spec["type"] == "stdio" else "headers"


async def list_all(db: Database, tenant_id: UUID) -> list[dict[str, Any]]:
    """The tenant's registered servers by name, without the values of `env` and `headers`."""
    rows = await db.pool.fetch(
        "SELECT name, spec, created_at, updated_at FROM mcp_servers WHERE tenant_id = $1 ORDER BY name", tenant_id
    )
    return [_shown(row) for row in rows]


async def get(db: Database, tenant_id: UUID, name: str) -> dict[str, Any]:
    """One registered server, without the values of `env` and `headers`. Raises NotFound."""
    row = await db.pool.fetchrow(
        "SELECT name, spec, created_at, updated_at FROM mcp_servers WHERE tenant_id = $1 AND name = $2", tenant_id, name
    )
    if row is None:
        raise NotFound.of("mcp_server")
    return _shown(row)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: timestamp(row[name]) for name in ("created_at", "updated_at")}
    return {"name": row["name"], **row["spec"], **times}


async def delete(db: Database, tenant_id: UUID, name: str) -> None:
    """Forget a registered server. Sessions that name it cannot start an agent any more. Raises NotFound."""
    async with db.transaction() as connection:
        status = await connection.execute("DELETE FROM mcp_servers WHERE tenant_id = $1 AND name = $2", tenant_id, name)
        if status != "DELETE 1":
            raise NotFound.of("mcp_server")
        await audit.note(connection, "mcp_server.deleted", tenant_id, name)


async def kinds(connection: asyncpg.Connection | asyncpg.Pool, tenant_id: UUID, servers: Servers) -> dict[str, str]:
    """What kind of server each registered one among these is, by its name; without those that are not there."""
    names = {server.name for server in servers.values() if isinstance(server, RegisteredServer)}
    if not names:
        return {}
    query = "SELECT name, spec->>'type' AS kind FROM mcp_servers WHERE tenant_id = $1 AND name = ANY($2)"
    return {row["name"]: row["kind"] for row in await connection.fetch(query, tenant_id, list(names))}


def _unregistered(field: str, name: str) -> ValidationError:
    return ValidationError.of(field, f"no MCP server is registered as {name}")


# --- for the runner ------------------------------------------------------------------------------------------------


async def resolve(
    core: Core, tenant_id: UUID, servers: Servers, profile: Profile | None = None, env: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """The servers as the agent's program takes them, with the values of secrets in them, by the same fields; for the
    runner only.

    Args:
        profile: of the session, which may not allow what a registered server turns out to be.
        env: names of the session's variables, which stdio servers inherit.

    Raises:
        ApiError: a server is not allowed, or something that it refers to is missing; the message says which and what,
            and holds no secret.
    """
    parts = (_resolve(core, tenant_id, field, server, profile) for field, server in servers.items())
    resolved = dict(zip(servers, await asyncio.gather(*parts), strict=True))
    environment.permit(env, {spec["type"] for spec in resolved.values()})
    return resolved


async def _resolve(
    core: Core, tenant_id: UUID, field: str, server: McpServer, profile: Profile | None
) -> dict[str, Any]:
    own = await _load(core, tenant_id, field, server) if isinstance(server, RegisteredServer) else server
    if profile is not None and not permits_server(profile, own):
        raise Forbidden(f"{field}: the profile allows no {own.type} server", code="option_not_permitted")
    values = await vault.resolve(core.db, core.settings, tenant_id, vault.names_in(texts_of(own)))
    spec = own.model_dump()
    holder = _holder(spec)
    spec[holder] = {name: vault.fill(text, values) for name, text in spec[holder].items()}
    if isinstance(own, RemoteServer):
        quoted = {name: quote(value, safe="") for name, value in values.items()}
        spec["url"] = vault.fill(own.url, quoted)
    try:
        filled = _OWN.validate_python(spec)
    except Misfit as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"][1:])
        raise ValidationError.of(f"{field}.{where}", "is not possible with the value of its secret") from None
    if isinstance(filled, StdioServer):
        _permit(core.settings, field, filled)
    else:
        await _permit_url(core, tenant_id, field, filled.url, reach_of(profile, core.settings))
    return spec


async def _load(core: Core, tenant_id: UUID, field: str, server: RegisteredServer) -> OwnServer:
    row = await core.db.pool.fetchrow(
        "SELECT spec, sealed FROM mcp_servers WHERE tenant_id = $1 AND name = $2", tenant_id, server.name
    )
    if row is None:
        raise _unregistered(field, server.name)
    spec = dict(row["spec"])
    if row["sealed"] is not None:
        spec[_holder(spec)] = json.loads(vault.unseal(core.settings, row["sealed"]))
    return _OWN.validate_python(spec)
