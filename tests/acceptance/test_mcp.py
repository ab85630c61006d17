"""MCP servers: named to one instance, started by the agent of another, with secrets that nobody sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fleet import Fleet, Instance, Sse
from tests.mcp_things import serving, stdio

BYPASS = {"permission_mode": "bypassPermissions"}
WEIGH = 'use tool mcp__things__weigh {"thing": "a cat"}'
SECRET = "hush-13-chars"


async def put(instance: Instance, path: str, body: dict[str, Any]) -> httpx.Response:
    return await instance.client.put(f"/api/v1{path}", json=body)


STATUSES = {"things": "connected", "scales": "connected", "gone": "failed"}


@pytest.fixture(autouse=True, scope="module")
async def secret(fleet: Fleet) -> None:
    assert (await put(fleet[0], "/secrets/SCALE_KEY", {"value": SECRET})).status_code in (200, 201)


@pytest.fixture(scope="module")
async def registered(fleet: Fleet, secret: None) -> AsyncIterator[dict[str, Any]]:
    """Answers about a server of the tenant's, by which request, from all instances."""
    answer = await put(fleet[0], "/mcp-servers/scales", stdio(SCALE="plain-value-${SCALE_KEY}"))
    assert answer.status_code == 201
    shown = await fleet[1].get("/mcp-servers/scales")
    yield {"put": answer, "get": shown, "list": await fleet[2].get("/mcp-servers")}
    assert (await fleet[2].client.delete("/api/v1/mcp-servers/scales")).status_code == 204


@pytest.fixture(scope="module")
async def equipped(fleet: Fleet, registered: dict[str, Any]) -> tuple[str, list[Sse]]:
    """A session with a server of each kind, and what its first prompt told."""
    servers = {
        "things": stdio(SCALE="${SCALE_KEY}"),
        "scales": {"type": "registered", "name": "scales"},
        "gone": {"type": "http", "url": "http://127.0.0.1:1/mcp"},
    }
    session_id = await fleet[0].session(mcp_servers=servers, **BYPASS)
    return session_id, await events_of_run(fleet, session_id, WEIGH)


async def events_of_run(fleet: Fleet, session_id: str, prompt: str) -> list[Sse]:
    """Sent to one instance, followed on another."""
    return await fleet[2].follow(await fleet[1].prompt(session_id, prompt))


def data_of(events: list[Sse], kind: str) -> dict[str, Any]:
    return next(e.data for e in events if e.event == kind)


async def test_the_first_turn_has_the_tools_of_a_stdio_server_which_alone_knows_the_secret(
    fleet: Fleet, equipped: tuple[str, list[Sse]]
) -> None:
    session_id, events = equipped
    init = data_of(events, "init")
    assert {s["name"]: s["status"] for s in init["mcp_servers"]} == STATUSES
    assert "mcp__things__weigh" in init["tools"]
    assert f"a cat weighs {len(SECRET)} stone" in data_of(events, "result")["result"]
    await check_nobody_sees_the_secret(fleet, session_id)


async def check_nobody_sees_the_secret(fleet: Fleet, session_id: str) -> None:
    """It is not in reach of tools, nor in answers, events, logs and command lines."""
    owner = await fleet.owner_of(session_id)
    lines = [" ".join(process.cmdline()) for process in owner.descendants()]
    assert any("mcp_things" in line for line in lines)
    assert not [line for line in lines if SECRET in line]
    pattern = SECRET.replace("-", ".")
    places = "$HOME $HOME/../given $TMPDIR ."
    await fleet[1].ask(session_id, f"run env; ls $HOME/../given; grep -rs {pattern} {places}; echo")
    said = (await fleet[2].get(f"/sessions/{session_id}/messages")).text
    assert "CLAUDECODE=1" in said
    assert "mcp.json" not in said
    assert SECRET not in said
    assert SECRET not in (await fleet[2].get(f"/sessions/{session_id}")).text
    assert SECRET not in "".join(instance.log.read_text() for instance in fleet.instances)


def remote(transport: str, url: str) -> dict[str, Any]:
    return {
        "type": transport,
        "url": url + "?token=${SCALE_KEY}",
        "headers": {"Authorization": "Bearer ${SCALE_KEY}"},
    }


