"""Bounds on what an agent waits for and hands over: one that is reached ends the run, and not the session."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import StartFleet
from tests.fleet import Fleet

pytestmark = pytest.mark.slow

PDF = (
    r"printf '%%PDF-1.4\n1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj\n"
    r"2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj\n"
    r"3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 9 9]>> endobj\n4 0 obj <</Length SIZE>> stream\n' > a.pdf;"
    r" head -c SIZE /dev/zero >> a.pdf; printf '\nendstream endobj\ntrailer <</Root 1 0 R>>\n%%%%EOF\n' >> a.pdf"
)
LEAST = {"MODEL_SILENCE_SECONDS": "10", "MAX_AGENT_MESSAGE_BYTES": "1000000", "MAX_BODY_BYTES": "100000"}
# What an agent has heard in its last tenth of a second may be in no transcript yet when it is killed: hence the pauses.
REACHED: dict[str, tuple[int, str, bool]] = {
    "hang every time": (502, "model_unreachable", True),
    "hang after 3 words every time": (502, "model_unreachable", True),
    "run sleep 1 then read a.pdf": (502, "agent_message_too_large", False),
    "run sleep 1 then reply with 1200000 bytes": (502, "agent_message_too_large", False),
}


def pdf(size: int) -> str:
    """A prompt upon which the agent makes `a.pdf`, somewhat larger than `size` bytes."""
    return "run " + PDF.replace("SIZE", str(size))


async def told(fleet: Fleet, prompt: str) -> tuple[int, str, bool]:
    """What a client is told of a prompt that reaches a bound, in the middle of a conversation that goes on."""
    session_id = await fleet[0].session(permission_mode="bypassPermissions")
    await fleet[0].ask(session_id, pdf(500_000))
    response = await fleet[0].post("/query/single", {"session_id": session_id, "prompt": prompt}, timeout=150)
    error = response.json()["error"]
    run = (await fleet[0].get(f"/runs/{error['details']['run_id']}")).json()
    assert run["error"]["code"] == error["code"], prompt
    after = (await fleet[0].ask(session_id, "recall"))["result"]
    assert "run printf" in after, prompt
    assert prompt in after
    return response.status_code, error["code"], run["error"]["retryable"]


@pytest.mark.timeout(200)
async def test_a_silent_model_and_a_message_too_large_end_the_run_and_the_session_lives_on(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(1, REQUEST_TIMEOUT="120", **LEAST)
    found = await asyncio.gather(*(told(fleet, prompt) for prompt in REACHED))
    assert dict(zip(REACHED, found, strict=True)) == REACHED


async def answered_after_a_silence(fleet: Fleet) -> None:
    """Of a second longer than a CLI waits by itself."""
    body = {"session_id": await fleet[0].session(), "prompt": "stream 2 words every 61000 ms"}
    response = await fleet[0].post("/query/single", body, timeout=170)
    assert (response.status_code, response.json()["result"]) == (200, "word1 word2")


async def test_a_large_document_and_a_silence_of_a_minute_are_within_the_usual_bounds(fleet: Fleet) -> None:
    async with asyncio.TaskGroup() as beside:
        beside.create_task(answered_after_a_silence(fleet))
        session_id = await fleet[0].session(permission_mode="bypassPermissions")
        await fleet[0].ask(session_id, pdf(14_000_000))
        assert "[document]" in (await fleet[0].ask(session_id, "read a.pdf"))["result"]
        assert "read a.pdf" in (await fleet[1].ask(session_id, "recall"))["result"]
