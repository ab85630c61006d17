"""What the Python clients send, send again and do not, to a server that fails as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from claude_agent_api import APIError, AsyncClient, ClaudeAgentError, Client, ConnectionFailed, RateLimited, ServerError

from tests.clients.stage import busy
from tests.free_ports import free_port
from tests.receiver import Received, Receiver, Reply, receiving

Call = Callable[[Callable[[Any], Any]], Awaitable[Any]]
"""Does something with a client of either kind."""


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: Receiver) -> Call:
    url = server.url("").rstrip("/")

    async def asynchronous(doing: Callable[[Any], Any]) -> Any:
        async with AsyncClient(url, "key") as client:
            made = doing(client)
            return [row async for row in made] if hasattr(made, "__aiter__") else await made

    def synchronous(doing: Callable[[Any], Any]) -> Any:
        with Client(url, "key") as client:
            made = doing(client)
            return list(made) if hasattr(made, "__next__") else made

    async def in_thread(doing: Callable[[Any], Any]) -> Any:
        return await asyncio.to_thread(synchronous, doing)

    return asynchronous if request.param == "async" else in_thread


def told(body: Any, status: int = 200) -> Reply:
    return Reply(body, status, {"Content-Type": "application/json"})


def error(status: int, code: str) -> Reply:
    return told({"error": {"code": code, "message": "No.", "details": {}}, "request_id": "r"}, status)


class Lost(ConnectionError):
    """The answer does not come."""


def loses(server: Receiver, *replies: Reply) -> None:
    """The first answer is lost; then these come."""
    left: list[Reply | None] = [None, *replies]

    async def answer(_request: Received) -> Reply:
        if (reply := left.pop(0)) is None:
            raise Lost
        return reply

    server.answer = answer


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(server: Receiver, call: Call) -> None:
    loses(server, told({"session_id": "s"}), told({"session_id": "s"}))
    assert (await call(lambda client: client.sessions.create(title="ü")))["session_id"] == "s"
    await call(lambda client: client.sessions.create(title="ü"))
    keys = [request.headers["idempotency-key"] for request in server.received]
    assert keys[0] == keys[1] != keys[2]
    assert server.received[0].json == {"title": "ü"}


async def test_what_would_be_done_twice_is_not_sent_again(server: Receiver, call: Call) -> None:
    loses(server)
    with pytest.raises(ConnectionFailed):
        await call(lambda client: client.keys.create(tenant="t", name="n"))
    assert len(server.received) == 1
    server.replies(error(503, "dependency_unavailable"))
    with pytest.raises(ServerError):
        await call(lambda client: client.webhooks.rotate("w"))
    assert len(server.received) == 2


async def test_what_was_not_begun_is_sent_again(server: Receiver, call: Call) -> None:
    server.replies(busy(503, "instance_full", 0), told({"secret": "s"}))
    assert await call(lambda client: client.keys.create(tenant="t", name="n")) == {"secret": "s"}
    assert len(server.received) == 2


@pytest.mark.parametrize(
    ("doing", "code", "status"),
    [
        (lambda client: client.sessions.delete("s"), "session_deleted", 409),
        (lambda client: client.webhooks.delete("w"), "webhook_not_found", 404),
        (lambda client: client.runs.interrupt("r"), "no_live_run", 409),
        (lambda client: client.requests.answer("s", "q", {"a": "b"}), "request_resolved", 409),
    ],
)
async def test_an_error_after_a_lost_answer_says_that_it_was_done(
    server: Receiver, call: Call, doing: Any, code: str, status: int
) -> None:
    loses(server, error(status, code))
    assert await call(doing) is None
    server.replies(error(status, code))
    with pytest.raises(APIError) as raised:
        await call(doing)
    assert raised.value.code == code


async def test_a_run_that_failed_is_not_asked_for_again(server: Receiver, call: Call) -> None:
    body = {"error": {"code": "owner_lost", "message": "Dead.", "details": {"run_id": "r"}}, "request_id": "q"}
    server.replies(told(body, 503))
    with pytest.raises(ServerError) as raised:
        await call(lambda client: client.sessions.rewind("s", "c"))
    assert (raised.value.code, raised.value.retryable, len(server.received)) == ("owner_lost", True, 1)


async def test_quotas_that_no_wait_helps_with_are_told_at_once(server: Receiver, call: Call) -> None:
    server.replies(error(429, "quota_exceeded"))
    with pytest.raises(RateLimited) as raised:
        await call(lambda client: client.sessions.create())
    assert (raised.value.retryable, len(server.received)) == (False, 1)


ODD = "a/../b?c=d#e %2F ü \u2028"


async def test_ids_and_paths_stay_what_they_are(server: Receiver, call: Call) -> None:
    server.replies(told({"data": [], "next_cursor": None}))
    await call(lambda client: client.sessions.get(ODD))
    await call(lambda client: client.files.put(ODD, f"dir/{ODD[2:4]}…/a+b&c;d%41 ü.txt", "x"))
    await call(lambda client: client.files.move("s", "a", "b"))
    await call(lambda client: client.files.list("s", path="a&b=c/ü", recursive=True))
    first, put, move, listed = (urlsplit(request.target) for request in server.received)
    assert [unquote(part) for part in first.path.split("/")[4:]] == [ODD]
    assert [unquote(part) for part in put.path.split("/")[4:]] == [ODD, "files", "dir", "..…", "a+b&c;d%41 ü.txt"]
    assert move.path == "/api/v1/sessions/s/files/move"
    assert parse_qs(listed.query) == {"path": ["a&b=c/ü"], "recursive": ["true"], "limit": ["1000"]}


@pytest.mark.parametrize("id_", ["", ".", ".."])
async def test_what_can_be_no_id_is_not_asked_for(server: Receiver, call: Call, id_: str) -> None:
    for doing in (lambda client: client.sessions.delete(id_), lambda client: client.files.put("s", f"a/{id_}", "x")):
        with pytest.raises(ValueError, match="is no id"):
            await call(doing)
    assert server.received == []


async def test_all_pages_are_asked_for(server: Receiver, call: Call) -> None:
    server.replies(
        told({"data": [{"n": 1}], "next_cursor": "a&b=ü"}),
        told({"data": [], "next_cursor": "c"}),
        told({"data": [{"n": 2}], "next_cursor": None}),
    )
    rows = await call(lambda client: client.sessions.list(metadata={"kunde nr": "4 2"}, limit=1))
    assert rows == [{"n": 1}, {"n": 2}]
    asked = [parse_qs(urlsplit(request.target).query) for request in server.received]
    filters = {"metadata.kunde nr": ["4 2"], "limit": ["1"]}
    assert asked == [filters, {**filters, "cursor": ["a&b=ü"]}, {**filters, "cursor": ["c"]}]


async def test_files_of_this_machine_are_sent_anew_each_time(server: Receiver, call: Call, tmp_path: Path) -> None:
    (file := tmp_path / "ü.bin").write_bytes(content := bytes(range(256)) * 4000)
    loses(server, told({"file_id": "f"}))
    assert await call(lambda client: client.files.upload(file)) == {"file_id": "f"}
    assert [request.body for request in server.received] == [content, content]
    assert parse_qs(urlsplit(server.received[1].target).query) == {"name": ["ü.bin"]}


PAGE = Reply(b"<html>Welcome</html>", 200, {"Content-Type": "text/html"})
MOVED = Reply(b"", 301, {"Location": "https://example.org/"})


@pytest.mark.parametrize(("reply", "status"), [(PAGE, 200), (MOVED, 301), (Reply(b"<html>", 404), 404)])
async def test_an_answer_that_is_not_the_apis(server: Receiver, call: Call, reply: Reply, status: int) -> None:
    server.replies(reply)
    for doing in (lambda client: client.sessions.get("s"), lambda client: client.prompt("x")):
        with pytest.raises(APIError, match=r"not as this API does") as raised:
            await call(doing)
        assert (raised.value.status, raised.value.code, raised.value.retryable) == (status, None, False)
    assert len(server.received) == 2


async def test_a_proxys_bad_gateway_is_waited_for(server: Receiver, call: Call) -> None:
    server.replies(Reply(b"<html>502 Bad Gateway</html>", 502), told({"session_id": "s"}))
    assert await call(lambda client: client.sessions.get("s")) == {"session_id": "s"}


async def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    async with AsyncClient(f"http://127.0.0.1:{free_port()}", "key", max_retries=2) as client:
        with pytest.raises(ConnectionFailed) as raised:
            await client.sessions.get("s")
    assert raised.value.retryable


@pytest.mark.parametrize("url", ["agents.example.org", "ftp://agents.example.org", "http://", "http://a/?b=c", "x"])
def test_what_is_no_url_is_said_at_once(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="base_url"):
            kind(url, "key")


def test_a_key_with_a_line_end_in_it_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="line end"):
        Client("http://127.0.0.1", "one\ntwo")


async def test_where_and_who_come_from_the_environment(server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    server.replies(told({}))
    monkeypatch.setenv("CLAUDE_AGENT_API_URL", server.url("/api/v1/"))
    monkeypatch.setenv("CLAUDE_AGENT_API_KEY", "schlüssel\n")
    async with AsyncClient() as client:
        await client.request("GET", "/limits", query={"limit": 3})
    [request] = server.received
    assert request.target == "/api/v1/limits?limit=3"
    assert request.headers["x-api-key"].encode("latin-1").decode() == "schlüssel"
    assert "schlüssel" not in repr(vars(client))


async def test_a_header_that_cannot_be_sent_is_not_tried_for_ever(server: Receiver, call: Call) -> None:
    with pytest.raises(ClaudeAgentError) as raised:
        await call(lambda client: client.ask("x", idempotency_key="two\nlines"))
    assert not raised.value.retryable
    assert server.received == []


async def test_a_client_of_ones_own_is_used_and_not_closed(server: Receiver) -> None:
    server.replies(told({}))
    async with httpx.AsyncClient(headers={"X-Own": "1"}) as own:
        async with AsyncClient(server.url(""), "key", http_client=own) as client:
            await client.sessions.get("s")
        assert not own.is_closed
    assert server.received[0].headers["x-own"] == "1"


def events(*told: tuple[str, str, dict[str, Any]]) -> bytes:
    common = {"session_id": "s", "run_id": "r", "seq": 1, "created_at": "t"}
    lines = (f"id: {id_}\nevent: {name}\ndata: {json.dumps({**common, **data})}\n\n" for id_, name, data in told)
    return "".join(lines).encode()


STREAM = {"Content-Type": "text/event-stream", "X-Session-ID": "s", "X-Run-ID": "r"}
FIRST = events(("1", "init", {}), ("2", "message", {"role": "user", "content": [], "parent_tool_use_id": None}))
LAST = events(("3", "result", {"result": "done"}), ("4", "done", {"status": "succeeded"}))


async def test_a_stream_goes_on_after_its_last_event(server: Receiver, call: Call) -> None:
    gone_on = Reply(FIRST[:-20], 200, STREAM), Reply(b"<html>", 503), Reply(LAST, 200, STREAM)
    server.replies(*gone_on)
    result = await call(lambda client: client.ask("x"))
    assert result["result"] == "done"
    assert [request.headers.get("last-event-id") for request in server.received] == [None, "1", "1"]
    assert [request.target for request in server.received] == ["/api/v1/query", *["/api/v1/runs/r/events"] * 2]


async def test_nothing_left_to_stream_is_an_end(server: Receiver, call: Call) -> None:
    server.replies(Reply(FIRST, 200, STREAM), Reply(b"", 204))
    with pytest.raises(ConnectionFailed, match="before the run"):
        await call(lambda client: client.ask("x"))
    assert len(server.received) == 2


async def test_a_stream_that_may_not_be_read_any_more_says_so(server: Receiver, call: Call) -> None:
    server.replies(Reply(FIRST, 200, STREAM), error(410, "events_expired"))
    with pytest.raises(APIError) as raised:
        await call(lambda client: client.ask("x"))
    assert (raised.value.status, raised.value.code) == (410, "events_expired")


ASKED = events(("3", "permission_request", {"request_id": "q", "tool_name": "Bash", "input": {"command": "ls"}}))


async def test_a_request_that_somebody_else_has_answered_is_no_error(server: Receiver, call: Call) -> None:
    last = events(("4", "result", {"result": "done"}), ("5", "done", {"status": "succeeded"}))
    server.replies(Reply(FIRST + ASKED, 200, STREAM), error(409, "request_resolved"), Reply(last, 200, STREAM))
    result = await call(lambda client: client.ask("x", on_permission=lambda request: request.allow(remember=True)))
    assert result["result"] == "done"
    assert server.received[1].target == "/api/v1/sessions/s/permissions/q"
    assert server.received[1].json == {"decision": "allow", "remember": True}


async def test_an_event_whose_callback_failed_comes_all_the_same(server: Receiver) -> None:
    last = events(("4", "result", {"result": "done"}), ("5", "done", {"status": "succeeded"}))
    server.replies(Reply(FIRST + ASKED + last, 200, STREAM))
    asked = []

    async def ask(request: Any) -> None:
        asked.append(request)
        raise LookupError(request.tool_name)

    async with AsyncClient(server.url(""), "key") as client:
        turn = await client.prompt("x", on_permission=ask)
        seen = []

        async def read() -> None:
            async for event in turn:
                seen.append(event["event"])

        with pytest.raises(LookupError, match="Bash"):
            await read()
        await read()
    assert seen == ["init", "message", "permission_request", "result", "done"]
    assert len(asked) == len(server.received) == 1
