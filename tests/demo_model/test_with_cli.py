"""Whole turns of the real CLI, driven by the real SDK, against the demo model."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    AgentDefinition,
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    Message,
    PermissionResultAllow,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TaskNotificationMessage,
    TextBlock,
    ThinkingBlock,
    ToolPermissionContext,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
    create_sdk_mcp_server,
    tool,
)

Options = Callable[..., ClaudeAgentOptions]
PRESET = {"type": "preset", "preset": "claude_code"}
PREFIX = "[demo model, scripted] "
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
pytestmark = pytest.mark.asyncio


async def turn(client: ClaudeSDKClient, prompt: str) -> list[Message]:
    await client.query(prompt)
    return [message async for message in client.receive_response()]


def result(messages: list[Message]) -> ResultMessage:
    last = messages[-1]
    assert isinstance(last, ResultMessage)
    return last


def blocks(messages: list[Message], kind: type[Any]) -> list[Any]:
    found: list[Any] = []
    for message in messages:
        if isinstance(message, AssistantMessage | UserMessage) and isinstance(message.content, list):
            found += [block for block in message.content if isinstance(block, kind)]
    return found


def texts(messages: list[Message]) -> list[str]:
    return [block.text for block in blocks([m for m in messages if isinstance(m, AssistantMessage)], TextBlock)]


def deltas(messages: list[Message], kind: str) -> list[str]:
    events = [m.event for m in messages if isinstance(m, StreamEvent) and m.event["type"] == "content_block_delta"]
    return [event["delta"][kind.removesuffix("_delta")] for event in events if event["delta"]["type"] == kind]


async def test_the_conversation_is_remembered_over_turns_and_over_a_resume_and_what_is_given_is_shown(
    options: Options,
) -> None:
    asked: list[dict[str, Any]] = []

    async def answer(name: str, given: dict[str, Any], context: ToolPermissionContext) -> PermissionResultAllow:
        asked.append(given)
        return PermissionResultAllow(updated_input={**given, "answers": {"Which colour?": "green"}})

    session_id, system = str(uuid.uuid4()), {**PRESET, "append": "Always wear a hat."}
    given: dict[str, Any] = {"system_prompt": system, "tools": ["Bash", "Read", "AskUserQuestion"]}
    given |= {"permission_mode": "default", "can_use_tool": answer, "include_partial_messages": True}
    async with ClaudeSDKClient(options(session_id=session_id, **given)) as client:
        first = result(await turn(client, "say hello there"))
        echoed = result(await turn(client, "What is the weather?"))
        recalled = result(await turn(client, "recall"))
        await words_and_thinking_arrive_as_partial_messages_and_a_hanging_reply_can_be_interrupted(client)
        await the_system_prompt_and_the_tools_and_pictures_are_shown(client)
        await a_question_is_put_to_can_use_tool_and_the_answer_quoted(client, asked)
    assert (first.result, first.is_error, first.model_usage and list(first.model_usage)) == (
        PREFIX + "hello there",
        False,
        ["claude-sonnet-5-5"],
    )
    assert first.usage is not None
    assert first.usage["input_tokens"] > 1_000
    assert first.usage["output_tokens"] == 5
    assert echoed.result is not None
    assert echoed.result.startswith(PREFIX + 'You said: "What is the weather?". I am a stand-in, not Claude')
    assert recalled.result == PREFIX + "you said:\n1. say hello there\n2. What is the weather?"

    async with ClaudeSDKClient(options(resume=session_id)) as client:
        resumed = result(await turn(client, "what did I say?"))
    begins = PREFIX + "you said:\n1. say hello there\n2. What is the weather?\n3. recall\n4. stream 5 words"
    assert (resumed.result or "").startswith(begins)


async def words_and_thinking_arrive_as_partial_messages_and_a_hanging_reply_can_be_interrupted(
    client: ClaudeSDKClient,
) -> None:
    streamed = await turn(client, "stream 5 words every 5 ms")
    thought = await turn(client, "think about cheese")
    await hangs_and_is_interrupted(client, "hang", [])
    await hangs_and_is_interrupted(client, "hang after 3 words", ["word1", " word2", " word3"])
    assert deltas(streamed, "text_delta") == ["word1", " word2", " word3", " word4", " word5"]
    assert texts(streamed) == ["word1 word2 word3 word4 word5"]
    assert "".join(deltas(thought, "thinking_delta")) == "Let me think about cheese."
    [thinking] = blocks(thought, ThinkingBlock)
    assert (thinking.thinking, bool(thinking.signature)) == ("Let me think about cheese.", True)
    assert texts(thought) == [PREFIX + "I have thought about cheese."]


async def hangs_and_is_interrupted(client: ClaudeSDKClient, prompt: str, words: list[str]) -> None:
    await client.query(prompt)
    seen: list[Message] = []
    async for message in client.receive_response():
        seen.append(message)
        requesting = isinstance(message, SystemMessage) and message.data.get("status") == "requesting"
        if requesting if not words else deltas([message], "text_delta") == words[-1:]:
            await client.interrupt()
    after = result(await turn(client, "say back again"))
    assert deltas(seen, "text_delta") == words
    assert (result(seen).subtype, result(seen).terminal_reason) == ("error_during_execution", "aborted_streaming")
    assert after.result == PREFIX + "back again"


async def test_tools_run_step_by_step_or_at_once_and_failures_reach_the_client(
    options: Options, workspace: Path
) -> None:
    prompt = "run echo 6*7 then write a.txt: hello then edit a.txt: hello => bye then read a.txt"
    async with ClaudeSDKClient(options()) as client:
        messages = await turn(client, prompt)
        together = await turn(client, "use 3 tools at once")
        one_by_one = await turn(client, "use 2 tools")
        await failures_reach_the_client_and_a_single_one_is_survived(client)
    used = [(use.name, use.input.get("file_path")) for use in blocks(messages, ToolUseBlock)]
    path = str(workspace / "a.txt")
    assert used == [("Bash", None), ("Write", path), ("Read", path), ("Edit", path), ("Read", path)]
    assert texts(messages)[0] == PREFIX + "the tool answered: 6*7"
    assert texts(messages)[-1] == PREFIX + "the tool answered: 1\tbye"
    assert (workspace / "a.txt").read_text() == "bye"
    assert len({m.message_id for m in together if isinstance(m, AssistantMessage) and blocks([m], ToolUseBlock)}) == 1
    assert sorted(block.content for block in blocks(together, ToolResultBlock)) == ["1", "2", "3"]
    assert result(together).result == PREFIX + "the tool answered: 1\n2\n3"
    assert len({m.message_id for m in one_by_one if isinstance(m, AssistantMessage)}) == 3


async def failures_reach_the_client_and_a_single_one_is_survived(client: ClaudeSDKClient) -> None:
    refused = result(await turn(client, "fail with 400"))
    overloaded = await turn(client, "fail with 529 once")
    broken = result(await turn(client, "break the stream"))
    after = result(await turn(client, "say still here"))
    assert (refused.is_error, refused.api_error_status) == (True, 400)
    assert refused.result == "API Error: 400 scripted failure 400 of the demo model"
    retries = [m.data["error_status"] for m in overloaded if isinstance(m, SystemMessage) and m.subtype == "api_retry"]
    assert (retries, result(overloaded).result) == ([529], PREFIX + "recovered")
    assert (broken.is_error, broken.terminal_reason) == (True, "api_error")
    assert after.result == PREFIX + "still here"


async def test_an_unknown_model_is_refused(options: Options) -> None:
    async with ClaudeSDKClient(options(model="claude-nonexistent-9")) as client:
        refused = result(await turn(client, "say hello"))
    assert (refused.is_error, refused.api_error_status) == (True, 404)
    assert "claude-nonexistent-9" in (refused.result or "")


async def test_a_subagent_acts_on_its_prompt_a_background_agent_reports_later_and_a_deferred_tool_is_found(
    options: Options,
) -> None:
    parent_is_done = asyncio.Event()

    @tool("wait", "Waits for the parent", {})
    async def wait(given: dict[str, Any]) -> dict[str, Any]:
        await parent_is_done.wait()
        return {"content": [{"type": "text", "text": "opened"}]}

    @tool("double", "Doubles a number", {"number": int})
    async def double(given: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": f"doubled: {given['number'] * 2}"}]}

    servers = {name: create_sdk_mcp_server(name, tools=[one]) for name, one in (("gate", wait), ("sums", double))}
    agents = {"reviewer": AgentDefinition(description="Reviews", prompt="You review.")}
    async with ClaudeSDKClient(options(agents=agents, mcp_servers=servers)) as client:
        found = await turn(client, 'use tool mcp__sums__double {"number": 21} then say done')
        below = await turn(client, 'delegate to reviewer: "run echo from-below then say checked" then say the end')
        started = await turn(client, "delegate in background use tool mcp__gate__wait {}")
        parent_is_done.set()
        later = [message async for message in client.receive_response()]
    assert [use.name for use in blocks(found, ToolUseBlock)][-1] == "mcp__sums__double"
    assert texts(found) == [PREFIX + "the tool answered: doubled: 42", PREFIX + "done"]
    a_subagent_acted_on_its_prompt_and_the_parent_quotes_it(below)
    assert "launched" in texts(started)[0]
    report = f'{PREFIX}a background task ended: Agent "Scripted task" finished: {PREFIX}the tool answered: opened'
    assert result(later).result == report


def a_subagent_acted_on_its_prompt_and_the_parent_quotes_it(messages: list[Message]) -> None:
    [delegated] = [use for use in blocks(messages, ToolUseBlock) if use.name == "Agent"]
    below = [m for m in messages if getattr(m, "parent_tool_use_id", None) == delegated.id]
    assert [use.input["command"] for use in blocks(below, ToolUseBlock)] == ["echo from-below"]
    assert [m.status for m in messages if isinstance(m, TaskNotificationMessage)] == ["completed"]
    quoted, end = texts([m for m in messages if getattr(m, "parent_tool_use_id", None) is None])
    assert PREFIX + "checked" in quoted
    assert end == PREFIX + "the end"


async def a_question_is_put_to_can_use_tool_and_the_answer_quoted(
    client: ClaudeSDKClient, asked: list[dict[str, Any]]
) -> None:
    messages = await turn(client, "ask Which colour? options red, green")
    [[question]] = [given["questions"] for given in asked]
    assert (question["question"], [option["label"] for option in question["options"]]) == (
        "Which colour?",
        ["red", "green"],
    )
    assert '"Which colour?"="green"' in (result(messages).result or "")


async def test_structured_output_is_given_filled_in_or_refused(options: Options) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer", "minimum": 3}}, "required": ["answer"]}
    async with ClaudeSDKClient(options(output_format={"type": "json_schema", "schema": schema})) as client:
        given = result(await turn(client, 'answer by schema {"answer": 7}'))
        least = result(await turn(client, "answer by schema"))
        nudged = result(await turn(client, "say it in words"))
        refused = result(await turn(client, "answer without schema"))
    assert given.structured_output == {"answer": 7}
    assert least.structured_output == {"answer": 3}
    assert nudged.structured_output == {"answer": 3}
    assert (refused.structured_output, refused.result) == (None, PREFIX + "I answer without the schema.")


async def the_system_prompt_and_the_tools_and_pictures_are_shown(client: ClaudeSDKClient) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}

    async def illustrated() -> Any:
        content = [picture, {"type": "text", "text": "look"}]
        yield {"type": "user", "message": {"role": "user", "content": content}, "parent_tool_use_id": None}

    shown = result(await turn(client, "show system prompt")).result or ""
    tools = result(await turn(client, "list tools")).result or ""
    await client.query(illustrated())
    seen = result([message async for message in client.receive_response()]).result or ""
    assert shown.startswith(PREFIX + "the system prompt ends: ")
    assert "Always wear a hat." in shown
    assert {"Bash", "Read"} <= set(tools.removeprefix(PREFIX + "tools: ").split(", "))
    assert 'You said: "look". I see 1 attachment(s) of type image/png.' in seen
