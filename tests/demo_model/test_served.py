"""The demo model over HTTP, without the CLI: errors, models, broken replies, and its process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from apps.demo_model.app import MAX_BODY_BYTES, MAX_REMEMBERED_FAILURES, create_app
from apps.demo_model.server import run

PREFIX = "[demo model, scripted] "
pytestmark = pytest.mark.asyncio


def asking(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "demo-1", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}], **more}


async def until_dropped(answer: httpx.Response) -> AsyncIterator[str]:
    """The pieces of a reply that must end with a dropped connection."""
    try:
        async for piece in answer.aiter_text():
            yield piece
    except httpx.RemoteProtocolError:
        return
    pytest.fail("the reply was completed")


@pytest_asyncio.fixture
async def client(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as opened:
        yield opened


async def test_a_message_that_is_not_streamed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/messages", json=asking("say one two"))
    told = answer.json()
    assert (answer.status_code, told["type"], told["role"], told["model"]) == (200, "message", "assistant", "demo-1")
    assert told["content"] == [{"type": "text", "text": PREFIX + "one two"}]
    assert (told["stop_reason"], told["usage"]["output_tokens"]) == ("end_turn", 5)
    counted = await client.post("/v1/messages/count_tokens", json=asking("say one two"))
    assert counted.json() == {"input_tokens": told["usage"]["input_tokens"]}
    assert told["id"].startswith("msg_01")
    assert answer.headers["request-id"].startswith("req_01")


async def test_models_and_health(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    names = [model["id"] for model in listed["data"]]
    assert (len(names), listed["first_id"], listed["last_id"]) == (3, names[0], names[-1])
    assert (await client.get(f"/v1/models/{names[0]}")).json() == listed["data"][0]
    for method, path in (("GET", "/"), ("HEAD", "/"), ("GET", "/health"), ("HEAD", "/api/hello")):
        assert (await client.request(method, path)).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (b"[" * 100_000, 400, "invalid_request_error"),
        (b"\xff", 400, "invalid_request_error"),
        (b"[]", 400, "invalid_request_error"),
        (b'{"model": "demo-1"}', 400, "invalid_request_error"),
        (b'{"model": "demo-1", "messages": []}', 400, "invalid_request_error"),
        (b'{"messages": [{}]}', 400, "invalid_request_error"),
        (b'{"model": "gpt-9", "messages": [{}]}', 404, "not_found_error"),
        (b'{"model": "claude-unknown-1", "messages": [{}]}', 404, "not_found_error"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
async def test_a_wrong_request_is_refused(client: httpx.AsyncClient, sent: bytes, status: int, kind: str) -> None:
    answer = await client.post("/v1/messages", content=sent)
    told = answer.json()
    assert (answer.status_code, told["type"], told["error"]["type"]) == (status, "error", kind)
    assert told["request_id"] == answer.headers["request-id"]


async def test_an_unknown_model_is_named(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/gpt-9")).json()["error"]["message"] == "model: gpt-9"


@pytest.mark.parametrize(("status", "kind"), [(401, "authentication_error"), (500, "api_error"), (418, None)])
async def test_scripted_failures(client: httpx.AsyncClient, status: int, kind: str | None) -> None:
    for _ in range(2):
        answer = await client.post("/v1/messages", json=asking(f"fail with {status}"))
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind or "invalid_request_error")


async def test_a_single_failure_recovers_and_few_are_remembered() -> None:
    app = create_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as opened:
        asked = asking("fail with 529 once", metadata={"user_id": "first"})
        tries = [await opened.post("/v1/messages", json=asked) for _ in range(3)]
        assert [answer.status_code for answer in tries] == [529, 200, 200]
        assert tries[1].json()["content"] == [{"type": "text", "text": PREFIX + "recovered"}]
        for number in range(MAX_REMEMBERED_FAILURES):
            await opened.post("/v1/messages", json=asking("fail with 529 once", metadata={"user_id": str(number)}))
        assert len(app.state.failed_once) == MAX_REMEMBERED_FAILURES
        assert (await opened.post("/v1/messages", json=asked)).status_code == 529


@pytest.mark.parametrize(("stream", "last"), [(True, '"text": "cut"}}'), (False, '"role": "assistant"')])
async def test_a_broken_reply_begins_and_never_ends(client: httpx.AsyncClient, stream: bool, last: str) -> None:
    asked = asking("break the stream", stream=stream)
    async with client.stream("POST", "/v1/messages", json=asked) as answer:
        assert answer.status_code == 200
        received = "".join([piece async for piece in until_dropped(answer)])
    assert last in received
    assert "message_stop" not in received


async def test_the_process_announces_its_port_and_stops_cleanly_while_a_reply_hangs(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "apps.demo_model", "--port", "0", "--port-file", str(port_file)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        assert int(port_file.read_text()) == port
        asked = asking("hang after 1 words", stream=True)
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as opened,
            opened.stream("POST", "/v1/messages", json=asked) as answer,
        ):
            async for piece in until_dropped(answer):
                if "content_block_stop" in piece:
                    process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_it_listens_on_loopback_only() -> None:
    with pytest.raises(ValueError, match="loopback only"):
        run("0.0.0.0", 0, None)
