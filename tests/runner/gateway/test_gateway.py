"""The gateway between agents' processes and the model API: who gets in, what passes, and what is noted of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx2
import orjson
import pytest

from apps.api.core.network import model_api
from apps.api.core.network.model_api import ModelApi
from apps.api.core.tenant import model_calls, prices
from apps.api.core.tenant.model_calls import Call, Used
from apps.api.db import Database
from apps.api.errors import ApiError, Forbidden, RateLimited, Unavailable
from apps.api.runner.gateway import holder
from apps.api.runner.gateway.caller import MAX_BODY_BYTES
from apps.api.runner.gateway.gateway import MAX_HELD_BYTES, MAX_STRANGERS, ApiOf, Check, Gateway
from apps.api.runner.gateway.holder import Holder
from apps.api.settings import Settings
from tests.world import until

KEY = "the-operators-key"
TENANT, SESSION, RUN = uuid4(), uuid4(), uuid4()
ASKED = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "say hello there"}]}
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Model:
    """A model API that does what a test says, and keeps what it was sent."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.answers: Callable[[asyncio.StreamWriter], Awaitable[None]] = self._well
        self.url = ""

    async def _well(self, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(line for line in head.lower().splitlines() if line.startswith("content-length:"))
                self.bodies.append(await reader.readexactly(int(length.split(":")[1])))
                self.heads.append(head)
                await self.answers(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    model = Model()
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0)
    async with server:
        model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield model


class Place:
    """A gateway, a process that it knows, and a client with that process's token."""

    def __init__(
        self, gateway: Gateway, holder: Holder, client: httpx2.AsyncClient, noted: list[Call], refused: list[ApiError]
    ) -> None:
        self.gateway, self.holder, self.client, self.noted, self.refused = gateway, holder, client, noted, refused

    async def ask(self, path: str = "/v1/messages", /, **more: Any) -> httpx2.Response:
        return await self.client.post(path, json=ASKED | more)


@asynccontextmanager
async def gateway_before(
    url: str,
    api_of: ApiOf | None = None,
    check: Check | None = None,
    until_noted: asyncio.Event | None = None,
    **more: Any,
) -> AsyncIterator[Place]:
    noted: list[Call] = []
    refused: list[ApiError] = []

    async def note(call: Call) -> None:
        if until_noted is not None:
            await until_noted.wait()
        noted.append(call)

    settings = Settings(_env_file=None, **{"anthropic_api_key": KEY, "anthropic_base_url": url, **more})

    async def of(_tenant_id: UUID) -> ModelApi:
        return model_api.of(settings)

    async def every(*_of: Any) -> list[list[str]]:
        return []

    gateway = Gateway(settings, api_of or of, note, check or every)
    await gateway.start()
    mine = gateway.admit(Holder(TENANT, SESSION, lambda: RUN, refused.append))
    async with httpx2.AsyncClient(base_url=gateway.url, headers={"x-api-key": mine.token}, timeout=30) as client:
        try:
            yield Place(gateway, mine, client, noted, refused)
        finally:
            await gateway.close()


@pytest.fixture
async def place(model: Model) -> AsyncIterator[Place]:
    async with gateway_before(model.url) as place:
        yield place


async def test_a_stream_of_the_demo_model_passes_as_it_is_and_is_counted(model_url: str) -> None:
    async with gateway_before(model_url) as place, httpx2.AsyncClient(headers={"x-api-key": "any"}) as direct:
        through = await place.ask(stream=True)
        past = await direct.post(f"{model_url}/v1/messages", json=ASKED | {"stream": True})
        kinds = [[line for line in answer.text.splitlines() if line.startswith("event:")] for answer in (through, past)]
        assert kinds[0] == kinds[1]
        assert through.headers["content-type"] == past.headers["content-type"]
        assert (await place.ask("/v1/messages/count_tokens?beta=true")).json()["input_tokens"] > 0
        await until(lambda: len(place.noted) == 2)
        call, counted = place.noted
        assert (call.tenant_id, call.session_id, call.run_id, call.kind, call.status) == (
            TENANT,
            SESSION,
            RUN,
            "messages",
            200,
        )
        assert call.used.model == "claude-sonnet-5-5"
        assert call.used.complete
        assert call.used.input_tokens > 0 < call.used.output_tokens
        assert call.first_byte_seconds is not None
        assert 0 <= call.first_byte_seconds <= call.seconds
        assert (counted.kind, counted.used.output_tokens) == ("count_tokens", 0)


async def test_a_piece_passes_before_the_next_one_is_there(model: Model, place: Place) -> None:
    heard = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"5\r\nfirst\r\n")
        await heard.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    model.answers = slowly
    async with place.client.stream("POST", "/v1/messages", json=ASKED) as response:
        pieces = response.aiter_bytes()
        assert await anext(pieces) == b"first"
        heard.set()
        assert await anext(pieces) == b"last"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, f"x-api-key: {KEY}"),
        ({"anthropic_api_key": None, "anthropic_auth_token": "a-token"}, "authorization: Bearer a-token"),
    ],
)
async def test_the_operators_credential_takes_the_place_of_the_token(
    model: Model, given: dict[str, Any], wanted: str
) -> None:
    async with gateway_before(f"{model.url}/of/a/gateway/", **given) as place:
        mine = {"anthropic-version": "2023-06-01", "anthropic-beta": "one,two", "x-stainless-lang": "js"}
        others = {"cookie": "a=b", "x-forwarded-for": "10.0.0.1", "authorization": "Bearer mine", "x-mine": "y"}
        await place.client.post("/v1/messages?beta=true", json=ASKED, headers=mine | others)
        [head] = model.heads
        assert head.startswith("POST /of/a/gateway/v1/messages?beta=true HTTP/1.1\r\n")
        assert wanted in head
        assert place.holder.token not in head
        assert all(f"{name}: {value}" in head for name, value in mine.items())
        assert not any(name in head for name in others if name not in wanted)
        assert "Bearer mine" not in head
        assert "accept-encoding: identity" in head


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/messages"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/files"),
        ("GET", "/v1/models"),
        ("POST", "/v1/messages/../organizations"),
        ("POST", "//v1/messages"),
        ("POST", "/v1/messages%2Fcount_tokens"),
        ("GET", "/"),
        ("POST", "/v1/organizations/api_keys"),
    ],
)
async def test_nothing_but_messages_may_be_asked_for(model: Model, place: Place, method: str, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx2.URL(place.gateway.url).port)
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {place.holder.token}\r\ncontent-length: 0\r\n\r\n"
    writer.write(head.encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
    writer.close()
    assert model.heads == []


@pytest.mark.parametrize("token", [None, "", "x", KEY, "sk-ant-of-somebody"])
async def test_who_shows_no_token_gets_nothing(model: Model, place: Place, token: str | None) -> None:
    async with httpx2.AsyncClient(base_url=place.gateway.url) as stranger:
        headers = {} if token is None else {"x-api-key": token}
        response = await stranger.post("/v1/messages", json=ASKED, headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
    assert model.heads == []


async def test_a_token_ends_with_its_process_and_so_does_what_it_has_asked(model: Model, place: Place) -> None:
    left = asyncio.Event()

    async def begin(writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
        )
        try:
            while True:
                writer.write(b"1\r\nx\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            left.set()

    model.answers = begin
    async with place.client.stream("POST", "/v1/messages", json=ASKED) as response:
        pieces = response.aiter_bytes()
        await anext(pieces)
        place.gateway.dismiss(place.holder)
        with pytest.raises(httpx2.TransportError):
            async for _ in pieces:
                pass
    async with asyncio.timeout(10):
        await left.wait()
    assert (await place.ask()).status_code == 401
    await until(lambda: bool(place.noted))
    assert (place.noted[0].status, place.noted[0].used.complete) == (200, False)


async def test_a_connection_is_used_again_and_replaced_when_it_has_ended(model: Model, place: Place) -> None:
    for _ in range(3):
        assert (await place.ask()).status_code == 200
    assert model.connections == 1

    async def once(writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    model.answers = once
    for _ in range(3):
        assert (await place.ask()).status_code == 200
    assert model.connections > 1
    assert [call.status for call in place.noted] == [200] * 6


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    ],
)
async def test_an_answer_that_is_none_is_told_as_one_that_the_agent_may_ask_for_again(
    model: Model, place: Place, said: bytes
) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()
        writer.close()

    model.answers = answer
    response = await place.ask()
    assert (response.status_code, response.json()["error"]["type"]) == (502, "api_error")
    await until(lambda: bool(place.noted))
    assert place.noted[0].status == 0


async def test_an_answer_that_breaks_off_breaks_off_for_the_agent(model: Model, place: Place) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    model.answers = answer
    with pytest.raises(httpx2.TransportError):
        await place.ask()
    async with gateway_before("http://127.0.0.1:1") as nowhere:
        assert (await nowhere.ask()).status_code == 502


async def test_who_does_not_read_holds_the_answer_back(model: Model, place: Place) -> None:
    sent = 0

    async def much(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 60000000\r\n\r\n")
        while sent < 60_000_000:
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    model.answers = much
    async with place.client.stream("POST", "/v1/messages", json=ASKED) as response:
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 30_000_000
        whole = sum([len(piece) async for piece in response.aiter_raw()])
    assert whole == 60_000_000


async def test_a_request_has_a_largest_size(model: Model, place: Place) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx2.URL(place.gateway.url).port)
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {place.holder.token}\r\n"
    writer.write(f"{head}content-length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode())
    answer = asyncio.create_task(reader.read(100))
    piece = b" " * 1_000_000
    for _ in range(MAX_BODY_BYTES // len(piece) + 2):
        if answer.done():
            break
        writer.write(piece)
        try:
            await writer.drain()
        except ConnectionError:
            break
    assert (await answer).startswith(b"HTTP/1.1 413 ")
    writer.close()
    assert model.heads == []


async def test_strangers_make_room_for_one_another(model: Model, place: Place) -> None:
    port = httpx2.URL(place.gateway.url).port
    first, writer = await asyncio.open_connection("127.0.0.1", port)
    others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_STRANGERS)]
    async with asyncio.timeout(10):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await first.readexactly(1)
    assert (await place.ask()).status_code == 200
    for _, other in [(first, writer), *others]:
        other.close()


async def test_a_call_is_kept_with_its_run_and_key(db: Database) -> None:
    tenant = await db.pool.fetchval("INSERT INTO tenants (name) VALUES ('a') RETURNING id")
    used = model_calls.Used("claude-sonnet-5-5", 1, 2, 3, 4, 5, 6, complete=True)
    for run_id, first in ((None, None), (UUID(int=5), 0.5)):
        at = await db.pool.fetchval("SELECT now()")
        call = Call(tenant, SESSION, run_id, "messages", at, 200, first, 1.5, used, 0.25)
        await model_calls.record(db, call)
    rows = await db.pool.fetch("SELECT * FROM model_calls ORDER BY id")
    assert [row["first_byte_seconds"] for row in rows] == [None, 0.5]
    names = ("input_tokens", "output_tokens", "web_search_requests", "cost_usd")
    assert [rows[1][name] for name in names] == [1, 2, 6, 0.25]


async def test_a_process_holds_a_bounded_number_of_bytes(model: Model, place: Place) -> None:
    heard = asyncio.Event()

    async def later(writer: asyncio.StreamWriter) -> None:
        await heard.wait()
        writer.write(OK)

    model.answers = later
    large: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * (MAX_HELD_BYTES // 4 - 1000)}]}
    asking = [asyncio.create_task(place.ask(**large)) for _ in range(4)]
    await until(lambda: place.holder.held > MAX_HELD_BYTES - 5000)
    refused = await place.ask(**large)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    heard.set()
    assert [(await each).status_code for each in asking] == [200] * 4
    assert place.holder.held == 0
    assert (await place.ask()).status_code == 200


@pytest.mark.parametrize(
    ("failure", "status", "refused"),
    [
        (Unavailable("None.", code="model_credential_missing"), 403, ["model_credential_missing"]),
        (Unavailable("Sealed.", code="encryption_not_configured"), 403, []),
        (ConnectionError("away"), 503, []),
    ],
)
async def test_what_has_no_credential_is_refused_here_and_noted(
    model: Model, failure: Exception, status: int, refused: list[str]
) -> None:
    async def none(_tenant_id: UUID) -> ModelApi:
        raise failure

    async with gateway_before(model.url, none) as place:
        answer = await place.ask()
        assert (answer.status_code, answer.json()["type"]) == (status, "error")
        await until(lambda: bool(place.noted))
        assert place.noted[0].status == 0
        assert [error.code for error in place.refused] == refused
    assert model.connections == 0


@pytest.mark.parametrize(
    ("figures", "told", "direction"),
    [
        ({}, 1.0, None),
        ({}, 1.009, None),
        ({}, 0.985, "lower"),
        ({}, 1.02, "higher"),
        ({}, 0.0, "lower"),
        ({"complete": False}, 0.0, None),
        ({"model": "claude-unheard-of"}, 0.0, None),
        ({"input_tokens": 0, "complete": False}, 0.0, None),
    ],
)
async def test_what_the_sdk_tells_is_compared_with_what_was_counted(
    place: Place, figures: dict[str, Any], told: float, direction: str | None
) -> None:
    """One million tokens of input cost 2 USD: half of them were asked for."""
    used = Used(**{"model": "claude-sonnet-5-5", "input_tokens": 500_000, "complete": True, **figures})
    known = prices.of(used.model) is not None
    at = datetime(2026, 11, 1, tzinfo=UTC)
    place.holder.spent.add(Call(TENANT, SESSION, RUN, "messages", at, 200, 0.1, 0.2, used, prices.cost(used), known))
    said: list[str] = []
    place.gateway.differs = said.append
    place.gateway.settle(place.holder, told)
    assert said == ([direction] if direction else [])
    place.gateway.settle(place.holder, 0.0)
    assert said == ([direction] if direction else [])


def refusing(failure: Exception) -> Check:
    async def check(*_of: Any) -> list[list[str]]:
        raise failure

    return check


@pytest.mark.parametrize(
    ("failure", "status", "kind", "refused"),
    [
        (RateLimited("Used up.", code="budget_reached"), 402, "billing_error", ["budget_reached"]),
        (Forbidden("Not this one.", code="model_not_permitted"), 403, "permission_error", ["model_not_permitted"]),
        (ConnectionError("away"), 503, "api_error", []),
        (Unavailable("away"), 503, "api_error", []),
    ],
)
async def test_a_call_that_may_not_be_made_is_not(
    model: Model, failure: Exception, status: int, kind: str, refused: list[str]
) -> None:
    """Not either while nobody can say whether it may: a database that is away opens no budget."""
    async with gateway_before(model.url, check=refusing(failure)) as place:
        answer = await place.ask()
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
        assert [error.code for error in place.refused] == refused
    assert model.connections == 0


async def test_a_call_is_judged_when_what_the_one_before_it_cost_is_known(model: Model) -> None:
    noted, judged = asyncio.Event(), list[bool]()

    async def check(*_of: Any) -> list[list[str]]:
        judged.append(noted.is_set())
        return []

    async with gateway_before(model.url, check=check, until_noted=noted) as place:
        await place.ask()
        second = asyncio.create_task(place.ask())
        await until(lambda: bool(place.holder.calls))
        noted.set()
        assert (await second).status_code == 200
    assert judged == [False, True]


@pytest.mark.parametrize("failure", [None, RateLimited("Used up.", code="budget_reached"), ConnectionError("away")])
async def test_calls_are_judged_when_their_turn_begins_and_again_when_they_come(
    model: Model, failure: Exception | None
) -> None:
    """What is found holds for a while where there is no budget, see `budgets.Gate`; a failure is the call's."""
    judged = list[Any]()

    async def check(*of: Any) -> list[list[str]]:
        judged.append(of)
        if failure is not None and len(judged) == 1:
            raise failure
        return []

    async with gateway_before(model.url, check=check) as place:
        place.gateway.expect(place.holder)
        await until(lambda: bool(judged))
        assert (await place.ask()).status_code == 200
        assert place.refused == []
    assert judged == [(TENANT, SESSION, RUN, None)] * 2


async def test_who_cannot_be_told_what_was_spent_asks_for_no_more(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "SETTLE_SECONDS", 0.05)
    noted = asyncio.Event()
    async with gateway_before(model.url, until_noted=noted) as place:
        await place.ask()
        assert (await place.ask()).status_code == 503
        noted.set()
    assert len(model.heads) == 1


OWN, ALLOWED = "claude-sonnet-5-5", [["claude-sonnet-*", "*haiku*"], ["claude-*-5-5"]]
TWICE = b'{"model": "claude-sonnet-5-5", "messages": [], "m\\u006fdel": "claude-opus-5-5"}'


def allowing(lists: list[list[str]]) -> Check:
    async def check(*_of: Any) -> list[list[str]]:
        return lists

    return check


@pytest.mark.parametrize(
    ("body", "own", "asked"),
    [
        ({"model": OWN}, OWN, OWN),
        ({"model": "claude-haiku-5-5"}, OWN, "claude-haiku-5-5"),
        ({"model": "claude-haiku-4-5"}, OWN, OWN),  # the second list lacks it
        ({"model": "claude-opus-5-5"}, OWN, OWN),
        ({"model": "claude-opus-5-5"}, "claude-opus-5-5", None),
        ({"model": "claude-opus-5-5"}, None, None),
        ({"model": 7}, OWN, OWN),
        ({}, None, None),
        (TWICE, OWN, OWN),
        (TWICE, None, None),
        (b'{"model": "claude-opus-5-5", "model": "claude-sonnet-5-5"}', None, OWN),
    ],
)
async def test_only_models_of_the_lists_are_asked_and_the_sessions_own_for_others(
    model: Model, body: Any, own: str | None, asked: str | None
) -> None:
    async with gateway_before(model.url, check=allowing(ALLOWED)) as place:
        place.holder.model = own
        sent = body if isinstance(body, bytes) else orjson.dumps({"max_tokens": 7, **body})
        answer = await place.client.post("/v1/messages", content=sent)
        if asked is None:
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
            assert [error.code for error in place.refused] == ["model_not_permitted"]
            assert model.bodies == []
        else:
            assert answer.status_code == 200
            pairs = json.loads(model.bodies[0], object_pairs_hook=list)
            assert [value for name, value in pairs if name == "model"] == [asked]


@pytest.mark.parametrize("body", [b"", b"[]", b"no json", b'{"model": "\\ud800"}'])
async def test_what_names_no_model_is_refused_where_models_are_listed(model: Model, body: bytes) -> None:
    async with gateway_before(model.url, check=allowing([["*"]])) as place:
        answer = await place.client.post("/v1/messages", content=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert model.bodies == []


async def test_without_a_list_a_request_passes_as_it_is(model: Model, place: Place) -> None:
    assert (await place.client.post("/v1/messages", content=TWICE)).status_code == 200
    assert model.bodies == [TWICE]
