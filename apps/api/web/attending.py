"""What surfaces share whose clients end a stream where they are asked, and go on with the same run by their next
request: which run that is, from where it is told, and the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.core.fleet import answering, cancellation
from apps.api.core.sessions import admission, names, requests, runs
from apps.api.core.sessions.names import Named
from apps.api.core.sessions.prompts import Submitted
from apps.api.errors import Conflict, NotFound
from apps.api.web.callers import policy_of
from apps.api.web.sse import Leaving

SENT_ON = "The user has sent another message instead."
"""What an agent is told whose question was passed over."""

MAX_OPEN = 200
"""Requests of a session that are looked at: no agent asks so much at once."""

MAX_RUNS = 100
"""Runs that are looked through for one that is not over."""

Decide = Callable[[Mapping[str, Any]], dict[str, Any] | None]
"""A request, as clients see it → the decision, as `answering.answer` takes it; None: nothing was said of it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A run to tell.

    Attributes:
        after: the client has what comes up to this event's number; None: nothing.
        answered: requests that count as answered, see `asking.Waiting`.
    """

    run: Submitted
    after: int | None = None
    answered: frozenset[UUID] = frozenset()


async def named(core: Core, caller: Principal, surface: str, text: str) -> Named | None:
    """The session, or the run, that has this name. Raises Forbidden where the key may not touch it."""
    found = (await names.find(core.db, caller.tenant_id, surface, text)).get(text)
    if found is not None:
        policy = policy_of(core, caller)
        await admission.may_touch(core.db.pool, caller.tenant_id, policy, session_id=found.session_id)
    return found


async def whole(core: Core, caller: Principal, run_id: UUID) -> Turn:
    """A run from its beginning. Raises NotFound, Gone."""
    lies = await runs.extent(core.db, caller.tenant_id, run_id)
    lies.require_any(lies.start)
    return Turn(Submitted(lies.session_id, run_id, lies.start))


async def unfinished(core: Core, caller: Principal, session_id: UUID) -> list[UUID]:
    """Runs of clients' prompts in a session that are not over, the newest first. Raises NotFound."""
    page = await runs.list_page(core.db, caller.tenant_id, session_id, limit=MAX_RUNS, cursor=None)
    return [
        UUID(run["run_id"])
        for run in page.data
        if run["finished_at"] is None and run["origin"] == "client" and run["kind"] == "prompt"
    ]


async def answer(
    core: Core, caller: Principal, session_id: UUID, request_id: UUID, kind: str, decision: Mapping[str, Any]
) -> None:
    """Give an answer, unless somebody has, or nobody waits for it any more: the log tells what came of it.

    Raises as `answering.answer`.
    """
    by = {"type": "key", "key_id": str(caller.key_id), "key_name": caller.key_name}
    policy = policy_of(core, caller)
    try:
        await answering.answer(core, caller.tenant_id, session_id, request_id, kind, decision, by, policy)
    except Conflict as conflict:
        if conflict.code not in ("request_resolved", "no_live_run"):
            raise


async def pass_over(core: Core, caller: Principal, session_id: UUID, decide: Decide) -> None:
    """Answer what a session's agent asks, before it is told something else: as it was decided, or by a no."""
    page = await requests.list_page(core.db, caller.tenant_id, session_id, status="open", limit=MAX_OPEN, cursor=None)
    for row in page.data:
        decision = decide(row) or _no(row["type"], requests.questions_of(row))
        await answer(core, caller, session_id, UUID(row["request_id"]), row["type"], decision)


def _no(kind: str, questions: Sequence[str]) -> dict[str, Any]:
    if kind == "permission":
        return {"decision": "deny", "message": SENT_ON}
    if kind == "question":
        return {"decision": "answered", "answers": dict.fromkeys(questions, SENT_ON)}
    return {"decision": "answered", "content": [{"type": "text", "text": SENT_ON}], "is_error": True}


def leaving(core: Core, caller: Principal, run_id: UUID, on_disconnect: str) -> Leaving | None:
    """What to do when the client leaves before its stream has ended. `on_disconnect`: continue or interrupt."""
    if on_disconnect == "continue":
        return None

    async def cancel() -> None:
        with suppress(Conflict, NotFound):
            await cancellation.cancel(core, caller.tenant_id, run_id)

    return cancel
