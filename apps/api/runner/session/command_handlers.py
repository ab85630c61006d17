"""Commands, as the owner of a session obeys them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from apps.api.core.events.log import Event
from apps.api.core.fleet.commands import PATIENCE, QUESTIONS, Command
from apps.api.core.sessions import sessions
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner.agent.process import Agent
from apps.api.runner.session.execution import Execution

log = structlog.get_logger(__name__)

TIMEOUT = 20.0
"""Seconds for one command. An interrupt has its own, shorter bounds, and a question PATIENCE."""

Settled = tuple[bool, dict[str, Any]]
"""Whether it was applied, and what to answer: for one that was not `{"code", "message"}`."""

_NO_AGENT = {"code": "no_live_run", "message": "No agent process of this session is live: it starts with a prompt."}


def _failed(message: str) -> dict[str, Any]:
    return {"code": "control_failed", "message": message}


async def obey(execution: Execution, command: Command) -> Settled:
    """Do what a command asks."""
    try:
        async with asyncio.timeout(PATIENCE if command.type in QUESTIONS else TIMEOUT):
            return await _obey(execution, command)
    except TimeoutError:
        return False, _failed("The agent did not answer in time.")
    except (LeaseLost, Unavailable):
        raise
    except Exception as error:  # left pending, nobody would ever obey it
        log.error("command.failed", session_id=str(command.session_id), error=error, exc_info=True)
        return False, _failed("The instance failed to do this.")


async def _obey(execution: Execution, command: Command) -> Settled:
    payload = command.payload
    match command.type:
        case "cancel" | "interrupt" if command.run_id is not None:  # instances of an older version say `interrupt`
            return await execution.cancel(command.run_id), {}
        case "answer":
            given = payload.get("decision"), payload.get("by") or {}
            return await execution.approvals.answer(UUID(payload["request_id"]), *given), {}
        case "control" if "set" in payload:
            return await _checked(_reconfigure(execution, payload["set"]))
    agent = execution.agent
    if agent is None:
        return False, _NO_AGENT
    match command.type:
        case "control":
            if payload.get("stop_task", "") not in ("", *execution.tasks.ids):
                return False, _failed("No such task is at work.")  # the agent would say that it stopped it
            return await _checked(_control(agent, payload))
        case "context":
            return await _checked(agent.context())
        case "mcp":
            return await _checked(agent.mcp_status())
    return False, _failed(f"This instance does not know the command {command.type!r}.")


async def _reconfigure(execution: Execution, changes: dict[str, Any]) -> None:
    """Change `model` or `permission_mode`, of the live agent at once and of every later one."""
    if agent := execution.agent:
        await agent.change(changes)

    async def store(connection: asyncpg.Connection, _seq: int) -> None:
        await sessions.reconfigure(connection, execution.session_id, execution.instance_id, changes)

    event = Event("status", {"status": "reconfigured", **changes}, execution.turns.run_id)
    await execution.writer.append(event, also=store)


async def _control(agent: Agent, payload: Any) -> None:
    if "stop_task" in payload:
        await agent.stop_task(payload["stop_task"])
    if "mcp_reconnect" in payload:
        await agent.reconnect_mcp_server(payload["mcp_reconnect"])
    if "mcp_toggle" in payload:
        await agent.toggle_mcp_server(payload["mcp_toggle"]["name"], payload["mcp_toggle"]["enabled"])


async def _checked(doing: Any) -> Settled:
    try:
        return True, await doing or {}
    except (LeaseLost, TimeoutError):
        raise
    except Exception as error:  # the SDK raises a bare Exception with the CLI's own words
        return False, _failed(f"The agent refused: {str(error)[:300]}")
