"""What the surfaces for other clients add to a warm turn's first delta, beside the native API, one after the other."""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import orjson

from tests.bench import turns
from tests.bench.client import Connection
from tests.bench.report import Report, percentile
from tests.bench.stage import Stage

LIMIT_MS = 1.0
"""That a surface may add to the native API's first delta, at the median."""

MODEL = "claude-sonnet-5-5"
MANAGED = "/compat/managed-agents/v1"
WAIT = 60.0


class Surface(ABC):
    """One conversation through one surface.

    Attributes:
        delta: what the first piece of text on the wire has in it, and what comes before has not.
        end: the same of what ends a turn.
    """

    name: str
    delta: bytes
    end: bytes

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told = b""

    @abstractmethod
    async def prepare(self) -> None:
        """Make what a conversation needs, before the clock starts."""

    @abstractmethod
    def request(self) -> tuple[str, dict[str, Any]]:
        """The next turn's: path and body of a POST."""

    async def turn(self) -> float:
        """Seconds from sending the next message to the first piece of the answer's text."""
        first: list[float] = []
        request = self._connection.prepare("POST", *self.request())
        feed = self._feed(first)
        began = time.monotonic()
        status, body = await self._connection.send(request, feed)
        if status != 200 or not first or self.end not in self._told:
            raise RuntimeError(f"{self.name}: {status}: {(body or self._told)[:300]!r}")
        return first[0] - began

    def _feed(self, first: list[float]) -> Callable[[bytes], None]:
        self._told = b""

        def feed(data: bytes) -> None:
            self._told += data
            if not first and self.delta in self._told:
                first.append(time.monotonic())

        return feed

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, answer = await self._connection.send(self._connection.prepare("POST", path, body))
        if status not in (200, 201):
            raise RuntimeError(f"{self.name}: {path}: {status}: {answer[:300]!r}")
        made: dict[str, Any] = orjson.loads(answer)
        return made


class Native(Surface):
    """Ours."""

    name, delta, end = "native", turns.PARTIAL, turns.DONE

    async def prepare(self) -> None:
        self._path = f"/api/v1/sessions/{(await self._post('/api/v1/sessions', {}))['session_id']}/resume"

    def request(self) -> tuple[str, dict[str, Any]]:
        return self._path, {"prompt": turns.PROMPT}


class Chat(Surface):
    """OpenAI's chat completions, whose client keeps the history."""

    name, delta, end = "OpenAI chat completions", b'"delta":{"content":', b"[DONE]"

    async def prepare(self) -> None:
        self._messages: list[dict[str, str]] = []

    def request(self) -> tuple[str, dict[str, Any]]:
        if self._told:
            pieces = re.findall(rb'"content":("(?:[^"\\]|\\.)*")', self._told)
            said = "".join(orjson.loads(piece) for piece in pieces)
            self._messages.append({"role": "assistant", "content": said})
        self._messages.append({"role": "user", "content": turns.PROMPT})
        body = {"model": MODEL, "messages": self._messages, "stream": True}
        return "/compat/openai/v1/chat/completions", body


class Responses(Surface):
    """OpenAI's responses, in a conversation that the server keeps."""

    name, delta, end = "OpenAI responses", b"response.output_text.delta", b"response.completed"

    async def prepare(self) -> None:
        self._conversation = (await self._post("/compat/openai/v1/conversations", {}))["id"]

    def request(self) -> tuple[str, dict[str, Any]]:
        body = {"model": MODEL, "input": turns.PROMPT, "conversation": self._conversation, "stream": True}
        return "/compat/openai/v1/responses", body


class AiSdk(Surface):
    """What `useChat` speaks."""

    name, delta, end = "AI SDK", b'"type":"text-delta"', b"[DONE]"

    async def prepare(self) -> None:
        self._id = uuid4().hex

    def request(self) -> tuple[str, dict[str, Any]]:
        message = {"id": uuid4().hex, "role": "user", "parts": [{"type": "text", "text": turns.PROMPT}]}
        return "/ui/chat", {"id": self._id, "messages": [message]}


