"""Responses: created, streamed, read again by anybody's instance, cancelled, deleted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from apps.api import clock
from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.core.sessions import deletion, names
from apps.api.core.sessions.names import Name, Named
from apps.api.dialects.openai import conversations, schemas
from apps.api.dialects.openai.chat import about_of
from apps.api.dialects.openai.common import (
    After,
    Chunks,
    ItemList,
    JsonBody,
    Limit,
    Order,
    answer_of,
    body_of,
    cut,
    farewell,
    followed,
    id_path,
    interrupt,
    placed,
    read_answer,
    router,
    streamed,
    whole,
)
from apps.api.dialects.openai.errors import documented, refused, unknown
from apps.api.dialects.openai.history import named, of_input, uuid_of
from apps.api.dialects.openai.items import Answer, frame_of
from apps.api.dialects.openai.options import Options, chosen, schema_of, told, tools_of
from apps.api.dialects.openai.sending import (
    SURFACE,
    Asked,
    Repetition,
    Started,
    remember,
    require,
    send,
    with_settled,
)
from apps.api.errors import ApiError, Conflict, NotFound
from apps.api.web.answer import Json
from apps.api.web.callers import Prompter, Reader, Writer
from apps.api.web.following import finished
from apps.api.web.route import CoreDep, stream_of

routes = router()

STOP_SECONDS = 20.0
"""Seconds that a request waits for a response that it cancels: an agent that does not end is killed after 5."""


class ResponseObject(BaseModel):
    """A response, in OpenAI's own fields: see the `openai` package."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(examples=["resp_0f0e4c5cc6a14d8e9c1d5a1b2c3d4e5f"])
    object: str = Field(examples=["response"])
    created_at: int = Field(examples=[1780000000])
    status: Literal["queued", "in_progress", "completed", "failed", "incomplete", "cancelled"]
    output: list[dict[str, Any]]


class Deleted(BaseModel):
    """What is there no longer."""

    id: str = Field(examples=["resp_0f0e4c5cc6a14d8e9c1d5a1b2c3d4e5f"])
    object: str = Field(examples=["response"])
    deleted: bool = Field(examples=[True])


_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The response; with `stream` its events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": "event: response.created\n"}},
    }
}

ResponseId = Annotated[str, id_path("response")]


# --- to create one -------------------------------------------------------------------------------------------------


@routes.post(
    "/responses",
    response_model=ResponseObject,
    openapi_extra=body_of("ResponseRequest"),
    responses={**_STREAMED, **documented(404, 409, 413, 502, 504)},
)
async def create_response(request: Request, core: CoreDep, caller: Prompter, body: JsonBody) -> Response:
    """Answer text or items; behind another response, in a conversation, or from a history that is sent whole.

    With `background` the answer comes at once, and the response is read by its id, from any instance.
    """
    wanted = schemas.read(schemas.ResponseRequest, body, schemas.RESPONSES_OTHERS)
    if wanted.background and wanted.store is False:
        raise refused("background", "background needs store: nobody could read the response.", "invalid_value")
    asked = await _asked(request, core, caller, wanted, body)
    with stream_of(request, caller, "write") as held:
        started = await send(asked)
        if asked.conversation is not None and asked.told and not (started.settled or started.again):
            await conversations.told(core, caller.tenant_id, asked.conversation)
        answer, started = answer_of(started.name or _as_named(asked.name, started), started.run)
        if wanted.stream:
            chunks = _told(asked, started, answer)
            return streamed(request, core, caller, started, chunks, held, stops=not wanted.background)
        if not wanted.background:
            await whole(request, core, caller, started, answer, held)
            await _keep(asked, started, answer)
    return Json(answer.shown(), headers=request.state.limit_headers)


def _as_named(name: Name | None, started: Started) -> Named:
    assert name is not None  # noqa: S101 - each response has one
    given = with_settled(name, started.settled)
    return Named(given.text, started.run.session_id, started.run.run_id, dict(given.data))


