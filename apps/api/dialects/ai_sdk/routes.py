"""The AI SDK's UI message stream: what `useChat` and `DefaultChatTransport` speak. See docs/ai-sdk.md."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Path, Request, Response

from apps.api.auth import Principal
from apps.api.core.config.names import Text
from apps.api.core.context import Core
from apps.api.core.events.follow import KEEP_ALIVE_INTERVAL, SessionDeleted
from apps.api.core.fleet import cancellation
from apps.api.dialects.ai_sdk import schemas as wire
from apps.api.dialects.ai_sdk import turns
from apps.api.dialects.ai_sdk.translate import DONE, Chunks, Message, error, line
from apps.api.errors import NotFound
from apps.api.web import attending, errors
from apps.api.web.asking import Waiting, until_asked
from apps.api.web.attending import Turn
from apps.api.web.callers import Reader, Writer
from apps.api.web.document import Description
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.failures import CODES, ErrorAnswer, documented, responses
from apps.api.web.opened import Held
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.sse import EventStream

PREFIX = "/ui"
TAG = "chat"
DESCRIPTION = Description(
    "Claude Agent API: AI SDK UI",
    "What `useChat` of the AI SDK speaks, versions 6 and 7. See docs/ai-sdk.md.",
    lambda path: path.startswith(f"{PREFIX}/"),
    {TAG: "One chat is one session."},
    models=(ErrorAnswer,),
    words=CODES,
    shared={"responses": responses(400, 404, 409, 410, 413)},
)

error_shape = errors.native
router = Router(route_class=ContentRoute)

ChatId = Annotated[Text, Path(min_length=1, max_length=200, description="The chat's id.")]

_EXAMPLE = 'data: {"type":"start","messageId":"…"}\n\ndata: {"type":"text-delta","id":"text-1","delta":"Hi"}\n\n'
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`data:` lines, each a chunk; the last one is `[DONE]`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}},
    }
}


@router.post("/chat", tags=[TAG], response_class=Response, responses={**_STREAM, **documented(400, 404, 409, 410, 413)})
async def chat(request: Request, core: CoreDep, caller: Writer, body: wire.ChatBody) -> EventStream:
    """Send a message, edit one, have one answered again, or answer what the agent asks; and stream what it does.

    The stream ends where somebody must act: the next request, which brings what was decided, goes on with the same run.
    A chat that is edited, or answered again, goes on in a fork. The run goes on when the client leaves.
    """
    with stream_of(request, caller, "write") as held:
        turn = await turns.turn(request, core, caller, body)
        return _stream(request, core, caller, turn, held, body.on_disconnect)


@router.get(
    "/chat/{chat_id:path}/stream",
    tags=[TAG],
    response_class=Response,
    responses={**_STREAM, 204: {"description": "Nothing runs or waits in this chat."}, **documented(404, 410)},
)
async def resume(request: Request, core: CoreDep, caller: Reader, chat_id: ChatId) -> Response:
    """The message that is being made, from its beginning; up to where somebody must act. 204 also for a chat that is
    not known: the client shows its user anything else as an error."""
    with stream_of(request, caller, "read") as held:
        turn = await turns.live(core, caller, chat_id)
        return Response(status_code=204) if turn is None else _stream(request, core, caller, turn, held)


@router.post("/chat/{chat_id:path}/stop", tags=[TAG], responses=documented(404, 409))
async def stop(core: CoreDep, caller: Writer, chat_id: ChatId) -> wire.Stopped:
    """Interrupt the run of a chat. 409 when nothing runs or waits. The client's own `stop` only leaves: send this."""
    named = await turns.found(core, caller, chat_id)
    if named is None:
        raise NotFound.of("session")
    sent = await cancellation.interrupt(core, caller.tenant_id, named.session_id)
    return wire.Stopped.model_validate({"run_id": sent.run_id, "status": sent.status})


def _stream(
    request: Request, core: Core, caller: Principal, turn: Turn, held: Held, on_disconnect: str = "continue"
) -> EventStream:
    headers = {
        "X-Vercel-AI-UI-Message-Stream": "v1",
        "X-Session-ID": str(turn.run.session_id),
        "X-Run-ID": str(turn.run.run_id),
        **getattr(request.state, "limit_headers", {}),
    }
    left = attending.leaving(core, caller, turn.run.run_id, on_disconnect)
    farewell = lambda why: line(error(why.message)) + DONE  # noqa: E731
    return EventStream(_chunks(core, caller, turn), held, farewell=farewell, headers=headers, left=left)


def _lines(chunks: Chunks) -> bytes:
    return b"".join(map(line, chunks))


async def _chunks(core: Core, caller: Principal, turn: Turn) -> AsyncGenerator[bytes]:
    message = Message(str(turn.run.session_id), str(turn.run.run_id))
    waiting, told, begun = Waiting(settled=turn.answered), time.monotonic(), turn.after is None
    if begun:
        yield _lines(message.begin())
    batches = until_asked(core, caller.tenant_id, turn.run, waiting, gapless=True)
    try:
        async with aclosing(batches):
            async for batch in batches:
                lines = []
                for frame in batch:
                    if not begun and frame.seq > (turn.after or 0):
                        lines, begun = [_lines(message.begin())], True
                    chunks = message.take(frame)
                    lines += [_lines(chunks)] if begun else []
                if (text := b"".join(lines)) or not batch or time.monotonic() - told >= KEEP_ALIVE_INTERVAL:
                    yield text
                    told = time.monotonic()
    except SessionDeleted:
        yield line(error("This session has been deleted.")) + DONE
        return
    yield (b"" if begun else _lines(message.begin())) + (b"" if waiting.over else _lines(message.pause())) + DONE
