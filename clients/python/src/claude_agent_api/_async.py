"""The asynchronous client: `_sync` with `await`."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx

from claude_agent_api import _more_resources as more
from claude_agent_api import _resources as resources
from claude_agent_api._asking import OnPermissionAsync, OnQuestionAsync, answering
from claude_agent_api._calls import AsyncSide
from claude_agent_api._follow import STREAM_SECONDS, Following, Outcome, events_of_run
from claude_agent_api._request import (
    CONNECT_SECONDS,
    MAX_CONNECTIONS,
    MAX_RETRIES,
    TIMEOUT_SECONDS,
    Exchange,
    Request,
    Server,
    path,
)
from claude_agent_api._turn import NOT_SENT, Told, failure_of, ids_of
from claude_agent_api.errors import ClaudeAgentError, ConnectionFailed
from claude_agent_api.types import Event, ResultData

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from claude_agent_api.types import PromptOptions

T = TypeVar("T")


async def _pieces(body: Iterable[bytes]) -> AsyncIterator[bytes]:
    pieces = iter(body)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def _asynchronous(content: bytes | Iterable[bytes] | None) -> bytes | AsyncIterator[bytes] | None:
    return content if content is None or isinstance(content, bytes) else _pieces(content)


class AsyncStream:
    """Events, each once and in order, over any number of connections.

    Iterate it with `async for`; to leave before its end, `close()` it or use it in an `async with`.
    """

    def __init__(self, client: AsyncClient, following: Following, response: httpx.Response | None = None) -> None:
        self._client, self._following = client, following
        self._response = response
        self._chunks = response.aiter_bytes() if response is not None else None

    @property
    def position(self) -> str | None:
        """The id of the last event that was given: to go on after it (`after=`), in another program too."""
        return self._following.given

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        following = self._following
        while not following.events:
            following.fail()
            if following.ended:
                await self.close()
                raise StopAsyncIteration
            try:
                await self._read()
                continue
            except httpx.HTTPError as error:
                failure = failure_of(error, "the stream")
            except ClaudeAgentError as error:
                failure = error
            await self.close()
            await asyncio.sleep(following.cut(failure, time.monotonic()))
        return following.next()

    async def _read(self) -> None:
        if self._chunks is None:
            await self._connect()
        elif (chunk := await anext(self._chunks, None)) is None:
            raise ConnectionFailed("the stream has ended before its time")
        else:
            self._following.feed(chunk)

    async def _connect(self) -> None:
        exchange = self._client._exchange_of(self._following.request())
        response = await self._client._sent(exchange, streamed=True)
        if response.status_code == 204:
            self._following.ended = True
        elif response.status_code != 200:
            raise exchange.error(response.status_code, response.headers, response.content)
        else:
            self._response, self._chunks = response, response.aiter_bytes()
            self._following.opened(time.monotonic())

    async def close(self) -> None:
        """Let the connection go. Iterating goes on where it was, with a new one."""
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            await response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncTurn(AsyncStream):
    """A prompt and what comes of it. It is the stream of its run's events, from the first one to `done`."""

    def __init__(
        self,
        client: AsyncClient,
        following: Following,
        outcome: Outcome,
        on_permission: OnPermissionAsync | None,
        on_question: OnQuestionAsync | None,
        response: httpx.Response | None = None,
    ) -> None:
        super().__init__(client, following, response)
        self._told = Told(outcome, on_permission, on_question)

    @property
    def session_id(self) -> str:
        """The session; of a followed run "" until its first event."""
        return self._told.outcome.session_id

    @property
    def run_id(self) -> str:
        """The run."""
        return self._told.outcome.run_id

    async def __anext__(self) -> Event:
        event = await super().__anext__()
        if (ask := self._told.take(event)) is not None:
            try:
                said = ask()
                said = await said if inspect.isawaitable(said) else said
                if (request := answering(event, said)) is not None:
                    await self._client._send(request)
            except BaseException:
                self._told.hold(event)
                self._following.events.appendleft(event)
                raise
        return event

    async def text(self) -> AsyncIterator[str]:
        """The agent's own words as they are written. Raises RunFailed at the end of a run that did not succeed."""
        async for _ in self:
            if self._told.words:
                yield self._told.words
        self._told.outcome.result()

    async def result(self) -> ResultData:
        """Wait for the end; `result` of it is the agent's last text. Raises RunFailed."""
        async for _ in self:
            pass
        return self._told.outcome.result()

    async def interrupt(self) -> None:
        """Stop the run; its events go on to `done`. That it is over already is no error."""
        await self._client._send(resources.cancelling(self.run_id, already=True))


class AsyncSessions(AsyncSide, resources.SessionCalls):
    def events(self, session_id: str, *, after: str | None = None, until: Literal["idle"] | None = None) -> AsyncStream:
        """The events of all its runs; they never end, but for `until="idle"`."""
        client, where = self._client, path("sessions", session_id) + "/events"
        now, query = time.monotonic(), {"until": until}
        return AsyncStream(client, Following(where, query=query, after=after, max_retries=client.max_retries, now=now))


class AsyncRuns(AsyncSide, resources.RunCalls):
    def events(self, run_id: str, *, after: str | None = None) -> AsyncStream:
        """Its events, to `done`."""
        return AsyncStream(self._client, events_of_run(run_id, after, self._client.max_retries, time.monotonic()))

    def follow(
        self, run_id: str, *, on_permission: OnPermissionAsync | None = None, on_question: OnQuestionAsync | None = None
    ) -> AsyncTurn:
        """A run that somebody has begun, from its first event on, as the turn that `prompt` gives."""
        following = events_of_run(run_id, None, self._client.max_retries, time.monotonic())
        return AsyncTurn(self._client, following, Outcome(run_id=run_id), on_permission, on_question)


