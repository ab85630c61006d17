"""The chat server: what its document says, and what is more here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import NewKey
from tests.dialects.conftest import shaped
from tests.fleet import HEADERS, NO_TLS, Fleet, Instance
from tests.git_server import GitServer, git_serving
from tests.mcp_things import COMMAND_LINE

PREFIX = "/compat/chat-server"
COMPLETE = {
    "type": str,
    "exit_code": int,
    "session_id": str,
    "sandbox_id": str,
    "exposed_urls": dict,
    "mcp_enabled": list,
    "mcp_gateway_url": type(None),
}
RESULT = {
    "type": str,
    "subtype": str,
    "is_error": bool,
    "duration_ms": int,
    "num_turns": int,
    "result": str,
    "session_id": str,
    "total_cost_usd": float,
    "usage": dict,
}
SYSTEM = {
    "type": str,
    "subtype": str,
    "cwd": str,
    "session_id": str,
    "tools": list,
    "mcp_servers": list,
    "model": str,
}
FLOW = [
    "status initializing",
    "status creating_sandbox",
    "status sandbox_ready",
    "mcp_configured",
    "ports",
    "status executing",
    "system",
    "claude_event message_start",
    "claude_event content_block_start",
]
END = ["claude_event content_block_stop", "claude_event message_stop", "result", "complete", "done"]

Told = list[dict[str, Any]]


def at(instance: Instance, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """A client of this dialect, which knows nothing but a base URL and a key."""
    given = HEADERS if headers is None else headers
    return httpx.AsyncClient(base_url=instance.url + PREFIX, headers=given, timeout=60, verify=NO_TLS)


async def lines_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """As browsers' code does it: each chunk split at line ends, and what follows `data: ` parsed."""
    async for chunk in response.aiter_raw():
        for line in chunk.decode().split("\n"):
            if line.startswith("data: "):
                yield json.loads(line[6:])


async def chat(client: httpx.AsyncClient, prompt: str, session_id: str | None = None, **more: Any) -> Told:
    path = f"/chat/{session_id}" if session_id else "/chat"
    async with client.stream("POST", path, json={"prompt": prompt, **more}) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        assert response.headers["content-type"].startswith("text/event-stream")
        return [line async for line in lines_of(response)]


def name(line: dict[str, Any]) -> str:
    return " ".join([line["type"], *(line[key] for key in ("status", "event_type") if key in line)])


def text(told: Told) -> str:
    return "".join(line["text"] for line in told if line["type"] == "text_delta")


def one(told: Told, kind: str) -> dict[str, Any]:
    found = [line for line in told if line["type"] == kind]
    assert len(found) == 1, told
    return found[0]


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    async with at(fleet[0]) as client:
        yield client


@pytest.fixture(scope="module")
async def began(fleet: Fleet) -> Told:
    """What was told of a first prompt."""
    async with at(fleet[0]) as client:
        return await chat(client, "stream 5 words")


@pytest.fixture(scope="module")
def talk(began: Told) -> str:
    """Its session, which many tests go on with; each leaves it idle."""
    return str(one(began, "complete")["session_id"])


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_serving(tmp_path_factory.mktemp("git")) as server:
        server.repository("repository", {"README.md": "a project without tests"})
        yield server


# --- the document -------------------------------------------------------------------------------------------------


