"""Slash commands and `@file` mentions: words like others, unless the request says that they act."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fleet import Fleet, Shared

BYPASS = {"permission_mode": "bypassPermissions"}
EXPAND = {"expand_prompt": True}
MUCH = 5_000
"""Input tokens that the model is sent more when it is shown the 40,000 characters of `big.txt`."""


@pytest.fixture(scope="module", autouse=True)
async def greet(fleet: Fleet) -> AsyncIterator[None]:
    """The tenant's command `greet`."""
    body = {"description": "Greets", "content": "say hello $ARGUMENTS"}
    assert (await fleet[0].client.put("/api/v1/commands/greet", json=body)).status_code == 201
    yield
    assert (await fleet[0].client.delete("/api/v1/commands/greet")).status_code == 204


async def session_elsewhere(fleet: Fleet, prompt: str = "say hi", **config: Any) -> tuple[str, Any, Any]:
    """A session with one turn behind it, and the two instances that do not own it."""
    session_id = await fleet[0].session(**config)
    await fleet[0].ask(session_id, prompt)
    one, other = await fleet.others(await fleet.owner_of(session_id))
    return session_id, one, other


async def warm(shared: Shared) -> tuple[str, Any, Any]:
    """The session that most tests share, and the two instances that do not own it."""
    session_id = await shared.of(**BYPASS)
    one, other = await shared.fleet.others(await shared.fleet.owner_of(session_id))
    return session_id, one, other


async def test_a_command_acts_only_in_a_prompt_that_says_so(shared: Shared) -> None:
    session_id, one, other = await warm(shared)
    plain = await one.ask(session_id, "/tenant:greet Ada")
    assert 'You said: "/tenant:greet Ada"' in plain["result"]
    acted = await other.ask(session_id, "/tenant:greet Ada", **EXPAND)
    assert acted["result"] == "[demo model, scripted] hello Ada"
    blocks = [{"type": "text", "text": "first"}, {"type": "text", "text": "/tenant:greet Eve"}]
    response = await one.post("/query/single", {"prompt": blocks, "session_id": session_id, **EXPAND})
    assert response.json()["result"] == "[demo model, scripted] hello Eve"
    again = await other.ask(session_id, "/tenant:greet Ada")
    assert 'You said: "/tenant:greet Ada"' in again["result"]


async def test_a_command_that_needs_no_model_ends_its_run_like_any_other(shared: Shared) -> None:
    session_id, one, other = await warm(shared)
    run_id = await one.prompt(session_id, "/context", **EXPAND)
    events = await other.follow(run_id)
    assert [e.event for e in events][-2:] == ["result", "done"]
    assert "Context Usage" in events[-2].data["result"]
    assert {e.data["run_id"] for e in events} == {run_id}


async def test_clear_begins_a_new_conversation_also_for_the_next_process(shared: Shared) -> None:
    session_id, one, other = await warm(shared)
    await one.ask(session_id, "say my number is 4711")
    assert "4711" in (await one.ask(session_id, "recall"))["result"]
    await one.ask(session_id, "/clear", **EXPAND)
    assert "4711" not in (await other.ask(session_id, "recall"))["result"]
    await other.ask(session_id, "say my number is 1234")
    reset = await one.post(f"/sessions/{session_id}/reset", {"mode": "soft"})
    assert reset.status_code < 300, reset.text
    said = (await one.ask(session_id, "recall"))["result"]
    assert "1234" in said
    assert "4711" not in said


async def test_a_mention_shows_a_file_only_in_a_prompt_that_says_so(shared: Shared) -> None:
    session_id, one, other = await warm(shared)
    await one.ask(session_id, "run yes text | head -c 40000 > big.txt")
    before = await tokens(one, session_id, "say @big.txt")
    assert await tokens(other, session_id, "say @big.txt") - before < MUCH
    assert await tokens(one, session_id, "say @big.txt", **EXPAND) - before > MUCH


async def tokens(instance: Any, session_id: str, prompt: str, **more: Any) -> int:
    usage: dict[str, int] = (await instance.ask(session_id, prompt, **more))["usage"]
    return usage["input_tokens"]


@pytest.mark.parametrize(
    "mention",
    ["@/etc/passwd", '@"/etc/passwd"', "x@/etc/passwd", "@~/x", "@../x", "@a/../../x", '@"a b/../../x"', "@./.."],
)
async def test_a_mention_that_leads_out_of_the_workspace_is_refused(shared: Shared, mention: str) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    for prompt in (f"look at {mention} now", [{"type": "text", "text": f"look\n{mention}"}]):
        answer = await fleet[0].post("/query/single", {"prompt": prompt, **EXPAND})
        assert answer.status_code == 422
        assert answer.json()["error"]["details"]["errors"][0]["field"] == "prompt"
    assert (await fleet[0].ask(session_id, f"say {mention}"))["status"] == "succeeded"


@pytest.mark.parametrize("command", ["/model opus", "/config model=opus", "/settings x=y", "/heapdump", " /MODEL opus"])
async def test_commands_that_get_around_the_servers_own_options_are_refused(fleet: Fleet, command: str) -> None:
    for prompt in (command, [{"type": "text", "text": "look"}, {"type": "text", "text": command}]):
        answer = await fleet[0].post("/query/single", {"prompt": prompt, **EXPAND})
        assert answer.status_code == 422
        assert answer.json()["error"]["details"]["errors"][0]["field"] == "prompt"


async def test_a_link_in_the_workspace_does_not_show_a_file_of_another_session(fleet: Fleet, shared: Shared) -> None:
    theirs = await shared.of(**BYPASS)
    await fleet[0].ask(theirs, "run yes secret | head -c 40000 > secret.txt")
    await asyncio.to_thread(fleet.spread, theirs)
    link = f"run ln -s {fleet.env['WORKSPACES_DIR']}/{theirs}/secret.txt big.txt"
    mine, one, other = await session_elsewhere(fleet, link, **BYPASS)
    before = await tokens(one, mine, "say @big.txt")
    assert await tokens(other, mine, "say @big.txt", **EXPAND) - before < MUCH


async def test_what_a_command_runs_needs_the_permission_of_the_session(fleet: Fleet) -> None:
    heads = {"plain": "", "headed": "---\nallowed-tools: Bash(touch:*)\n---\n"}
    for name, head in heads.items():
        body = {"description": "Touches", "content": head + "say done !`touch made.txt`"}
        assert (await fleet[0].client.put(f"/api/v1/commands/{name}", json=body)).status_code == 201
    session_id, one, other = await session_elsewhere(fleet, permission_mode="dontAsk")
    for name in heads:
        said = (await one.ask(session_id, f"/tenant:{name}", **EXPAND))["result"]
        assert "permission check failed" in said, name
    allowed = {"allowed_tools": ["Bash(touch:*)"]}
    for name in heads:
        assert "done" in (await other.ask(session_id, f"/tenant:{name}", **EXPAND, **allowed))["result"], name
    for name in heads:
        assert (await fleet[0].client.delete(f"/api/v1/commands/{name}")).status_code == 204
