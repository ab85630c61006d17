"""The gateway itself: whose token is whose, calls on their way, and what they used."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import structlog

from apps.api import clock
from apps.api.core.context import Core
from apps.api.core.network.model_api import ModelApi
from apps.api.core.tasks import Loop
from apps.api.core.tenant import model_calls
from apps.api.core.tenant.model_calls import Call
from apps.api.core.tenant.model_credentials import ModelApis
from apps.api.db import PASSING
from apps.api.errors import RUN_FAILURES, Unavailable
from apps.api.runner.gateway import cloud
from apps.api.runner.gateway.caller import HEAD_SECONDS, Asked, Caller
from apps.api.runner.gateway.cloud import Cloud, NotPossible, Request
from apps.api.runner.gateway.meter import Meter
from apps.api.runner.gateway.upstream import Connection, Headers, Unreachable, Upstream
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

MAX_STRANGERS = 64
"""Connections that have not shown a token. Beyond it the oldest is closed."""

MAX_HELD_BYTES, MAX_HELD_IN_ALL = 96_000_000, 512_000_000
"""Of requests that are held until the model API answers: of one process, and of an instance."""

SPARE_SECONDS = 15.0
"""By which the gateway waits longer for a silent model than the CLI does."""

CLOSE_SECONDS = 10.0
"""For what was used to be noted when an instance stops."""

MAX_CALLS = 32
"""Of one process at a time: the agent itself, and its subagents."""

_TOLD = frozenset(
    (b"content-type", b"content-encoding", b"request-id", b"retry-after", b"retry-after-ms", b"x-should-retry")
)
"""Headers of answers that agents' processes read. Others name the operator's account and its limits."""


Note = Callable[[Call], Awaitable[None]]

ApiOf = Callable[[UUID], Awaitable[ModelApi | None]]
"""By what credential a tenant's calls are made; None: the operator's, in the cloud. Raises Unavailable, or what a
database that is away raises."""


@dataclass(eq=False)
class Holder:
    """A process of a session, as the gateway knows it.

    Attributes:
        token: what it shows.
        held: bytes of its requests that the model API has not answered yet.
        run_id: tells which run is being executed.
        refused: is told the failure for which a call is not made at all.
    """

    tenant_id: UUID
    session_id: UUID
    run_id: Callable[[], UUID | None]
    refused: Callable[[str], None]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    calls: set[_Call] = field(default_factory=set)
    held: int = 0


class Gateway:
    """The gateway of one instance. Open it with `start`, on the loopback alone."""

    def __init__(self, settings: Settings, api_of: ApiOf, note: Note) -> None:
        """`note` keeps the record of a call."""
        self._api_of, self._note = api_of, note
        self.observe: Callable[[Call], None] = lambda _call: None
        # The CLI has the same bound, and more to say when it is passed.
        self._silence = settings.model_silence_seconds + SPARE_SECONDS
        self._holders: dict[bytes, Holder] = {}
        self._upstream, self._cloud = Upstream(), Cloud(settings) if settings.cloud else None
        self._callers: set[Caller] = set()
        self._strangers: dict[Caller, None] = {}
        self._calls: dict[Caller, _Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where agents find it."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen. Raises OSError."""
        if self._cloud is not None:
            await self._cloud.load()
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._server = await self.accept_on(listening)

    async def accept_on(self, listening: socket.socket) -> asyncio.Server:
        """Serve on this socket as well, which may be one of another network namespace. Who calls closes the server."""
        return await asyncio.get_running_loop().create_server(lambda: Caller(self), sock=listening)

    async def close(self) -> None:
        """End everything, and wait until what was used is noted."""
        if self._server is not None:
            self._server.close()
        for caller in tuple(self._callers):
            caller.end()
        await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        await self._upstream.close()
        if self._cloud is not None:
            await self._cloud.close()

    def admit(
        self, tenant_id: UUID, session_id: UUID, run_id: Callable[[], UUID | None], refused: Callable[[str], None]
    ) -> Holder:
        """Let a process of a session in, by the token that it is given; see Holder."""
        holder = Holder(tenant_id, session_id, run_id, refused)
        self._holders[_key(holder.token.encode())] = holder
        return holder

    def dismiss(self, holder: Holder) -> None:
        """It has ended: its token opens nothing any more, and its calls end."""
        self._holders.pop(_key(holder.token.encode()), None)
        for caller in tuple(self._callers):
            if caller.holder is holder:
                caller.end()

    async def look(self, _loop: Loop) -> None:
        """End what has been silent for too long; the step of a loop, about once a second."""
        now = asyncio.get_running_loop().time()
        for caller in tuple(self._strangers):
            if now - caller.since > HEAD_SECONDS:
                caller.end()
        for call in tuple(self._calls.values()):
            call.look(now)

    # --- what callers tell -------------------------------------------------------------------------------------------

    def meets(self, caller: Caller, token: bytes) -> Holder | None:
        """See Serving."""
        holder = self._holders.get(_key(token)) if token else None
        if holder is not None:
            self._strangers.pop(caller, None)
        return holder

    def holds(self, caller: Caller, size: int) -> bool:
        """See Serving."""
        holder = caller.holder
        assert isinstance(holder, Holder)  # noqa: S101 - what `meets` gave
        if holder.held + size > MAX_HELD_BYTES or self._held + size > MAX_HELD_IN_ALL:
            return False
        holder.held += size
        self._held += size
        return True

    def lets_go(self, caller: Caller, size: int) -> None:
        """See Serving."""
        if isinstance(caller.holder, Holder):
            caller.holder.held -= size
            self._held -= size

    def came(self, caller: Caller) -> None:
        """See Serving."""
        self._callers.add(caller)
        self._strangers[caller] = None
        if len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).end()

    def asks(self, caller: Caller, asked: Asked) -> None:
        """See Serving."""
        holder = caller.holder
        assert isinstance(holder, Holder)  # noqa: S101
        if len(holder.calls) >= MAX_CALLS:
            caller.answer(429, "rate_limit_error", f"A process may have {MAX_CALLS} calls under way.")
            return
        call = self._calls[caller] = _Call(caller, asked, holder, self._silence)
        holder.calls.add(call)
        task = asyncio.create_task(self._serve(call), name=f"model-call-{holder.session_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def left(self, caller: Caller) -> None:
        """See Serving."""
        self._callers.discard(caller)
        self._strangers.pop(caller, None)
        if (call := self._calls.get(caller)) is not None:
            call.stop()

    async def _serve(self, call: _Call) -> None:
        try:
            await self._ask(call)
        finally:
            self._calls.pop(call.caller, None)
            call.holder.calls.discard(call)
        self.observe(record := call.record())
        try:
            await self._note(record)
        except PASSING as error:
            log.error("gateway.call_not_noted", session_id=str(call.holder.session_id), error=error)

    async def _ask(self, call: _Call) -> None:
        try:
            request = await self._request(call)
        except NotPossible as error:
            call.refuse(error.status, error.kind, str(error))
        except Unreachable as error:
            call.refuse(502, "api_error", str(error))
        except Unavailable as error:
            if error.code in RUN_FAILURES:
                call.holder.refused(error.code)
            call.refuse(403, "permission_error", str(error))
        except PASSING as error:
            log.warning("gateway.no_credential", session_id=str(call.holder.session_id), error=error)
            call.refuse(503, "api_error", "The server's database is away.")
        else:
            await call.run(self._upstream, request)

    async def _request(self, call: _Call) -> Request:
        api = await self._api_of(call.holder.tenant_id)
        if api is not None:
            return Request(api, _head(api, call.asked), call.asked.body)
        assert self._cloud is not None  # noqa: S101 - what None stands for
        return await self._cloud.request(call.asked)


def of(core: Core) -> Gateway:
    """The one of an instance."""
    return Gateway(core.settings, ModelApis(core.db, core.settings).of, partial(model_calls.record, core.db))


def _key(token: bytes) -> bytes:
    # So that how long a look takes tells nothing about tokens.
    return hashlib.sha256(token).digest()


class _Call:
    """One call on its way: an answer of the model API, told to a caller while it comes."""

    def __init__(self, caller: Caller, asked: Asked, holder: Holder, silence: float) -> None:
        self.caller, self.holder = caller, holder
        self.asked, self._silence = asked, silence
        self._run_id = holder.run_id()
        self._began_at, self._began = clock.now(), time.monotonic()
        self._heard = asyncio.get_running_loop().time()
        self._status = 0
        self._first: float | None = None
        self._meter = Meter("")
        self._body: list[bytes] = []
        self._decode: Callable[[bytes], bytes] | None = None
        self._connection: Connection | None = None
        self._over: asyncio.Future[Unreachable | None] = asyncio.get_running_loop().create_future()
        self._stopped = False

    def refuse(self, status: int, kind: str, message: str) -> None:
        """Answer instead of the model API."""
        if not self._stopped:
            self.caller.answer(status, kind, message)

    async def run(self, upstream: Upstream, request: Request) -> None:
        """Ask, and wait for the end of the answer."""
        self._body = request.body
        for fresh in (False, True):
            try:
                self._connection = connection = await upstream.connect(request.api, fresh=fresh)
            except Unreachable as unreachable:
                self._fail(unreachable)
                return
            if self._stopped:
                connection.close()
            await connection.ask(request.head, request.body, self)
            error = await self._over
            if error is None:
                upstream.keep(request.api, connection)
                self.caller.done()
                return
            # One that was kept may have been closed at the other end just then, before it heard of the request.
            if self._status or not connection.used or self._stopped:
                self._fail(error)
                return
            self._over = asyncio.get_running_loop().create_future()

    def _fail(self, error: Unreachable) -> None:
        if self._status:
            self.caller.end()  # nothing else tells that an answer is not whole
        else:
            self.refuse(502, "api_error", str(error))

    def stop(self) -> None:
        """Nobody hears the answer any more."""
        self._stopped = True
        if self._connection is not None:
            self._connection.close()

    def look(self, now: float) -> None:
        """Give a silent model API up."""
        if self._connection is not None and now - self._heard > self._silence and self.caller.taking.is_set():
            self._connection.close()

    # --- what the connection tells -----------------------------------------------------------------------------------

    def begins(self, status: int, headers: Headers) -> None:
        """See Answer."""
        self._status, self._first = status, time.monotonic() - self._began
        told = [(name, value) for name, value in headers if name in _TOLD]
        given = dict(headers)
        self._body.clear()  # it is not sent again
        kind = given.get(b"content-type", b"").decode("latin-1")
        self._decode = cloud.decoder(kind)
        if self._decode is not None:
            kind = "text/event-stream"
            told = [(name, kind.encode() if name == b"content-type" else value) for name, value in told]
        self._meter = Meter(kind)
        length = b"" if self._decode else given.get(b"content-length", b"")
        self.caller.on_pause, self.caller.on_resume = self._hold, self._go_on
        self.caller.let_go()
        self.caller.begin(status, told, int(length) if length.isdigit() else None)

    def goes_on(self, data: bytes) -> None:
        """See Answer."""
        self._heard = asyncio.get_running_loop().time()
        if self._decode is not None:
            try:
                data = self._decode(data)
            except Exception as error:  # of botocore's, of many kinds: what came is no stream of events
                log.warning("gateway.not_decoded", session_id=str(self.holder.session_id), error=error)
                self.ends(Unreachable("The cloud's answer is no stream of events."))
                self.stop()
                return
            if not data:
                return
        self.caller.piece(data)
        self._meter.feed(data)

    def ends(self, error: Unreachable | None) -> None:
        """See Answer."""
        if not self._over.done():
            self._over.set_result(error)

    def _hold(self) -> None:
        if self._connection is not None:
            self._connection.hold()

    def _go_on(self) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self._connection is not None:
            self._connection.go_on()

    def record(self) -> Call:
        """For the ledger."""
        return Call(
            self.holder.tenant_id,
            self.holder.session_id,
            self._run_id,
            self.asked.kind,
            self._began_at,
            self._status,
            self._first,
            time.monotonic() - self._began,
            self._meter.end(),
        )


def _head(api: ModelApi, asked: Asked) -> bytes:
    betas = api.headers.get("anthropic-beta", "").encode()
    lines = [b"POST %s%s HTTP/1.1" % (api.path.encode(), asked.path), b"host: %s" % api.authority.encode()]
    for name, value in asked.headers:
        own = b"%s,%s" % (value, betas) if betas and name == b"anthropic-beta" else value
        lines.append(b"%s: %s" % (name, own))
    given = {name for name, _ in asked.headers}
    lines += [b"%s: %s" % (n.encode(), v.encode()) for n, v in api.headers.items() if n.encode() not in given]
    # Else what was used could not be read.
    lines += [b"accept-encoding: identity", b"content-length: %d" % asked.size, b"", b""]
    return b"\r\n".join(lines)
