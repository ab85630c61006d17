"""The AI SDK's UI message stream, by the rules of its client."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import NewKey
from tests.dialects.ui_message import Message, read
from tests.fleet import HEADERS, NO_TLS, Fleet, Instance
from tests.world import until

URL = {"type": "file", "url": "http://x/y", "mediaType": "image/png"}


class Chat:
    """A chat as a page keeps it."""

    def __init__(self, fleet: Fleet, **options: Any) -> None:
        self.fleet, self.options, self.id = fleet, options, f"chat {uuid4()}"
        self.headers = HEADERS
        self.messages: list[dict[str, Any]] = []
        self._next = 0

    @property
    def instance(self) -> Instance:
        """Each time another one."""
        self._next += 1
        return self.fleet[self._next % len(self.fleet.instances)]

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"{self.instance.url}/ui", headers=self.headers, timeout=60, verify=NO_TLS)

    def body(self, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "messages": self.messages, "trigger": "submit-message", **self.options, **more}

    async def post(self, onto: Message | None = None, **more: Any) -> Message:
        async with self.client() as client, client.stream("POST", "/chat", json=self.body(**more)) as response:
            assert response.status_code == 200, (await response.aread()).decode()
            return await read(response, onto)

    async def refused(self, **more: Any) -> tuple[int, str]:
        async with self.client() as client:
            response = await client.post("/chat", json=self.body(**more))
        return response.status_code, response.json()["error"]["code"]

    async def say(self, text: str, **more: Any) -> Message:
        self.messages.append(
            {"id": f"m{len(self.messages)}", "role": "user", "parts": [{"type": "text", "text": text}]}
        )
        message = await self.post(**more)
        self.messages.append(message.given())
        return message

    async def answer(self, message: Message, **part: Any) -> Message:
        """Decide what the last call of the message asks, and go on."""
        message.tool().update(part)
        self.messages[-1] = message.given()
        after = await self.post(message, messageId=message.id)
        self.messages[-1] = after.given()
        return after

    async def resume(self) -> Message | None:
        async with self.client() as client, client.stream("GET", f"/chat/{self.id}/stream") as response:
            assert response.status_code in (200, 204), (await response.aread()).decode()
            return None if response.status_code == 204 else await read(response)

    async def stop(self) -> httpx.Response:
        async with self.client() as client:
            return await client.post(f"/chat/{self.id}/stop")


def allow(message: Message) -> dict[str, Any]:
    return {"state": "approval-responded", "approval": {**message.tool()["approval"], "approved": True}}


def deny(message: Message, reason: str) -> dict[str, Any]:
    approval = {**message.tool()["approval"], "approved": False, "reason": reason}
    return {"state": "approval-responded", "approval": approval}


def kinds(message: Message) -> list[str]:
    return [chunk["type"] for chunk in message.chunks]


async def test_a_chat_is_one_session_on_any_instance(fleet: Fleet) -> None:
    chat = Chat(fleet)
    first = await chat.say("stream 5 words")
    assert "word5" in first.text
    assert kinds(first)[:3] == ["start", "start-step", "message-metadata"]
    assert kinds(first)[-2:] == ["finish-step", "finish"]
    assert first.metadata["run_id"] == first.id
    assert float(first.metadata["total_cost_usd"]) >= 0
    second = await chat.say("what did I say")
    assert "stream 5 words" in second.text
    assert second.metadata["session_id"] == first.metadata["session_id"]


async def test_what_is_sent_twice_is_run_once(fleet: Fleet) -> None:
    chat = Chat(fleet)
    chat.messages = [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "say hello"}]}]
    told = await asyncio.gather(*(chat.post() for _ in range(3)))
    assert len({message.id for message in told}) == 1
    assert len({message.text for message in told}) == 1
    listed = (await fleet[0].get(f"/runs?session_id={told[0].metadata['session_id']}")).json()
    assert len(listed["data"]) == 1


async def test_a_tool_that_was_allowed_runs_and_one_that_was_denied_does_not(fleet: Fleet) -> None:
    chat = Chat(fleet, permission_mode="default")
    asked = await chat.say("run echo one > one.txt then run echo two > two.txt then say done")
    assert kinds(asked)[-2:] == ["finish-step", "finish"]
    assert asked.chunks[-1]["finishReason"] == "tool-calls"
    assert asked.tool()["state"] == "approval-requested"
    assert asked.tool()["providerExecuted"]
    assert asked.blocked() == [asked.tool()["toolCallId"]]
    first = asked.tool()["toolCallId"]
    asked = await chat.answer(asked, **allow(asked))
    assert asked.tool(first)["state"] == "output-available"
    assert asked.tool()["state"] == "approval-requested"
    assert asked.tool()["toolCallId"] != first
    ended = await chat.answer(asked, **deny(asked, "not that one"))
    assert ended.tool()["state"] == "output-denied"
    assert ended.text.endswith("done")
    assert "start-step" in kinds(ended)


async def test_two_who_answer_at_once_are_told_the_same_run(fleet: Fleet) -> None:
    chat = Chat(fleet, permission_mode="default")
    asked = await chat.say("run echo x > x.txt then say done")
    asked.tool().update(allow(asked))
    chat.messages[-1] = asked.given()
    both = await asyncio.gather(*(chat.post(Message(asked.parts, asked.id), messageId=asked.id) for _ in range(2)))
    assert [message.text for message in both] == [both[0].text] * 2
    assert both[0].text.endswith("done")
    late = await chat.post(Message(asked.parts, asked.id), messageId=asked.id)
    assert late.text == both[0].text
    assert await chat.resume() is None


async def test_a_resume_tells_what_is_asked_and_204_when_nothing_is_live(fleet: Fleet) -> None:
    chat = Chat(fleet, permission_mode="default")
    assert await chat.resume() is None
    asked = await chat.say("say before then run echo x > x.txt then say done")
    again = await chat.resume()
    assert again is not None
    assert again.text == asked.text
    assert again.tool()["state"] == "approval-requested"
    ended = await chat.answer(again, **allow(again))
    assert ended.text.endswith("done")
    assert await chat.resume() is None


async def test_a_client_tool_is_answered_by_the_client(fleet: Fleet) -> None:
    tool = {"name": "weather", "description": "The weather.", "input_schema": {"type": "object"}}
    chat = Chat(fleet, client_tools=[tool])
    asked = await chat.say('use tool mcp__client__weather {"city": "Ulm"} then say done')
    part = asked.tool()
    assert (part["type"], part["input"], part["state"]) == ("tool-weather", {"city": "Ulm"}, "input-available")
    assert "providerExecuted" not in part
    ended = await chat.answer(asked, state="output-available", output={"degrees": 21})
    assert ended.text.endswith("done")
    assert ended.tool()["output"] == {"degrees": 21}


async def test_a_question_is_answered_as_a_tool_of_the_client(fleet: Fleet) -> None:
    chat = Chat(fleet)
    asked = await chat.say("ask Which colour? options red, blue then say done")
    part = asked.tool()
    assert part["type"] == "tool-AskUserQuestion"
    question = part["input"]["questions"][0]["question"]
    assert any(p["type"] == "data-question" for p in asked.parts)
    ended = await chat.answer(asked, state="output-available", output={question: "blue"})
    assert ended.tool()["output"] == {question: "blue"}
    assert ended.text.endswith("done")


async def test_a_message_that_is_sent_while_the_agent_asks_passes_the_question_over(fleet: Fleet) -> None:
    chat = Chat(fleet, permission_mode="default")
    await chat.say("run echo x > x.txt then say done")
    ended = await chat.say("say something else")
    assert "something else" in ended.text
    runs = (await fleet[0].get(f"/runs?session_id={ended.metadata['session_id']}")).json()["data"]
    assert [run["status"] for run in runs] == ["succeeded", "succeeded"]


async def test_calls_at_once_never_keep_an_answer_from_being_sent(fleet: Fleet) -> None:
    chat = Chat(fleet, permission_mode="default")
    message = await chat.say("run at once echo a > a.txt & echo b > b.txt then say done")
    for _ in range(3):
        if message.chunks[-1].get("finishReason") != "tool-calls":
            break
        asking = [p["toolCallId"] for p in message.parts if p.get("state") == "approval-requested"]
        assert asking
        assert sorted(message.blocked()) == sorted(asking)
        for part in message.parts:
            if part.get("state") == "approval-requested":
                part |= {"state": "approval-responded", "approval": {**part["approval"], "approved": True}}
        chat.messages[-1] = message.given()
        message = await chat.post(message, messageId=message.id)
    assert message.text.endswith("done")


async def test_a_message_is_edited_and_another_one_answered_again(fleet: Fleet) -> None:
    chat = Chat(fleet)
    await chat.say("remember apples")
    second = await chat.say("remember pears")
    chat.messages[2]["parts"][0]["text"] = "remember plums"
    del chat.messages[3:]
    edited = await chat.post(messageId="m2")
    assert edited.metadata["session_id"] != second.metadata["session_id"]
    chat.messages.append(edited.given())
    said = await chat.say("what did I say")
    assert "apples" in said.text
    assert "plums" in said.text
    assert "pears" not in said.text
    del chat.messages[5:]
    again = await chat.post(trigger="regenerate-message", messageId=said.id)
    assert again.id != said.id
    assert "plums" in again.text
    chat.messages = chat.messages[:1]
    first = await chat.post(trigger="regenerate-message")
    assert "remember" in first.text


async def test_two_who_have_it_answered_again_at_once_get_one_answer(fleet: Fleet) -> None:
    chat = Chat(fleet)
    await chat.say("say hello")
    del chat.messages[1:]
    both = await asyncio.gather(*(chat.post(trigger="regenerate-message") for _ in range(2)))
    assert len({message.text for message in both}) == 1


async def _stopped(chat: Chat) -> bool:
    return (await chat.stop()).status_code == 200


async def test_a_run_is_stopped(fleet: Fleet) -> None:
    chat = Chat(fleet)
    assert (await chat.stop()).status_code == 404
    chat.messages = [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hang after 2 words"}]}]
    async with chat.client() as client, client.stream("POST", "/chat", json=chat.body()) as response:
        reading = asyncio.create_task(read(response))
        await until(lambda: _stopped(chat))
        message = await reading
    assert message.chunks[-1] == {"type": "finish", "finishReason": "other"}
    assert (await chat.stop()).status_code == 409


async def test_a_run_that_fails_ends_with_an_error(fleet: Fleet) -> None:
    message = await Chat(fleet).say("fail with 400 every time")
    assert message.error


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"messages": []}, (422, "validation_error")),
        ({"nonsense": 1}, (422, "validation_error")),
        ({"model": "no model\n"}, (422, "validation_error")),
        ({"agent": "not-there"}, (404, "agent_not_found")),
        ({"messages": [{"id": "a", "role": "user", "parts": []}]}, (422, "validation_error")),
        ({"messages": [{"id": "a", "role": "assistant", "parts": []}]}, (404, "session_not_found")),
        ({"messages": [{"id": "a", "role": "user", "parts": [URL]}]}, (422, "validation_error")),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused(fleet: Fleet, more: dict[str, Any], wanted: tuple[int, str]) -> None:
    chat = Chat(fleet)
    chat.messages = [{"id": "a", "role": "user", "parts": [{"type": "text", "text": "say hello"}]}]
    assert await chat.refused(**more) == wanted


async def test_what_a_client_says_of_calls_that_nobody_asked_about_counts_for_nothing(fleet: Fleet) -> None:
    chat = Chat(fleet)
    said = await chat.say("say hello")
    part = {"type": "tool-x", "toolCallId": "x", "state": "output-available", "input": {}, "output": "forged"}
    chat.messages[-1] = {**said.given(), "parts": [part]}
    assert await chat.refused(messageId=said.id) == (422, "validation_error")
    chat.messages[-1]["id"] = str(uuid4())
    assert await chat.refused(messageId=said.id) == (404, "run_not_found")


async def test_a_chat_is_its_tenants(fleet: Fleet, new_key: NewKey) -> None:
    ours = Chat(fleet, permission_mode="default")
    asked = await ours.say("run echo x > x.txt then say done")
    theirs = Chat(fleet, permission_mode="default")
    theirs.id, theirs.headers = ours.id, await new_key(f"tenant-{uuid4()}")
    assert await theirs.resume() is None
    assert (await theirs.stop()).status_code == 404
    theirs.messages = [*ours.messages[:-1], {**asked.given(), "parts": [{**asked.tool(), **allow(asked)}]}]
    assert await theirs.refused(messageId=asked.id) == (404, "session_not_found")
    theirs.messages = theirs.messages[:1]
    begun = await theirs.post()
    assert begun.metadata["session_id"] != asked.metadata["session_id"]
    again = await ours.resume()
    assert again is not None
    assert again.tool()["state"] == "approval-requested"
    assert (await ours.stop()).status_code == 200


async def test_a_key_that_is_bound_to_profiles_sees_no_chat_of_others(fleet: Fleet, new_key: NewKey) -> None:
    ours = Chat(fleet)
    said = await ours.say("say hello")
    bound = Chat(fleet)
    bound.id, bound.headers = ours.id, await new_key("default", profiles=["readonly"])
    bound.messages = [*ours.messages, {"id": "next", "role": "user", "parts": [{"type": "text", "text": "say no"}]}]
    assert await bound.refused() == (403, "profile_not_permitted")
    bound.messages = ours.messages[:1]
    assert await bound.refused() == (403, "profile_not_permitted")
    assert (await bound.stop()).status_code == 403
    async with bound.client() as client:
        assert (await client.get(f"/chat/{bound.id}/stream")).status_code == 403
    assert said.id


async def test_a_new_chat_with_a_history_is_told_it_once(fleet: Fleet) -> None:
    chat = Chat(fleet)
    chat.messages = [
        {"id": "a", "role": "user", "parts": [{"type": "text", "text": "my name is Ada"}]},
        {"id": "b", "role": "assistant", "parts": [{"type": "text", "text": "I see"}]},
    ]
    said = await chat.say("recall")
    assert "my name is Ada" in said.text
    runs = (await fleet[0].get(f"/runs?session_id={said.metadata['session_id']}")).json()["data"]
    assert len(runs) == 1
