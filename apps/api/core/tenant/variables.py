"""Variables of a session that its stdio servers inherit, judged with what the tenant has registered."""

from __future__ import annotations

from uuid import UUID

import asyncpg

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.environment import permit, steering
from apps.api.core.config.parts import RegisteredServer


async def check(db: asyncpg.Connection | asyncpg.Pool, tenant_id: UUID, config: AgentConfig) -> None:
    """Judge the variables of a whole configuration, which its stdio servers inherit. Raises ValidationError."""
    if not steering(config.env or {}):
        return
    servers = config.servers().values()
    kinds = {server.type for server in servers if not isinstance(server, RegisteredServer)}
    names = [server.name for server in servers if isinstance(server, RegisteredServer)]
    query = "SELECT DISTINCT spec->>'type' AS type FROM mcp_servers WHERE tenant_id = $1 AND name = ANY($2)"
    kinds |= {row["type"] for row in await db.fetch(query, tenant_id, names)}
    permit(config.env or {}, kinds)
