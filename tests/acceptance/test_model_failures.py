"""Every way in which the model can fail: what the client is told, and that the next prompt of the session works."""

from __future__ import annotations

import asyncio
import signal
from urllib.parse import urlsplit

import pytest

from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Shared
from tests.proxy import Proxy
from tests.recorder import Recorder

FAILURES: dict[str, tuple[int, str, bool]] = {
    "fail with 400": (400, "model_request_invalid", False),
    "fail with 400 saying prompt is too long: 250000 tokens > 200000 maximum": (400, "context_window_exceeded", False),
    "fail with 400 saying Your credit balance is too low to access the Anthropic API": (
        502,
        "model_billing_failed",
        False,
    ),
    "poison with 400": (400, "model_request_invalid", False),
    "poison with 400 saying messages.0.content.1.image.source.base64: Could not process image": (
        400,
        "model_request_invalid",
        False,
    ),
    "poison with 400 saying prompt is too long: 250000 tokens > 200000 maximum": (
        400,
        "context_window_exceeded",
        False,
    ),
    "poison with 413": (400, "model_request_invalid", False),
    "fail with 401": (502, "model_authentication_failed", False),
    "fail with 403": (502, "model_authentication_failed", False),
    "fail with 404": (400, "model_not_found", False),
    "fail with 429": (503, "model_rate_limited", True),
    "fail with 500": (502, "model_error", True),
    "fail with 529": (503, "model_overloaded", True),
    "break the stream every time": (502, "model_unreachable", True),
    "garble the stream every time": (502, "model_unreachable", True),
    "answer a web page": (502, "model_unreachable", True),
    "stop with refusal every time": (422, "model_refused", False),
    "stop with max_tokens every time": (422, "model_output_limit", False),
    "stop with model_context_window_exceeded every time": (400, "context_window_exceeded", False),
}
FORGOTTEN = ("model_request_invalid", "context_window_exceeded", "model_refused")
AT_ONCE = 4
"""Conversations, each of which meets a share of the failures."""


async def told(fleet: Fleet, session_id: str, prompt: str) -> tuple[int, str, bool]:
    """What a client is told of a prompt that fails, in the middle of a conversation that goes on."""
    response = await fleet[1].post("/query/single", {"session_id": session_id, "prompt": prompt})
    error = response.json()["error"]
    run = (await fleet[2].get(f"/runs/{error['details']['run_id']}")).json()
    assert run["error"]["code"] == error["code"]
    events = await fleet[2].follow(run["run_id"])
    forgotten = [e for e in events if e.event == "status" and e.data["status"] == "turn_forgotten"]
    assert bool(forgotten) == (error["code"] in FORGOTTEN), prompt
    return response.status_code, error["code"], run["error"]["retryable"]


async def check_conversation(instance: Instance, session_id: str, failed: dict[str, tuple[int, str, bool]]) -> None:
    """What the model is told of a conversation in which these prompts have failed."""
    after = (await instance.ask(session_id, "recall"))["result"] + "\n"
    assert "my number is 4711" in after
    for prompt, (_, code, _) in failed.items():
        assert (f". {prompt}\n" in after) == (code not in FORGOTTEN), (prompt, after)


async def fail_one_after_another(fleet: Fleet, prompts: list[str]) -> dict[str, tuple[int, str, bool]]:
    """After each failure the conversation is looked at, in the end once more in another process."""
    session_id = await fleet[0].session()
    await fleet[0].ask(session_id, "say my number is 4711")
    found: dict[str, tuple[int, str, bool]] = {}
    for prompt in prompts:
        found[prompt] = await told(fleet, session_id, prompt)
        await check_conversation(fleet[1], session_id, found)
    assert (await fleet[1].post(f"/sessions/{session_id}/reset", {"mode": "soft"})).status_code == 200
    await check_conversation(fleet[2], session_id, found)
    return found


@pytest.mark.slow
@pytest.mark.timeout(280)
async def test_every_failure_of_the_model_has_a_code_and_the_session_lives_on(fleet: Fleet) -> None:
    prompts = list(FAILURES)
    shares = [prompts[number::AT_ONCE] for number in range(AT_ONCE)]
    found = await asyncio.gather(*(fail_one_after_another(fleet, share) for share in shares))
    assert {prompt: answer for share in found for prompt, answer in share.items()} == FAILURES


