"""What would run: a configuration judged without running anything, with every problem at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from apps.api.codes import ErrorCode
from apps.api.core.codec import encode
from apps.api.core.config import content
from apps.api.core.config.agent import AgentConfig, tools_of
from apps.api.core.config.parts import McpServer, RegisteredServer
from apps.api.core.context import Core
from apps.api.core.network import outbound
from apps.api.core.sessions import admission
from apps.api.core.sessions.admission import Prompt, Wanted
from apps.api.core.tenant import mcp, vault
from apps.api.errors import ApiError, Problem

CONNECT_SECONDS = 3.0
CONNECTIONS = 20
"""At the same moment, for one preview."""


async def preview(core: Core, tenant_id: UUID, wanted: Wanted, found: Sequence[Problem] = ()) -> dict[str, Any]:
    """What a new session with this would be, as JSON-safe values; nothing is stored or started.

    It connects to the addresses of MCP servers and hooks, and hangs up: they are sent nothing. What does not answer is
    a warning, since it would be no reason to refuse the request.

    Args:
        found: what is known to be wrong already.
    """
    judged = await admission.judge(core, tenant_id, wanted)
    config, asked, problems = judged.config, judged.asked, list(dict.fromkeys([*found, *judged.problems]))
    reached = await _reach(core, tenant_id, await _targets(core, tenant_id, asked))
    servers, warnings = [], list[Problem]()
    for where, server in asked.servers().items():
        spec = await _spec(core, tenant_id, server)
        mine = [p for p in problems if p.field == where or p.field.startswith(f"{where}.")]
        unreached = _unreached(f"{where}.url", reached[spec["url"]]) if "url" in spec and not mine else []
        servers.append(_shown(where, spec, mine, unreached))
        warnings += unreached
    hooks = [
        {"event": event, "url": hook.url, "reachable": reached[hook.url] is None, "reason": _said(reached[hook.url])}
        for event, listed in (asked.hooks or {}).items()
        for hook in listed
    ]
    denied = set(config.disallowed_tools or ())
    schema_is_bad = any(problem.field.startswith("output_format") for problem in problems)
    return {
        "ok": not problems,
        "problems": [asdict(problem) for problem in problems],
        "warnings": [asdict(problem) for problem in (*warnings, *_unreached_hooks(asked, reached))],
        "agent": judged.pins.agent_id and {"agent_id": str(judged.pins.agent_id), "version": judged.pins.agent_version},
        "profile": judged.pins.profile,
        "model": config.model or core.settings.default_model,
        "permission_mode": config.permission_mode or "default",
        "tools": [tool for tool in tools_of(config) if tool not in denied],
        "allowed_tools": config.allowed_tools or [],
        "disallowed_tools": config.disallowed_tools or [],
        "mcp_servers": servers,
        "hooks": hooks,
        "missing_secrets": await _missing_secrets(core, tenant_id, asked),
        "output_schema": "invalid" if schema_is_bad else "valid" if config.output_format else None,
        "prompt_size": _sizes(config, wanted.prompt),
        "config": config.public(),
    }


async def _missing_secrets(core: Core, tenant_id: UUID, config: AgentConfig) -> list[str]:
    names = set(config.hook_secrets())
    for server in config.servers().values():
        if not isinstance(server, RegisteredServer):
            names |= vault.names_in(mcp.texts_of(server))
    return sorted(names - await vault.known(core.db, tenant_id, names))


async def _targets(core: Core, tenant_id: UUID, config: AgentConfig) -> set[str]:
    """Every URL that the configuration would have somebody connect to."""
    urls = {hook.url for listed in (config.hooks or {}).values() for hook in listed}
    for server in config.servers().values():
        spec = await _spec(core, tenant_id, server)
        if "url" in spec:
            urls.add(spec["url"])
    return urls


async def _spec(core: Core, tenant_id: UUID, server: McpServer) -> dict[str, Any]:
    """What a server is, or {} for a registered one that does not exist."""
    if not isinstance(server, RegisteredServer):
        return server.model_dump()
    try:
        return await mcp.get(core.db, tenant_id, server.name)
    except ApiError:
        return {}


async def _reach(core: Core, tenant_id: UUID, urls: set[str]) -> dict[str, Exception | None]:
    gate = asyncio.Semaphore(CONNECTIONS)

    async def reach(url: str) -> Exception | None:
        async with gate:
            try:
                await core.outbound.reach(url, CONNECT_SECONDS, tenant_id)
            except (outbound.Refused, outbound.Failed) as error:
                return error
            return None

    listed = sorted(urls)
    return dict(zip(listed, await asyncio.gather(*(reach(url) for url in listed)), strict=True))


def _said(error: Exception | None) -> str | None:
    return None if error is None else str(error)


def _unreached(field: str, error: Exception | None) -> list[Problem]:
    if error is None:
        return []
    code: ErrorCode = "target_not_permitted" if isinstance(error, outbound.Refused) else "target_unreachable"
    return [Problem(field, code, str(error))]


def _shown(
    where: str, spec: Mapping[str, Any], mine: Sequence[Problem], unreached: Sequence[Problem]
) -> dict[str, Any]:
    path = where.split(".")
    return {
        "name": path[-1],
        "agent": path[1] if path[0] == "agents" else None,
        "type": spec.get("type"),
        "allowed": not mine,
        "reachable": None if "url" not in spec or mine else not unreached,
        "reason": "; ".join(problem.reason for problem in (*mine, *unreached)) or None,
    }


def _unreached_hooks(config: AgentConfig, reached: Mapping[str, Exception | None]) -> list[Problem]:
    return [
        problem
        for event, listed in (config.hooks or {}).items()
        for number, hook in enumerate(listed)
        for problem in _unreached(f"hooks.{event}.{number}.url", reached[hook.url])
    ]


def _sizes(config: AgentConfig, prompt: Prompt | None) -> dict[str, dict[str, int]]:
    """Characters and UTF-8 bytes of what the configuration and the prompt add to each request to the model."""
    schema, agents = config.output_format, config.agents
    texts = {
        "system_prompt": "\n\n".join(filter(None, (config.system_prompt, config.system_prompt_append))),
        "prompt": "" if prompt is None or isinstance(prompt, dict) else "".join(content.texts(prompt)),
        "output_schema": encode(schema.schema_).decode() if schema else "",
        "subagents": "".join(f"{name}{a.description}{a.prompt}" for name, a in (agents or {}).items()),
    }
    sizes = {n: {"characters": len(t), "bytes": len(t.encode(errors="surrogatepass"))} for n, t in texts.items()}
    total = {unit: sum(size[unit] for size in sizes.values()) for unit in ("characters", "bytes")}
    return {**sizes, "total": total}
