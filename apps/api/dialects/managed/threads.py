"""Threads: what a session's agent does itself, and the calls of its subagents, each by the message that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Depends, Request, Response

from apps.api.auth import Principal
from apps.api.core.codec import decode
from apps.api.core.context import Core
from apps.api.core.events import log
from apps.api.core.events.frames import Position
from apps.api.core.sessions import browsing, sessions
from apps.api.dialects.managed import examples, ids
from apps.api.dialects.managed.common import (
    ManagedObject,
    ManagedPage,
    PageOf,
    answer,
    errors,
    id_path,
    listed,
    page,
    router,
    unsupported,
)
from apps.api.dialects.managed.events import STREAMED, Log, Many, Sought, listed_page, position_of, streamed
from apps.api.dialects.managed.ids import THREAD
from apps.api.dialects.managed.sessions import STATUSES, SessionId, snapshot, state_of
from apps.api.dialects.managed.translate import BLOCKS, SUBAGENT
from apps.api.errors import NotFound, ValidationError
from apps.api.web.callers import Reader, Writer
from apps.api.web.route import CoreDep
from apps.api.web.sse import EventStream

routes = router()

ThreadId = Annotated[str, id_path("thread")]
Status = Literal["running", "idle", "rescheduling", "terminated"]


def _main(session_id: UUID) -> str:
    return ids.of_part(THREAD, session_id, 0)


def _gone() -> NotFound:
    return NotFound("No such thread.", code="not_found")


def _shown(
    id_: str, state: Mapping[str, Any], name: str | None, status: str, began: str, changed: str
) -> dict[str, Any]:
    agent = {n: value for n, value in snapshot(state, None, state["model"]).items() if n != "multiagent"}
    main = _main(UUID(state["session_id"]))
    return {
        "id": id_,
        "type": "session_thread",
        "session_id": ids.write("sesn", state["session_id"]),
        "agent": {**agent, **({"name": name, "description": None} if name else {})},
        "parent_thread_id": None if id_ == main else main,
        "status": status,
        "stats": None,
        "usage": None,
        "created_at": began,
        "updated_at": changed,
        "archived_at": None,
    }


async def _all(of: Log, state: Mapping[str, Any], newest: int) -> list[dict[str, Any]]:
    """The threads of a session, its own first."""
    main, ends = _main(of.session_id), (state["created_at"], state["last_active_at"])
    found = {main: _shown(main, state, None, STATUSES[state["status"]], *ends)}
    if not await browsing.has_tasks(of.core.db, of.session_id):
        return list(found.values())
    async with of.core.db.turns.reading(of.tenant_id):
        async for _, event in of.told(0, newest):
            id_, at = str(event.get("session_thread_id")), event["processed_at"]
            if event["type"] == "session.thread_created":
                found[id_] = _shown(id_, state, event["agent_name"], "running", at, at)
            elif event["type"] == "session.thread_status_idle" and id_ in found:
                found[id_] |= {"status": "idle", "updated_at": at}
    return list(found.values())


async def _log(core: Core, caller: Principal, state: Mapping[str, Any], session_id: UUID) -> tuple[Log, int]:
    newest = await sessions.require(core.db, caller.tenant_id, session_id)
    return Log(core, caller.tenant_id, session_id, state["config"]), newest


async def _call_of(of: Log, thread_id: str) -> tuple[int, str | None]:
    """The number of the message by which a subagent was called, and the call; 0 and None: it is the session's own
    thread. Raises NotFound."""
    part = ids.part(THREAD, thread_id)
    if part is None or part.session_id != of.session_id:
        raise _gone()
    if thread_id == _main(of.session_id):
        return 0, None
    frames = await log.read_numbers(of.core.db, of.tenant_id, of.session_id, [part.seq])
    content = decode(frames[0].data).get("content") if frames else None
    nth = part.nth - BLOCKS
    block = content[nth] if isinstance(content, list) and 0 <= nth < len(content) else {}
    if block.get("type") != "tool_use" or block.get("name") not in SUBAGENT:
        raise _gone()
    return part.seq, block["id"]


@routes.get(
    "/sessions/{session_id}/threads",
    response_model=ManagedPage,
    responses=errors(404, shows=examples.page_of(examples.THREAD)),
)
async def list_managed_threads(
    core: CoreDep,
    caller: Reader,
    session_id: SessionId,
    statuses: Annotated[list[Status], Depends(listed("statuses", Status))],
    limit: Many = 1000,
    page_of: PageOf = None,
) -> Response:
    """What a session does itself, then the subagents that it has called, the first one first."""
    state = await state_of(core, caller, session_id)
    of, newest = await _log(core, caller, state, session_id)
    threads = [each for each in await _all(of, state, newest) if not statuses or each["status"] in statuses]
    if page_of is not None and not (page_of.isascii() and page_of.isdigit() and len(page_of) < 10):
        raise ValidationError.of("page", "not a cursor that this list gave")
    start = int(page_of or 0)
    return page(threads[start : start + limit], str(start + limit) if len(threads) > start + limit else None)


@routes.get(
    "/sessions/{session_id}/threads/{thread_id}",
    response_model=ManagedObject,
    responses=errors(404, shows=examples.THREAD),
)
async def get_managed_thread(core: CoreDep, caller: Reader, session_id: SessionId, thread_id: ThreadId) -> Response:
    """One thread of a session: its own, or a subagent's."""
    state = await state_of(core, caller, session_id)
    of, newest = await _log(core, caller, state, session_id)
    await _call_of(of, thread_id)
    found = next((each for each in await _all(of, state, newest) if each["id"] == thread_id), None)
    if found is None:
        raise _gone()
    return answer(found)


