"""Stopping what a session does, before anybody executes it and afterwards."""

from __future__ import annotations

from uuid import uuid4

import pytest

from apps.api.core.fleet import cancellation, dispatch
from apps.api.core.sessions.prompts import Submission
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


async def test_a_prompt_that_interrupts_ends_the_one_that_nobody_has_begun(world: World) -> None:
    first, second = await world.queue(), None
    core = core_of(world)
    for _ in range(2):
        request = Submission("say next", 60, first.session_id, on_busy="interrupt")
        before, second = second or first, await dispatch.send(core, world.tenant_id, None, request)
        assert (await world.run(before.run_id))["status"] == "interrupted"
    assert second is not None
    assert (await world.run(second.run_id))["status"] == "queued"


async def test_another_tenant_interrupts_nothing(world: World) -> None:
    run = await world.queue()
    with pytest.raises(NotFound):
        await cancellation.interrupt(core_of(world), await world.other_tenant(), run.session_id)
    assert (await world.run(run.run_id))["status"] == "queued"


async def test_an_interrupt_that_means_another_run_stops_nothing(world: World) -> None:
    first = await world.queue()
    second = await world.queue(first.session_id)
    for meant in (second.run_id, uuid4()):
        with pytest.raises(Conflict) as caught:
            await cancellation.interrupt(core_of(world), world.tenant_id, first.session_id, meant)
        assert caught.value.code == "no_live_run"
    assert [(await world.run(run.run_id))["status"] for run in (first, second)] == ["queued", "queued"]
    sent = await cancellation.interrupt(core_of(world), world.tenant_id, first.session_id, first.run_id)
    assert (sent.status, sent.run_id) == ("applied", first.run_id)