class AgUi(Surface):
    """What `HttpAgent` speaks."""

    name, delta, end = "AG-UI", b'"type":"TEXT_MESSAGE_CONTENT"', b'"type":"RUN_FINISHED"'

    async def prepare(self) -> None:
        self._id = f"bench-{uuid4().hex[:8]}"
        await self._post("/api/v1/agents", {"name": self._id})

    def request(self) -> tuple[str, dict[str, Any]]:
        message = {"id": uuid4().hex, "role": "user", "content": turns.PROMPT}
        return f"/ag-ui/{self._id}", {"threadId": self._id, "runId": uuid4().hex, "messages": [message]}


class Managed(Surface):
    """Managed Agents: what is sent and what is told go through two connections."""

    name, delta, end = "Managed Agents", b'"type":"event_delta"', b'"type":"session.status_idle"'

    def __init__(self, connection: Connection, events: Connection) -> None:
        super().__init__(connection)
        self._events = events

    async def prepare(self) -> None:
        agent = await self._post(f"{MANAGED}/agents", {"name": "bench", "model": MODEL})
        environment = await self._post(f"{MANAGED}/environments", {"name": "bench"})
        wanted = {"agent": agent["id"], "environment_id": environment["id"]}
        self._session = f"{MANAGED}/sessions/{(await self._post(f'{MANAGED}/sessions', wanted))['id']}"
        self._first, self._over = list[float](), asyncio.Event()
        path = f"{self._session}/events/stream?event_deltas[]=agent.message"
        self._events.follow(self._events.prepare("GET", path), self._hear)

    def request(self) -> tuple[str, dict[str, Any]]:
        message = {"type": "user.message", "content": [{"type": "text", "text": turns.PROMPT}]}
        return f"{self._session}/events", {"events": [message]}

    def _hear(self, data: bytes) -> None:
        self._told += data
        if not self._first and self.delta in self._told:
            self._first.append(time.monotonic())
        if self.end in self._told:
            self._over.set()

    async def turn(self) -> float:
        self._told, self._first = b"", []
        self._over.clear()
        request = self._connection.prepare("POST", *self.request())
        began = time.monotonic()
        status, body = await self._connection.send(request)
        if status != 200:
            raise RuntimeError(f"{self.name}: {status}: {body[:300]!r}")
        await asyncio.wait_for(self._over.wait(), WAIT)
        if not self._first:
            raise RuntimeError(f"{self.name}: no delta: {self._told[:300]!r}")
        return self._first[0] - began


async def added(stage: Stage, report: Report, rounds: int) -> None:
    """Warm turns through each surface, in turn, by clients of an instance that does not run the agents.

    Args:
        rounds: turns of each; fewer than RECYCLE_AFTER_TURNS, whose next turn would be a cold one.
    """
    opened = [await stage.connect(stage.front) for _ in range(7)]
    kinds: tuple[type[Surface], ...] = (Native, Chat, Responses, AiSdk, AgUi)
    made: list[Surface] = [kind(connection) for kind, connection in zip(kinds, opened[:5], strict=True)]
    made.append(Managed(*opened[5:]))
    taken: dict[str, list[float]] = {surface.name: [] for surface in made}
    for surface in made:
        await surface.prepare()
        for _ in range(turns.WARM_UP):
            await surface.turn()
    for _ in range(rounds):
        for surface in made:
            taken[surface.name].append(await surface.turn() * 1000)
    for connection in opened:
        connection.close()
    report.head("first delta of a warm turn, ms")
    for name, values in taken.items():
        report.row(name, values)
    native = percentile(taken[Native.name], 0.5)
    for name, values in taken.items():
        if name != Native.name:
            report.at_most(f"first delta, {name}, added to native", percentile(values, 0.5) - native, LIMIT_MS, "ms")
