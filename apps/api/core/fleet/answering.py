"""Answers to what an agent asks: the decision and the command to the owner are one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from apps.api import audit, clock, instruments
from apps.api.core.codec import clean_text, decode, encode
from apps.api.core.config import profiles
from apps.api.core.config.profiles import UNRESTRICTED, Policy, Profile
from apps.api.core.context import Core
from apps.api.core.fleet import commands, parked
from apps.api.core.fleet.commands import Command, Sent
from apps.api.core.sessions import admission, requests
from apps.api.core.tasks import jittered
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import Conflict, Problem, ValidationError, refuse

_WORDS = {"permission": "permission", "question": "question", "client_tool": "client tool's call"}

LOOK_SECONDS = 0.2
"""Between two looks at whether a run that was parked has been taken up."""


def _checked(decision: Mapping[str, Any], data: Mapping[str, Any], profile: Profile | None) -> Mapping[str, Any]:
    """The decision with the rules that it means. Raises ValidationError, Forbidden."""
    questions = requests.questions_of(data)
    for question in decision.get("answers", ()):
        if question not in questions:
            raise ValidationError.of("answers", f"this was not asked: {question[:200]}")
    if "updated_input" in decision and profile is not None and profiles.limits_input(profile, data["tool_name"]):
        reason = f"the profile forbids some uses of {data['tool_name']}, so its input cannot be changed"
        refuse([Problem("updated_input", code="tool_not_permitted", reason=reason)])
    if not decision.get("remember"):
        return decision
    rules = requests.Remembered.of(data, decision).told
    refuse(profiles.rule_problems(profile, rules, "remember"))
    return {**decision, "rules": [str(rule) for rule in rules]}


_SET = "status = 'answered', decision = $2, resolved_by = $3, remember = $4, resolved_at = now()"

_DECIDE = f"""
WITH decided AS (UPDATE requests SET {_SET} WHERE id = $1 AND status = 'open' RETURNING id)
{audit.inserting(5, "FROM decided")}
"""  # noqa: S608 - ours

# The owner's row is locked as by every command, see `commands`. An answer is not counted, so one statement is enough.
_TELL = f"""
WITH target AS (
  SELECT id FROM sessions WHERE id = $14 AND owner_id = $15 FOR NO KEY UPDATE
), decided AS (
  UPDATE requests q SET {_SET} FROM target WHERE q.id = $1 AND q.status = 'open' RETURNING q.session_id
), told AS (
  INSERT INTO commands (id, session_id, type, payload) SELECT $16, session_id, 'answer', $17 FROM decided
), noted AS ({audit.inserting(5, "FROM decided")})
SELECT EXISTS (SELECT 1 FROM target) AS live, EXISTS (SELECT 1 FROM decided) AS decided
"""  # noqa: S608 - ours


async def answer(
    core: Core,
    tenant_id: UUID,
    session_id: UUID,
    request_id: UUID,
    kind: str,
    decision: Mapping[str, Any],
    by: Mapping[str, Any],
    policy: Policy = UNRESTRICTED,
) -> Sent:
    """Decide a request, once. `decision` is what runner/session/approvals.py understands; `by` says who decides, by
    `policy`.

    Raises:
        NotFound: `session_not_found`, `request_not_found`.
        ValidationError: it is of another kind, an answer is to a question that was not asked, the profile is no more.
        Forbidden: the session's profile is not the caller's, or the decision would widen it.
        Conflict: `request_resolved`, with how and by whom; `no_live_run` when nobody waits for it any more.
    """
    row = await requests.row_of(core.db, tenant_id, session_id, request_id)
    profile = admission.within(policy, row["profile"])
    asked = decode(row["data"])
    if row["kind"] != kind:
        raise ValidationError.of("request_id", f"is a {_WORDS[row['kind']]}, not a {_WORDS[kind]}")
    if row["status"] != "open":
        raise requests.already_resolved(row)
    decision = _checked(decision, asked, profile)
    decided = request_id, encode(decision).decode(), dict(by), bool(decision.get("remember"))
    told = {name: decision[name] for name in ("decision", "remember", "interrupt") if name in decision}
    told |= {"session_id": str(session_id), "kind": kind, "changed_input": "updated_input" in decision}
    if isinstance(tool := asked.get("tool_name"), str):  # an agent's word
        told["tool_name"] = clean_text(tool)[:200]
    stored = *decided, *audit.values("request.answered", tenant_id, request_id, **told)
    waited = (clock.now() - row["created_at"]).total_seconds()

    def count() -> None:
        instruments.DECISION_WAIT.labels(kind).observe(waited)
        if decision["decision"] == "deny":
            instruments.DENIED_BY_PERSON.inc()

    async def decide(connection: asyncpg.Connection) -> None:
        if await connection.execute(_DECIDE, *stored) != "INSERT 0 1":
            raise _Late

    try:
        # To the owner, or into the queue with the run that is parked; it may be parked, or be taken up, just now.
        for _ in range(2):
            if row["owner_id"] and (sent := await _tell(core, session_id, request_id, row["owner_id"], stored)):
                count()
                return sent
            run_id = await parked.answer(core, tenant_id, session_id, request_id, decision, by, decide)
            if run_id is not None:
                count()
                return Sent("applied" if await _taken_up(core, run_id) else "accepted", run_id, {})
            row = await requests.row_of(core.db, tenant_id, session_id, request_id)
            if row["status"] != "open":
                raise _Late
        raise commands.not_live()
    except _Late:
        raise requests.already_resolved(await requests.row_of(core.db, tenant_id, session_id, request_id)) from None


async def _tell(core: Core, session_id: UUID, request_id: UUID, owner_id: UUID, stored: Sequence[Any]) -> Sent | None:
    """Decide and tell the owner; None where it is the owner no more, or nobody waits there. Raises _Late."""
    command = Command(uuid4(), session_id, None, "answer", {"request_id": str(request_id)})

    async def store() -> bool:
        async with core.db.statement() as connection:
            more = session_id, owner_id, command.id, dict(command.payload)
            found = await connection.fetchrow(_TELL, *stored, *more)
        if found["live"] and not found["decided"]:
            raise _Late
        if not found["live"]:
            raise commands.not_live()
        return True

    try:
        return await commands.deliver(core, command, owner_id, store)
    except Conflict as conflict:
        if conflict.code != "no_live_run":
            raise
        return None


async def _taken_up(core: Core, run_id: UUID) -> bool:
    """Whether an instance gives the agent its answer within `commands.WAIT`. The answer is stored, come what may."""
    with suppress(TimeoutError):
        async with asyncio.timeout(commands.WAIT):
            while True:
                with suppress(*CONNECTION_ERRORS):
                    if await parked.taken_up(core, run_id):
                        return True
                await asyncio.sleep(jittered(LOOK_SECONDS))
    return False


class _Late(Exception):
    """Somebody else has decided."""
