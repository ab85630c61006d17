"""The synchronous client: what sends and waits. `_async` is the same with `await`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx

from claude_agent_api import _more_resources as more
from claude_agent_api import _resources as resources
from claude_agent_api._asking import OnPermission, OnQuestion, answering
from claude_agent_api._calls import Side
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


class Stream:
    """Events, each once and in order, over any number of connections.

    Iterate it; to leave before its end, `close()` it or use it in a `with`.
    """

    def __init__(self, client: Client, following: Following, response: httpx.Response | None = None) -> None:
        self._client, self._following = client, following
        self._response = response
        self._chunks = response.iter_bytes() if response is not None else None

    @property
    def position(self) -> str | None:
        """The id of the last event that was given: to go on after it (`after=`), in another program too."""
        return self._following.given

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        following = self._following
        while not following.events:
            following.fail()
            if following.ended:
                self.close()
                raise StopIteration
            try:
                self._read()
                continue
            except httpx.HTTPError as error:
                failure = failure_of(error, "the stream")
            except ClaudeAgentError as error:
                failure = error
            self.close()
            time.sleep(following.cut(failure, time.monotonic()))
        return following.next()

    def _read(self) -> None:
        if self._chunks is None:
            self._connect()
        elif (chunk := next(self._chunks, None)) is None:
            raise ConnectionFailed("the stream has ended before its time")
        else:
            self._following.feed(chunk)

    def _connect(self) -> None:
        exchange = self._client._exchange_of(self._following.request())
        response = self._client._sent(exchange, streamed=True)
        if response.status_code == 204:
            self._following.ended = True
        elif response.status_code != 200:
            raise exchange.error(response.status_code, response.headers, response.content)
        else:
            self._response, self._chunks = response, response.iter_bytes()
            self._following.opened(time.monotonic())

    def close(self) -> None:
        """Let the connection go. Iterating goes on where it was, with a new one."""
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):  # half made, or its client has gone
            self.close()


class Turn(Stream):
    """A prompt and what comes of it. It is the stream of its run's events, from the first one to `done`."""

    def __init__(
        self,
        client: Client,
        following: Following,
        outcome: Outcome,
        on_permission: OnPermission | None,
        on_question: OnQuestion | None,
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

    def __next__(self) -> Event:
        event = super().__next__()
        if (ask := self._told.take(event)) is not None:
            try:
                if (request := answering(event, ask())) is not None:
                    self._client._send(request)
            except BaseException:
                self._told.hold(event)
                self._following.events.appendleft(event)
                raise
        return event

    def text(self) -> Iterator[str]:
        """The agent's own words as they are written. Raises RunFailed at the end of a run that did not succeed."""
        for _ in self:
            if self._told.words:
                yield self._told.words
        self._told.outcome.result()

    def result(self) -> ResultData:
        """Wait for the end; `result` of it is the agent's last text. Raises RunFailed."""
        for _ in self:
            pass
        return self._told.outcome.result()

    def interrupt(self) -> None:
        """Stop the run; its events go on to `done`. That it is over already is no error."""
        self._client._send(resources.cancelling(self.run_id, already=True))


class Sessions(Side, resources.SessionCalls):
    def events(self, session_id: str, *, after: str | None = None, until: Literal["idle"] | None = None) -> Stream:
        """The events of all its runs; they never end, but for `until="idle"`."""
        client, where = self._client, path("sessions", session_id) + "/events"
        now, query = time.monotonic(), {"until": until}
        return Stream(client, Following(where, query=query, after=after, max_retries=client.max_retries, now=now))


class Runs(Side, resources.RunCalls):
    def events(self, run_id: str, *, after: str | None = None) -> Stream:
        """Its events, to `done`."""
        return Stream(self._client, events_of_run(run_id, after, self._client.max_retries, time.monotonic()))

    def follow(
        self, run_id: str, *, on_permission: OnPermission | None = None, on_question: OnQuestion | None = None
    ) -> Turn:
        """A run that somebody has begun, from its first event on, as the turn that `prompt` gives."""
        following = events_of_run(run_id, None, self._client.max_retries, time.monotonic())
        return Turn(self._client, following, Outcome(run_id=run_id), on_permission, on_question)


class Requests(Side, resources.RequestCalls):
    pass


class Files(Side, more.FileCalls):
    pass


class Presets(Side, more.PresetCalls):
    pass


class Schedules(Side, more.ScheduleCalls):
    """Prompts that are sent at times of a clock."""


class Webhooks(Side, more.WebhookCalls):
    pass


class Keys(Side, more.KeyCalls):
    pass


class Usage(Side, more.UsageCalls):
    pass


class Client:
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
        http_client: httpx.Client | None = None,
    ) -> None:
        self._server, self.max_retries = Server.of(base_url, api_key), max_retries
        self._timeout = httpx.Timeout(timeout, connect=CONNECT_SECONDS)
        self._own = http_client is None
        self._http = http_client or httpx.Client(limits=httpx.Limits(max_connections=MAX_CONNECTIONS))
        self.sessions, self.runs, self.requests, self.files = Sessions(self), Runs(self), Requests(self), Files(self)
        self.schedules = Schedules(self)
        self.presets, self.webhooks, self.keys, self.usage = Presets(self), Webhooks(self), Keys(self), Usage(self)

    def prompt(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        session_id: str | None = None,
        on_permission: OnPermission | None = None,
        on_question: OnQuestion | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> Turn:
        """Send a prompt to a new session, or to one that there is.

        Args:
            prompt: text, or blocks: `{"type": "text", "text": …}`, images, documents.
            on_permission: called while the turn is iterated; answers `request.allow()` or `request.deny("why")`. None:
                somebody else answers. What it raises comes out of the iteration, and leaves the request open.
            on_question: likewise; answers by the question's text.
            idempotency_key: the same one, with the same prompt, within 24 hours is the same run.
            options: of the prompt, and of its session from here on.
        """
        request = resources.prompting(prompt, session_id, idempotency_key, options)
        response = self._answered(self._exchange_of(request), streamed=True)
        assert response is not None  # noqa: S101 - a prompt has no `done_codes`
        try:
            session, run = ids_of(response)
        except BaseException:
            response.close()
            raise
        partials = options.get("include_partial_messages", True)
        following = events_of_run(run, None, self.max_retries, time.monotonic(), partials=partials)
        return Turn(self, following, Outcome(session, run), on_permission, on_question, response)

    def ask(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        session_id: str | None = None,
        on_permission: OnPermission | None = None,
        on_question: OnQuestion | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> ResultData:
        """`prompt`, and wait for its result. Raises RunFailed."""
        with self.prompt(
            prompt,
            session_id=session_id,
            on_permission=on_permission,
            on_question=on_question,
            idempotency_key=idempotency_key,
            **options,
        ) as turn:
            return turn.result()

    def request(self, method: str, route: str, *, query: Mapping[str, Any] | None = None, json: Any = None) -> Any:
        """Any other request: `client.request("GET", "/limits")`, as in the OpenAPI document, without `/api/v1`."""
        return self._send(more.anything(method, route, query, json))

    def _send(self, request: Request[T]) -> T:
        exchange = self._exchange_of(request)
        response = self._answered(exchange)
        if response is None:
            return None  # type: ignore[return-value]  # its type says so, where there are `done_codes`
        return exchange.answer(response.status_code, response.headers, response.content)

    def _exchange_of(self, request: Request[T]) -> Exchange[T]:
        return Exchange(request, self._server, self.max_retries, time.monotonic())

    def _answered(self, exchange: Exchange[Any], *, streamed: bool = False) -> httpx.Response | None:
        """A success; None: an attempt before has had it. Raises ClaudeAgentError."""
        while True:
            sent = True
            try:
                response = self._sent(exchange, streamed=streamed)
                if response.is_success:
                    return response
                told = exchange.error(response.status_code, response.headers, response.content)
                if exchange.is_done(told):
                    return None
                failure: ClaudeAgentError = told
            except httpx.HTTPError as error:
                failure, sent = failure_of(error, exchange.url), not isinstance(error, NOT_SENT)
            time.sleep(exchange.failed(failure, time.monotonic(), sent=sent))

    def _sent(self, exchange: Exchange[Any], *, streamed: bool = False) -> httpx.Response:
        """One attempt; what is not streamed is read."""
        timeout = httpx.Timeout(STREAM_SECONDS, connect=CONNECT_SECONDS) if streamed else self._timeout
        request = self._http.build_request(
            exchange.request.method,
            exchange.url,
            headers=exchange.headers,
            content=exchange.request.content(),
            timeout=timeout,
        )
        response = self._http.send(request, stream=True, follow_redirects=False)
        if not streamed or response.status_code != 200:
            try:
                response.read()
            finally:
                response.close()
        return response

    def close(self) -> None:
        """Let all connections go."""
        if self._own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
