"""What the resources share: routes, one answer as it is followed, and how waiting and streaming end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import Body, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from apps.api import clock
from apps.api.auth import Principal
from apps.api.core.codec import encode
from apps.api.core.context import Core
from apps.api.core.events import log
from apps.api.core.events.follow import KEEP_ALIVE_INTERVAL, SessionDeleted
from apps.api.core.fleet import cancellation
from apps.api.core.sessions import runs
from apps.api.core.sessions.names import Named
from apps.api.core.sessions.outcome import failure
from apps.api.core.sessions.prompts import Submitted
from apps.api.dialects.openai.errors import told
from apps.api.dialects.openai.history import uuid_of
from apps.api.dialects.openai.items import Answer
from apps.api.dialects.openai.reading import Growing
from apps.api.dialects.openai.sending import Started, settled_of
from apps.api.errors import ApiError, Conflict, NotFound, RunFailed, StillRunning
from apps.api.web.asking import Waiting, until_asked
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.following import WAIT_MARGIN, attended
from apps.api.web.opened import Held
from apps.api.web.sse import EventStream

PREFIX = "/compat/openai"
TAG = "openai"

Chunks = AsyncGenerator[bytes]


class OpenAIRoute(ContentRoute):
    """A route of this API. Its clients put `beta` into queries, and ask for more or less of what there is."""

    ignored = frozenset({"beta", "include", "include[]", "include_obfuscation"})


def router() -> Router:
    """A resource's router."""
    return Router(prefix="/v1", tags=[TAG], route_class=OpenAIRoute)


JsonBody = Annotated[dict[str, Any], Body()]


def body_of(model: str) -> dict[str, Any]:
    """What the document says of a body that `schemas.read` reads."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


class Item(BaseModel):
    """One step of a conversation, in OpenAI's own fields: see the `openai` package."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(examples=["msg_0f0e4c5cc6a14d8e9c1d5a1b2c3d4e5f_0"])
    type: str = Field(examples=["message"])


class ItemList(BaseModel):
    """A page of items."""

    object: str = Field(examples=["list"])
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool = Field(examples=[False])


After = Annotated[str | None, Query(max_length=200, description="The id of the last one of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Rows on a page.")]
Order = Annotated[str | None, Query(pattern="^(asc|desc)$", description="`asc` or `desc`, by age.")]


def id_path(noun: str) -> Any:
    """A parameter of a path."""
    return Path(description=f"The {noun}'s id.", max_length=200)


async def followed(core: Core, tenant_id: UUID, started: Started, answer: Growing) -> AsyncGenerator[list[Any]]:
    """What an answer tells, as it comes, to its end; empty lists are ticks of silence. Raises RunFailed where the
    session was deleted."""
    waiting, told_at = Waiting(settled=started.settled), time.monotonic()
    try:
        async with aclosing(until_asked(core, tenant_id, started.run, waiting, gapless=True)) as batches:
            async for batch in batches:
                found = [one for frame in batch for one in answer.take(frame)]
                if found or not batch or time.monotonic() - told_at >= KEEP_ALIVE_INTERVAL:
                    yield found
                    told_at = time.monotonic()
                if answer.over:
                    return
    except SessionDeleted as error:
        raise RunFailed(error.code, failure(error.code)["message"], {}) from error
    yield answer.wait()


async def stored(core: Core, tenant_id: UUID, started: Started, answer: Growing) -> None:
    """Bring an answer to where the log is now. Raises NotFound."""
    waiting, after, asked_at = Waiting(settled=started.settled), started.run.after, 0.0
    run_id = started.run.run_id
    while not answer.over:
        page = await log.read(core.db, tenant_id, started.run.session_id, after, run_id=run_id)
        for frame in page.frames:
            waiting.take(frame)
            answer.take(frame)
            after = frame.seq
            asked_at = frame.made_at
        if not page.more:
            break
    patience = waiting.patience
    if not answer.over and patience is not None and clock.now().timestamp() - asked_at > patience:
        answer.wait()


async def whole(
    request: Request, core: Core, caller: Principal, started: Started, answer: Growing, held: Held
) -> list[Any]:
    """All that an answer tells. Raises StillRunning, RunFailed."""

    async def read() -> list[Any]:
        found = list[Any]()
        async with aclosing(followed(core, caller.tenant_id, started, answer)) as steps:
            async for some in steps:
                found += some
        return found

    work: Coroutine[Any, Any, list[Any]] = asyncio.wait_for(read(), core.settings.request_timeout + WAIT_MARGIN)
    try:
        found = await attended(request, caller, work, held)
    except TimeoutError:
        found = None
    if found is None:
        raise StillRunning("The run is still queued or running.", details={"run_id": str(started.run.run_id)})
    return found


def streamed(
    request: Request, core: Core, caller: Principal, started: Started, chunks: Chunks, held: Held, *, stops: bool
) -> Response:
    """A stream of an answer. `stops`: its client stops the run when it leaves."""
    stop = partial(interrupt, core, caller.tenant_id, started.run.run_id) if stops else None
    headers = getattr(request.state, "limit_headers", {})
    return EventStream(chunks, held, farewell=farewell, headers=headers, left=stop)


def farewell(error: ApiError) -> bytes:
    """The end of a stream that ends before its answer: both clients raise for it."""
    return frame({"error": told(error)})


def frame(data: Any) -> bytes:
    """A `data:` line."""
    return b"data: " + encode(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def interrupt(core: Core, tenant_id: UUID, run_id: UUID) -> None:
    """Stop a run; nothing happens when it is over."""
    with suppress(Conflict, NotFound):
        await cancellation.cancel(core, tenant_id, run_id)


def answer_of(name: Named, run: Submitted) -> tuple[Answer, Started]:
    """A response of a run that has told nothing yet, and where it is told."""
    response_id, settled = uuid_of("response", name.text), settled_of(name.data)
    assert response_id is not None  # noqa: S101 - it was given by `responses`
    return Answer(response_id, name.data, settled), Started(run, settled, name)


async def placed(core: Core, tenant_id: UUID, name: Named, *, expired: bool = False) -> tuple[Answer, Started]:
    """The same of one that was given before. Raises NotFound; and Gone where its events were removed, unless one that
    has `expired` will do."""
    assert name.run_id is not None  # noqa: S101 - each response has one
    lies = await runs.extent(core.db, tenant_id, name.run_id)
    if not expired:
        lies.require_any(lies.start)
    return answer_of(name, Submitted(name.session_id, name.run_id, lies.start))


async def read_answer(core: Core, tenant_id: UUID, name: Named, *, expired: bool = False) -> tuple[Answer, Started]:
    """The same, as it is now."""
    answer, started = await placed(core, tenant_id, name, expired=expired)
    await stored(core, tenant_id, started, answer)
    return answer, started


def page(data: Sequence[dict[str, Any]], more: bool) -> dict[str, Any]:
    """A page of a list."""
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": list(data), **ends, "has_more": more}


def cut(items: Sequence[dict[str, Any]], after: str | None, limit: int, found: Callable[[str], Exception]) -> Any:
    """A page of what is there as a whole. Raises what `found` makes of an id that is not there."""
    start = 0
    if after is not None:
        start = next((n + 1 for n, item in enumerate(items) if item["id"] == after), -1)
        if start < 0:
            raise found(after)
    return page(items[start : start + limit], len(items) > start + limit)
