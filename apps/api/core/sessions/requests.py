"""Requests: what an agent asks a person, or its client's program. The row is the truth; whoever changes it from `open`
first has decided.

The owner opens them, and closes those that nobody will answer; any instance takes an answer: `fleet/answering.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core import pages
from apps.api.core.codec import decode, encode, timestamp
from apps.api.core.config import profiles
from apps.api.core.config.profiles import Profile
from apps.api.core.config.rules import Rule, same_call
from apps.api.core.events.log import Event
from apps.api.core.pages import Page
from apps.api.core.sessions import sessions
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound

EVENTS = {"permission": "permission_request", "question": "question", "client_tool": "client_tool_call"}
"""The event that tells of a request, by its kind."""


Decide = Callable[[asyncpg.Connection], Awaitable[None]]
"""Stores a decision, in the transaction of what follows from it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is to be opened. `fields` are those of its event."""

    id: UUID
    kind: str
    run_id: UUID | None
    expires_at: datetime
    fields: Mapping[str, Any]

    def event(self) -> Event:
        """The event that tells of it."""
        shown = {"request_id": str(self.id), **self.fields, "expires_at": timestamp(self.expires_at)}
        return Event(EVENTS[self.kind], shown, self.run_id)


def by_system(reason: str) -> dict[str, Any]:
    """Why a request closed that nobody answered: `expired`, `interrupted`, `withdrawn`, `run_ended`, `owner_lost`, …"""
    return {"type": "system", "reason": reason}


def resolved(request_id: UUID, run_id: UUID | None, decision: str, by: Mapping[str, Any], **more: Any) -> Event:
    """The event that tells how a request ended."""
    return Event("action_resolved", {"request_id": str(request_id), "decision": decision, "by": by, **more}, run_id)


def answered(request_id: UUID, run_id: UUID | None, decision: Mapping[str, Any], by: Mapping[str, Any]) -> Event:
    """The event that tells what a person has decided."""
    more = {name: decision[name] for name in ("answers", "message", "rules") if decision.get(name)}
    return resolved(request_id, run_id, decision["decision"], by, **more)


async def insert(connection: asyncpg.Connection, tenant_id: UUID, session_id: UUID, asked: Asked) -> None:
    """Open a request, and let its run show that it waits."""
    await connection.execute(
        "INSERT INTO requests (id, tenant_id, session_id, run_id, kind, data, expires_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        asked.id,
        tenant_id,
        session_id,
        asked.run_id,
        asked.kind,
        encode(asked.fields).decode(),
        asked.expires_at,
    )
    await connection.execute(
        "UPDATE runs SET status = 'requires_action' WHERE id = $1 AND status = 'running'", asked.run_id
    )


async def close(connection: asyncpg.Connection, request_id: UUID, reason: str) -> bool:
    """Close a request that nobody will answer; False when it is not open."""
    status = await connection.execute(
        "UPDATE requests SET status = 'closed', resolved_by = $2, resolved_at = now()"
        " WHERE id = $1 AND status = 'open'",
        request_id,
        by_system(reason),
    )
    return bool(status == "UPDATE 1")


async def abandon(connection: asyncpg.Connection, session_ids: Sequence[UUID], reason: str) -> list[tuple[UUID, Event]]:
    """Close every open request of sessions that lose their owner; returns what is to be told of it, and of those whose
    answer the owner did not live to take, each with its session."""
    untold = await connection.fetch(_UNTOLD, session_ids)
    closed = await connection.fetch(
        "UPDATE requests SET status = 'closed', resolved_by = $2, resolved_at = now()"
        " WHERE session_id = ANY($1::uuid[]) AND status = 'open' RETURNING id, run_id, session_id",
        session_ids,
        by_system(reason),
    )
    return [
        (row["session_id"], resolved(row["id"], row["run_id"], decode(row["decision"])["decision"], row["resolved_by"]))
        for row in untold
    ] + [(row["session_id"], resolved(row["id"], row["run_id"], "closed", by_system(reason))) for row in closed]


_UNTOLD = """
SELECT r.id, r.session_id, r.run_id, r.decision, r.resolved_by FROM commands c
JOIN requests r ON r.id = (c.payload ->> 'request_id')::uuid
WHERE c.session_id = ANY($1::uuid[]) AND c.type = 'answer' AND c.status = 'pending' AND r.status = 'answered'
  AND NOT EXISTS (
    SELECT 1 FROM events e WHERE e.session_id = r.session_id AND e.type = 'action_resolved' AND e.subject = r.id::text)