@routes.post(
    "/sessions/{session_id}/threads/{thread_id}/archive",
    response_model=ManagedObject,
    responses=errors(404, shows=examples.THREAD),
)
async def archive_managed_thread(core: CoreDep, caller: Writer, session_id: SessionId, thread_id: ThreadId) -> Response:
    """Not supported: a subagent is a part of its session."""
    state = await state_of(core, caller, session_id)
    of, _ = await _log(core, caller, state, session_id)
    await _call_of(of, thread_id)
    raise unsupported("thread_id", "a thread is not archived by itself: archive the session")


@routes.get(
    "/sessions/{session_id}/threads/{thread_id}/events",
    response_model=ManagedPage,
    responses=errors(404, shows=examples.page_of(examples.EVENT)),
)
async def list_managed_thread_events(
    core: CoreDep,
    caller: Reader,
    session_id: SessionId,
    thread_id: ThreadId,
    limit: Many = 100,
    page_of: PageOf = None,
) -> Response:
    """What was done in a thread."""
    state = await state_of(core, caller, session_id)
    of, newest = await _log(core, caller, state, session_id)
    seq, call = await _call_of(of, thread_id)
    alone = Log(core, caller.tenant_id, session_id, state["config"], call)
    return await listed_page(alone, newest, Sought(), "asc", limit, page_of or (f"{seq}.0" if call else None))


@routes.get(
    "/sessions/{session_id}/threads/{thread_id}/stream", response_class=Response, responses={**STREAMED, **errors(404)}
)
async def stream_managed_thread(
    request: Request,
    core: CoreDep,
    caller: Reader,
    session_id: SessionId,
    thread_id: ThreadId,
    after: Annotated[Position | None, Depends(position_of)],
    event_deltas: Annotated[list[str], Depends(listed("event_deltas", str))],
) -> EventStream:
    """What is done in a thread from now on. Messages are told once they are whole."""
    state = await state_of(core, caller, session_id)
    of, _ = await _log(core, caller, state, session_id)
    _, call = await _call_of(of, thread_id)
    alone = Log(core, caller.tenant_id, session_id, state["config"], call)
    return await streamed(request, alone, caller, after)