async def test_a_first_prompt_that_is_refused_leaves_an_empty_conversation_and_an_empty_answer_is_a_result(
    fleet: Fleet,
) -> None:
    session_id = await fleet[0].session()
    refused = await fleet[0].post("/query/single", {"session_id": session_id, "prompt": "poison with 400"})
    assert refused.json()["error"]["code"] == "model_request_invalid"
    assert "you have said nothing before" in (await fleet[1].ask(session_id, "recall"))["result"]
    forked = await fleet[2].post(f"/sessions/{session_id}/fork", {})
    assert forked.status_code == 201, forked.text
    assert (await fleet[0].ask(session_id, "answer nothing every time"))["result"] == ""
    assert (await fleet[0].ask(session_id, "say next"))["result"] == "[demo model, scripted] next"


@pytest.mark.slow
async def test_a_new_owner_of_a_session_does_not_tell_the_model_what_it_has_refused(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    poisons = [prompt for prompt, (_, code, _) in FAILURES.items() if code in FORGOTTEN and prompt.startswith("poison")]

    session_id = await fleet[0].session()
    await fleet[0].ask(session_id, "say my number is 4711")
    for prompt in poisons:
        response = await fleet[0].post("/query/single", {"session_id": session_id, "prompt": prompt})
        assert response.json()["error"]["code"] == FAILURES[prompt][1]
    await fleet.start(1)
    fleet[0].signal(signal.SIGTERM)
    assert await fleet[0].ended() == 0
    known = (await fleet[1].ask(session_id, "recall"))["result"]
    assert "my number is 4711" in known
    assert "poison" not in known


@pytest.mark.slow
async def test_a_model_api_that_takes_no_connections_fails_the_run_and_the_next_one_works(
    start_fleet: StartFleet, model_url: str
) -> None:
    network = Proxy(urlsplit(model_url).port or 0)
    await network.start()
    try:
        fleet = await start_fleet(1, ANTHROPIC_BASE_URL=f"http://127.0.0.1:{network.port}")
        session_id = await fleet[0].session()
        await fleet[0].ask(session_id, "say my number is 4711")
        await network.refuse()
        network.cut()
        response = await fleet[0].post("/query/single", {"session_id": session_id, "prompt": "say lost"})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (502, "model_unreachable")
        assert (await fleet[0].get(f"/runs/{error['details']['run_id']}")).json()["error"]["retryable"]
        await network.start()
        after = (await fleet[0].ask(session_id, "recall"))["result"]
        assert "my number is 4711" in after
        assert "say lost" in after
    finally:
        await network.close()


@pytest.mark.slow
async def test_a_client_is_told_how_long_the_model_api_asked_to_wait(shared: Shared) -> None:
    fleet, body = shared.fleet, {"prompt": "fail with 429 asking for 2 s", "session_id": await shared.of()}
    response = await fleet[0].post("/query/single", body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_rate_limited")
    seconds = int(response.headers["Retry-After"])
    assert seconds >= 2
    run = (await fleet[1].get(f"/runs/{response.json()['error']['details']['run_id']}")).json()
    assert run["error"]["retry_after_seconds"] == seconds


async def test_prompts_and_rules_longer_than_an_argument_of_a_process_reach_it_whole(
    fleet: Fleet, recorded: Recorder
) -> None:
    async def system(instance: Instance, prompt: str, **config: str | None) -> str:
        """What the model is told with the next prompt."""
        before = recorded.count
        events = await instance.follow(await instance.prompt(session_id, prompt, **config))
        assert events[-1].data["status"] == "succeeded"
        conversation = next(e.data["sdk_session_id"] for e in events if e.event == "init")
        return "".join(block["text"] for block in recorded.of(conversation, before)[-1].body["system"])

    rules = [f"Bash({number} {'ж' * 490})" for number in range(199)]
    first = {"system_prompt": "Ж" * 99_000 + " the end", "system_prompt_append": "Щ" * 99_000 + " of all"}
    allowed = [*rules, "Bash(touch there)"]
    session_id = await fleet[0].session(**first, allowed_tools=allowed, disallowed_tools=rules)
    seen = await system(fleet[1], "run touch there")  # nobody is asked for it
    assert [text in seen for text in first.values()] == [True, True]
    seen = await system(fleet[2], "say hello", system_prompt=None, system_prompt_append="щ" * 70_000 + " again")
    assert "щ" * 70_000 + " again" in seen
    assert not {"Ж", "Щ"} & set(seen)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("env", {f"V{number}": "ж" * 32_000 for number in range(100)}),
        (
            "output_format",
            {"type": "json_schema", "schema": {"type": "object", "description": "ж" * 30_000}},
        ),
    ],
)
async def test_what_a_process_cannot_be_given_is_refused_by_its_field(fleet: Fleet, field: str, value: object) -> None:
    refused = await fleet[0].post("/sessions", {field: value})
    assert refused.status_code == 422, refused.text
    assert refused.json()["error"]["details"]["errors"][0]["field"].startswith(field)