class AsyncRequests(AsyncSide, resources.RequestCalls):
    pass


class AsyncFiles(AsyncSide, more.FileCalls):
    pass


class AsyncPresets(AsyncSide, more.PresetCalls):
    pass


class AsyncSchedules(AsyncSide, more.ScheduleCalls):
    """Prompts that are sent at times of a clock."""


class AsyncWebhooks(AsyncSide, more.WebhookCalls):
    pass


class AsyncKeys(AsyncSide, more.KeyCalls):
    pass


class AsyncUsage(AsyncSide, more.UsageCalls):
    pass


class AsyncClient:
    """Sends prompts, follows them, and asks for all else.

    Args:
        base_url: `https://agents.example.org`; else `CLAUDE_AGENT_API_URL`, else http://127.0.0.1:8000.
        api_key: else `CLAUDE_AGENT_API_KEY`.
        timeout: seconds that an answer may be silent. Streams have bounds of their own.
        max_retries: of one request, and of a stream that gets nowhere; 0: none.
        http_client: to send with; it stays yours to close.

    Raises:
        ValueError: that is no URL, or no key.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        max_retries: int = MAX_RETRIES,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        self._server, self.max_retries = Server.of(base_url, api_key), max_retries
        self._timeout = httpx.Timeout(timeout, connect=CONNECT_SECONDS)
        self._own = http_client is None
        self._http = http_client or httpx.AsyncClient(limits=httpx.Limits(max_connections=MAX_CONNECTIONS))
        self.sessions, self.runs, self.requests, self.files = (
            AsyncSessions(self),
            AsyncRuns(self),
            AsyncRequests(self),
            AsyncFiles(self),
        )
        self.schedules = AsyncSchedules(self)
        self.presets, self.webhooks, self.keys, self.usage = (
            AsyncPresets(self),
            AsyncWebhooks(self),
            AsyncKeys(self),
            AsyncUsage(self),
        )

    async def prompt(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        session_id: str | None = None,
        on_permission: OnPermissionAsync | None = None,
        on_question: OnQuestionAsync | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> AsyncTurn:
        """Send a prompt to a new session, or to one that there is.

        Args:
            prompt: text, or blocks: `{"type": "text", "text": …}`, images, documents.
            on_permission: called while the turn is iterated, and awaited if it is a coroutine; answers
                `request.allow()` or `request.deny("why")`. None: somebody else answers. What it raises comes out of
                the iteration, and leaves the request open.
            on_question: likewise; answers by the question's text.
            idempotency_key: the same one, with the same prompt, within 24 hours is the same run.
            options: of the prompt, and of its session from here on.
        """
        request = resources.prompting(prompt, session_id, idempotency_key, options)
        response = await self._answered(self._exchange_of(request), streamed=True)
        assert response is not None  # noqa: S101 - a prompt has no `done_codes`
        try:
            session, run = ids_of(response)
        except BaseException:
            await response.aclose()
            raise
        partials = options.get("include_partial_messages", True)
        following = events_of_run(run, None, self.max_retries, time.monotonic(), partials=partials)
        return AsyncTurn(self, following, Outcome(session, run), on_permission, on_question, response)

    async def ask(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        session_id: str | None = None,
        on_permission: OnPermissionAsync | None = None,
        on_question: OnQuestionAsync | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> ResultData:
        """`prompt`, and wait for its result. Raises RunFailed."""
        turn = await self.prompt(
            prompt,
            session_id=session_id,
            on_permission=on_permission,
            on_question=on_question,
            idempotency_key=idempotency_key,
            **options,
        )
        async with turn:
            return await turn.result()

    async def request(
        self, method: str, route: str, *, query: Mapping[str, Any] | None = None, json: Any = None
    ) -> Any:
        """Any other request: `client.request("GET", "/limits")`, as in the OpenAPI document, without `/api/v1`."""
        return await self._send(more.anything(method, route, query, json))

    async def _send(self, request: Request[T]) -> T:
        exchange = self._exchange_of(request)
        response = await self._answered(exchange)
        if response is None:
            return None  # type: ignore[return-value]  # its type says so, where there are `done_codes`
        return exchange.answer(response.status_code, response.headers, response.content)

    def _exchange_of(self, request: Request[T]) -> Exchange[T]:
        return Exchange(request, self._server, self.max_retries, time.monotonic())

    async def _answered(self, exchange: Exchange[Any], *, streamed: bool = False) -> httpx.Response | None:
        """A success; None: an attempt before has had it. Raises ClaudeAgentError."""
        while True:
            sent = True
            try:
                response = await self._sent(exchange, streamed=streamed)
                if response.is_success:
                    return response
                told = exchange.error(response.status_code, response.headers, response.content)
                if exchange.is_done(told):
                    return None
                failure: ClaudeAgentError = told
            except httpx.HTTPError as error:
                failure, sent = failure_of(error, exchange.url), not isinstance(error, NOT_SENT)
            await asyncio.sleep(exchange.failed(failure, time.monotonic(), sent=sent))

    async def _sent(self, exchange: Exchange[Any], *, streamed: bool = False) -> httpx.Response:
        """One attempt; what is not streamed is read."""
        timeout = httpx.Timeout(STREAM_SECONDS, connect=CONNECT_SECONDS) if streamed else self._timeout
        request = self._http.build_request(
            exchange.request.method,
            exchange.url,
            headers=exchange.headers,
            content=_asynchronous(exchange.request.content()),
            timeout=timeout,
        )
        response = await self._http.send(request, stream=True, follow_redirects=False)
        if not streamed or response.status_code != 200:
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response

    async def close(self) -> None:
        """Let all connections go."""
        if self._own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