def test_the_complete_example_flow_in_its_order(began: Told) -> None:
    told = began
    names = [name(line) for line in told]
    assert [n for n in names if n != "text_delta"] == FLOW + END
    assert names[len(FLOW) : -len(END)] == ["text_delta"] * (len(names) - len(FLOW) - len(END))
    assert names.count("text_delta") > 1
    assert text(told) == "word1 word2 word3 word4 word5"

    complete = shaped(one(told, "complete"), COMPLETE)
    session_id = complete["session_id"]
    assert str(UUID(session_id)) == session_id
    assert complete["exit_code"] == 0
    assert complete["mcp_enabled"] == []
    ready = next(line for line in told if line.get("status") == "sandbox_ready")
    assert ready == {"type": "status", "status": "sandbox_ready", "sandbox_id": complete["sandbox_id"]}
    assert one(told, "mcp_configured") == {"type": "mcp_configured", "mcp_enabled": [], "mcp_gateway_url": None}
    assert one(told, "ports") == {"type": "ports", "exposed_urls": {}}
    system = shaped(one(told, "system")["data"], SYSTEM)
    assert (system["type"], system["subtype"], system["session_id"]) == ("system", "init", session_id)
    result = shaped(one(told, "result")["result"], RESULT)
    assert (result["type"], result["subtype"], result["is_error"]) == ("result", "success", False)
    assert (result["session_id"], result["result"]) == (session_id, text(told))
    assert result["total_cost_usd"] > 0
    assert told[-1] == {"type": "done"}


async def test_the_session_of_complete_goes_on_from_another_instance(fleet: Fleet, talk: str) -> None:
    other, another = await fleet.others(await fleet.owner_of(talk))
    turns = (await other.get(f"/sessions/{talk}")).json()["num_turns"]
    async with at(other) as client:
        told = await chat(client, "recall", talk)
        assert "1. stream 5 words" in text(told)
        assert one(told, "complete")["session_id"] == talk
        assert [name(line) for line in told][: len(FLOW)] == FLOW
    state = (await other.get(f"/sessions/{talk}")).json()
    assert (state["surface"], state["num_turns"]) == ("chat_server", turns + 1)
    assert "1. stream 5 words" in (await another.ask(talk, "recall"))["result"]


async def test_tools_run_without_asking_and_each_message_begins_and_ends(client: httpx.AsyncClient, talk: str) -> None:
    told = await chat(client, "write notes.txt: hello then run cat notes.txt then say all done", talk)
    assert text(told).endswith("all done")
    names = [name(line) for line in told]
    assert names.count("claude_event message_start") == names.count("claude_event message_stop") == 3
    blocks = [names.count(f"claude_event content_block_{part}") for part in ("start", "stop")]
    assert blocks[0] == blocks[1] >= 3
    assert "hello" in text(told)


async def test_a_line_stays_one_line_whatever_is_said(client: httpx.AsyncClient, talk: str) -> None:
    said = "one\u2028two\u2029three\u0085four"
    answer = await client.post(f"/chat/{talk}", json={"prompt": f"say {said}"})
    lines = [line for line in answer.text.splitlines() if line]
    assert all(line.startswith(("data: ", "event: ", "id: ", ":")) for line in lines), lines
    assert text([json.loads(line[6:]) for line in lines if line.startswith("data: ")]).endswith(said)


async def test_a_repository_and_registered_mcp_servers_are_there_before_the_prompt_runs(
    fleet: Fleet, new_key: NewKey, git: GitServer
) -> None:
    headers = await new_key()
    command, *args = COMMAND_LINE.split()
    server = {"type": "stdio", "command": command, "args": args}
    registered = await fleet[1].client.put("/api/v1/mcp-servers/things", json=server, headers=headers)
    assert registered.is_success, registered.text
    async with at(fleet[0], headers) as client:
        told = await chat(client, "run cat README.md then list tools", repo=git.url("repository"))
    assert "a project without tests" in text(told)
    names = [name(line) for line in told]
    configuring = names.index("mcp_configured") - 1
    assert names[: len(FLOW)] == [*FLOW[:configuring], "status configuring_mcp", *FLOW[configuring:-1]]
    assert one(told, "mcp_configured")["mcp_enabled"] == one(told, "complete")["mcp_enabled"] == ["things"]
    assert "mcp__things" in str(one(told, "system")["data"]["tools"]) + text(told)


# --- failures -----------------------------------------------------------------------------------------------------


