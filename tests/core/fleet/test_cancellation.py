"""Stopping what a session does, before anybody executes it and afterwards."""

from __future__ import annotations

import pytest

from apps.api.core.fleet import cancellation
from apps.api.errors import Conflict, NotFound
from tests.world import World, core_of


async def test_an_interrupt_ends_the_queued_run_that_is_first(world: World) -> None:
    first = await world.queue()
    second = await world.queue(first.session_id)
    for run in (first, second):
        sent = await cancellation.interrupt(core_of(world), world.tenant_id, first.session_id)
        assert (sent.status, sent.run_id) == ("applied", run.run_id)
        assert (await world.run(run.run_id))["status"] == "interrupted"
    assert [(kind, data["run_id"]) for _, kind, data in await world.events(first.session_id)] == [
        ("done", str(first.run_id)),
        ("done", str(second.run_id)),
    ]
    with pytest.raises(Conflict) as caught:
        await cancellation.interrupt(core_of(world), world.tenant_id, first.session_id)
    assert caught.value.code == "no_live_run"


async def test_another_tenant_interrupts_nothing(world: World) -> None:
    run = await world.queue()
    with pytest.raises(NotFound):
        await cancellation.interrupt(core_of(world), await world.other_tenant(), run.session_id)
    assert (await world.run(run.run_id))["status"] == "queued"
