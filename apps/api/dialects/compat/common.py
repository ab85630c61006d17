"""What the dialects of older servers share: errors as `{"detail": …}`, session ids, sending and stopping."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Path, Request
from pydantic import AfterValidator, BaseModel, Field

from apps.api.auth import Principal
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import Text, ToolRule
from apps.api.core.context import Core
from apps.api.core.events.follow import KEEP_ALIVE_INTERVAL, SessionDeleted
from apps.api.core.events.frames import Frame
from apps.api.core.fleet import cancellation, dispatch
from apps.api.core.sessions import prompts, runs
from apps.api.core.sessions.admission import NO_CHANGES, Choice
from apps.api.core.sessions.prompts import OnBusy, Submitted
from apps.api.errors import ApiError, BadRequest, Conflict, NotFound, RunFailed, StillRunning
from apps.api.limits import DEFAULTS, PUBLIC_LIMIT, public_limiter
from apps.api.web.callers import policy_of
from apps.api.web.document import Description
from apps.api.web.following import WAIT_MARGIN, finished, run_frames
from apps.api.web.opened import Held
from apps.api.web.sse import EventStream

STOP_SECONDS = 20.0
"""Seconds that a request waits for a run that it stops: an agent that does not end is killed after 5."""

public = public_limiter.limit(PUBLIC_LIMIT)
"""Decorates routes that need no key."""


class Detail(BaseModel):
    """An error, as the originals told it."""

    detail: str = Field(description="What went wrong.", examples=["Session not found"])


class Found(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str] = Field(description="Where.")
    msg: str = Field(description="What.")
    type: str


class Details(BaseModel):
    """A request that is not valid, as FastAPI tells it."""

    detail: str | list[Found] = Field(description="What is wrong, field by field.")


_INVALID = [{"loc": ["body", "prompt"], "msg": "must not be empty", "type": "value_error"}]
_WHY: dict[int | str, tuple[str, Any]] = {
    "default": ("Any other error.", "Method Not Allowed"),
    400: ("The request is not valid.", "prompt: must not be empty"),
    401: ("No key, or one that is unknown, revoked or expired.", "This API key is not valid."),
    403: ("The key may not do this.", "This key lacks the scope 'write'."),
    404: ("No such session, or it belongs to another tenant.", "Session not found"),
    409: (
        "Too many prompts wait in this session.",
        f"This session has {DEFAULTS['max_queued_runs_per_session']} queued runs already.",
    ),
    413: ("The body is too large.", f"The body is larger than {DEFAULTS['max_body_bytes']} bytes."),
    422: ("The request is not valid.", _INVALID),
    429: (
        "The key has used up its prompts per minute.",
        f"This key may send {DEFAULTS['rate_limit_query_per_minute']} prompts per minute.",
    ),
    500: ("The run failed, or the server.", "The run took longer than its timeout."),
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route documents: these statuses, and those that every route may answer."""
    answered: list[int | str] = [*sorted({401, 403, 500, *statuses}), "default"]
    return {
        status: {
            "model": Details if status == 422 else Detail,
            "description": _WHY[status][0],
            "content": {"application/json": {"example": {"detail": _WHY[status][1]}}},
        }
        for status in answered
    }


def described(name: str, prefix: str, page: str) -> Description:
    """The document of a dialect, whose routes have its name as their tag. `page`: about it, in docs."""
    text = f"The API of the {name}, for clients that were written for it. See docs/{page}."
    tags = {name: "As the original has them.", "health": "Needs no key."}
    return Description(f"Claude Agent API: {name}", text, lambda path: path.startswith(f"{prefix}/"), tags)


def status_and_detail(error: ApiError) -> tuple[int, str]:
    """How the originals would have told this error: they knew a session, or did not, and had 500 for all failures."""
    if error.code in ("session_not_found", "session_deleted"):
        return 404, "Session not found"
    return 500 if isinstance(error, RunFailed) else min(error.status, 500), error.message


def fastapi_shape(error: ApiError, request_id: str) -> tuple[int, Any]:
    """`{"detail": …}`; for a request that is not valid 422 with a list, as FastAPI's own servers say it."""
    status, detail = status_and_detail(error)
    errors = error.details.get("errors")
    if isinstance(error, BadRequest) and error.code == "invalid_json":
        status, errors = 422, [{"field": "", "reason": detail}]
    if status != 422 or errors is None:
        return status, {"detail": detail}
    found = [
        {"loc": ["body", *filter(None, e["field"].split("."))], "msg": e["reason"], "type": "value_error"}
        for e in errors
    ]
    return status, {"detail": found}


