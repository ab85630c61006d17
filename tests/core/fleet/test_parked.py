"""Runs that are parked: what may start meanwhile, who resolves them, and who takes them up."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from apps.api import clock
from apps.api.core.codec import encode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.events.log import Event
from apps.api.core.fleet import answering, cancellation, ownership, parked, repair, suspension
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease
from apps.api.core.sessions import requests, sessions
from apps.api.core.sessions.outcome import MAX_REQUEUED
from apps.api.core.sessions.parking import Parked
from apps.api.core.sessions.requests import Asked
from apps.api.core.tasks import Loop
from apps.api.core.tenant.usage import ModelUsage
from apps.api.errors import Conflict, LeaseLost
from tests.world import World

CALL = "toolu_1"
BY = {"type": "key", "key_id": "k", "key_name": "k"}
ALLOW = {"decision": "allow"}
ANSWER = "UPDATE requests SET status = 'answered', decision = $2, resolved_by = $3, resolved_at = now() WHERE id = $1"


@pytest.fixture
def world(lone_world: World) -> World:
    return lone_world


async def asking(world: World, **more: Any) -> tuple[Lease, Claim, Asked]:
    """A run that waits for a person, with its process."""
    lease, claim, writer = await world.owned()
    fields: dict[str, Any] = {"tool_name": "Bash", "input": {"command": "ls"}, "suggestions": []}
    fields |= {"tool_use_id": CALL, "agent_id": None}
    asked = Asked(uuid4(), "permission", claim.run_id, clock.now() + timedelta(hours=1), fields | more)

    async def insert(connection: asyncpg.Connection, _seq: int) -> None:
        await requests.insert(connection, world.tenant_id, claim.session_id, asked)

    await writer.append(asked.event(), also=insert)
    return lease, claim, asked


def left(asked: Asked) -> Parked:
    return Parked(asked.id, CALL, 30.0, 1, 0.5, [ModelUsage("m", 10, 2, cost_usd=0.5)], {"m": {"inputTokens": 10}})


async def park(world: World, lease: Lease, claim: Claim, asked: Asked) -> None:
    seq = await world.one("SELECT last_seq FROM sessions WHERE id = $1", claim.session_id)
    writer = world.writer(lease, Claim(**{**{n: getattr(claim, n) for n in claim.__slots__}, "last_seq": seq}))

    async def store(connection: asyncpg.Connection, seq: int) -> None:
        config = AgentConfig(model="the-process-has-it").given()
        await parked.park(connection, claim.session_id, seq, claim.run_id, left(asked), config)

    await writer.append(Event("status", {"status": "parked"}, claim.run_id), also=store)


async def waiting(world: World) -> tuple[Claim, Asked]:
    """A parked run, whose instance is dead."""
    lease, claim, asked = await asking(world)
    await park(world, lease, claim, asked)
    await world.expire(lease)
    return claim, asked


async def send(world: World, claim: Claim, asked: Asked, decision: dict[str, Any]) -> str:
    """Answer as a client does, who waits a moment for the agent."""
    core = world.core()
    sent = await answering.answer(core, world.tenant_id, claim.session_id, asked.id, "permission", decision, BY)
    return sent.status


async def answer(world: World, claim: Claim, asked: Asked) -> None:
    async def decide(connection: asyncpg.Connection) -> None:
        await connection.execute(ANSWER, asked.id, encode(ALLOW).decode(), BY)

    run_id = await parked.answer(world.core(), world.tenant_id, claim.session_id, asked.id, ALLOW, BY, decide)
    assert run_id == claim.run_id


async def kinds(world: World, session_id: UUID) -> list[str]:
    return [kind for _, kind, _ in await world.events(session_id)]


async def test_nothing_of_a_parked_session_may_start_and_no_reaper_takes_it(world: World) -> None:
    claim, _ = await waiting(world)
    assert await world.reap() == []
    later = await world.queue(claim.session_id)
    assert not await world.one("SELECT startable FROM runs WHERE id = $1", later.run_id)
    assert await world.claims_nothing(await world.instance())
    state = await sessions.get(world.db, world.redis, world.tenant_id, claim.session_id, "m")
    assert (state["status"], state["active"], state["active_run_id"]) == ("requires_action", False, str(claim.run_id))


async def test_an_answer_lets_any_instance_go_on_in_the_old_place(world: World) -> None:
    claim, asked = await waiting(world)
    before = await world.run(claim.run_id)
    later = await world.queue(claim.session_id)
    assert await send(world, claim, asked, ALLOW) == "accepted"
    assert (await world.run(claim.run_id))["status"] == "queued"
    other = await world.instance()
    again = await world.claim(other)
    assert (again.run_id, again.parked, again.timeout_seconds) == (claim.run_id, left(asked), 30.0)
    assert again.config.model == "the-process-has-it"
    after = await world.run(claim.run_id)
    assert {n: after[n] for n in ("first_seq", "started_at")} == {n: before[n] for n in ("first_seq", "started_at")}
    assert await world.claims_nothing(other)
    assert not await world.one("SELECT startable FROM runs WHERE id = $1", later.run_id)
    with pytest.raises(LeaseLost):  # the pen of the one that parked it is nobody's
        await world.writer(await world.instance(), claim).append(Event("status", {"status": "late"}))


async def test_the_answer_is_left_to_another_instance_until_an_agent_has_it(world: World) -> None:
    claim, asked = await waiting(world)
    await answer(world, claim, asked)
    for _ in range(MAX_REQUEUED):
        lease = await world.instance()
        assert (await world.claim(lease)).parked == left(asked)
        await world.expire(lease)
        await world.reap()
        assert (await world.run(claim.run_id))["status"] == "queued"
    lease = await world.instance()
    again = await world.claim(lease)
    await ownership.note_sent(world.db, again.session_id, again.generation, again.run_id, True)
    await world.expire(lease)
    await world.reap()
    ended = await world.run(claim.run_id)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "owner_lost")
    assert await world.one("SELECT parked FROM runs WHERE id = $1", claim.run_id) is None


async def test_a_run_that_no_instance_can_take_up_ends_with_what_it_has_cost(world: World) -> None:
    claim, asked = await waiting(world)
    await answer(world, claim, asked)
    for _ in range(MAX_REQUEUED + 1):
        lease = await world.instance()
        await world.claim(lease)
        await world.expire(lease)
        await world.reap()
    ended = await world.run(claim.run_id)
    assert (ended["status"], ended["total_cost_usd"], ended["usage"][0]["input_tokens"]) == ("failed", 0.5, 10)


async def test_an_answer_that_comes_while_the_process_ends_is_heard(world: World) -> None:
    lease, claim, asked = await asking(world)
    await world.db.pool.execute(ANSWER, asked.id, encode(ALLOW).decode(), BY)
    command = uuid4()
    await world.db.pool.execute(
        "INSERT INTO commands (id, session_id, type, payload) VALUES ($1, $2, 'answer', $3)",
        command,
        claim.session_id,
        {"request_id": str(asked.id)},
    )
    await park(world, lease, claim, asked)
    assert await world.one("SELECT status FROM commands WHERE id = $1", command) == "applied"
    assert (await kinds(world, claim.session_id))[-2:] == ["status", "action_resolved"]
    assert (await world.claim(await world.instance())).parked == left(asked)


async def test_a_run_whose_request_is_closed_is_not_parked(world: World) -> None:
    lease, claim, asked = await asking(world)
    async with world.db.transaction() as connection:
        await requests.close(connection, asked.id, "expired")
    with pytest.raises(LeaseLost):
        await park(world, lease, claim, asked)
    assert (await kinds(world, claim.session_id))[-1] == "permission_request"


@pytest.mark.parametrize("answered", [False, True])
async def test_a_parked_run_is_cancelled_and_the_next_one_may_start(world: World, answered: bool) -> None:
    claim, asked = await waiting(world)
    later = await world.queue(claim.session_id)
    if answered:
        await answer(world, claim, asked)
    sent = await cancellation.cancel(world.core(), world.tenant_id, claim.run_id)
    assert sent.status == "applied"
    assert (await kinds(world, claim.session_id))[-2:] == ["action_resolved", "done"]
    ended = await world.run(claim.run_id)
    assert (ended["status"], ended["error"]["code"], ended["total_cost_usd"]) == ("interrupted", "interrupted", 0.5)
    state = await sessions.get(world.db, world.redis, world.tenant_id, claim.session_id, "m")
    assert (state["status"], state["total_cost_usd"], state["num_turns"]) == ("queued", 0.5, 1)
    assert (await world.claim(await world.instance())).run_id == later.run_id
    with pytest.raises(Conflict, match="This request"):
        await send(world, claim, asked, ALLOW)


async def test_a_request_of_a_parked_run_expires_by_whoever_looks_first(world: World) -> None:
    claim, asked = await waiting(world)
    await parked.expire(world.core(), Loop("expire"))
    assert (await world.run(claim.run_id))["status"] == "requires_action"
    await world.db.pool.execute("UPDATE requests SET expires_at = now() WHERE id = $1", asked.id)
    for _ in range(2):
        await parked.expire(world.core(), Loop("expire"))
    closed = [data for _, kind, data in await world.events(claim.session_id) if kind == "action_resolved"]
    assert [(c["decision"], c["by"]["reason"]) for c in closed] == [("closed", "expired")]
    assert (await world.claim(await world.instance())).parked == left(asked)


async def test_the_owner_lets_requests_of_its_own_expire(world: World) -> None:
    _, claim, asked = await asking(world)
    await world.db.pool.execute("UPDATE requests SET expires_at = now() WHERE id = $1", asked.id)
    await parked.expire(world.core(), Loop("expire"))
    assert (await kinds(world, claim.session_id))[-1] == "permission_request"


async def test_a_denial_that_stops_ends_the_run(world: World) -> None:
    claim, asked = await waiting(world)
    assert await send(world, claim, asked, {"decision": "deny", "interrupt": True}) == "applied"
    assert (await world.run(claim.run_id))["status"] == "interrupted"


async def test_an_operator_is_told_that_a_parked_run_is_not_stuck(world: World) -> None:
    claim, _ = await waiting(world)
    with pytest.raises(Conflict, match="waits for a person"):
        await repair.repair(world.db, claim.run_id)
    assert (await world.run(claim.run_id))["status"] == "requires_action"


async def test_what_another_version_has_stored_is_refused() -> None:
    for text in ("{}", "[]", '{"usage": [{"nonsense": 1}]}'):
        with pytest.raises(ValueError, match="parked"):
            Parked.stored(text)


async def test_a_second_answer_learns_of_the_first_while_nobody_has_taken_the_run_up(world: World) -> None:
    claim, asked = await waiting(world)
    sent = await asyncio.gather(*(send(world, claim, asked, ALLOW) for _ in range(5)), return_exceptions=True)
    assert sent.count("accepted") == 1
    assert {error.code for error in sent if isinstance(error, Conflict)} == {"request_resolved"}


@pytest.mark.parametrize("answered", [False, True])
async def test_a_parked_run_of_a_suspended_tenant_ends_as_what_runs_does(world: World, answered: bool) -> None:
    claim, asked = await waiting(world)
    later = await world.queue(claim.session_id)
    if answered:
        await answer(world, claim, asked)
    await suspension.end_queued(world.core(), Loop("suspension"), [world.tenant_id])
    ended = await world.run(claim.run_id)
    assert (ended["status"], ended["error"]["code"], ended["total_cost_usd"]) == ("failed", "tenant_suspended", 0.5)
    assert (await world.run(later.run_id))["status"] == "interrupted"
    resolved = [data["by"] for _, kind, data in await world.events(claim.session_id) if kind == "action_resolved"]
    assert resolved == [BY if answered else {"type": "system", "reason": "tenant_suspended"}]
    assert (await kinds(world, claim.session_id))[-3:] == ["error", "done", "done"]
