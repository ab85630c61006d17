"""Calls that the server makes for tenants: bounded for each of them, each kind apart, and every one counted."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from apps.api.core.network import calls
from apps.api.core.network.calls import AT_ONCE, Calls, Kind, Outcome
from apps.api.core.network.outbound import Failed, Outbound, Refused
from tests.receiver import Received, Receiver, Reply, receiving
from tests.world import until

PATIENCE = 30.0
LOOPBACK = ("127.0.0.0/8",)
ONE, OTHER = UUID(int=1), UUID(int=2)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


def counted(of: Calls) -> Counter[tuple[Kind, Outcome]]:
    seen = Counter[tuple[Kind, Outcome]]()
    of.observe = lambda kind, outcome: seen.update([(kind, outcome)])
    return seen


@pytest.mark.parametrize("kind", list(AT_ONCE))
async def test_a_tenant_has_so_many_of_a_kind_at_a_time_and_another_has_its_own(kind: Kind) -> None:
    made, done = Calls(), asyncio.Event()
    seen = counted(made)

    async def call(tenant_id: UUID, of: Kind = kind) -> None:
        async with made.one(of, tenant_id, PATIENCE):
            await done.wait()

    mine = [asyncio.create_task(call(ONE)) for _ in range(AT_ONCE[kind] + 3)]
    await until(lambda: made.open[kind] == AT_ONCE[kind])
    theirs = asyncio.create_task(call(OTHER))
    another: Kind = "hook" if kind == "webhook" else "webhook"
    apart = asyncio.create_task(call(ONE, another))
    await until(lambda: made.open[kind] == AT_ONCE[kind] + 1 and made.open[another] == 1)
    with pytest.raises(Failed, match="others of its tenant"):
        async with made.one(kind, ONE, 0.01):
            raise AssertionError
    done.set()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*mine, theirs, apart)
    assert seen == {(kind, "ok"): len(mine) + 1, (another, "ok"): 1, (kind, "busy"): 1}
    assert set(made.open.values()) == {0}


async def test_nothing_is_kept_of_tenants_without_calls() -> None:
    made = Calls()
    for _ in range(100):
        async with made.one("hook", uuid4(), PATIENCE):
            pass
    gc.collect()
    assert len(made._places._of) == 0


async def test_each_call_counts_as_what_it_came_to(receiver: Receiver) -> None:
    outbound, strict = Outbound(LOOPBACK), Outbound()
    seen, refused = counted(outbound.calls), counted(strict.calls)
    receiver.replies(Reply(), Reply(status=500), Reply(status=302, headers={"Location": "/"}))
    for _ in range(3):
        await outbound.post(receiver.url(), {}, b"", PATIENCE, ONE, "hook")
    async with receiving() as gone:
        url = gone.url()
    with pytest.raises(Failed):
        await outbound.post(url, {}, b"", PATIENCE, ONE)
    with pytest.raises(Failed):
        await outbound.reach(url, PATIENCE, ONE)
    await outbound.reach(receiver.url(), PATIENCE, ONE)
    await outbound.check_url(receiver.url(), ONE)
    with pytest.raises(Failed):
        await outbound.check_url("http://no-such-name.invalid/", ONE)
    assert seen == {
        ("hook", "ok"): 1,
        ("hook", "rejected"): 2,
        ("webhook", "failed"): 1,
        ("check", "failed"): 1,
        ("check", "ok"): 1,
        ("lookup", "ok"): 1,
        ("lookup", "failed"): 1,
    }
    for call in (
        strict.post(receiver.url(), {}, b"", PATIENCE, ONE),
        strict.reach(receiver.url(), PATIENCE, ONE),
        strict.check_url(receiver.url(), ONE),
    ):
        with pytest.raises(Refused):
            await call
    assert refused == {("webhook", "refused"): 1, ("check", "refused"): 1, ("lookup", "refused"): 1}
    await outbound.close()


async def test_a_call_whose_caller_has_left_counts_and_gives_its_place_back(receiver: Receiver) -> None:
    outbound, asked, never = Outbound(LOOPBACK), asyncio.Event(), asyncio.Event()
    seen = counted(outbound.calls)

    async def wait(_request: Received) -> Reply:
        asked.set()
        await never.wait()
        return Reply()

    receiver.answer = wait
    left = asyncio.create_task(outbound.post(receiver.url(), {}, b"", PATIENCE, ONE))
    await asked.wait()
    assert outbound.calls.open["webhook"] == 1
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert (seen, outbound.calls.open["webhook"]) == ({("webhook", "failed"): 1}, 0)
    never.set()


async def test_the_wait_for_a_place_is_part_of_a_calls_time(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(calls.AT_ONCE, "hook", 1)
    outbound, never = Outbound(LOOPBACK), asyncio.Event()
    seen = counted(outbound.calls)

    async def wait(_request: Received) -> Reply:
        await never.wait()
        return Reply()

    receiver.answer = wait
    slow = asyncio.create_task(outbound.post(receiver.url(), {}, b"", 3600, ONE, "hook"))
    await until(lambda: len(receiver.received) == 1)
    with pytest.raises(Failed, match="1 others of its tenant"):
        await outbound.post(receiver.url(), {}, b"", 0.05, ONE, "hook")
    with pytest.raises(Failed, match="no answer within"):
        await outbound.post(receiver.url(), {}, b"", 0.2, OTHER, "hook")
    slow.cancel()
    await asyncio.wait([slow])
    assert seen == {("hook", "busy"): 1, ("hook", "failed"): 2}
    never.set()
