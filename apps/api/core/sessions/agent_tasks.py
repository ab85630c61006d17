"""Tasks of an agent, its subagents and background commands, as the event log tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core.codec import decode
from apps.api.core.events.log import Event

FINAL = frozenset({"completed", "failed", "stopped", "killed"})
"""Statuses of a task that is over: the CLI's own (seen with 2.1.332), and `stopped` when its process has ended."""

LOOK_BACK = 500
"""Events of tasks among which those that have no end are looked for, the newest ones."""

_NEWEST = "SELECT data FROM events WHERE session_id = $1 AND type = 'task' ORDER BY seq DESC LIMIT $2"


def stopped(task_id: str, reason: str, told: Mapping[str, Any]) -> Event:
    """The last event of a task whose agent process has ended before it. `told`: what is known of it."""
    known = {name: told.get(name) for name in ("description", "tool_use_id", "subagent_type")}
    fields = {"task_id": task_id, "status": "stopped", "summary": None, "usage": None, **known, "reason": reason}
    return Event("task", fields)


async def unfinished(connection: asyncpg.Connection, session_id: UUID, reason: str) -> list[Event]:
    """The last events of the tasks that an owner has left without one."""
    rows = await connection.fetch(_NEWEST, session_id, LOOK_BACK)
    told: dict[str, dict[str, Any]] = {}
    for row in reversed(rows):
        task = decode(row["data"])
        if task["status"] in FINAL:
            told.pop(task["task_id"], None)
        else:
            told.setdefault(task["task_id"], task)
    return [stopped(task_id, reason, task) for task_id, task in told.items()]
