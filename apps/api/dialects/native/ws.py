"""`WS /query/ws`: prompts, answers and events of many sessions on one connection.

Each message does what its HTTP route does, through the same functions. docs/websocket.md describes them for clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import structlog
from fastapi import WebSocket

from apps.api.auth import Principal
from apps.api.core import tasks
from apps.api.core.codec import encode
from apps.api.core.config.grants import Action
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame, Position
from apps.api.core.events.replay import Followed
from apps.api.core.sessions import runs, sessions
from apps.api.dialects.native import control, requests
from apps.api.dialects.native import ws_messages as wire
from apps.api.dialects.native.common import PREFIX
from apps.api.dialects.native.prompts import leaving, submit
from apps.api.dialects.native.schemas import PromptBody
from apps.api.dialects.native.stream import OneRun, run_batches, session_batches
from apps.api.errors import (
    ApiError,
    BadRequest,
    Forbidden,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
    ValidationError,
)
from apps.api.web.callers import acts, count_prompt, may_touch, presented_key, within_token
from apps.api.web.doors import Router
from apps.api.web.errors import error_response, from_exception, native
from apps.api.web.hosts import require_known_origin
from apps.api.web.opened import Held
from apps.api.web.route import caller_of, instance_of
from apps.api.web.sse import Leaving
from apps.api.web.ws import (
    AUTH_TIMEOUT,
    FAILED,
    RESTART,
    STRANGERS_BYTES,
    TOO_LARGE,
    Closed,
    Socket,
    known,
    refusal,
)

log = structlog.get_logger(__name__)

router = Router(prefix=PREFIX)

SECONDS_TO_AUTHENTICATE = 10.0
"""For the first message of a client that sent no key with the handshake."""

MAX_STREAMS = 64
"""Prompts and sessions that one connection may follow at once."""

MAX_COMMANDS = 16
"""Messages that may wait for an agent at once, of one connection. The next one is read later."""


def _text(message: dict[str, Any]) -> str:
    return encode(message).decode()


def event_text(frame: Frame) -> str:
    """An event as a message, around the bytes that SSE sends."""
    ident = b'"%s"' % str(frame.position).encode() if frame.raw.startswith(b"id: ") else b"null"
    return (b'{"id":%s,"event":"%s","data":%s}' % (ident, frame.type.encode(), frame.data)).decode()


@router.websocket("/query/ws")
async def query_ws(websocket: WebSocket) -> None:
    """Accept a client with a valid key, or one that will show its key; refuse others with the HTTP error."""
    instance, key = instance_of(websocket), presented_key(websocket)
    core = instance.core
    try:
        require_known_origin(websocket, core.settings.allowed_origins)
        if instance.probe.draining():
            raise Unavailable("This instance is stopping; connect again.", code="shutdown")
        caller = None if key is None else await _authenticated(websocket, key)
        held = instance.opened.hold("strangers" if caller is None else "sockets", caller)
    except Exception as error:
        found = from_exception(error, websocket.state.request_id)
        await websocket.send_denial_response(error_response(websocket.scope, found))
        return
    with held:
        connection = Connection(websocket, core, key, held)
        if caller is not None:
            known(websocket, caller)
        await websocket.accept()
        try:
            await connection.socket.close(await connection.serve())
        finally:
            await connection.leave()


async def _authenticated(websocket: WebSocket, key: str | None) -> Principal:
    caller = await caller_of(websocket, key, tokens=True)
    caller.require("read")
    return caller


@dataclass(frozen=True, slots=True)
class _Stream:
    session_id: UUID
    task: asyncio.Task[None]


class Connection:
    """What one client does on its connection, and what it follows."""

    def __init__(self, websocket: WebSocket, core: Core, key: str | None, held: Held) -> None:
        self._websocket, self._core, self._key, self._held = websocket, core, key, held
        self.socket = Socket(websocket)
        self._request_id: str = websocket.state.request_id
        self._streams: dict[UUID, _Stream] = {}  # by run, or by session when all of it is followed
        self._leaving: dict[UUID, Leaving] = {}
        self._commands = asyncio.Semaphore(MAX_COMMANDS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()

    async def serve(self) -> Closed:
        """Until the connection is over. Everything that it began has ended then; runs go on."""
        self._start(self._read(), "ws-read")
        self._start(self._drain(), "ws-drain")
        self._start(self._end_when_over(), "ws-over")
        try:
            return await self._over
        finally:
            await tasks.end(*self._tasks)

    async def leave(self) -> None:
        """Cancel the runs that were to end with their client, unless it is the server that ended the connection."""
        if self._over.done() and self._over.result().code == RESTART:
            return
        for outcome in await asyncio.gather(*(left() for left in self._leaving.values()), return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("ws.leaving_failed", error=outcome, request_id=self._request_id)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Closed as closed:
            self._end(closed)
        except Exception as error:
            from_exception(error, self._request_id)  # logs it
            self._end(Closed(FAILED, "the server failed; connect again and follow from the last id"))

    def _end(self, closed: Closed) -> None:
        if not self._over.done():
            self._over.set_result(closed)

    async def _drain(self) -> None:
        await asyncio.wait([self._held.draining])
        await self.socket.send([_text({"type": "draining"})])
        for key, stream in list(self._streams.items()):
            if key == stream.session_id:
                await self._unfollow(key)
        if not self._streams:
            self._held.end(None)

    async def _end_when_over(self) -> None:
        await asyncio.wait({self._held.over})
        why = self._held.why
        raise refusal(why) if why else Closed(RESTART, "this instance stops; connect again and follow from the last id")

    # --- messages ---------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        if self._key is None:
            await self._admit()
        while True:
            text = await self.socket.receive()
            message: dict[str, Any] = {}
            try:
                message = await wire.parse(text)
                await self._obey(message)
            except Closed:
                raise
            except Exception as error:
                await self._tell_error(message, error)

    async def _admit(self) -> None:
        try:
            async with asyncio.timeout(SECONDS_TO_AUTHENTICATE):
                text = await self.socket.receive()
        except TimeoutError as error:
            raise Closed(AUTH_TIMEOUT, "no key came in time") from error
        if len(text) > STRANGERS_BYTES:
            raise Closed(TOO_LARGE, "too large for a client that has shown no key")
        message: dict[str, Any] = {}
        try:
            message = await wire.parse(text)
            if message["type"] != "auth":
                raise Unauthorized('Send {"type": "auth", "api_key": …} first.')
            self._key = wire.checked(wire.Auth, message).api_key
            caller = await _authenticated(self._websocket, self._key)
            instance_of(self._websocket).opened.admit(self._held, "sockets", caller)
            known(self._websocket, caller)
        except Exception as error:
            raise refusal(await self._tell_error(message, error)) from error
        await self._ack(message, {})

    async def _caller(self) -> Principal:
        """Whoever holds the key now. Raises Closed when it is not valid any more, or not from here."""
        try:
            caller = await _authenticated(self._websocket, self._key)
        except (Unauthorized, Forbidden, RateLimited) as error:
            raise refusal(error) from error
        acts(self._websocket, caller)
        return caller

    async def _obey(self, message: dict[str, Any]) -> None:
        caller = await self._caller()
        kind = KINDS.get(message["type"])
        if kind is None:
            known = ", ".join(KINDS)
            raise BadRequest(f"No such type of message. There are: {known}.", code="unknown_message")
        if kind.action != "ping":
            await within_token(self._core, caller, [kind.action], {"session_id": message.get("session_id")})
        await may_touch(self._core, caller, message)
        if not kind.waits:
            await kind.act(self, caller, message)
            return
        await self._commands.acquire()
        self._start(self._command(kind, caller, message), "ws-command")

    async def _command(self, kind: _Kind, caller: Principal, message: dict[str, Any]) -> None:
        try:
            await kind.act(self, caller, message)
        except Closed:
            raise
        except Exception as error:
            await self._tell_error(message, error)
        finally:
            self._commands.release()

    async def _tell_error(self, message: dict[str, Any], error: Exception) -> ApiError:
        found = from_exception(error, self._request_id)
        status, body = native(found, self._request_id)
        told = {"type": "error", "ref": wire.ref_of(message), "status": status, **body}
        await self.socket.send([_text(told)])
        return found

    async def _ack(self, message: dict[str, Any], result: dict[str, Any]) -> None:
        await self.socket.send([_text({"type": "ack", "ref": message.get("ref"), "result": result})])

    async def _ping(self, _: Principal, message: dict[str, Any]) -> None:
        wire.checked(wire.Head, message)
        await self.socket.send([_text({"type": "pong", "ref": message.get("ref")})])

    async def _prompt(self, caller: Principal, message: dict[str, Any]) -> None:
        caller.require("write")
        await count_prompt(self._websocket, caller)
        head, body = wire.divided(wire.Prompt, PromptBody, message)
        self._check_streams()
        run = await submit(f"{PREFIX}/query", self._core, caller, body, body.session_id, head.idempotency_key)
        left = leaving(self._core, caller, body, run)
        if left is not None:
            self._leaving[run.run_id] = left
        ids = {"session_id": str(run.session_id), "run_id": str(run.run_id)}
        await self._ack(message, {**ids, "status": "accepted"})
        if run.session_id in self._streams:
            return  # its events come anyway
        batches = run_batches(self._core, caller.tenant_id, run, body.include_partial_messages)
        await self._follow_as(run.run_id, run.session_id, batches)

    async def _interrupt(self, caller: Principal, message: dict[str, Any]) -> None:
        caller.require("write")
        head, body = wire.divided(wire.InSession, control.InterruptBody, message)
        applied = await control.interrupt_session(self._core, caller, head.session_id, body)
        await self._ack(message, applied.model_dump(mode="json"))

    async def _control(self, caller: Principal, message: dict[str, Any]) -> None:
        caller.require("write")
        head, body = wire.divided(wire.InSession, control.ControlBody, message)
        applied = await control.control_session(self._core, caller, head.session_id, body)
        await self._ack(message, applied.model_dump(mode="json"))

    async def _answer(self, caller: Principal, message: dict[str, Any]) -> None:
        caller.require("write")
        if "decision" in message:
            asked, decision = wire.divided(wire.OfRequest, requests.DecisionBody, message)
            done = await requests.decide_permission(self._core, caller, asked.session_id, asked.request_id, decision)
        else:
            head, answers = wire.divided(wire.InSession, requests.AnswerBody, message)
            done = await requests.answer_question(self._core, caller, head.session_id, answers)
        await self._ack(message, done.model_dump(mode="json"))

    async def _tool_result(self, caller: Principal, message: dict[str, Any]) -> None:
        caller.require("write")
        asked, result = wire.divided(wire.OfRequest, requests.ToolResultBody, message)
        done = await requests.give_tool_result(self._core, caller, asked.session_id, asked.request_id, result)
        await self._ack(message, done.model_dump(mode="json"))

    # --- events -----------------------------------------------------------------------------------------------------

    async def _follow(self, caller: Principal, message: dict[str, Any]) -> None:
        head = wire.checked(wire.Follow, message)
        tenant_id, session_id = caller.tenant_id, head.session_id
        newest, run = await sessions.require(self._core.db, tenant_id, session_id), None
        after = Position.parse(head.after) if head.after else Position(0)
        if head.run_id is not None:
            if session_id in self._streams:
                raise ValidationError.of("run_id", "all of this session is followed already")
            newest, run = await self._extent(caller, session_id, head.run_id, after)
        key = head.run_id or session_id
        if key not in self._streams:
            self._check_streams()
        covered = [k for k, s in self._streams.items() if key in (k, s.session_id)]
        for other in covered:
            await self._unfollow(other)
        await self._ack(message, {"session_id": str(session_id), "after": str(after)})
        batches = session_batches(self._core, Followed(tenant_id, session_id), after, newest, run=run)
        await self._follow_as(key, session_id, batches)

    async def _extent(self, caller: Principal, session_id: UUID, run_id: UUID, after: Position) -> tuple[int, OneRun]:
        lies = await runs.extent(self._core.db, caller.tenant_id, run_id)
        if lies.session_id != session_id:
            raise NotFound.of("run")
        lies.require_any(after.seq)
        return lies.newest, (run_id, lies.end)

    async def _stop_following(self, _: Principal, message: dict[str, Any]) -> None:
        head = wire.checked(wire.Unfollow, message)
        followed = await self._unfollow(head.run_id or head.session_id)
        await self._ack(message, {"session_id": str(head.session_id), "followed": followed})

    def _check_streams(self) -> None:
        if max(len(self._streams), len(self._leaving)) >= MAX_STREAMS:
            raise RateLimited(f"This connection follows {MAX_STREAMS} prompts and sessions.", code="too_many_streams")

    async def _follow_as(self, key: UUID, session_id: UUID, batches: AsyncGenerator[Sequence[Frame]]) -> None:
        await self._unfollow(key)
        task = self._start(self._stream(key, batches), "ws-stream")
        self._streams[key] = _Stream(session_id, task)

    async def _unfollow(self, key: UUID) -> bool:
        stream = self._streams.pop(key, None)
        if stream is not None:
            await tasks.end(stream.task)
        return stream is not None

    async def _stream(self, key: UUID, batches: AsyncGenerator[Sequence[Frame]]) -> None:
        async with aclosing(batches):
            async for frames in batches:
                await self.socket.send(map(event_text, frames))
                for frame in frames:
                    if frame.type == "done" and frame.run_id is not None:
                        self._leaving.pop(UUID(frame.run_id), None)
        self._streams.pop(key, None)
        if self._held.draining.done() and not self._streams:
            self._held.end(None)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type of message. One that `waits` for an agent must not keep the next message waiting. `action`: what a client
    token must allow; None is what none allows."""

    act: Callable[[Connection, Principal, dict[str, Any]], Awaitable[None]]
    waits: bool = False
    action: Action | Literal["ping"] | None = None


KINDS = {
    "prompt": _Kind(Connection._prompt, action="prompt"),
    "follow": _Kind(Connection._follow, action="read"),
    "unfollow": _Kind(Connection._stop_following, action="read"),
    "interrupt": _Kind(Connection._interrupt, waits=True, action="prompt"),
    "answer": _Kind(Connection._answer, waits=True, action="decide"),
    "tool_result": _Kind(Connection._tool_result, waits=True, action="decide"),
    "control": _Kind(Connection._control, waits=True),
    "ping": _Kind(Connection._ping, action="ping"),
}
