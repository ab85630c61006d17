"""The gateway itself: whose token is whose, calls on their way, and what they used."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import UUID

import structlog

from apps.api import tracing
from apps.api.core.context import Core
from apps.api.core.network import model_api
from apps.api.core.network.model_api import ModelApi
from apps.api.core.tasks import Loop
from apps.api.core.tenant import budgets, model_calls
from apps.api.core.tenant.budgets import Gate
from apps.api.core.tenant.model_calls import Call
from apps.api.core.tenant.model_credentials import ModelApis
from apps.api.db import PASSING, retrying
from apps.api.errors import RUN_FAILURES, ApiError, Unavailable
from apps.api.runner.gateway import models
from apps.api.runner.gateway.caller import HEAD_SECONDS, Asked, Caller, NotPossible
from apps.api.runner.gateway.cloud import Cloud, Request
from apps.api.runner.gateway.holder import Holder, Spent
from apps.api.runner.gateway.relay import Relay, head_of
from apps.api.runner.gateway.upstream import Unreachable, Upstream
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

NOTE_SECONDS = 60.0
"""For what was used to be noted while the database is away. Its process asks for nothing meanwhile."""

MAX_CALLS = 32
"""Of one process at a time: the agent itself, and its subagents."""

Note = Callable[[Call], Awaitable[None]]

ApiOf = Callable[[UUID], Awaitable[ModelApi | None]]
"""By what credential a tenant's calls are made; None: the operator's, in the cloud. Raises Unavailable, or what a
database that is away raises."""

Check = Callable[[UUID, UUID, UUID | None, float | None], Awaitable[Sequence[Sequence[str]]]]
"""Whether a tenant's session and run may make another call, if the session may cost so many USD; returns lists of
models, each of which must have the one that is asked. Raises ApiError, or what a database that is away raises."""


class Gateway:
    """The gateway of one instance. Open it with `start`, on the loopback alone."""

    def __init__(self, settings: Settings, api_of: ApiOf, note: Note, check: Check) -> None:
        """`note` keeps the record of a call; see Check."""
        self._api_of, self._note, self._check = api_of, note, check
        self.observe: Callable[[Call], None] = lambda _call: None
        self.differs: Callable[[str], None] = lambda _direction: None
        # The CLI has the same bound, and more to say when it is passed.
        self._silence = settings.model_silence_seconds + SPARE_SECONDS
        # Whom an operator has put between is of the same trace; the provider itself is told nothing.
        self._traced = settings.anthropic_base_url is not None and model_api.of(settings).url != model_api.ANTHROPIC
        self._holders: dict[bytes, Holder] = {}
        self._upstream, self._cloud = Upstream(), Cloud(settings) if settings.cloud else None
        self._callers: set[Caller] = set()
        self._strangers: dict[Caller, None] = {}
        self._calls: dict[Caller, Relay] = {}
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
        await asyncio.to_thread(lambda: self._upstream.tls)
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

    def admit(self, holder: Holder) -> Holder:
        """Let a process of a session in, by the token that it is given."""
        self._holders[_key(holder.token.encode())] = holder
        return holder

    def dismiss(self, holder: Holder) -> None:
        """It has ended: its token opens nothing any more, and its calls end."""
        self._holders.pop(_key(holder.token.encode()), None)
        for caller in tuple(self._callers):
            if caller.holder is holder:
                caller.end()

    def expect(self, holder: Holder) -> None:
        """A turn of the process begins: judge its calls while it gets to the first one. What is found of a run without
        a budget holds for some seconds, see `budgets.Gate`; any other is judged again, and what fails here is."""
        task = asyncio.create_task(self._foresee(holder), name=f"model-expected-{holder.session_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _foresee(self, holder: Holder) -> None:
        with suppress(ApiError, *PASSING):
            await self._check(holder.tenant_id, holder.session_id, holder.run_id(), holder.most)
            await self._api_of(holder.tenant_id)

    def settle(self, holder: Holder, told: float) -> None:
        """The SDK has told what calls of a process cost since it was last asked: see whether they did."""
        spent, holder.spent = holder.spent, Spent()
        if direction := spent.compare(told):
            self.differs(direction)
            log.warning("gateway.cost_differs", session_id=str(holder.session_id), counted=spent.usd, told=told)

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
        call = self._calls[caller] = Relay(caller, asked, holder, self._silence)
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

    async def _serve(self, call: Relay) -> None:
        ids = {"session_id": str(call.holder.session_id), "run_id": str(call.run_id) if call.run_id else None}
        tracing.work_on(tracing.Work(call.span.traceparent, **ids))
        try:
            await self._ask(call)
        finally:
            self._calls.pop(call.caller, None)
            call.holder.calls.discard(call)
        record = call.record()
        call.holder.spent.add(record)
        self.observe(record)
        if tracing.on():
            call.tell(record)
        if not record.priced:
            log.warning("gateway.model_unpriced", model=record.used.model, cost_usd=record.cost_usd)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        call.holder.noting.add(task)
        try:
            await self._note(record)
        except PASSING as error:
            log.error("gateway.call_not_noted", session_id=str(call.holder.session_id), error=error)
        finally:
            call.holder.noting.discard(task)

    async def _ask(self, call: Relay) -> None:
        try:
            request = await self._request(call)
        except NotPossible as error:
            call.refuse(error.status, error.kind, str(error))
        except Unreachable as error:
            call.refuse(502, "api_error", str(error))
        except ApiError as error:
            if error.code == Unavailable.code:
                call.refuse(503, "api_error", error.message)
                return
            if error.code in RUN_FAILURES:
                call.holder.refused(error)
            used_up = error.code == budgets.CODE
            # Neither is tried again. What the CLI says of the second is that it failed to authenticate.
            call.refuse(*((402, "billing_error") if used_up else (403, "permission_error")), error.message)
        except PASSING as error:
            log.warning("gateway.not_judged", session_id=str(call.holder.session_id), error=error)
            call.refuse(503, "api_error", "The server's database is away.")
        else:
            await call.run(self._upstream, request)

    async def _request(self, call: Relay) -> Request:
        holder = call.holder
        await holder.settled()
        lists = await self._check(holder.tenant_id, holder.session_id, call.run_id, holder.most)
        if lists and models.admit(call.asked, lists, holder.model):
            holder.spent.exact = False  # the SDK reckons with the other
        api = await self._api_of(holder.tenant_id)
        if api is not None:
            traceparent = call.span.traceparent if self._traced else None
            return Request(api, head_of(api, call.asked, traceparent), call.asked.body)
        assert self._cloud is not None  # noqa: S101 - what None stands for
        return await self._cloud.request(call.asked)


def of(core: Core) -> Gateway:
    """The one of an instance."""

    async def note(call: Call) -> None:
        last = time.monotonic() + NOTE_SECONDS
        await retrying(lambda: model_calls.record(core.db, call), until=lambda: time.monotonic() > last)

    return Gateway(core.settings, ModelApis(core.db, core.settings).of, note, Gate(core.db).check)


def _key(token: bytes) -> bytes:
    # So that how long a look takes tells nothing about tokens.
    return hashlib.sha256(token).digest()
