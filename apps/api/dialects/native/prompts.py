"""Prompts: start or continue a session, streamed or answered at the end."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Annotated
from uuid import UUID

from fastapi import Query, Request, Response

from apps.api.auth import Principal
from apps.api.core.config.content import Block
from apps.api.core.context import Core
from apps.api.core.fleet import cancellation, dispatch
from apps.api.core.sessions import forks, prompts
from apps.api.core.sessions.admission import Choice
from apps.api.core.sessions.prompts import Submitted
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, IdempotencyKey, SessionId, answer, config, errors, labels
from apps.api.dialects.native.examples import STREAMED
from apps.api.dialects.native.stream import run_stream
from apps.api.errors import Conflict, Forbidden, NotFound, StillRunning
from apps.api.web import figures
from apps.api.web.answer import Json
from apps.api.web.callers import SessionPrompter, policy_of
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.following import WAIT_MARGIN, finished, outcome_or_error
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.sse import EventStream, Leaving

router = Router(prefix=PREFIX, route_class=ContentRoute)


OF_TOKENS = frozenset(
    {"prompt", "session_id", "on_busy", "on_disconnect", "include_partial_messages", "timeout_seconds", "end_user"}
)
"""What who shows a client token may say with a prompt: how the session is configured is not for them."""


def within_grant(caller: Principal, body: wire.RunBody, session_id: UUID | None) -> None:
    """Whether a client token allows this prompt, where one was shown.

    Raises:
        NotFound: it is for another session.
        Forbidden: `client_token_not_permitted`: it would begin a session, change this one, or ask for another end user.
    """
    if caller.grant is None:
        return
    caller.grant.require_session(session_id)
    named = body.end_user not in (None, caller.end_user)
    beyond = sorted(body.model_fields_set - OF_TOKENS) + ["end_user"] * named + ["session_id"] * (session_id is None)
    if beyond:
        raise Forbidden(
            f"{beyond[0]}: a client token sends prompts to its session as this is, and for its end user.",
            code="client_token_not_permitted",
            details={"errors": [{"field": field, "reason": "not with a client token"} for field in beyond]},
        )


def run_request(
    path: str,
    core: Core,
    caller: Principal,
    body: wire.RunBody,
    prompt: str | list[Block],
    session_id: UUID | None,
    idempotency_key: str | None,
) -> prompts.Submission:
    """What a body asks to run. `path`: of the route, which an idempotency key belongs to."""
    within_grant(caller, body, session_id)
    asked = body.model_dump(mode="json", exclude_unset=True) if idempotency_key else None
    return prompts.Submission(
        prompt=prompt if isinstance(prompt, str) else [block.model_dump(exclude_none=True) for block in prompt],
        timeout_seconds=body.timeout_seconds or core.settings.request_timeout,
        session_id=session_id,
        config=config(body, but="resources"),
        labels=labels(body) if caller.grant is None else Labels(end_user=caller.end_user),
        on_busy=body.on_busy,
        expand_prompt=body.expand_prompt,
        idempotency=Idempotency.given(idempotency_key, path, asked),
        choice=Choice(body.profile, policy_of(core, caller), body.agent),
        timeout_asked=body.timeout_seconds is not None,
        resources=tuple(body.resources or ()),
    )


async def submit(
    path: str,
    core: Core,
    caller: Principal,
    body: wire.NextPromptBody,
    session_id: UUID | None,
    idempotency_key: str | None,
) -> Submitted:
    """Queue a prompt, of a fork if the body says so. `path`: see `run_request`."""
    asked = run_request(path, core, caller, body, body.prompt, session_id, idempotency_key)
    if isinstance(body, wire.PromptBody) and body.fork_session:
        cut = forks.Fork(asked, begins=True, message_uuid=body.resume_session_at)
        run = (await dispatch.fork(core, caller.tenant_id, caller.key_id, cut)).run
        assert run is not None  # noqa: S101 - for the type checker
        return run
    return await dispatch.send(core, caller.tenant_id, caller.key_id, asked)


def leaving(core: Core, caller: Principal, body: wire.RunBody, run: Submitted) -> Leaving | None:
    """What to do when the client leaves before the run is over."""
    if body.on_disconnect == "continue":
        return None

    async def cancel() -> None:
        with suppress(Conflict, NotFound):
            await cancellation.cancel(core, caller.tenant_id, run.run_id)

    return cancel


@router.post(
    "/query", tags=["prompts"], response_class=Response, responses={**STREAMED, **errors(400, 404, 409, 413, 429)}
)
async def query(
    request: Request,
    core: CoreDep,
    caller: SessionPrompter,
    body: wire.PromptBody,
    idempotency_key: IdempotencyKey = None,
) -> EventStream:
    """Start a session, or continue one, and stream the run's events up to `done`.

    The run goes on when the client leaves. `GET /sessions/{id}/events` with `Last-Event-ID` resumes the stream,
    on any instance. `/api/v1/query/ws` is a WebSocket that takes the same body, and answers, interrupts and events
    of many sessions on one connection: see docs/websocket.md.
    """
    with stream_of(request, caller, "write") as held:
        run = await submit(request.scope["path"], core, caller, body, body.session_id, idempotency_key)
        left = leaving(core, caller, body, run)
        return run_stream(request, core, caller.tenant_id, run, held, partials=body.include_partial_messages, left=left)


@router.post(
    "/query/single",
    tags=["prompts"],
    response_model=wire.Result,
    responses=errors(400, 404, 409, 413, 429, 502, 504),
)
async def query_single(
    request: Request,
    core: CoreDep,
    caller: SessionPrompter,
    body: wire.PromptBody,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """`POST /query` with one JSON answer at the end; for a session that exists the same as `POST /sessions/{id}/query`
    with a `wait` as long as it takes. A run that fails answers with its error's status and code."""
    with stream_of(request, caller, "write") as held:
        run = await submit(request.scope["path"], core, caller, body, body.session_id, idempotency_key)
        wait = (body.timeout_seconds or core.settings.request_timeout) + WAIT_MARGIN
        state = await finished(request, core, caller, run, wait, held, leaving(core, caller, body, run))
    if state is None:
        ids = {"session_id": str(run.session_id), "run_id": str(run.run_id)}
        raise StillRunning("The run is still queued or running; ask for it by its id.", details=ids)
    return answer(wire.Result, figures.result(outcome_or_error(state)), request.state.limit_headers)


