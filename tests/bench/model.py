"""The demo model with one more command, `clock N words every M ms`: each word is the time at which it was sent.

The time is CLOCK_MONOTONIC in nanoseconds, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import AsyncIterator

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from apps.demo_model.app import post_message
from apps.demo_model.conversation import read
from apps.demo_model.server import Server
from apps.demo_model.wire import Text, frames

_CLOCK = re.compile(r"clock (\d+) words every (\d+) ms")


async def _message(request: Request) -> Response:
    asked = orjson.loads(await request.body())
    prompts = read(asked).prompts
    found = _CLOCK.fullmatch(prompts[-1].strip()) if prompts else None
    if found is None or not asked.get("stream"):
        return await post_message(request)
    return StreamingResponse(_words(str(asked["model"]), int(found[1]), int(found[2])), media_type="text/event-stream")


async def _words(model: str, count: int, gap_ms: int) -> AsyncIterator[bytes]:
    """The frames of a one-word reply, its delta replaced by `count` timed ones on a fixed schedule."""
    whole = [frame for frame in frames((Text("x"),), model, 1) if isinstance(frame, bytes)]
    at = next(i for i, frame in enumerate(whole) if b"content_block_delta" in frame)
    yield b"".join(whole[:at])
    started = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(started + number * gap_ms / 1000 - time.monotonic(), 0))
        delta = {"type": "text_delta", "text": f"{time.monotonic_ns()} "}
        event = {"type": "content_block_delta", "index": 0, "delta": delta}
        yield b"event: content_block_delta\ndata: " + orjson.dumps(event) + b"\n\n"
    yield b"".join(whole[at + 1 :])


def main() -> None:
    """Serve on a free loopback port, which is printed, until SIGTERM."""
    server = Server()
    application = server.config.app
    assert isinstance(application, Starlette)
    application.router.routes.insert(0, Route("/v1/messages", _message, methods=["POST"]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        server.run([listener])


if __name__ == "__main__":
    main()