ORDER BY r.resolved_at
"""


async def go_on(connection: asyncpg.Connection, run_id: UUID | None) -> None:
    """Let a run show that it runs again, once nothing of it is open."""
    await connection.execute(
        "UPDATE runs SET status = 'running' WHERE id = $1 AND status = 'requires_action'"
        " AND NOT EXISTS (SELECT 1 FROM requests WHERE run_id = $1 AND status = 'open')",
        run_id,
    )


@dataclass(frozen=True, slots=True)
class Resolved:
    """How a request ended: `decision` is None when nobody has answered. `fields` are those of its event."""

    kind: str
    fields: Mapping[str, Any]
    decision: dict[str, Any] | None


async def resolution_of(db: Database, request_id: UUID) -> Resolved | None:
    """How a request ended; None when it has not, or is unknown."""
    row = await db.pool.fetchrow(
        "SELECT kind, data, decision FROM requests WHERE id = $1 AND status <> 'open'", request_id
    )
    if row is None:
        return None
    return Resolved(row["kind"], decode(row["data"]), decode(row["decision"]) if row["decision"] else None)


@dataclass(frozen=True, slots=True)
class Remembered:
    """A tool call that was allowed for the rest of the session.

    Attributes:
        tool_input: the one that was allowed.
        rules: for the agent's own program. None for a command: what it would suggest covers others as well, and it
            reads a rule for one command more widely than that, so that a command is compared here alone.
    """

    tool_name: str
    tool_input: dict[str, Any]
    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, data: Mapping[str, Any], decision: Mapping[str, Any]) -> Remembered:
        """What follows from a decision on a request. Rules are made anew each time, never taken from what is stored."""
        tool_name, tool_input = data["tool_name"], decision.get("updated_input", data["input"])
        if isinstance(tool_input.get("command"), str):
            return cls(tool_name, tool_input, ())
        suggested = [
            Rule.of(rule["toolName"], rule.get("ruleContent"))
            for update in data["suggestions"]
            if update["type"] == "addRules" and update.get("behavior") == "allow"
            for rule in update["rules"]
        ]
        return cls(tool_name, tool_input, tuple(suggested) or (Rule(tool_name),))

    @property
    def told(self) -> tuple[Rule, ...]:
        """What clients are told of it, and what a profile must permit."""
        return self.rules or (same_call(self.tool_name, self.tool_input["command"]),)

    def covers(self, tool_name: str, tool_input: Mapping[str, Any]) -> bool:
        """Whether it is the same call again, or a call of a tool that was allowed as a whole.

        The agent's program asks again where its own rules do not suffice, for example for a command that changes files.
        """
        if tool_name != self.tool_name:
            return False
        if self.rules == (Rule(tool_name),):
            return True
        return _essence(tool_input) == _essence(self.tool_input)


def _essence(tool_input: Mapping[str, Any]) -> dict[str, Any]:
    """A call without what changes nothing about what it does: how it is described, how long it may take."""
    return {name: value for name, value in tool_input.items() if name not in ("description", "timeout")}


_REMEMBERED = "SELECT data, decision FROM requests WHERE session_id = $1 AND remember ORDER BY resolved_at"


async def remembered(db: Database, session_id: UUID, profile: Profile | None) -> list[Remembered]:
    """What was allowed for the rest of a session, without what its profile does not let be remembered any more."""
    rows = await db.pool.fetch(_REMEMBERED, session_id)
    found = [Remembered.of(decode(row["data"]), decode(row["decision"])) for row in rows]
    return [before for before in found if not profiles.rule_problems(profile, before.told, "remember")]


def questions_of(data: Mapping[str, Any]) -> list[str]:
    """The texts of the questions that an agent asks, in whatever shape it asks them."""
    asked = data.get("questions")
    texts = [q.get("question") for q in asked if isinstance(q, dict)] if isinstance(asked, list) else []
    return [text for text in texts if isinstance(text, str)]


def already_resolved(row: asyncpg.Record) -> Conflict:
    shown = _request(row)
    who = "was answered already" if row["status"] == "answered" else "is closed"
    details = {name: shown[name] for name in ("request_id", "status", "decision", "resolved_by", "resolved_at")}
    return Conflict(f"This request {who}.", code="request_resolved", details=details)


_COLUMNS = """
SELECT id, session_id, run_id, kind, data, status, decision, resolved_by, created_at, expires_at, resolved_at
FROM requests
"""


_ROW = f"""
SELECT q.*, i.id AS owner_id, s.profile FROM sessions s
LEFT JOIN instances i ON i.id = s.owner_id AND i.lease_expires_at > now()
LEFT JOIN LATERAL ({_COLUMNS} WHERE id = $1 AND session_id = s.id AND tenant_id = $3) q ON true
WHERE s.id = $2 AND s.tenant_id = $3 AND s.deleted_at IS NULL
"""  # noqa: S608 - ours


async def row_of(db: Database, tenant_id: UUID, session_id: UUID, request_id: UUID) -> asyncpg.Record:
    """A request as it is stored, with the living owner of its session, if any, and its profile. Raises NotFound."""
    row = await db.pool.fetchrow(_ROW, request_id, session_id, tenant_id)
    if row is None:
        raise NotFound.of("session")
    if row["id"] is None:
        raise NotFound.of("request")
    return row


def _request(row: asyncpg.Record) -> dict[str, Any]:
    decision = decode(row["decision"])["decision"] if row["decision"] else None
    return {
        "request_id": str(row["id"]),
        "session_id": str(row["session_id"]),
        "run_id": str(row["run_id"]) if row["run_id"] else None,
        "type": row["kind"],
        "status": row["status"],
        **decode(row["data"]),
        "decision": decision or ("closed" if row["status"] == "closed" else None),
        "resolved_by": row["resolved_by"],
        "created_at": timestamp(row["created_at"]),
        "expires_at": timestamp(row["expires_at"]),
        "resolved_at": timestamp(row["resolved_at"]) if row["resolved_at"] else None,
    }


async def get(db: Database, tenant_id: UUID, request_id: UUID) -> dict[str, Any]:
    """A request as clients see it. Raises NotFound, also for one of a session that was deleted."""
    row = await db.pool.fetchrow(f"{_COLUMNS} WHERE id = $1 AND tenant_id = $2", request_id, tenant_id)
    if row is None:
        raise NotFound.of("request")
    await sessions.require(db, tenant_id, row["session_id"])
    return _request(row)


_PAGE = f"""{_COLUMNS}
WHERE tenant_id = $1 AND ($2::uuid IS NULL OR session_id = $2)
  AND ($3::timestamptz IS NULL OR (created_at, id) > ($3, $4::uuid))
  AND ($6::text[] IS NULL OR session_id IN (SELECT id FROM sessions WHERE tenant_id = $1 AND profile = ANY($6)))
  {{status}}