@router.post(
    "/sessions/{session_id}/query",
    tags=["prompts"],
    status_code=202,
    response_model=wire.Accepted,
    responses={200: {"model": wire.Result}, **errors(400, 404, 409, 413, 429, 502, 504)},
)
async def query_session(
    request: Request,
    core: CoreDep,
    caller: SessionPrompter,
    session_id: SessionId,
    body: wire.NextPromptBody,
    wait: Annotated[float, Query(ge=0, le=300, description="Seconds to wait for the result.")] = 0,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The way to prompt a session that exists: queue a prompt and answer 202 at once; with `wait`, answer 200 with the
    result if it is there in time. `GET /sessions/{id}/events` and `GET /runs/{id}/events` follow it."""
    state, headers = None, request.state.limit_headers
    with stream_of(request, caller, "write") if wait else nullcontext() as held:
        run = await submit(request.scope["path"], core, caller, body, session_id, idempotency_key)
        if held is not None:
            state = await finished(request, core, caller, run, wait, held, leaving(core, caller, body, run))
    if state is not None:
        return answer(wire.Result, figures.result(outcome_or_error(state)), headers)
    accepted = wire.Accepted(session_id=run.session_id, run_id=run.run_id)
    return Json(accepted.model_dump(mode="json"), status_code=202, headers=headers)


@router.post(
    "/sessions/{session_id}/resume",
    tags=["prompts"],
    response_class=Response,
    responses={**STREAMED, **errors(400, 404, 409, 413, 429)},
)
async def resume_session(
    request: Request,
    core: CoreDep,
    caller: SessionPrompter,
    session_id: SessionId,
    body: wire.NextPromptBody,
    idempotency_key: IdempotencyKey = None,
) -> EventStream:
    """The same as `POST /query` with this `session_id`: the next prompt of a session, and its run's events."""
    with stream_of(request, caller, "write") as held:
        run = await submit(request.scope["path"], core, caller, body, session_id, idempotency_key)
        left = leaving(core, caller, body, run)
        return run_stream(request, core, caller.tenant_id, run, held, partials=body.include_partial_messages, left=left)
