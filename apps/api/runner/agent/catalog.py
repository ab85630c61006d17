"""What the bundled CLI itself offers: found out by asking one that has nothing of a tenant's, once per version."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, SystemMessage
from claude_agent_sdk._cli_version import __cli_version__

from apps.api.core.config.agent import AgentConfig
from apps.api.core.context import Core
from apps.api.core.sessions.workspaces import Workspace
from apps.api.core.tenant import skills
from apps.api.runner.agent.options import environment
from apps.api.runner.agent.scratch import Scratch
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

TIMEOUT = 60.0
"""Seconds for the CLI to start, answer and end."""

_NO_MODEL = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "ANTHROPIC_API_KEY": "none"}
"""What is asked needs none; the CLI offers what it offers to who has a key."""


async def fill(core: Core, scratch: Scratch) -> None:
    """Store the catalog of this version of the CLI, unless it is there. A failure is logged; the next start tries."""
    try:
        if not await skills.is_catalogued(core.db, __cli_version__):
            async with asyncio.timeout(TIMEOUT):
                await skills.store_catalog(core.db, __cli_version__, await ask(core.settings, scratch))
    except Exception as error:
        log.warning("catalog.not_filled", error=error)


async def ask(settings: Settings, scratch: Scratch) -> dict[str, Any]:
    """What the bundled CLI offers: `skills` (names), `commands`, `models`. Raises what the SDK does."""
    place = await asyncio.to_thread(scratch.make)
    workspace = Workspace(*[place.tmp] * 5)
    options = ClaudeAgentOptions(
        cwd=workspace.cwd,
        env=environment(settings, AgentConfig(), workspace, place, place.config, model=_NO_MODEL),
        cli_path=scratch.launcher,
        tools=["Skill"],
        setting_sources=[],
        strict_mcp_config=True,
    )
    try:
        async with ClaudeSDKClient(options) as client:
            offered = await client.get_server_info() or {}
            # Only a turn says which commands are skills. This command is answered without the model.
            await client.query("/config")
            async for message in client.receive_response():
                if isinstance(message, SystemMessage) and message.subtype == "init":
                    return _catalog(offered, message.data["skills"])
        raise RuntimeError("the CLI began no turn")
    finally:
        scratch.forget(place)


def _catalog(offered: dict[str, Any], skill_names: list[str]) -> dict[str, Any]:
    commands = [
        {
            "name": command["name"],
            "description": command["description"],
            "argument_hint": command.get("argumentHint") or "",
        }
        for command in offered["commands"]
        if not command["name"].startswith("_")  # internal ones
    ]
    return {"skills": skill_names, "commands": commands, "models": offered["models"]}