async def _asked(
    request: Request, core: Core, caller: Principal, wanted: schemas.ResponseRequest, body: dict[str, Any]
) -> Asked:
    history = of_input(wanted.input)
    parent, conversation = None, None
    if wanted.previous_response_id is not None:
        if wanted.conversation is not None:
            raise refused("previous_response_id", "previous_response_id and conversation exclude each other.")
        parent = await find(core, caller, wanted.previous_response_id, "previous_response_id")
    elif wanted.conversation is not None:
        conversation = await conversations.of_request(core, caller, wanted.conversation)
    preset, model = await chosen(core, caller, wanted.model)
    if preset is not None and conversation is not None:
        raise refused("model", "A conversation has no preset here: name a model.")
    tools = tools_of(wanted.tools, wanted.tool_choice, wanted.parallel_tool_calls, flat=True)
    given = wanted.text.format if wanted.text else None
    options = Options(
        preset,
        model,
        "\n\n".join([*([wanted.instructions] if wanted.instructions else []), *history.instructions]) or None,
        *tools,
        schema=schema_of(given, "text.format", flat=True),
        effort=wanted.reasoning.effort if wanted.reasoning else None,
    )
    response_id = uuid4()
    shown = _echoed(wanted, body, conversation)
    data = {
        "created_at": int(clock.now().timestamp()),
        "background": bool(wanted.background),
        "structured": options.structured,
        "stored": wanted.store is not False,
        "shown": shown,
        "input": conversations.kept(wanted.input, response_id.hex),
    }
    return Asked(
        core,
        caller,
        options,
        history,
        "input",
        about_of(caller, preset, wanted.user, wanted.safety_identifier),
        Repetition.of(request, caller, body),
        Name(SURFACE, named("response", response_id), data),
        parent,
        conversation,
        await conversations.untold(core, caller.tenant_id, conversation) if conversation else (),
    )


def _echoed(wanted: schemas.ResponseRequest, body: dict[str, Any], conversation: Named | None) -> dict[str, Any]:
    reasoning = body.get("reasoning") or {}
    return {
        "model": wanted.model,
        "instructions": wanted.instructions,
        "metadata": wanted.metadata or {},
        "parallel_tool_calls": wanted.parallel_tool_calls is not False,
        "previous_response_id": wanted.previous_response_id,
        "conversation": {"id": conversation.text} if conversation else None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "service_tier": body.get("service_tier") or "default",
        "store": wanted.store is not False,
        "temperature": 1.0,
        "text": {"format": (body.get("text") or {}).get("format") or {"type": "text"}},
        "tool_choice": wanted.tool_choice or "auto",
        "tools": [told(tool) for tool in wanted.tools or ()],
        "top_p": 1.0,
        "truncation": "disabled",
        "user": wanted.user,
    }


async def _told(asked: Asked, started: Started, answer: Answer) -> Chunks:
    async with aclosing(_events(asked.core, asked.caller.tenant_id, started, answer, -1)) as events:
        async for chunk in events:
            if answer.over:
                await _keep(asked, started, answer)
            yield chunk


async def _events(core: Core, tenant_id: UUID, started: Started, answer: Answer, after: int) -> AsyncGenerator[bytes]:
    """The events of a response whose numbers are greater."""
    yield _written(answer.begin(), after)
    try:
        async with aclosing(followed(core, tenant_id, started, answer)) as steps:
            async for events in steps:
                yield _written(events, after)
    except ApiError as error:
        yield farewell(error)


def _written(events: Sequence[dict[str, Any]], after: int) -> bytes:
    return b"".join(frame_of(event) for event in events if event["sequence_number"] > after)


async def _keep(asked: Asked, started: Started, answer: Answer) -> None:
    """What is left of an answer that is over: nothing where its client wants that, else how it is gone on with."""
    if answer.reading.status == "waiting":
        return
    assert asked.name is not None  # noqa: S101 - each response has one
    if not asked.name.data["stored"]:
        await _forget(asked.core, asked.caller.tenant_id, asked.name.text, started.run.session_id)
    elif asked.parent is None and asked.conversation is None:
        await remember(asked, started, answer.said)


