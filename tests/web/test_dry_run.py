"""Previews: every problem at once, and nothing runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import NewKey, StartFleet
from tests.fleet import Fleet, Instance
from tests.free_ports import free_port

HOOK = {"url": "http://169.254.169.254/hook", "secret": "${NO_SUCH_SECRET}"}


async def preview(instance: Instance, **body: Any) -> dict[str, Any]:
    response = await instance.post("/agents/preview", body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert answer["ok"] is (answer["problems"] == [])
    return answer


def problems(answer: dict[str, Any], kind: str = "problems") -> set[tuple[str, str]]:
    return {(problem["field"], problem["code"]) for problem in answer[kind]}


async def test_problems_of_every_kind_are_found_at_once_and_nothing_is_made(fleet: Fleet) -> None:
    answer = await preview(
        fleet[0],
        profile="readonly",
        tools=["Bash", "Read"],
        permission_mode="bypassPermissions",
        max_turns=0,
        colour="blue",
        output_format={"type": "json_schema", "schema": {"type": "objekt"}},
        hooks={"PreToolUse": [HOOK]},
        mcp_servers={"git": {"type": "stdio", "command": "rm"}, "gone": {"type": "registered", "name": "nobody"}},
        skills=["no-such-skill"],
        cwd="../up",
    )
    assert problems(answer) >= {
        ("tools", "tool_not_permitted"),
        ("permission_mode", "option_not_permitted"),
        ("max_turns", "validation_error"),
        ("colour", "validation_error"),
        ("output_format.schema", "validation_error"),
        ("hooks.PreToolUse.0.secret", "validation_error"),
        ("mcp_servers.git.command", "mcp_command_not_permitted"),
        ("mcp_servers.git", "option_not_permitted"),
        ("mcp_servers.gone", "validation_error"),
        ("skills", "option_not_permitted"),
        ("cwd", "validation_error"),
    }
    assert problems(answer, "warnings") == {("hooks.PreToolUse.0.url", "target_not_permitted")}
    assert answer["missing_secrets"] == ["NO_SUCH_SECRET"]
    assert answer["output_schema"] == "invalid"
    assert (answer["tools"], answer["permission_mode"]) == (["Read"], "dontAsk")
    assert answer["mcp_servers"][0]["allowed"] is False


async def test_a_configuration_without_problems_says_what_would_run(fleet: Fleet) -> None:
    name = f"preset-{uuid4().hex[:12]}"
    await fleet[0].post("/agents", {"name": name, "system_prompt": "Grüße", "profile": "dev", "max_turns": 3})
    answer = await preview(
        fleet[1],
        agent=name,
        prompt=[{"type": "text", "text": "hello"}],
        disallowed_tools=["WebFetch"],
        output_format={"type": "json_schema", "schema": {"type": "object"}},
        agents={"helper": {"description": "ab", "prompt": "cd"}},
    )
    assert answer["ok"] is True
    assert (answer["profile"], answer["agent"]["version"], answer["permission_mode"]) == ("dev", 1, "default")
    assert "Read" in answer["tools"]
    assert "WebFetch" not in answer["tools"]
    assert answer["config"]["max_turns"] == 3
    sizes = answer["prompt_size"]
    assert sizes["system_prompt"] == {"characters": 5, "bytes": 7}
    assert sizes["prompt"] == {"characters": 5, "bytes": 5}
    assert sizes["total"]["bytes"] == sum(size["bytes"] for part, size in sizes.items() if part != "total")
    assert answer["output_schema"] == "valid"
    listed = (await fleet[2].get("/sessions", params={"agent": name})).json()
    assert listed["data"] == []


async def test_unknown_presets_and_profiles_and_foreign_ones_are_problems(fleet: Fleet, new_key: NewKey) -> None:
    assert problems(await preview(fleet[0], agent="nobody", profile="yolo")) == {
        ("agent", "agent_not_found"),
        ("profile", "validation_error"),
    }
    bound = await new_key("default", profiles=["readonly"])
    body = {"profile": "dev", "session_id": str(uuid4())}
    answer = await fleet[1].post("/agents/preview", body, headers=bound)
    assert problems(answer.json()) == {("profile", "profile_not_permitted"), ("session_id", "validation_error")}


@pytest.fixture
async def listener() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that keeps what it is sent."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", heard


async def test_addresses_are_connected_to_and_sent_nothing(
    start_fleet: StartFleet, listener: tuple[str, list[bytes]]
) -> None:
    url, heard = listener
    fleet = await start_fleet(1, OUTBOUND_ALLOW="127.0.0.0/8", MCP_STDIO_COMMANDS="allowed", RUNNER_SLOTS="0")
    await fleet[0].client.put("/api/v1/secrets/HOOK_SECRET", json={"value": "whsec_c2VjcmV0LW9mLXRoZS1ob29r"})
    away = f"http://127.0.0.1:{free_port()}/"
    answer = await preview(
        fleet[0],
        hooks={"Stop": [{"url": url, "secret": "${HOOK_SECRET}"}, {"url": away, "secret": "${HOOK_SECRET}"}]},
        mcp_servers={
            "there": {"type": "http", "url": url},
            "away": {"type": "sse", "url": away},
            "local": {"type": "stdio", "command": "allowed"},
        },
    )
    assert answer["ok"], "nothing that would be refused"
    assert problems(answer, "warnings") == {
        ("hooks.Stop.1.url", "target_unreachable"),
        ("mcp_servers.away.url", "target_unreachable"),
    }
    assert [hook["reachable"] for hook in answer["hooks"]] == [True, False]
    reached = {server["name"]: (server["allowed"], server["reachable"]) for server in answer["mcp_servers"]}
    assert reached == {"there": (True, True), "away": (True, False), "local": (True, None)}
    assert set(heard) <= {b""}


@pytest.mark.parametrize("body", [[], "text", 1])
async def test_what_is_no_object_is_refused(fleet: Fleet, body: Any) -> None:
    response = await fleet[0].post("/agents/preview", body)
    assert response.status_code == 422
