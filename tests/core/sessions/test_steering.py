"""Prompts for a turn that runs, in the database: handed over once, and each with one end."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.resources import Resource
from apps.api.core.fleet import cancellation, ownership
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import steering
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.errors import Conflict, LeaseLost, ValidationError
from tests.world import World


async def told(world: World, claim: Claim) -> list[tuple[str, UUID | None]]:
    """Types of a session's events, and which run they are of."""
    return [(type_, UUID(data["run_id"])) for _, type_, data in await world.events(claim.session_id)]


async def queue(world: World, claim: Claim, prompt: str = "say more") -> UUID:
    return (await world.queue(claim.session_id, prompt, on_busy="steer")).run_id


async def hand(world: World, claim: Claim) -> list[UUID]:
    found = await steering.hand(world.db, claim.session_id, claim.generation, claim.run_id)
    return [message.id for message in found]


async def marked(world: World, run_id: UUID) -> bool:
    return bool(await world.one("SELECT steer FROM runs WHERE id = $1", run_id))


async def test_only_a_prompt_for_a_busy_session_is_for_a_turn(world: World) -> None:
    idle = await world.session()
    first = await world.queue(idle, on_busy="steer")
    second = await world.queue(idle, on_busy="steer")
    new = await world.queue(on_busy="steer", config=AgentConfig(max_turns=2))
    assert [await marked(world, run.run_id) for run in (first, second, new)] == [False, True, False]
    assert await steering.waits(world.db, idle)
    assert not await steering.waits(world.db, new.session_id)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"config": AgentConfig(model="claude-x")}, "model"),
        ({"expand_prompt": True}, "expand_prompt"),
        ({"resources": (Resource.stored({"url": "https://x.example/a", "path": "a"}),)}, "resources"),
    ],
)
async def test_what_cannot_hold_for_a_turn_that_runs_is_refused(
    world: World, given: dict[str, Any], field: str
) -> None:
    session_id = await world.session()
    with pytest.raises(ValidationError) as caught:
        await world.queue(session_id, on_busy="steer", **given)
    assert field in [error["field"] for error in caught.value.details["errors"]]


async def test_messages_are_handed_over_in_their_order_and_once(world: World) -> None:
    _, claim, _ = await world.owned()
    await world.queue(claim.session_id)
    sent = [await queue(world, claim, f"say {n}") for n in range(3)]
    handed = await asyncio.gather(*(hand(world, claim) for _ in range(4)))
    assert sorted(handed, key=len)[-1] == sent
    assert sum(map(len, handed)) == 3
    assert await hand(world, claim) == []


async def test_no_more_are_handed_over_than_an_agent_is_to_get_at_once(world: World) -> None:
    _, claim, _ = await world.owned()
    sent = [await queue(world, claim) for _ in range(steering.MAX_AT_ONCE + 1)]
    assert await hand(world, claim) == sent[:-1]
    assert await hand(world, claim) == sent[-1:]


async def test_a_turn_that_is_over_or_another_owners_is_handed_nothing(world: World) -> None:
    _, claim, writer = await world.owned()
    await queue(world, claim)
    with pytest.raises(LeaseLost):
        await steering.hand(world.db, claim.session_id, claim.generation + 1, claim.run_id)
    assert await steering.hand(world.db, claim.session_id, claim.generation, uuid4()) == []
    await finish(writer, claim.run_id, Outcome("succeeded"), cancellation.done(claim.run_id))
    assert await hand(world, claim) == []


async def test_one_that_is_taken_ends_once(world: World) -> None:
    _, claim, writer = await world.owned()
    message = await queue(world, claim)

    async def take(connection: asyncpg.Connection, seq: int) -> None:
        await steering.take(connection, message, claim.run_id, (seq, seq))

    event = steering.steered(message, claim.run_id, "taken")
    with pytest.raises(steering.NotHanded):
        await writer.append(event, also=take)
    await hand(world, claim)
    await writer.append(event, also=take)
    with pytest.raises(steering.NotHanded):
        await writer.append(event, also=take)
    run = await world.run(message)
    assert (run["status"], run["total_cost_usd"], run["last_seq"]) == ("succeeded", 0.0, 1)
    assert run["result"]["steered_into"] == str(claim.run_id)
    assert await told(world, claim) == [("steered", claim.run_id)]


async def test_one_that_was_handed_over_cannot_be_cancelled_and_waits_again_when_it_was_not_taken(world: World) -> None:
    lease, claim, writer = await world.owned()
    message, behind = await queue(world, claim), (await world.queue(claim.session_id)).run_id
    await hand(world, claim)

    async def cancel(connection: asyncpg.Connection, seq: int) -> None:
        await cancellation.end(connection, message, seq)

    with pytest.raises(cancellation.NotQueued):
        await writer.append(cancellation.done(message), also=cancel)
    with pytest.raises(Conflict, match="has been given this message"):
        await cancellation.cancel(world.core(), world.tenant_id, message)

    async def keep(connection: asyncpg.Connection, _seq: int) -> None:
        await steering.keep(connection, claim.session_id, claim.run_id)

    await finish(writer, claim.run_id, Outcome("succeeded"), cancellation.done(claim.run_id), also=keep)
    next_one = await world.claim(lease)
    assert (next_one.run_id, next_one.steer) == (message, True)
    assert (await world.run(behind))["status"] == "queued"


async def test_one_that_was_handed_over_fails_with_its_owner_and_one_that_waits_does_not(world: World) -> None:
    lease, claim, _ = await world.owned()
    await ownership.note_sent(world.db, claim.session_id, claim.generation, claim.run_id, True)
    await queue(world, claim, "say one")
    handed = await hand(world, claim)
    waits = await queue(world, claim, "say two")
    await world.expire(lease)
    await world.reap()
    run = await world.run(handed[0])
    assert (run["status"], run["error"]["code"]) == ("failed", "owner_lost")
    ends = [(type_, run_id) for type_, run_id in await told(world, claim) if type_ == "done"]
    assert ends == [("done", handed[0]), ("done", claim.run_id)]
    assert (run["first_seq"], run["last_seq"]) == (1, 2)
    assert (await world.run(claim.run_id))["last_seq"] == 4
    assert (await world.run(waits))["status"] == "queued"
    assert (await world.claim(await world.instance())).run_id == waits