async def test_a_registered_server_is_used_by_its_name_and_never_shows_its_values(
    fleet: Fleet, registered: dict[str, Any], equipped: tuple[str, list[Sse]]
) -> None:
    assert registered["get"].json()["env"] == {"SCALE": "***"}
    assert "scales" in registered["list"].text
    assert not [request for request, answer in registered.items() if "plain-value" in answer.text]
    events = await events_of_run(fleet, equipped[0], WEIGH.replace("things", "scales", 1))
    assert f"a cat weighs {len('plain-value-' + SECRET)} stone" in data_of(events, "result")["result"]


async def test_a_server_that_does_not_answer_is_shown_as_failed_and_the_run_goes_on(
    equipped: tuple[str, list[Sse]],
) -> None:
    _, events = equipped
    assert {s["name"]: s["status"] for s in data_of(events, "init")["mcp_servers"]} == STATUSES
    assert events[-1].data["status"] == "succeeded"


async def test_what_has_gone_since_the_request_ends_the_run_with_its_name(fleet: Fleet) -> None:
    await put(fleet[0], "/secrets/SHORT_LIVED", {"value": SECRET})
    await put(fleet[0], "/mcp-servers/short", stdio())
    with_secret = await fleet[0].session(mcp_servers={"things": stdio(SCALE="${SHORT_LIVED}")})
    with_server = await fleet[0].session(mcp_servers={"things": {"type": "registered", "name": "short"}})
    for path in ("/secrets/SHORT_LIVED", "/mcp-servers/short"):
        assert (await fleet[1].client.delete(f"/api/v1{path}")).status_code == 204
    for session_id, name in ((with_secret, "SHORT_LIVED"), (with_server, "short")):
        error = data_of(await events_of_run(fleet, session_id, "say hello"), "error")
        assert error["code"] == "agent_start_failed"
        assert name in error["message"]


async def test_remote_servers_are_sent_their_secrets_and_other_instances_tell_and_change_their_status(
    fleet: Fleet,
) -> None:
    with serving("http") as (url, seen), serving("sse") as (sse_url, sse_seen):
        servers = {"things": remote("http", url), "events": remote("sse", sse_url)}
        session_id = await fleet[0].session(mcp_servers=servers, **BYPASS)
        for name, sent in (("things", seen), ("events", sse_seen)):
            events = await events_of_run(fleet, session_id, WEIGH.replace("things", name, 1))
            assert "a cat weighs 0 stone" in data_of(events, "result")["result"], name
            assert {f"Bearer {SECRET}", f"token={SECRET}"} <= sent, name
        one, other = await fleet.others(await fleet.owner_of(session_id))

        async def status() -> dict[str, Any]:
            answer = await one.get(f"/sessions/{session_id}/mcp")
            assert SECRET not in answer.text
            [found] = [server for server in answer.json()["mcp_servers"] if server["name"] == "things"]
            return dict(found)

        before = await status()
        assert (before["status"], [tool["name"] for tool in before["tools"]]) == ("connected", ["weigh"])
        for change, wanted in (
            ({"mcp_toggle": {"name": "things", "enabled": False}}, "disabled"),
            ({"mcp_toggle": {"name": "things", "enabled": True}}, "connected"),
            ({"mcp_reconnect": "things"}, "connected"),
        ):
            answer = await other.post(f"/sessions/{session_id}/control", change)
            assert (answer.status_code, answer.json()["status"]) == (200, "applied"), answer.text
            assert (await status())["status"] == wanted
        assert "a cat weighs" in (await other.ask(session_id, WEIGH))["result"]
        assert (await fleet[0].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200


async def test_an_agent_that_does_not_answer_in_time_is_busy_and_that_is_no_failure(
    fleet: Fleet, equipped: tuple[str, list[Sse]]
) -> None:
    session_id, _ = equipped
    owner = await fleet.owner_of(session_id)
    [cli] = [p for p in owner.agent_of(session_id) if p.name() == "claude"]
    cli.suspend()
    try:
        for path in ("mcp", "context"):
            answer = await (await fleet.others(owner))[0].get(f"/sessions/{session_id}/{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "agent_busy")
    finally:
        cli.resume()
    answered = (await fleet[2].get(f"/sessions/{session_id}/mcp")).json()["mcp_servers"]
    assert {server["name"]: server["status"] for server in answered} == STATUSES
