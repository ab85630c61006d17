"""The native API, `/api/v1`: prompts, sessions, runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel

from apps.api.auth import Principal
from apps.api.core import commands, log, runs, sessions
from apps.api.core.config import AgentConfig
from apps.api.core.context import Core
from apps.api.core.follow import Followed
from apps.api.core.frames import Position, decode
from apps.api.core.runs import Idempotency, Submitted
from apps.api.core.sessions import Filters, Labels, utc
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.examples import ERRORS, FOLLOWED, STREAMED
from apps.api.dialects.native.stream import OneRun, position, run_stream, session_stream
from apps.api.errors import NotFound, StillRunning, ValidationError
from apps.api.http.answer import Json
from apps.api.http.route import WAIT_MARGIN, CoreDep, Prompter, Reader, Writer, finished, outcome_or_error
from apps.api.http.sse import EventStream


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    answered = sorted({401, 403, 422, 500, 503, *statuses})
    return {status: {"model": wire.ErrorAnswer, **ERRORS[status]} for status in answered}


router = APIRouter(prefix="/api/v1")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key and request within 24 hours give the same run or session.",
    ),
]
SessionId = Annotated[UUID, Path(description="The session's id.")]
RunId = Annotated[UUID, Path(description="The run's id.")]
Limit = Annotated[int, Query(ge=1, le=200, description="Rows on a page.")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
After = Annotated[Position | None, Depends(position)]


def _config(body: AgentConfig) -> AgentConfig:
    return AgentConfig.model_validate(body.model_dump(include=set(AgentConfig.model_fields), exclude_none=True))


def _labels(body: wire.LabelFields) -> Labels:
    return Labels(body.title, body.tags, body.metadata)


def _answer(model: type[BaseModel], data: dict[str, Any], headers: Mapping[str, str] | None = None) -> Json:
    # Pydantic checks the shape, but does not write what agents said: it refuses lone surrogates.
    model.model_validate(data)
    return Json(data, headers=headers)


async def _submit(
    request: Request,
    core: Core,
    caller: Principal,
    body: wire.NextPromptBody,
    session_id: UUID | None,
    idempotency_key: str | None,
) -> Submitted:
    text = body.prompt if isinstance(body.prompt, str) else "".join(block.text for block in body.prompt)
    if len(text) > core.settings.max_prompt_chars:
        raise ValidationError.of("prompt", f"longer than {core.settings.max_prompt_chars} characters")
    prompt = body.prompt if isinstance(body.prompt, str) else [block.model_dump() for block in body.prompt]
    asked = body.model_dump(mode="json", exclude_unset=True)
    run = await runs.submit(
        core.db,
        caller.tenant_id,
        caller.key_id,
        runs.Request(
            prompt=prompt,
            timeout_seconds=body.timeout_seconds or core.settings.request_timeout,
            session_id=session_id,
            config=_config(body),
            labels=_labels(body),
            on_busy=body.on_busy,
            idempotency=Idempotency.of(idempotency_key, request.url.path, asked) if idempotency_key else None,
        ),
        max_queued=core.settings.max_queued_runs_per_session,
    )
    if not run.repeated:
        core.wake(caller.tenant_id, run.session_id)
    return run


# --- prompts -------------------------------------------------------------------------------------------------------


@router.post(
    "/query", tags=["prompts"], response_class=Response, responses={**STREAMED, **_errors(400, 404, 409, 413, 429)}
)
async def query(
    request: Request, core: CoreDep, caller: Prompter, body: wire.PromptBody, idempotency_key: IdempotencyKey = None
) -> EventStream:
    """Start a session, or continue one, and stream the run's events up to `done`.

    The run goes on when the client leaves. `GET /sessions/{id}/events` with `Last-Event-ID` resumes the stream,
    on any instance.
    """
    run = await _submit(request, core, caller, body, body.session_id, idempotency_key)
    return run_stream(request, core, caller.tenant_id, run, partials=body.include_partial_messages)


@router.post(
    "/query/single",
    tags=["prompts"],
    response_model=wire.Result,
    responses=_errors(400, 404, 409, 413, 429, 502, 504),
)
async def query_single(
    request: Request, core: CoreDep, caller: Prompter, body: wire.PromptBody, idempotency_key: IdempotencyKey = None
) -> Response:
    """The same with one JSON answer at the end. A run that fails answers with its error's status and code."""
    run = await _submit(request, core, caller, body, body.session_id, idempotency_key)
    wait = (body.timeout_seconds or core.settings.request_timeout) + WAIT_MARGIN
    state = await finished(core, caller.tenant_id, run, wait)
    if state is None:
        ids = {"session_id": str(run.session_id), "run_id": str(run.run_id)}
        raise StillRunning("The run is still queued or running; ask for it by its id.", details=ids)
    return _answer(wire.Result, outcome_or_error(state), request.state.limit_headers)