ORDER BY created_at, id LIMIT $5
"""  # noqa: S608 - ours

# A status is written out: the indexes are of those with one, or without one.
_PAGES = {
    status: pages.bounded(_PAGE.format(status=f"AND status = '{status}'" if status else ""), "data", "created_at, id")
    for status in ("open", "answered", "closed", None)
}


async def list_page(
    db: Database,
    tenant_id: UUID,
    session_id: UUID | None,
    *,
    status: str | None,
    limit: int,
    cursor: str | None,
    profiles: Sequence[str] | None = None,
) -> Page:
    """Requests of a session or of the whole tenant, oldest first.

    Args:
        status: `open`, `answered` or `closed`; None for all.
        profiles: of sessions of these profiles only.

    Raises:
        NotFound: no such session.
        ValidationError: the cursor is not one of this list.
    """
    if session_id is not None:
        await sessions.require(db, tenant_id, session_id)
    since = pages.read_cursor(cursor) if cursor else (None, None)
    rows = await db.pool.fetch(
        _PAGES[status],
        tenant_id,
        session_id,
        *since,
        limit + 1,
        None if profiles is None else list(profiles),
    )
    page, more = pages.cut(rows, limit)
    last = page[-1] if more else None
    return Page([_request(row) for row in page], pages.write_cursor(last["created_at"], last["id"]) if last else None)
