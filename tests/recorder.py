"""What the model was asked: a wrap around the demo model that keeps the newest requests."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

KEPT = 300
"""Requests; one has some 100 kB."""


@dataclass(frozen=True)
class Asked:
    """One request for messages."""

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """All of its body."""
        return orjson.dumps(self.body).decode()

    @property
    def tools(self) -> set[str]:
        """Names of the tools that the model is offered."""
        return {tool["name"] for tool in self.body.get("tools", ())}


class Recorder:
    """Keeps what is sent to POST /v1/messages."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, dict[str, str], bytes]] = deque(maxlen=KEPT)
        self.count = 0

    def of(self, conversation: str, after: int = 0) -> list[Asked]:
        """What an agent has asked in a conversation (`sdk_session_id` of its `init`), oldest first, but for the first
        `after` requests of all."""
        mine = [kept for kept in list(self._kept) if kept[0] > after and conversation.encode() in kept[2]]
        found = [Asked(headers, orjson.loads(raw)) for _, headers, raw in mine]
        return [asked for asked in found if conversation in str(asked.body.get("metadata"))]

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The app, with everything that it is asked kept."""

        async def recording(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] != "/v1/messages":
                return await app(scope, receive, send)
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            parts: list[bytes] = []

            async def reading() -> Any:
                message = await receive()
                if message["type"] == "http.request":
                    parts.append(message.get("body", b""))
                    if not message.get("more_body"):
                        self.count += 1
                        self._kept.append((self.count, headers, b"".join(parts)))
                return message

            return await app(scope, reading, send)

        return recording
