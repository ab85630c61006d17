"""Subagents of a session's own: delegated to, seen at work, and found under the message that called them."""

from __future__ import annotations

from typing import Any

from tests.fleet import Fleet, Shared, Sse

REVIEWER = {
    "description": "Reviews code",
    "prompt": "You are the reviewer of the tests.",
    "tools": ["Bash", "Read"],
    "model": "claude-haiku-5-5",
}
CONFIG: dict[str, Any] = {"agents": {"reviewer": REVIEWER}, "permission_mode": "bypassPermissions"}


async def delegated(shared: Shared, prompt: str) -> tuple[str, list[Sse]]:
    """The session and the events of a run whose client is on other instances than its owner."""
    fleet, session_id = shared.fleet, await shared.of(**CONFIG)
    one, other = await fleet.others(await fleet.owner_of(session_id))
    return session_id, await one.follow(await other.prompt(session_id, prompt))


def calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [m for m in messages if any(block["type"] == "tool_use" for block in m["content"])]


async def test_a_custom_subagent_is_offered_and_reports_its_progress_as_task_events(shared: Shared) -> None:
    _, events = await delegated(shared, "delegate to reviewer: run echo inside")
    assert "reviewer" in next(e.data["agents"] for e in events if e.event == "init")
    tasks = [e.data for e in events if e.event == "task"]
    assert tasks[0]["status"] == "started"
    assert tasks[0]["subagent_type"] == "reviewer"
    assert tasks[-1]["status"] == "completed"
    assert len({task["task_id"] for task in tasks}) == 1
    nested = [e.data for e in events if e.event == "message" and e.data["parent_tool_use_id"]]
    assert {m["parent_tool_use_id"] for m in nested} == {tasks[0]["tool_use_id"]}


async def test_its_messages_stand_under_the_call_with_its_own_prompt_model_and_tools(shared: Shared) -> None:
    fleet = shared.fleet
    session_id, events = await delegated(shared, 'delegate to reviewer: "show system prompt then list tools"')
    for instance in fleet.instances:
        messages = (await instance.get(f"/sessions/{session_id}/messages")).json()["data"]
        messages = [m for m in messages if m["run_id"] == events[-1].data["run_id"]]
        [call] = calls(messages)
        inner = call["subagent_messages"]
        said = "".join(block.get("text", "") for m in inner for block in m["content"])
        assert "tools: Bash, Read" in said
        assert {m["model"] for m in inner if m["role"] == "assistant"} == {REVIEWER["model"]}
        assert not [m for m in messages if m["parent_tool_use_id"]]


async def test_a_subagent_in_the_background_outlasts_the_run_and_its_report_is_a_run_of_its_own(shared: Shared) -> None:
    fleet = shared.fleet
    session_id, events = await delegated(shared, "delegate in background to reviewer: run sleep 2; echo inside")
    assert events[-1].data["status"] == "succeeded"
    later = []
    async with fleet[2].stream(f"/sessions/{session_id}/events", headers={"Last-Event-ID": events[-1].id}) as stream:
        async for event in stream:
            later.append(event)
            if event.event == "done":
                break
    assert "completed" in [e.data["status"] for e in later if e.event == "task"]
    run = (await fleet[1].get(f"/runs/{later[-1].data['run_id']}")).json()
    assert (run["origin"], run["status"]) == ("background", "succeeded")


async def test_a_subagent_has_no_more_rights_than_its_session(fleet: Fleet) -> None:
    session_id = await fleet[0].session(agents={"reviewer": REVIEWER}, permission_mode="dontAsk")
    answer = await fleet[1].ask(session_id, "delegate to reviewer: run touch made.txt")
    messages = (await fleet[2].get(f"/sessions/{session_id}/messages")).text
    assert "don't ask mode" in messages
    assert [denied["tool_name"] for denied in answer["permission_denials"]] == ["Bash"]
