"""AG-UI 1.0: what `HttpAgent` speaks, and CopilotKit and assistant-ui by it. See docs/ag-ui.md."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Path, Request, Response

from apps.api import clock
from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.core.events.follow import KEEP_ALIVE_INTERVAL, SessionDeleted
from apps.api.dialects.ag_ui import schemas as wire
from apps.api.dialects.ag_ui import turns
from apps.api.dialects.ag_ui.translate import Event, Events, Run, failed, line
from apps.api.dialects.ag_ui.turns import Told
from apps.api.web import attending, errors
from apps.api.web.asking import Waiting, until_asked
from apps.api.web.attending import Turn
from apps.api.web.callers import Writer
from apps.api.web.document import Description
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.failures import CODES, ErrorAnswer, documented, responses
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.sse import EventStream

PREFIX = "/ag-ui"
TAG = "threads"
DESCRIPTION = Description(
    "Claude Agent API: AG-UI",
    "What `HttpAgent` of AG-UI speaks, and so CopilotKit and assistant-ui. See docs/ag-ui.md.",
    lambda path: path.startswith(f"{PREFIX}/"),
    {TAG: "One thread is one session."},
    models=(ErrorAnswer,),
    words=CODES,
    shared={"responses": responses(400, 404, 409, 410, 413)},
)

error_shape = errors.native
router = Router(route_class=ContentRoute)

Agent = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}(@[1-9][0-9]{0,8})?$", description="A preset: name or id, `@version`."
    ),
]

_EXAMPLE = 'data: {"type":"RUN_STARTED","threadId":"thread-1","runId":"run-1"}\n\n'
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`data:` lines, each an event of AG-UI 1.0.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}},
    }
}


@router.post(
    "/{agent}", tags=[TAG], response_class=Response, responses={**_STREAM, **documented(400, 404, 409, 410, 413)}
)
async def run_agent(
    request: Request, core: CoreDep, caller: Writer, agent: Agent, body: wire.RunAgentInput
) -> EventStream:
    """Send a message, or answer what the agent asks, and stream what it does; without either, the thread's messages and
    what is live of it.

    The stream ends where somebody must act: with interrupts for a person, with `pendingToolCallIds` for the client's
    own tools. The next request, which brings the answers, goes on with the same run. The run goes on when the client
    leaves.
    """
    with stream_of(request, caller, "write") as held:
        told = await turns.told(request, core, caller, agent, body)
        on_disconnect = body.forwardedProps.on_disconnect if body.forwardedProps else "continue"
        run = told.turn.run if told.turn else None
        left = attending.leaving(core, caller, run.run_id, on_disconnect) if run else None
        ids = {"X-Session-ID": str(run.session_id), "X-Run-ID": str(run.run_id)} if run else {}
        return EventStream(
            _chunks(core, caller, body, told),
            held,
            farewell=lambda why: line(failed(why.message, why.code)),
            headers={**ids, **getattr(request.state, "limit_headers", {})},
            left=left,
        )


def _now() -> int:
    return int(clock.timestamp() * 1000)


def _lines(events: Events) -> bytes:
    return b"".join(line(event) for event in events)


async def _chunks(core: Core, caller: Principal, body: wire.RunAgentInput, told: Told) -> AsyncGenerator[bytes]:
    ids = {"threadId": body.threadId, "runId": body.runId}
    first: Events = [{"type": "RUN_STARTED", **ids, "timestamp": _now()}]
    if told.messages is not None:
        first.append({"type": "MESSAGES_SNAPSHOT", "messages": told.messages})
    if told.state is not None:
        first.append({"type": "STATE_SNAPSHOT", "snapshot": told.state})
    if told.turn is None:
        yield _lines([*first, {"type": "RUN_FINISHED", **ids, "outcome": {"type": "success"}, "timestamp": _now()}])
        return
    run = told.turn.run
    value = {"session_id": str(run.session_id), "run_id": str(run.run_id)}
    yield _lines([*first, {"type": "CUSTOM", "name": "run", "value": value}])
    end: list[Event] = []
    try:
        async with aclosing(_of_run(core, caller, told.turn, end)) as lines:
            async for text in lines:
                yield text
    except SessionDeleted:
        end = [failed("This session has been deleted.", "session_deleted")]
    for event in end:
        yield line({**event, **(ids if event["type"] == "RUN_FINISHED" else {}), "timestamp": _now()})


async def _of_run(core: Core, caller: Principal, turn: Turn, end: list[Event]) -> AsyncGenerator[bytes]:
    """What a run is told as. `end` gets the event that ends the stream."""
    run, waiting = Run(str(turn.run.run_id)), Waiting(settled=turn.answered)
    begun, sent = turn.after is None, time.monotonic()
    batches = until_asked(core, caller.tenant_id, turn.run, waiting, gapless=True)
    async with aclosing(batches):
        async for batch in batches:
            events = Events()
            for frame in batch:
                if not begun and frame.seq > (turn.after or 0):
                    run.resume()
                    begun = True
                told = run.take(frame)
                events += told if begun else []
            if events or not batch or time.monotonic() - sent >= KEEP_ALIVE_INTERVAL:
                yield _lines(events)
                sent = time.monotonic()
    if waiting.over:
        end.append(run.end)
        return
    if not begun:
        run.resume()
    last, event = run.pause(waiting.open.values())
    end.append(event)
    yield _lines(last)
