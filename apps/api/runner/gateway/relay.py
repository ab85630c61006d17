"""One call of an agent's process: its request to the model API, and the answer, told to the process while it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from apps.api import clock, tracing
from apps.api.core.network.model_api import ModelApi
from apps.api.core.tenant import prices
from apps.api.core.tenant.model_calls import Call
from apps.api.runner.gateway import cloud
from apps.api.runner.gateway.caller import Asked, Caller
from apps.api.runner.gateway.cloud import Request
from apps.api.runner.gateway.holder import Holder
from apps.api.runner.gateway.meter import Meter
from apps.api.runner.gateway.upstream import Connection, Headers, Unreachable, Upstream

log = structlog.get_logger(__name__)

_TOLD = frozenset(
    (b"content-type", b"content-encoding", b"request-id", b"retry-after", b"retry-after-ms", b"x-should-retry")
)
"""Headers of answers that agents' processes read. Others name the operator's account and its limits."""


class Relay:
    """A call on its way: an answer of the model API, told to a caller while it comes."""

    def __init__(self, caller: Caller, asked: Asked, holder: Holder, silence: float) -> None:
        self.caller, self.holder = caller, holder
        self.asked, self._silence = asked, silence
        self.run_id = holder.run_id()
        self._operation = "chat" if asked.kind == "messages" else asked.kind
        self.span = tracing.begin(self._operation, holder.traceparent(), kind="client")
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
        used = self._meter.end()
        return Call(
            self.holder.tenant_id,
            self.holder.session_id,
            self.run_id,
            self.asked.kind,
            self._began_at,
            self._status,
            self._first,
            time.monotonic() - self._began,
            used,
            prices.cost(used),
            prices.of(used.model) is not None or not used.tokens,
        )

    def tell(self, call: Call) -> None:
        """End its span, by what is written down of it."""
        used = call.used
        self.span.set(
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": "anthropic",
                "gen_ai.response.model": used.model,
                "gen_ai.usage.input_tokens": used.prompt_tokens,
                "gen_ai.usage.output_tokens": used.output_tokens,
                "http.response.status_code": call.status,
                **tracing.attributes(tracing.ids(None, session_id=call.session_id, run_id=call.run_id)),
            }
        )
        self.span.end(None if 0 < call.status < 400 else f"status {call.status}")


def head_of(api: ModelApi, asked: Asked, traceparent: str | None = None) -> bytes:
    """`traceparent`: for one that is to go on with the trace."""
    betas = api.headers.get("anthropic-beta", "").encode()
    lines = [b"POST %s%s HTTP/1.1" % (api.path.encode(), asked.path), b"host: %s" % api.authority.encode()]
    for name, value in asked.headers:
        own = b"%s,%s" % (value, betas) if betas and name == b"anthropic-beta" else value
        lines.append(b"%s: %s" % (name, own))
    given = {name for name, _ in asked.headers}
    lines += [b"%s: %s" % (n.encode(), v.encode()) for n, v in api.headers.items() if n.encode() not in given]
    lines += [b"%s: %s" % (n.encode(), v.encode()) for n, v in tracing.headers(traceparent).items()]
    # Else what was used could not be read.
    lines += [b"accept-encoding: identity", b"content-length: %d" % asked.size, b"", b""]
    return b"\r\n".join(lines)
