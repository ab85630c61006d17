"""Sessions: create, read, change, delete."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Depends, Query, Request, Response

from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.core.sessions import deletion, ports, prompts, sessions
from apps.api.core.sessions.admission import Choice
from apps.api.core.sessions.sessions import Filters
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import (
    MAX_LIMIT,
    PREFIX,
    Cursor,
    IdempotencyKey,
    Limit,
    Moment,
    OfEndUser,
    SessionId,
    config,
    errors,
    labels,
    moment,
    paged,
)
from apps.api.dialects.native.event_schemas import MessageList
from apps.api.dialects.native.removed import SessionRemoved, later_of, rows_of
from apps.api.errors import ValidationError
from apps.api.web.answer import Json
from apps.api.web.callers import Reader, SessionReader, Writer, policy_of
from apps.api.web.doors import ContentRoute, Prefixed, Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, route_class=ContentRoute)


@router.post("/sessions", tags=["sessions"], status_code=201, responses=errors(400, 404, 409, 413))
async def create_session(
    request: Request, core: CoreDep, caller: Writer, body: wire.SessionBody, idempotency_key: IdempotencyKey = None
) -> wire.SessionState:
    """Create a session. Nothing is started until its first prompt."""
    asked = body.model_dump(mode="json", exclude_unset=True)
    idempotency = Idempotency.given(idempotency_key, request.scope["path"], asked)
    choice = Choice(body.profile, policy_of(core, caller), body.agent)
    session_id = await prompts.create_session(core, caller.tenant_id, config(body), labels(body), idempotency, choice)
    return await state_of(core, caller, session_id)


async def state_of(core: Core, caller: Principal, session_id: UUID) -> wire.SessionState:
    """A session as it is now. Raises NotFound."""
    state = await sessions.get(core.db, core.redis, caller.tenant_id, session_id, core.settings.default_model)
    return wire.SessionState.model_validate(state)


@router.get("/sessions", tags=["sessions"], responses=errors())
async def list_sessions(
    core: CoreDep,
    caller: Reader,
    metadata: Annotated[dict[str, str], Depends(Prefixed("metadata."))],
    status: Annotated[
        Literal["idle", "queued", "running", "requires_action"] | None, Query(description="What it is doing now.")
    ] = None,
    tag: Annotated[str | None, Query(max_length=64, description="Has this tag.")] = None,
    search: Annotated[str | None, Query(max_length=200, description="Part of the title, any case.")] = None,
    agent: Annotated[
        wire.AgentRef | None, Query(description="Began with this preset: its name or id, or `name@version`.")
    ] = None,
    end_user: OfEndUser = None,
    created_after: Moment = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> wire.Page[wire.SessionState]:
    """Sessions of the tenant, newest first. Filter by metadata with `metadata.KEY=VALUE`."""
    by_metadata = ((f"metadata.{key}", value) for key, value in metadata.items())
    for field, value in (("tag", tag), ("search", search), *by_metadata):
        if value is not None and "\x00" in field + value:
            raise ValidationError.of(field, "must not contain NUL")
    page = await sessions.list_page(
        core.db,
        caller.tenant_id,
        Filters(
            status=status,
            tag=tag,
            search=search,
            metadata=metadata,
            created_after=moment("created_after", created_after),
            agent=agent,
            profiles=caller.profiles,
            end_user=end_user,
        ),
        limit=limit,
        cursor=cursor,
        default_model=core.settings.default_model,
    )
    return wire.Page[wire.SessionState].of(page)


@router.get("/sessions/{session_id}", tags=["sessions"], responses=errors(404))
async def get_session(core: CoreDep, caller: SessionReader, session_id: SessionId) -> wire.SessionState:
    """A session's state: what it is doing, how it is configured, what it has cost so far. To who shows a client token
    `config` and `metadata` are empty: they are its maker's."""
    state = await state_of(core, caller, session_id)
    return state if caller.grant is None else state.model_copy(update={"config": {}, "metadata": {}})


@router.patch("/sessions/{session_id}", tags=["sessions"], responses=errors(400, 404, 413))
async def update_session(
    core: CoreDep, caller: Writer, session_id: SessionId, body: wire.PatchBody
) -> wire.SessionState:
    """Change title, tags or metadata."""
    await sessions.patch(core.db, core.redis, caller.tenant_id, session_id, labels(body))
    return await state_of(core, caller, session_id)


@router.delete("/sessions/{session_id}", tags=["sessions"], responses=errors(404, 409))
async def delete_session(core: CoreDep, caller: Writer, session_id: SessionId) -> SessionRemoved:
    """Stop the run, end the agent process, and remove events, transcript and workspace. There is no way back.

    The answer says what went, and what others remove within moments: files are on the hosts of instances.
    """
    gone = await deletion.delete(core.db, caller.tenant_id, session_id)
    core.forget(caller.tenant_id, session_id)
    return SessionRemoved(session_id=session_id, removed=rows_of(gone.removed), later=later_of(gone))


@router.get("/sessions/{session_id}/messages", tags=["sessions"], response_model=MessageList, responses=errors(404))
async def list_messages(
    core: CoreDep, caller: SessionReader, session_id: SessionId, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """The conversation, oldest first; messages of a subagent stand under `subagent_messages` of their caller."""
    page = await sessions.messages(core.db, caller.tenant_id, session_id, limit=limit, cursor=cursor)
    return Json({"data": page.data, "next_cursor": page.next_cursor})


@router.get("/sessions/{session_id}/ports", tags=["sessions"], responses=errors(404))
async def list_ports(
    request: Request,
    core: CoreDep,
    caller: Writer,
    session_id: SessionId,
    limit: Limit = MAX_LIMIT,
    cursor: Cursor = None,
) -> wire.Page[wire.OpenPort]:
    """Ports that the agent's programs listen on now, each with a link that lets a browser in for 12 hours.

    Whoever has the link needs no key: hence the scope `write`.
    """
    preview = await ports.get(core.db, caller.tenant_id, session_id)
    urls = preview.urls(str(request.base_url).rstrip("/"))
    return paged([wire.OpenPort(port=int(port), url=url) for port, url in urls.items()], limit, cursor)
