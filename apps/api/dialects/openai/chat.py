"""Chat completions: a history of messages comes in, the next message goes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import Any
from uuid import UUID, uuid4

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from apps.api import clock
from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.dialects.openai import schemas
from apps.api.dialects.openai.common import (
    DONE,
    Chunks,
    JsonBody,
    body_of,
    farewell,
    followed,
    frame,
    router,
    streamed,
    whole,
)
from apps.api.dialects.openai.errors import documented, refused
from apps.api.dialects.openai.history import of_messages
from apps.api.dialects.openai.options import Options, chosen, schema_of, tools_of
from apps.api.dialects.openai.reading import INCOMPLETE, Growing, Reading, Step
from apps.api.dialects.openai.sending import Asked, Repetition, Started, remember, send
from apps.api.errors import ApiError, RunFailed
from apps.api.web.answer import Json
from apps.api.web.callers import Prompter
from apps.api.web.route import CoreDep, stream_of

routes = router()

_REASONS = {"max_messages": "length", "max_output_tokens": "length", "content_filter": "content_filter"}


class ChatCompletion(BaseModel):
    """The next message, in OpenAI's own fields: see the `openai` package."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(examples=["chatcmpl-0f0e4c5cc6a14d8e9c1d5a1b2c3d4e5f"])
    object: str = Field(examples=["chat.completion"])
    created: int = Field(examples=[1780000000])
    model: str = Field(examples=["claude-sonnet-5-5"])
    choices: list[dict[str, Any]]
    usage: dict[str, Any]


class Completion(Growing):
    """A chat completion as it grows: the deltas of its one choice."""

    def __init__(self, model: str, settled: frozenset[UUID], *, structured: bool) -> None:
        super().__init__(Reading(settled, structured=structured))
        self.id, self.created, self.model = f"chatcmpl-{uuid4().hex}", int(clock.now().timestamp()), model
        self.texts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self._inside = False

    def _step(self, step: Step) -> Iterator[dict[str, Any]]:
        spoken = "structured" if self.reading.structured else "text"
        if step.kind == "delta" and step.what == spoken:
            yield from self._say(step.text)
        elif step.kind == "block" and step.what == spoken:
            # Deltas are not durable: what was lost of them is in the text that they build.
            yield from self._say(step.text[len(self.texts[-1]) if self._inside else 0 :])
            self._inside = False
        elif step.kind == "call":
            call = {"id": step.call_id, "type": "function", "function": {"name": step.what, "arguments": step.text}}
            yield {"tool_calls": [{"index": len(self.calls), **call}]}
            self.calls.append(call)

    def _say(self, text: str) -> Iterator[dict[str, Any]]:
        if not text:
            return
        apart = "" if self._inside or not self.texts else "\n\n"
        if not self._inside:
            self.texts.append("")
            self._inside = True
        self.texts[-1] += text
        yield {"content": apart + text}

    @property
    def finish_reason(self) -> str:
        """Raises RunFailed."""
        error = self.reading.error
        if self.reading.asks and self.reading.status == "waiting":
            return "tool_calls"
        if self.reading.status == "failed":
            code = (error or {}).get("code", "execution_error")
            if code not in INCOMPLETE:
                told = error or {"message": "The run failed."}
                raise RunFailed(code, told["message"], {}, told.get("retry_after_seconds"))
            return _REASONS[INCOMPLETE[code]]
        return "stop"

    def usage(self) -> dict[str, Any]:
        used = self.reading.tokens()
        return {
            "prompt_tokens": used["input"],
            "completion_tokens": used["output"],
            "total_tokens": used["input"] + used["output"],
            "prompt_tokens_details": {"cached_tokens": used["cached"], "cache_write_tokens": used["written"]},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def chunk(self, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model, **more}

    def delta(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return frame(self.chunk(choices=[choice]))

    def shown(self, echoed: dict[str, Any]) -> dict[str, Any]:
        """The whole of it. Raises RunFailed."""
        reason = self.finish_reason
        text = "\n\n".join(self.texts)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if self.calls else "")}
        message |= {"refusal": None, "annotations": []}
        if self.calls:
            message["tool_calls"] = self.calls
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        made = {**self.chunk(), "object": "chat.completion", "choices": [choice], "usage": self.usage()}
        return {**made, "system_fingerprint": None, **echoed}


@routes.post(
    "/chat/completions",
    response_model=ChatCompletion,
    openapi_extra=body_of("ChatRequest"),
    responses={
        200: {
            "description": "The next message; with `stream` as `data:` lines, each a chunk, and `[DONE]`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": "data: [DONE]\n\n"}},
        },
        **documented(404, 409, 413, 502, 504),
    },
)
async def create_chat_completion(request: Request, core: CoreDep, caller: Prompter, body: JsonBody) -> Response:
    """Answer a conversation that is sent whole.

    A conversation that was answered here before goes on in the session that it is, with its files; one that was begun
    elsewhere is told to the agent once. `tool_calls` end the answer while the run waits for the messages of your tools.
    """
    wanted = schemas.read(schemas.ChatRequest, body, schemas.CHAT_OTHERS)
    if wanted.stream_options is not None and not wanted.stream:
        raise refused("stream_options", "stream_options goes with stream: true only.", "invalid_value")
    asked = await _asked(request, core, caller, wanted, body)
    with stream_of(request, caller, "write") as held:
        started = await send(asked)
        answer = Completion(wanted.model, started.settled, structured=asked.options.structured)
        if wanted.stream:
            usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
            return streamed(
                request, core, caller, started, _chunks(asked, started, answer, usage=usage), held, stops=True
            )
        await whole(request, core, caller, started, answer, held)
    shown = answer.shown({name: body[name] for name in ("metadata", "service_tier") if body.get(name) is not None})
    await _keep(asked, started, answer)
    return Json(shown, headers=request.state.limit_headers)


async def _asked(
    request: Request, core: Core, caller: Principal, wanted: schemas.ChatRequest, body: dict[str, Any]
) -> Asked:
    history = of_messages(wanted.messages)
    preset, model = await chosen(core, caller, wanted.model)
    tools = tools_of(wanted.tools, wanted.tool_choice, wanted.parallel_tool_calls, flat=False)
    options = Options(
        preset,
        model,
        "\n\n".join(history.instructions) or None,
        tools.functions,
        schema=schema_of(wanted.response_format, "response_format", flat=False),
        effort=wanted.reasoning_effort,
    )
    about = about_of(caller, preset, wanted.user, wanted.safety_identifier)
    return Asked(core, caller, options, history, "messages", about, Repetition.of(request, caller, body))


def about_of(caller: Principal, preset: str | None, *users: str | None) -> list[Any]:
    """What tells conversations apart whose words are the same: no other key, and no other user, gets into a session."""
    return [str(caller.key_id), preset, *users]


async def _chunks(asked: Asked, started: Started, answer: Completion, *, usage: bool) -> Chunks:
    yield answer.delta({"role": "assistant", "content": "", "refusal": None})
    try:
        async with aclosing(followed(asked.core, asked.caller.tenant_id, started, answer)) as steps:
            async for deltas in steps:
                yield b"".join(answer.delta(delta) for delta in deltas)
        reason = answer.finish_reason
    except ApiError as error:
        yield farewell(error)
        return
    await _keep(asked, started, answer)
    yield answer.delta({}, reason)
    if usage:
        yield frame(answer.chunk(choices=[], usage=answer.usage()))
    yield DONE


async def _keep(asked: Asked, started: Started, answer: Completion) -> None:
    if answer.reading.status != "waiting":
        await remember(asked, started, answer.texts)