async def _session_id(session_id: Annotated[str, Path(description="The session's id.")]) -> UUID:
    try:
        return UUID(session_id)
    except ValueError as error:
        raise NotFound.of("session") from error


def _says_something(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


Prompt = Annotated[Text, AfterValidator(_says_something)]
ModelName = Annotated[str, Field(max_length=200)]
Rules = Annotated[list[ToolRule], Field(max_length=200)]

SessionId = Annotated[UUID, Depends(_session_id)]
"""A session's id in the path; what is none is a session that does not exist."""


async def send(
    core: Core,
    caller: Principal,
    prompt: str,
    *,
    session_id: UUID | None = None,
    begin: Mapping[str, Any] | None = None,
    on_busy: OnBusy = "enqueue",
) -> Submitted:
    """Send a prompt to a session, or to a new one with the options and the `surface` in `begin`.

    In these dialects nobody can be asked, so what needs a person's permission is refused, as in the originals.
    """
    options = dict(begin or {})
    surface = options.pop("surface", "native")
    request = prompts.Submission(
        prompt=prompt,
        timeout_seconds=core.settings.request_timeout,
        session_id=session_id,
        config=AgentConfig(**options, unattended=True) if begin else NO_CHANGES,
        choice=Choice(policy=policy_of(core, caller)),
        surface=surface,
        on_busy=on_busy,
    )
    return await dispatch.send(core, caller.tenant_id, caller.key_id, request)


async def ended(request: Request, core: Core, caller: Principal, run: Submitted, held: Held) -> dict[str, Any]:
    """The run as stored, once it is over. Raises StillRunning, RunFailed when the session was deleted."""
    state = await finished(request, core, caller, run, core.settings.request_timeout + WAIT_MARGIN, held)
    if state is None:
        raise StillRunning("The run is still queued or running.", details={"run_id": str(run.run_id)})
    return state


async def stop(request: Request, core: Core, caller: Principal, run_id: UUID) -> None:
    """Cancel a run and wait for its end; nothing happens when it is over already.

    Raises:
        NotFound: no such run.
        Conflict: `session_deleted`.
        StillRunning: it has not ended after STOP_SECONDS.
    """
    try:
        if (await cancellation.cancel(core, caller.tenant_id, run_id)).status == "applied":
            return
    except Conflict as conflict:
        if conflict.code != "no_live_run":
            raise
        return
    lies = await runs.extent(core.db, caller.tenant_id, run_id)
    run = Submitted(lies.session_id, run_id, lies.start)
    if await finished(request, core, caller, run, STOP_SECONDS) is None:
        raise StillRunning("The run has been told to stop, and goes on for now.", details={"run_id": str(run_id)})


async def unfinished(core: Core, tenant_id: UUID, session_id: UUID) -> list[UUID]:
    """Runs of a session that are queued or active, the newest first. Raises NotFound."""
    limit = core.settings.max_queued_runs_per_session + 1
    page = await runs.list_page(core.db, tenant_id, session_id, limit=limit, cursor=None)
    return [UUID(run["run_id"]) for run in page.data if run["finished_at"] is None]


async def _chunks(
    core: Core, tenant_id: UUID, run: Submitted, translate: Callable[[Frame], bytes], first: bytes, deleted: bytes
) -> AsyncGenerator[bytes]:
    if first:
        yield first
    batches, told = run_frames(core, tenant_id, run, gapless=True), time.monotonic()
    try:
        async with aclosing(batches):
            async for batch in batches:
                text = b"".join(map(translate, batch))
                if text or not batch or time.monotonic() - told >= KEEP_ALIVE_INTERVAL:
                    yield text
                    told = time.monotonic()
    except SessionDeleted:
        yield deleted


def stream(
    request: Request,
    core: Core,
    caller: Principal,
    run: Submitted,
    held: Held,
    translate: Callable[[Frame], bytes],
    *,
    farewell: Callable[[str], bytes],
    first: bytes = b"",
) -> EventStream:
    """The events of one run as a dialect tells them.

    Args:
        translate: the bytes for an event, empty for what the dialect does not tell; must end with the run's `done`.
        farewell: the end of the stream, with the reason, when it ends before the run does.
        first: what the stream begins with, before there is any event.
    """
    chunks = _chunks(core, caller.tenant_id, run, translate, first, farewell("Session not found"))
    headers = getattr(request.state, "limit_headers", {})
    return EventStream(chunks, held, farewell=lambda error: farewell(error.message), headers=headers)
