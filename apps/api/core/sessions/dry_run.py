"""What would run: a configuration judged without running anything, with every problem at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from apps.api.core.codec import encode
from apps.api.core.config import profiles
from apps.api.core.config.agent import AgentConfig, tools_of
from apps.api.core.config.parts import McpServer, RegisteredServer, StdioServer
from apps.api.core.config.profiles import Profile
from apps.api.core.context import Core
from apps.api.core.network import outbound
from apps.api.core.sessions.pins import Choice, Pins
from apps.api.core.tenant import mcp, presets, repositories, skills, variables, vault
from apps.api.errors import ApiError

CONNECT_SECONDS = 3.0
CONNECTIONS = 20
"""At the same moment, for one preview."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: where, which, and why."""

    field: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client would like to run.

    Attributes:
        text: of the prompt; None without one.
        findings: what is known to be wrong already.
    """

    choice: Choice
    config: AgentConfig
    text: str | None = None
    timeout_seconds: float | None = None
    expand_prompt: bool = False
    findings: list[Finding] = field(default_factory=list)


def findings_of(error: ApiError, field: str) -> list[Finding]:
    """An error as findings; those without a field of their own stand at `field`."""
    listed = error.details.get("errors") or [{"field": error.details.get("field", field), "reason": error.message}]
    return [Finding(e["field"], e.get("code", error.code), e["reason"]) for e in listed]


async def preview(core: Core, tenant_id: UUID, wanted: Wanted) -> dict[str, Any]:
    """What a new session with this would be, as JSON-safe values; nothing is stored or started.

    It connects to the addresses of MCP servers and hooks, and hangs up: they are sent nothing.
    """
    found = list(wanted.findings)
    config, pinned = await _begun(core, tenant_id, wanted, found)
    profile = core.profiles[pinned.profile] if pinned.profile else None
    if profile is not None:
        wider = profiles.problems(profile, config, wanted.timeout_seconds, expand_prompt=wanted.expand_prompt)
        found += [Finding(p.field, p.code, p.reason) for p in wider]
    found += await _skills(core, tenant_id, config)
    try:
        await variables.check(core.db.pool, tenant_id, config)
    except ApiError as error:
        found += findings_of(error, "env")
    try:
        repositories.check(core.settings, config.repository)
    except ApiError as error:
        found += findings_of(error, "repository")
    missing = await _secrets(core, tenant_id, config)
    found += missing
    reached = await _reach(core, tenant_id, await _targets(core, tenant_id, config))
    servers = [await _server(core, tenant_id, where, s, profile, reached) for where, s in config.servers().items()]
    hooks = [
        {"event": event, "url": hook.url, "reachable": reached[hook.url] is None, "reason": _said(reached[hook.url])}
        for event, listed in (config.hooks or {}).items()
        for hook in listed
    ]
    found += [f for _, problems in servers for f in problems]
    found += _unreached_hooks(config, reached)
    if wanted.text is not None and len(wanted.text) > core.settings.max_prompt_chars:
        found.append(Finding("prompt", "validation_error", f"longer than {core.settings.max_prompt_chars} characters"))
    effective = profiles.clamp(profile, config) if profile else config
    denied = set(effective.disallowed_tools or ())
    schema_is_bad = any(f.field.startswith("output_format") for f in found)
    return {
        "ok": not found,
        "problems": [asdict(finding) for finding in dict.fromkeys(found)],
        "agent": pinned.agent_id and {"id": str(pinned.agent_id), "version": pinned.agent_version},
        "profile": pinned.profile,
        "model": effective.model or core.settings.default_model,
        "permission_mode": effective.permission_mode or "default",
        "tools": [tool for tool in tools_of(effective) if tool not in denied],
        "allowed_tools": effective.allowed_tools or [],
        "disallowed_tools": effective.disallowed_tools or [],
        "mcp_servers": [shown for shown, _ in servers],
        "hooks": hooks,
        "missing_secrets": sorted({f.reason.rpartition(" ")[2] for f in missing}),
        "output_schema": "invalid" if schema_is_bad else "valid" if effective.output_format else None,
        "prompt_size": _sizes(effective, wanted.text),
        "config": effective.public(),
    }


async def _begun(core: Core, tenant_id: UUID, wanted: Wanted, found: list[Finding]) -> tuple[AgentConfig, Pins]:
    """The configuration that a session would begin with, before its profile clamps it."""
    choice, config, agent_id, version, named = wanted.choice, wanted.config, None, None, wanted.choice.profile
    if choice.agent is not None:
        try:
            row = await presets.find(core.db.pool, tenant_id, choice.agent)
        except ApiError as error:
            found += findings_of(error, "agent")
        else:
            config = AgentConfig.stored({**row["config"], **config.given()})
            agent_id, version, named = row["id"], row["version"], named or row["profile"]
    try:
        name = choice.policy.choose(named)
    except ApiError as error:
        found += findings_of(error, "profile")
        name = None
    return config, Pins(name, agent_id, version)


async def _skills(core: Core, tenant_id: UUID, config: AgentConfig) -> list[Finding]:
    missing = await skills.unknown(core.db, tenant_id, config)
    return [Finding(where, "validation_error", skills.no_skill(name)) for where, name in missing]


async def _secrets(core: Core, tenant_id: UUID, config: AgentConfig) -> list[Finding]:
    names = dict(config.hook_secrets())
    for where, server in config.servers().items():
        if not isinstance(server, RegisteredServer):
            names |= dict.fromkeys(vault.names_in(mcp.texts_of(server)), where)
    try:
        await vault.require(core.db, tenant_id, names)
    except ApiError as error:
        return findings_of(error, "secrets")
    return []


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


def _unreached(field: str, error: Exception | None) -> list[Finding]:
    if error is None:
        return []
    code = "target_not_permitted" if isinstance(error, outbound.Refused) else "target_unreachable"
    return [Finding(field, code, str(error))]


async def _server(
    core: Core,
    tenant_id: UUID,
    where: str,
    server: McpServer,
    profile: Profile | None,
    reached: Mapping[str, Exception | None],
) -> tuple[dict[str, Any], list[Finding]]:
    found = list[Finding]()
    spec = await _spec(core, tenant_id, server)
    url = spec.get("url")
    kind = spec.get("type")
    try:
        await mcp.check(core, tenant_id, {where: server})
    except ApiError as error:
        found += findings_of(error, where)
    if url is not None and not any(f.field == f"{where}.url" for f in found):
        found += _unreached(f"{where}.url", reached[url])
    if profile is not None and isinstance(server, RegisteredServer) and not profiles.permits_kind(profile, kind):
        found.append(Finding(where, "option_not_permitted", f"the profile allows no {kind} server"))
    allowed = not any(f.code != "target_unreachable" for f in found)
    reachable = None if isinstance(server, StdioServer) or url is None else reached[url] is None
    reason = "; ".join(f.reason for f in found) or None
    name, agent = where.rpartition(".")[2], where.split(".")[1] if where.startswith("agents.") else None
    shown = {"name": name, "agent": agent, "type": kind, "allowed": allowed, "reachable": reachable, "reason": reason}
    return shown, found


def _unreached_hooks(config: AgentConfig, reached: Mapping[str, Exception | None]) -> list[Finding]:
    return [
        finding
        for event, listed in (config.hooks or {}).items()
        for number, hook in enumerate(listed)
        for finding in _unreached(f"hooks.{event}.{number}.url", reached[hook.url])
    ]


def _sizes(config: AgentConfig, text: str | None) -> dict[str, dict[str, int]]:
    """Characters and UTF-8 bytes of what the configuration and the prompt add to each request to the model."""
    schema, agents = config.output_format, config.agents
    texts = {
        "system_prompt": "\n\n".join(filter(None, (config.system_prompt, config.system_prompt_append))),
        "prompt": text or "",
        "output_schema": encode(schema.schema_).decode() if schema else "",
        "subagents": "".join(f"{name}{a.description}{a.prompt}" for name, a in (agents or {}).items()),
    }
    sizes = {n: {"characters": len(t), "bytes": len(t.encode(errors="surrogatepass"))} for n, t in texts.items()}
    total = {unit: sum(size[unit] for size in sizes.values()) for unit in ("characters", "bytes")}
    return {**sizes, "total": total}