async def test_a_failure_is_an_error_event_before_the_end(client: httpx.AsyncClient, git: GitServer, talk: str) -> None:
    told = await chat(client, "fail with 400", talk)
    assert [name(line) for line in told][-3:] == ["error", "complete", "done"]
    assert "400" in one(told, "error")["error"]
    assert one(told, "complete")["exit_code"] == 1
    told = await chat(client, "say hello", repo=git.url("nothing"))
    assert [name(line) for line in told] == [*FLOW[:2], "error", "complete", "done"]
    assert "not found" in one(told, "error")["error"]


@pytest.mark.parametrize("repo", ["/etc", "file:///etc", "git@github.com:a/b", "https://example.org/a/b"])
async def test_a_repository_from_elsewhere_is_refused(client: httpx.AsyncClient, repo: str) -> None:
    response = await client.post("/chat", json={"prompt": "x", "repo": repo})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "repo"]


async def test_a_prompt_is_needed(client: httpx.AsyncClient) -> None:
    for body in ({}, {"prompt": " "}):
        assert (await client.post("/chat", json=body)).status_code == 422


async def test_sessions_that_are_unknown_or_of_another_tenant_are_404(fleet: Fleet, new_key: NewKey, talk: str) -> None:
    async with at(fleet[0]) as client, at(fleet[1], await new_key()) as stranger:
        for who, session_id in ((client, str(uuid4())), (client, "nonsense"), (stranger, talk)):
            response = await who.post(f"/chat/{session_id}", json={"prompt": "say hi"})
            assert response.status_code == 404
            assert response.json() == {"detail": "Session not found"}
    async with at(fleet[0], {}) as nobody:
        assert (await nobody.post("/chat", json={"prompt": "x"})).status_code == 401


async def test_a_second_prompt_while_one_runs_is_409_and_an_interrupt_ends_the_first(fleet: Fleet, talk: str) -> None:
    since = (await fleet[0].get(f"/sessions/{talk}")).json()["last_seq"]
    async with at(fleet[0]) as client, at(fleet[1]) as other:
        asked = asyncio.create_task(chat(client, "hang after 3 words", talk))
        async with asyncio.timeout(30), fleet[0].stream(f"/sessions/{talk}/events?after={since}") as events:
            async for event in events:
                if event.event == "partial":
                    break
        response = await other.post(f"/chat/{talk}", json={"prompt": "say hi"})
        assert response.status_code == 409
        assert "queued or running" in response.json()["detail"]
        assert (await fleet[2].post(f"/sessions/{talk}/interrupt")).is_success
        told = await asked
        assert one(told, "complete")["exit_code"] == 130
        assert told[-1] == {"type": "done"}


async def test_a_client_that_leaves_leaves_a_run_that_finishes(fleet: Fleet, talk: str) -> None:
    since = (await fleet[0].get(f"/sessions/{talk}")).json()["last_seq"]
    body = {"prompt": "stream 20 words every 20 ms"}
    async with at(fleet[0]) as client, client.stream("POST", f"/chat/{talk}", json=body) as response:
        async for line in lines_of(response):
            if line["type"] == "text_delta":
                break
    path = f"/sessions/{talk}/events?until=idle"
    async with fleet[1].stream(path, headers={"Last-Event-ID": str(since)}) as events:
        result = [event.data["result"] async for event in events if event.event == "result"]
    assert result[0].endswith("word20")


async def test_a_profile_of_the_key_holds_here_too(fleet: Fleet, new_key: NewKey) -> None:
    async with at(fleet[0], await new_key(profiles=["readonly"])) as client:
        told = await chat(client, "list tools")
    assert "Bash" not in one(told, "system")["data"]["tools"]
    assert one(told, "complete")["exit_code"] == 0


def test_the_page_about_it_names_every_route() -> None:
    page = (Path(__file__).parents[2] / "docs/chat-server.md").read_text(encoding="utf-8")
    for path in ("/chat", "/chat/{session_id}"):
        assert path in page
