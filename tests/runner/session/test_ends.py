"""The end of a run: taken once, whoever comes second, and the last of what the log holds of it."""

from __future__ import annotations

import asyncio
import gc
from contextlib import closing
from uuid import uuid4

import asyncpg
import pytest
from claude_agent_sdk import AssistantMessage, TextBlock

from apps.api.core.events.log import Event
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions.outcome import NotRunning, Outcome, finish
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.session.turn import Turn
from tests.core.conftest import neighbourhood, world
from tests.runner.session.test_clock import ended, executing
from tests.runner.session.test_conversation import MODEL, Talk, begins, ends
from tests.world import World, administrator, until, waiting_for_locks

__all__ = ["neighbourhood", "world"]


async def talking(world: World) -> tuple[Claim, Talk, Turn]:
    """A run of a new session that is being executed."""
    _, claim, writer = await world.owned()
    talk = Talk(world, writer, claim)
    return claim, talk, talk.turns.assign(claim)


async def test_a_run_that_two_tasks_end_has_one_end_and_the_first_says_how(world: World) -> None:
    claim, talk, turn = await talking(world)
    await talk.hear(begins(claim, str(claim.run_id)))
    async with administrator(world.settings) as admin:
        await admin.execute("BEGIN; LOCK TABLE runs")
        endings = [
            asyncio.create_task(talk.conversation.fail(turn, code)) for code in ("agent_crashed", "storage_failed")
        ]
        endings.append(asyncio.create_task(talk.hear(ends(claim, 1.0, 100))))
        await until(lambda: waiting_for_locks(admin, 1))
        await admin.execute("COMMIT")
    await asyncio.gather(*endings)
    told = [(type_, data.get("code")) for _, type_, data in await world.events(claim.session_id)]
    assert told[-2:] == [("error", "agent_crashed"), ("done", None)]
    assert [type_ for type_, _ in told].count("done") == 1
    assert turn.status == "failed"


async def test_what_is_stopped_ends_for_that_reason_whatever_fails_then(world: World) -> None:
    claim, talk, turn = await talking(world)
    turn.stop("timeout")
    await talk.conversation.fail(turn, "storage_failed")
    assert (await world.run(claim.run_id))["error"]["code"] == "timeout"


async def test_an_end_that_could_not_be_stored_is_none(world: World) -> None:
    claim, talk, turn = await talking(world)
    with pytest.raises(asyncpg.DataError):
        await talk.conversation.finish(turn, Outcome("succeeded", error={"code": object()}), [])
    assert (turn.ending, turn.ended.is_set()) == (None, False)
    await talk.conversation.fail(turn, "agent_crashed")
    assert (await world.run(claim.run_id))["error"]["code"] == "agent_crashed"


async def test_an_end_that_fails_when_nobody_waits_for_it_any_more_leaves_no_failure_unasked(world: World) -> None:
    _, talk, turn = await talking(world)
    waiting = asyncio.create_task(talk.conversation.finish(turn, Outcome("succeeded", error={"code": object()}), []))
    await asyncio.sleep(0)
    assert turn.ending is not None
    waiting.cancel()
    await asyncio.wait({waiting, turn.ending})
    assert turn.ending is None
    gc.collect()  # asyncio tells of it when the task goes


async def test_the_database_ends_a_run_once_and_stores_nothing_of_a_second_end(world: World) -> None:
    _, claim, writer = await world.owned()
    first, second = Outcome("succeeded", num_turns=1), Outcome("failed", num_turns=1)
    await finish(writer, claim.run_id, first, Event("done", {"status": "succeeded"}, claim.run_id))
    stored = await world.events(claim.session_id)
    queued = (await world.queue()).run_id
    for run_id in (claim.run_id, queued):
        with pytest.raises(NotRunning):
            await finish(writer, run_id, second, Event("done", {"status": "failed"}, run_id))
    assert await world.events(claim.session_id) == stored
    assert await world.one("SELECT num_turns FROM sessions WHERE id = $1", claim.session_id) == 1
    await writer.append(Event("status", {"status": "goes on"}))


async def test_a_reset_is_told_and_has_ended_at_once(world: World) -> None:
    """Its owner may die at any moment: else the next one, which begins it anew, would tell it again."""
    lease = await world.instance()
    await world.queue(prompt={"mode": "hard"}, kind="reset")
    claim = await world.claim(lease)

    async def told() -> tuple[bool, list[tuple[str, str]]]:
        """Whether the conversation is another one, and the session's events."""
        conversation = await world.one("SELECT sdk_session_id FROM sessions WHERE id = $1", claim.session_id)
        events = await world.events(claim.session_id)
        return conversation != claim.sdk_session_id, [(type_, data["status"]) for _, type_, data in events]

    with closing(Scratch()) as scratch:
        async with administrator(world.settings) as admin:
            await admin.execute("BEGIN; SELECT FROM runs FOR NO KEY UPDATE")  # events may still be stored
            async with executing(world, lease, scratch, claim):
                await until(lambda: waiting_for_locks(admin, 1))
                before = await told()
                await admin.execute("COMMIT")
                assert await ended(world, claim) == "succeeded"
    assert before == (False, [])
    assert await told() == (True, [("status", "reset"), ("done", "succeeded")])


async def test_what_is_said_of_a_run_after_its_end_is_the_sessions(world: World) -> None:
    claim, talk, turn = await talking(world)
    await talk.hear(begins(claim, str(claim.run_id)))
    async with administrator(world.settings) as admin:
        await admin.execute("BEGIN; LOCK TABLE runs")
        ending = asyncio.create_task(talk.conversation.fail(turn, "timeout"))
        await until(lambda: waiting_for_locks(admin, 1))
        late = asyncio.create_task(talk.hear(AssistantMessage([TextBlock("late")], MODEL, uuid=str(uuid4()))))
        await admin.execute("COMMIT")
    await asyncio.gather(ending, late)
    rows = await world.db.pool.fetch(
        "SELECT type, run_id, data FROM events WHERE session_id = $1 ORDER BY seq", claim.session_id
    )
    assert [(row["type"], row["run_id"]) for row in rows][-2:] == [("done", claim.run_id), ("message", None)]
    assert "late" in rows[-1]["data"]
