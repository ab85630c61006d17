"""Tasks of an agent, its subagents and background commands, as the event log tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core.codec import decode
from apps.api.core.events.log import Event

FINAL = frozenset({"completed", "failed", "stopped", "killed"})
"""Statuses of a task that is over: the CLI's own (seen with 2.1.332), and `stopped` when its process has ended."""

LOOK_BACK = 500
"""Events of tasks among which those that have no end are looked for, the newest ones."""

_NEWEST = """
SELECT s.id AS session_id, e.data FROM unnest($1::uuid[]) AS s(id) CROSS JOIN LATERAL (
  SELECT seq, data FROM events WHERE session_id = s.id AND type = 'task' ORDER BY seq DESC LIMIT $2
) e ORDER BY s.id, e.seq
"""


def stopped(task_id: str, reason: str, told: Mapping[str, Any]) -> Event:
    """The last event of a task whose agent process has ended before it. `told`: what is known of it."""
    known = {name: told.get(name) for name in ("description", "tool_use_id", "subagent_type")}
    fields = {"task_id": task_id, "status": "stopped", "summary": None, "usage": None, **known, "reason": reason}
    return Event("task", fields)


async def unfinished(
    connection: asyncpg.Connection, session_ids: Sequence[UUID], reason: str
) -> list[tuple[UUID, Event]]:
    """The last events of the tasks that owners have left without one, each with its session."""
    told: dict[tuple[UUID, str], dict[str, Any]] = {}
    for row in await connection.fetch(_NEWEST, session_ids, LOOK_BACK):
        task = decode(row["data"])
        key = row["session_id"], task["task_id"]
        if task["status"] in FINAL:
            told.pop(key, None)
        else:
            told.setdefault(key, task)
    return [(session_id, stopped(task_id, reason, task)) for (session_id, task_id), task in told.items()]