async def _forget(core: Core, tenant_id: UUID, text: str, session_id: UUID) -> None:
    """Take a response away, and its session unless others are of it."""
    await names.take(core.db, tenant_id, SURFACE, text)
    left = await names.of_session(core.db, tenant_id, session_id, SURFACE)
    if any(name.text.startswith(("resp_", "conv_")) for name in left):
        return
    with suppress(Conflict, NotFound):
        await deletion.delete(core.db, tenant_id, session_id, unless_busy=True)
        core.forget(tenant_id, session_id)


# --- to come back to one -------------------------------------------------------------------------------------------


async def find(core: Core, caller: Principal, text: str, param: str | None = None) -> Named:
    """A response of the caller's. Raises NotFound, Forbidden."""
    found = (await names.find(core.db, caller.tenant_id, SURFACE, text)).get(text)
    if uuid_of("response", text) is None or found is None or found.run_id is None:
        raise unknown("response", text, param)
    await require(core, caller, found)
    return found


@routes.get("/responses/{response_id}", response_model=ResponseObject, responses={**_STREAMED, **documented(404)})
async def get_response(
    request: Request,
    core: CoreDep,
    caller: Reader,
    response_id: ResponseId,
    stream: Annotated[bool, Query(description="Its events, from the first one on, then as they come.")] = False,
    starting_after: Annotated[
        int, Query(ge=-1, le=2**53, description="With `stream`: events with greater numbers only.")
    ] = -1,
) -> Response:
    """A response as it is now; or with `stream` its events, whose numbers are the same each time."""
    found = await find(core, caller, response_id)
    if not stream:
        answer, _ = await read_answer(core, caller.tenant_id, found)
        return Json(answer.shown())
    answer, started = await placed(core, caller.tenant_id, found)
    with stream_of(request, caller, "read") as held:
        chunks = _events(core, caller.tenant_id, started, answer, starting_after)
        return streamed(request, core, caller, started, chunks, held, stops=False)


@routes.post("/responses/{response_id}/cancel", response_model=ResponseObject, responses=documented(404, 409, 504))
async def cancel_response(request: Request, core: CoreDep, caller: Writer, response_id: ResponseId) -> Response:
    """Stop a response. One that is over stays as it is."""
    found = await find(core, caller, response_id)
    answer, started = await read_answer(core, caller.tenant_id, found)
    if not answer.over:
        await interrupt(core, caller.tenant_id, started.run.run_id)
        await finished(request, core, caller, started.run, STOP_SECONDS)
        answer, _ = await read_answer(core, caller.tenant_id, found)
    return Json(answer.shown())


@routes.delete("/responses/{response_id}", response_model=Deleted, responses=documented(404))
async def delete_response(core: CoreDep, caller: Writer, response_id: ResponseId) -> Response:
    """Take a response away; it is stopped first. Its session goes with it, unless others are of it."""
    found = await find(core, caller, response_id)
    answer, started = await read_answer(core, caller.tenant_id, found, expired=True)
    if not answer.over:
        await interrupt(core, caller.tenant_id, started.run.run_id)
    await _forget(core, caller.tenant_id, found.text, found.session_id)
    return Json({"id": found.text, "object": "response", "deleted": True})


@routes.get("/responses/{response_id}/input_items", response_model=ItemList, responses=documented(404))
async def list_input_items(
    core: CoreDep,
    caller: Reader,
    response_id: ResponseId,
    after: After = None,
    limit: Limit = 20,
    order: Order = None,
) -> Response:
    """What a response was given, the newest first unless `order` is `asc`. Data of pictures and files is left out."""
    found = await find(core, caller, response_id)
    items = found.data["input"] if order == "asc" else found.data["input"][::-1]
    return Json(cut(items, after, limit, lambda id_: unknown("item", id_, "after")))