@router.post(
    "/sessions/{session_id}/query",
    tags=["prompts"],
    status_code=202,
    response_model=wire.Accepted,
    responses={200: {"model": wire.Result}, **_errors(400, 404, 409, 413, 429, 502, 504)},
)
async def session_query(
    request: Request,
    core: CoreDep,
    caller: Prompter,
    session_id: SessionId,
    body: wire.NextPromptBody,
    wait: Annotated[float, Query(ge=0, le=300, description="Seconds to wait for the result.")] = 0,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue a prompt and answer 202 at once; with `wait`, answer 200 with the result if it is there in time."""
    run = await _submit(request, core, caller, body, session_id, idempotency_key)
    headers = request.state.limit_headers
    state = await finished(core, caller.tenant_id, run, wait) if wait else None
    if state is not None:
        return _answer(wire.Result, outcome_or_error(state), headers)
    accepted = wire.Accepted(session_id=run.session_id, run_id=run.run_id)
    return Json(accepted.model_dump(mode="json"), status_code=202, headers=headers)


@router.post(
    "/sessions/{session_id}/resume",
    tags=["prompts"],
    response_class=Response,
    responses={**STREAMED, **_errors(400, 404, 409, 413, 429)},
)
async def resume(
    request: Request,
    core: CoreDep,
    caller: Prompter,
    session_id: SessionId,
    body: wire.NextPromptBody,
    idempotency_key: IdempotencyKey = None,
) -> EventStream:
    """The next prompt of a stored session, streamed like `POST /query`."""
    run = await _submit(request, core, caller, body, session_id, idempotency_key)
    return run_stream(request, core, caller.tenant_id, run, partials=body.include_partial_messages)


# --- sessions ------------------------------------------------------------------------------------------------------


@router.post("/sessions", tags=["sessions"], status_code=201, responses=_errors(400, 409, 413))
async def create_session(
    request: Request, core: CoreDep, caller: Writer, body: wire.SessionBody, idempotency_key: IdempotencyKey = None
) -> wire.SessionState:
    """Create a session. Nothing is started until its first prompt."""
    asked = body.model_dump(mode="json", exclude_unset=True)
    idempotency = Idempotency.of(idempotency_key, request.url.path, asked) if idempotency_key else None
    session_id = await runs.create_session(core.db, caller.tenant_id, _config(body), _labels(body), idempotency)
    return await _state(core, caller, session_id)


async def _state(core: Core, caller: Principal, session_id: UUID) -> wire.SessionState:
    state = await sessions.get(core.db, core.redis, caller.tenant_id, session_id, core.settings.default_model)
    return wire.SessionState.model_validate(state)


@router.get("/sessions", tags=["sessions"], responses=_errors())
async def list_sessions(
    request: Request,
    core: CoreDep,
    caller: Reader,
    status: Annotated[
        Literal["idle", "queued", "running", "requires_action"] | None, Query(description="What it is doing now.")
    ] = None,
    tag: Annotated[str | None, Query(max_length=64, description="Has this tag.")] = None,
    search: Annotated[str | None, Query(max_length=200, description="Part of the title, any case.")] = None,
    created_after: Annotated[datetime | None, Query(description="A moment with its time zone.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> wire.SessionList:
    """Sessions of the tenant, newest first. Filter by metadata with `metadata.KEY=VALUE`."""
    wanted = {
        key.removeprefix("metadata."): value
        for key, value in request.query_params.items()
        if key.startswith("metadata.")
    }
    by_metadata = ((f"metadata.{key}", value) for key, value in wanted.items())
    for field, value in (("tag", tag), ("search", search), *by_metadata):
        if value is not None and "\x00" in field + value:
            raise ValidationError.of(field, "must not contain NUL")
    try:
        created_after = created_after and utc(created_after)
    except ValueError as error:
        raise ValidationError.of("created_after", str(error)) from error
    page = await sessions.list_page(
        core.db,
        caller.tenant_id,
        Filters(status, tag, search, wanted, created_after),
        limit=limit,
        cursor=cursor,
        default_model=core.settings.default_model,
    )
    return wire.SessionList.model_validate({"data": page.data, "next_cursor": page.next_cursor})


@router.get("/sessions/{session_id}", tags=["sessions"], responses=_errors(404))
async def get_session(core: CoreDep, caller: Reader, session_id: SessionId) -> wire.SessionState:
    """A session's state: what it is doing, how it is configured, what it has cost so far."""
    return await _state(core, caller, session_id)


@router.patch("/sessions/{session_id}", tags=["sessions"], responses=_errors(400, 404, 413))
async def patch_session(
    core: CoreDep, caller: Writer, session_id: SessionId, body: wire.PatchBody
) -> wire.SessionState:
    """Change title, tags or metadata."""
    await sessions.patch(core.db, core.redis, caller.tenant_id, session_id, _labels(body))
    return await _state(core, caller, session_id)


@router.delete("/sessions/{session_id}", tags=["sessions"], status_code=204, responses=_errors(404, 409))
async def delete_session(core: CoreDep, caller: Writer, session_id: SessionId) -> Response:
    """Stop the run, end the agent process, and remove events, transcript and workspace. There is no way back."""
    await sessions.delete(core.db, caller.tenant_id, session_id)
    core.forget(caller.tenant_id, session_id)
    return Response(status_code=204)


@router.get(
    "/sessions/{session_id}/messages", tags=["sessions"], response_model=wire.MessageList, responses=_errors(404)
)
async def list_messages(
    core: CoreDep, caller: Reader, session_id: SessionId, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """The conversation, oldest first; messages of a subagent stand under `subagent_messages` of their caller."""
    page = await sessions.messages(core.db, caller.tenant_id, session_id, limit=limit, cursor=cursor)
    return _answer(wire.MessageList, {"data": page.data, "next_cursor": page.next_cursor})


@router.get(
    "/sessions/{session_id}/events",
    tags=["events"],
    response_model=wire.EventList,
    responses={**FOLLOWED, **_errors(404)},
)
async def session_events(
    request: Request,
    core: CoreDep,
    caller: Reader,
    session_id: SessionId,
    after: After,
    run_id: Annotated[UUID | None, Query(description="Only this run; the stream ends with its `done`.")] = None,
    until: Annotated[Literal["idle"] | None, Query(description="End when nothing is queued or running.")] = None,
    limit: Limit = 100,
) -> Response:
    """Stored events, then live ones, across runs: nothing lost, nothing repeated, on any instance.

    Without a position the stream starts at the session's first event. `Accept: application/json` pages through
    the stored events instead: `?after=` is the cursor.
    """
    newest = await sessions.require(core.db, caller.tenant_id, session_id)
    start = after or Position(0)
    run: OneRun | None = None
    if run_id is not None:
        lies = await runs.extent(core.db, caller.tenant_id, run_id)
        if lies.session_id != session_id:
            raise NotFound.of("run")
        newest, run = lies.newest, (run_id, lies.end)
    return await _events(request, core, caller, session_id, start, newest, run, until == "idle", limit)


async def _events(
    request: Request,
    core: Core,
    caller: Principal,
    session_id: UUID,
    start: Position,
    newest: int,
    run: OneRun | None,
    until_idle: bool,
    limit: int,
) -> Response:
    if "application/json" in request.headers.get("accept", "") and "event-stream" not in request.headers["accept"]:
        run_id = run[0] if run else None
        frames = await log.read(core.db, caller.tenant_id, session_id, start.seq, run_id=run_id, limit=limit + 1)
        data = [{"id": str(f.position), "event": f.type, "data": decode(f.data)} for f in frames[:limit]]
        return Json({"data": data, "next_cursor": data[-1]["id"] if len(frames) > limit else None})
    followed = Followed(caller.tenant_id, session_id)
    return session_stream(request, core, followed, start, newest, until_idle=until_idle, run=run)


@router.post("/sessions/{session_id}/interrupt", tags=["sessions"], responses=_errors(404, 409))
async def interrupt(core: CoreDep, caller: Writer, session_id: SessionId) -> wire.Interrupted:
    """Stop the current run, whichever instance executes it. The session stays and takes the next prompt.

    409 `no_live_run` when nothing runs.
    """
    status, run_id = await commands.send(
        core.db, core.redis, core.publisher, core.subscriptions, caller.tenant_id, session_id, "interrupt"
    )
    return wire.Interrupted.model_validate({"session_id": session_id, "run_id": run_id, "status": status})


# --- runs ----------------------------------------------------------------------------------------------------------


@router.get("/sessions/{session_id}/runs", tags=["runs"], response_model=wire.RunList, responses=_errors(404))
async def list_runs(
    core: CoreDep, caller: Reader, session_id: SessionId, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Runs of a session, newest first, queued ones included."""
    page = await runs.list_page(core.db, caller.tenant_id, session_id, limit=limit, cursor=cursor)
    return _answer(wire.RunList, {"data": page.data, "next_cursor": page.next_cursor})


@router.get("/runs/{run_id}", tags=["runs"], response_model=wire.RunState, responses=_errors(404))
async def get_run(core: CoreDep, caller: Reader, run_id: RunId) -> Response:
    """A run's state and, when it is over, its result or error."""
    return _answer(wire.RunState, await runs.get(core.db, caller.tenant_id, run_id))


@router.get(
    "/runs/{run_id}/events",
    tags=["events"],
    response_model=wire.EventList,
    responses={**FOLLOWED, **_errors(404)},
)
async def run_events(
    request: Request, core: CoreDep, caller: Reader, run_id: RunId, after: After, limit: Limit = 100
) -> Response:
    """The events of one run, from its first (or from `Last-Event-ID`) to its `done`."""
    lies = await runs.extent(core.db, caller.tenant_id, run_id)
    start = after or Position(lies.start)
    return await _events(request, core, caller, lies.session_id, start, lies.newest, (run_id, lies.end), False, limit)


# --- the caller ----------------------------------------------------------------------------------------------------


@router.get("/whoami", tags=["account"], responses=_errors())
async def whoami(caller: Reader) -> wire.Whoami:
    """Which key this is, and whose."""
    return wire.Whoami.model_validate(
        {
            "tenant": caller.tenant,
            "tenant_id": caller.tenant_id,
            "key_id": caller.key_id,
            "key_name": caller.key_name,
            "key_prefix": caller.prefix,
            "scopes": caller.scopes,
            "expires_at": caller.expires_at,
        }
    )
