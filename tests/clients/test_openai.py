"""The official `openai` client, unmodified, against three instances behind a round-robin balancer."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.balancer import balancing
from tests.conftest import NewKey, StartFleet
from tests.fleet import API_KEY, Fleet

MODEL = "claude-sonnet-5-5"
SAID = "[demo model, scripted] "

WEIGH = {
    "name": "weigh__it_",
    "description": "Say what a thing weighs.",
    "parameters": {
        "type": "object",
        "properties": {"thing": {"type": "string"}},
        "required": ["thing"],
        "additionalProperties": False,
    },
}
NAMED = "x-weigh-5f-5fit-5f"
CALL = f'use tool mcp__client__{NAMED} {{"thing": "a cat"}}'
CALLS = f'use tools at once mcp__client__{NAMED} {{"thing": "a"}} & mcp__client__{NAMED} {{"thing": "b"}}'


class Answer(BaseModel):
    """A structured output."""

    answer: int


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[Any]:
    """Each request goes to the next instance."""
    async with balancing(fleet.instances) as balancer, client_of(balancer.url) as client:
        yield client


def client_of(url: str, key: str = API_KEY) -> Any:
    """The client as it is; its types are for those who write programs, and say less than what is tried here."""
    http = httpx2.AsyncClient(limits=httpx2.Limits(max_keepalive_connections=0), timeout=120, verify=False)
    return AsyncOpenAI(base_url=f"{url}/compat/openai/v1", api_key=key, http_client=http, max_retries=0)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def session_of(fleet: Fleet, prompt: str) -> str:
    """The session whose newest run was asked this."""
    listed = (await fleet[0].get("/sessions", params={"limit": "50"})).json()["data"]
    for session in listed:
        messages = (await fleet[0].get(f"/sessions/{session['session_id']}/messages")).json()["data"]
        if any(block.get("text") == prompt for m in messages for block in m["content"]):
            return str(session["session_id"])
    raise AssertionError(prompt)


# --- models --------------------------------------------------------------------------------------------------------


async def test_models_and_presets_are_models(fleet: Fleet, client: Any) -> None:
    made = await fleet[0].post("/agents", {"name": "openai-preset", "system_prompt_append": "Be brief."})
    assert made.status_code == 201, made.text
    listed = [model.id async for model in client.models.list()]
    assert {MODEL, "preset:openai-preset"} <= set(listed)
    assert (await client.models.retrieve("preset:openai-preset")).owned_by == "you"
    assert (await client.models.retrieve("some-sonnet")).id == "some-sonnet"
    for unknown in ("gpt-9", "preset:none", "preset:x/y z", "preset:"):
        with pytest.raises(openai.NotFoundError) as raised:
            await client.models.retrieve(unknown)
        assert raised.value.code == "model_not_found"
        assert raised.value.request_id


# --- chat ----------------------------------------------------------------------------------------------------------


async def test_a_chat_stays_one_warm_session(fleet: Fleet, client: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("remember my name is Warm Ada")]
    first = await client.chat.completions.create(model=MODEL, messages=messages)
    assert first.choices[0].finish_reason == "stop"
    assert first.usage.prompt_tokens > 0
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, user("recall")]
    second = await client.chat.completions.create(model=MODEL, messages=messages)
    assert "Warm Ada" in second.choices[0].message.content
    session_id = await session_of(fleet, "remember my name is Warm Ada")
    state = (await fleet[0].get(f"/sessions/{session_id}")).json()
    assert state["num_turns"] == 2
    assert state["surface"] == "openai"
    runs = (await fleet[0].get(f"/sessions/{session_id}/runs")).json()["data"]
    assert len(runs) == 2
    # What was said is changed: the conversation goes on from where it was the same, and the session stays as it is.
    edited = [*messages[:3], user("what did I say?")]
    forked = await client.chat.completions.create(model=MODEL, messages=edited)
    assert "Warm Ada" in forked.choices[0].message.content
    assert (await fleet[0].get(f"/sessions/{session_id}")).json()["num_turns"] == 2


async def test_a_history_from_elsewhere_is_told_once(client: Any) -> None:
    messages = [user("my cat is Tom"), {"role": "assistant", "content": "Nice."}, user("recall")]
    answer = await client.chat.completions.create(model=MODEL, messages=messages)
    assert "my cat is Tom" in answer.choices[0].message.content


async def test_a_chat_is_streamed(client: Any) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[user("stream 20 words")],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.split()[-1] == "word20"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0
    async with client.chat.completions.stream(model=MODEL, messages=[user("say hello")]) as helper:
        async for _ in helper:
            pass
        final = await helper.get_final_completion()
    assert final.choices[0].message.content == f"{SAID}hello"


@pytest.mark.parametrize("streams", [False, True])
async def test_tools_of_the_client_end_the_answer_and_go_on(client: Any, streams: bool) -> None:
    tools = [{"type": "function", "function": WEIGH}]
    messages: list[Any] = [user(CALLS)]

    async def turn() -> Any:
        if streams:
            async with client.chat.completions.stream(model=MODEL, messages=messages, tools=tools) as helper:
                async for _ in helper:
                    pass
                return (await helper.get_final_completion()).choices[0]
        made = await client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
        return made.choices[0]

    choice = await turn()
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        (WEIGH["name"], {"thing": "a"}),
        (WEIGH["name"], {"thing": "b"}),
    ]
    messages.append({"role": "assistant", "content": None, "tool_calls": [c.to_dict() for c in calls]})
    messages += [{"role": "tool", "tool_call_id": c.id, "content": f"{n} kg"} for n, c in enumerate(calls)]
    choice = await turn()
    assert choice.finish_reason == "stop"
    assert "0 kg" in choice.message.content
    assert "1 kg" in choice.message.content
    messages += [{"role": "assistant", "content": choice.message.content}, user("recall")]
    choice = await turn()
    assert CALLS in choice.message.content


async def test_structured_outputs_are_the_content(client: Any) -> None:
    prompt = 'answer by schema {"answer": 7}'
    made = await client.chat.completions.parse(model=MODEL, messages=[user(prompt)], response_format=Answer)
    assert made.choices[0].message.parsed == Answer(answer=7)
    parsed = await client.responses.parse(model=MODEL, input=prompt, text_format=Answer)
    assert parsed.output_parsed == Answer(answer=7)


async def test_a_picture_is_seen(client: Any) -> None:
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    url = f"data:image/png;base64,{png}"
    content: list[dict[str, Any]] = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
    made = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    assert "image/png" in str(made.choices[0].message.content)
    content[1]["image_url"] = {"url": "https://10.1.2.3/x.png"}
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    assert raised.value.param == "messages[0].content[1]"


# --- responses -----------------------------------------------------------------------------------------------------


async def test_responses_go_on_behind_each_other(fleet: Fleet, client: Any) -> None:
    first = await client.responses.create(model=MODEL, input="remember my name is Chained Ada")
    assert first.status == "completed"
    assert first.usage is not None
    second = await client.responses.create(model=MODEL, input="recall", previous_response_id=first.id)
    assert "Chained Ada" in second.output_text
    session_id = await session_of(fleet, "remember my name is Chained Ada")
    assert (await fleet[0].get(f"/sessions/{session_id}")).json()["num_turns"] == 2
    third = await client.responses.create(model=MODEL, input="what did I say?", previous_response_id=first.id)
    assert "Chained Ada" in third.output_text
    assert "recall" not in third.output_text
    read = await client.responses.retrieve(second.id)
    assert read.model_dump() == second.model_dump()
    items = [item async for item in client.responses.input_items.list(second.id)]
    assert [item.content[0].text for item in items] == ["recall"]
    await client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(second.id)


async def numbers(stream: Any) -> list[Any]:
    return [event async for event in stream]


async def test_a_stream_of_a_response_is_the_same_when_it_is_read_again(client: Any) -> None:
    prompt = "think about cheese then run echo hi then stream 30 words"
    events = await numbers(await client.responses.create(model=MODEL, input=prompt, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    output = events[-1].response.output
    phases = [item.phase for item in output if item.type == "message"]
    assert phases[-1] == "final_answer"
    assert set(phases[:-1]) <= {"commentary"}
    assert any(item.type == "reasoning" for item in output)
    again = await numbers(await client.responses.retrieve(events[0].response.id, stream=True))
    assert [e.model_dump() for e in again] == [e.model_dump() for e in events]
    rest = await numbers(await client.responses.retrieve(events[0].response.id, stream=True, starting_after=9))
    assert [e.model_dump() for e in rest] == [e.model_dump() for e in events[10:]]


async def test_the_helper_for_streams_takes_all_of_it(client: Any) -> None:
    async with client.responses.stream(
        model=MODEL, input='answer by schema {"answer": 7}', text_format=Answer
    ) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert final.output_parsed == Answer(answer=7)


@pytest.mark.parametrize("chained", [True, False])
async def test_functions_of_responses(client: Any, chained: bool) -> None:
    tools: Any = [{"type": "function", **WEIGH, "strict": True}]
    asked: list[Any] = [user(CALL)]
    first = await client.responses.create(model=MODEL, input=asked, tools=tools)
    assert first.status == "completed"
    [call] = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == (WEIGH["name"], {"thing": "a cat"})
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "4 kg"}
    if chained:
        more: Any = {"input": [output], "previous_response_id": first.id}
    else:
        more = {"input": [*asked, *(item.to_dict() for item in first.output), output]}
    second = await client.responses.create(model=MODEL, tools=tools, **more)
    assert "4 kg" in second.output_text
    assert (await client.responses.retrieve(first.id)).output == first.output
    assert (await client.responses.retrieve(second.id)).output_text == second.output_text
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model=MODEL, input=[output], previous_response_id=second.id, tools=tools)


async def test_an_output_comes_with_what_the_user_says_next(client: Any) -> None:
    tools: Any = [{"type": "function", **WEIGH}]
    first = await client.responses.create(model=MODEL, input=CALL, tools=tools)
    [call] = [item for item in first.output if item.type == "function_call"]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "4 kg"}
    more: Any = [output, user("recall")]
    second = await client.responses.create(model=MODEL, input=more, previous_response_id=first.id, tools=tools)
    assert CALL in second.output_text
    assert (await client.responses.retrieve(second.id)).output_text == second.output_text


async def test_a_response_in_the_background_is_cancelled(client: Any) -> None:
    made = await client.responses.create(model=MODEL, input="hang after 3 words", background=True)
    assert made.status == "queued"
    stream = await client.responses.retrieve(made.id, stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    assert (await client.responses.retrieve(made.id)).status == "in_progress"
    assert (await client.responses.cancel(made.id)).status == "cancelled"
    assert (await client.responses.retrieve(made.id)).status == "cancelled"


async def test_a_client_that_leaves_a_stream_stops_the_run(fleet: Fleet, client: Any) -> None:
    stream = await client.responses.create(model=MODEL, input="hang after 4 words", stream=True)
    async for event in stream:
        if event.type == "response.created":
            made = event.response.id
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    events = await numbers(await client.responses.retrieve(made, stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.status == "cancelled"


async def test_a_response_in_the_background_is_told_when_its_owner_is_gone(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(3)
    async with balancing(fleet.instances) as balancer, client_of(balancer.url) as client:
        done = await client.responses.create(model=MODEL, input="stream 20 words", background=True)
        events = await numbers(await client.responses.retrieve(done.id, stream=True))
        made = await client.responses.create(model=MODEL, input="hang after 5 words", background=True)
        stream = await client.responses.retrieve(made.id, stream=True)
        seen = []
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
        owner = await fleet.owner_of(await session_of_runs(fleet))
        owner.signal(signal.SIGKILL)
        await stream.close()
        balancer.instances = [i for i in fleet.instances if i is not owner]
        after = seen[-1].sequence_number
        rest = await numbers(await client.responses.retrieve(made.id, stream=True, starting_after=after))
        assert all(event.sequence_number > after for event in rest)
        assert rest[-1].type == "response.failed"
        assert rest[-1].response.error.code == "server_error"
        again = await numbers(await client.responses.retrieve(done.id, stream=True))
        assert [e.model_dump() for e in again] == [e.model_dump() for e in events]


async def session_of_runs(fleet: Fleet) -> str:
    """The session that runs."""
    runs = (await fleet[0].get("/runs", params={"status": "running"})).json()["data"]
    return str(runs[0]["session_id"])


# --- conversations -------------------------------------------------------------------------------------------------


async def test_a_conversation_keeps_what_is_said_in_it(client: Any) -> None:
    talk = await client.conversations.create(items=[user("my dog is Rex")], metadata={"topic": "dogs"})
    first = await client.responses.create(model=MODEL, input="recall", conversation=talk.id)
    assert "my dog is Rex" in first.output_text
    assert first.conversation is not None
    assert first.conversation.id == talk.id
    await client.conversations.items.create(talk.id, items=[user("it is brown")])
    second = await client.responses.create(model=MODEL, input="recall", conversation=talk.id)
    assert "it is brown" in second.output_text
    items = [item async for item in client.conversations.items.list(talk.id, order="asc", limit=2)]
    said = [item.content[0].text for item in items]
    assert said == ["my dog is Rex", "it is brown", "recall", first.output_text, "recall", second.output_text]
    item = await client.conversations.items.retrieve(items[0].id, conversation_id=talk.id)
    assert item.to_dict() == items[0].to_dict()
    assert (await client.conversations.update(talk.id, metadata={"a": "b"})).metadata == {"a": "b"}
    assert (await client.conversations.retrieve(talk.id)).metadata == {"a": "b"}
    assert (await client.conversations.delete(talk.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(talk.id)


# --- errors and retries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"temperature": 0.2}, "temperature", "unsupported_parameter"),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y", "unknown_parameter"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"tools": [{"type": "custom"}]}, "tools[0]", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_parameter"),
        ({"model": "gpt-9"}, "model", "model_not_found"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "invalid_value"),
    ],
)  # fmt: skip
async def test_what_cannot_be_honoured_is_said(client: Any, body: dict[str, Any], param: str, code: str) -> None:
    fine = {"model": MODEL, "messages": [user("say no")], "temperature": 1, "n": 1, "service_tier": "auto"}
    with pytest.raises(openai.APIStatusError) as raised:
        await client.post("/chat/completions", body={**fine, **body}, cast_to=object)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.status_code == (404 if code == "model_not_found" else 400)
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert raised.value.request_id


async def test_a_wrong_key_and_an_unknown_route(fleet: Fleet, client: Any) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        await client_of(fleet[0].url, "wrong").models.list()
    assert raised.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model=MODEL, input="x")


async def test_a_request_that_is_sent_again_finds_its_run(fleet: Fleet, client: Any) -> None:
    retry = {"x-stainless-retry-count": "1"}
    body: Any = {"model": MODEL, "input": "say sent twice"}
    first = await client.responses.create(**body)
    again = await client.responses.create(**body, extra_headers=retry)
    assert again.id == first.id
    other = await client.responses.create(**body)
    assert other.id != first.id
    keyed = {"Idempotency-Key": "openai-once"}
    one = await client.responses.create(**body, extra_headers=keyed)
    assert (await client.responses.create(**body, extra_headers=keyed)).id == one.id
    chat: Any = {"model": MODEL, "messages": [user("say chat sent twice")]}
    await client.chat.completions.create(**chat)
    await client.chat.completions.create(**chat, extra_headers=retry)
    session_id = await session_of(fleet, "say chat sent twice")
    assert len((await fleet[0].get(f"/sessions/{session_id}/runs")).json()["data"]) == 1


async def test_what_another_tenant_has_is_not_there(fleet: Fleet, client: Any, new_key: NewKey) -> None:
    made = await client.responses.create(model=MODEL, input="say mine")
    talk = await client.conversations.create()
    stranger = client_of(fleet[0].url, (await new_key("openai-strangers"))["X-API-Key"])
    attempts: list[Callable[[], Any]] = [
        lambda: stranger.responses.retrieve(made.id),
        lambda: stranger.responses.cancel(made.id),
        lambda: stranger.responses.delete(made.id),
        lambda: stranger.responses.create(model=MODEL, input="x", previous_response_id=made.id),
        lambda: stranger.responses.create(model=MODEL, input="x", conversation=talk.id),
        lambda: stranger.conversations.retrieve(talk.id),
        lambda: stranger.conversations.delete(talk.id),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError):
            await attempt()


async def test_a_bound_key_sees_its_own_sessions_only(fleet: Fleet, client: Any, new_key: NewKey) -> None:
    made = await client.responses.create(model=MODEL, input="say of no profile")
    talk = await client.conversations.create()
    key = await new_key("default", scopes=("read", "write"), profiles=["readonly"])
    bound = client_of(fleet[1].url, key["X-API-Key"])
    attempts: list[Callable[[], Any]] = [
        lambda: bound.responses.retrieve(made.id),
        lambda: bound.responses.cancel(made.id),
        lambda: bound.responses.delete(made.id),
        lambda: bound.responses.input_items.list(made.id),
        lambda: bound.responses.create(model=MODEL, input="x", previous_response_id=made.id),
        lambda: bound.responses.create(model=MODEL, input="x", conversation=talk.id),
        lambda: bound.conversations.retrieve(talk.id),
        lambda: bound.conversations.delete(talk.id),
        lambda: bound.conversations.items.list(talk.id),
    ]
    for attempt in attempts:
        with pytest.raises(openai.PermissionDeniedError) as raised:
            await attempt()
        assert raised.value.code == "profile_not_permitted"
    own = await bound.responses.create(model=MODEL, input="say mine")
    assert (await bound.responses.retrieve(own.id)).output_text == own.output_text


async def test_nothing_is_left_of_what_is_not_to_be_stored(fleet: Fleet, client: Any) -> None:
    made = await client.responses.create(model=MODEL, input="say nothing stays", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    with pytest.raises(AssertionError):
        await session_of(fleet, "say nothing stays")
