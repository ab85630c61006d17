"""A run that is told up to where it waits for its client."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core.events.frames import Frame, Position, event_data
from apps.api.core.events.log import Event
from apps.api.core.sessions.prompts import Submitted
from apps.api.web.asking import OTHERS_SECONDS, SETTLE_SECONDS, Waiting, asked_of, until_asked
from tests.world import Relay, World, core_of, neighbourhood, relay, world

__all__ = ["neighbourhood", "relay", "world"]


def ask(request_id: str, tool_use_id: str | None, kind: str = "permission_request") -> Event:
    return Event(kind, {"request_id": request_id, "tool_use_id": tool_use_id})


def call(*ids: str, parent: str | None = None) -> Event:
    blocks = [{"type": "tool_use", "id": one, "name": "Bash", "input": {}} for one in ids]
    return Event("message", {"role": "assistant", "content": blocks, "parent_tool_use_id": parent})


def result(tool_use_id: str) -> Event:
    return Event("message", {"role": "user", "content": [{"type": "tool_result", "tool_use_id": tool_use_id}]})


def resolve(request_id: str) -> Event:
    return Event("action_resolved", {"request_id": request_id, "decision": "allow", "by": {"type": "key"}})


A, B = str(uuid4()), str(uuid4())


@pytest.mark.parametrize(
    ("events", "patience"),
    [
        ([], None),
        ([call("t1")], None),
        ([call("t1"), ask(A, "t1")], SETTLE_SECONDS),
        ([call("t1", "t2"), ask(A, "t1")], OTHERS_SECONDS),
        ([call("t1", "t2"), ask(A, "t1"), ask(B, "t2")], SETTLE_SECONDS),
        ([call("t1", "t2"), ask(A, "t1"), result("t2")], SETTLE_SECONDS),
        ([call("task"), call("t1", parent="task"), ask(A, "t1")], SETTLE_SECONDS),
        ([call("t1"), ask(A, "t1"), resolve(A)], None),
        ([call("t1"), ask(A, "t1", "client_tool_call"), ask(B, None, "question"), resolve(A)], OTHERS_SECONDS),
        ([ask(A, None), Event("done", {"status": "failed"})], None),
    ],
)  # fmt: skip
def test_how_long_silence_must_last(events: list[Event], patience: float | None) -> None:
    waiting = Waiting()
    for seq, event in enumerate(events, 1):
        data = event_data(uuid4(), uuid4(), seq, datetime.now(UTC), event.fields)
        waiting.take(Frame.build(Position(seq), event.type, data))
    assert waiting.patience == patience


def test_what_is_decided_already_is_not_waited_for() -> None:
    waiting = Waiting(settled=frozenset({UUID(A)}))
    for seq, event in enumerate([call("t1", "t2"), ask(A, "t1"), ask(B, "t2")], 1):
        data = event_data(uuid4(), uuid4(), seq, datetime.now(UTC), event.fields)
        waiting.take(Frame.build(Position(seq), event.type, data))
    assert [str(one) for one in waiting.open] == [B]


async def told(world: World, relay: Relay, run: Submitted) -> tuple[list[str], Waiting]:
    waiting, types = Waiting(), list[str]()
    async for batch in until_asked(core_of(world, relay), world.tenant_id, run, waiting):
        types += [frame.type for frame in batch]
    return types, waiting


async def test_a_run_is_told_up_to_what_it_asks_and_then_to_its_end(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    run = Submitted(claim.session_id, claim.run_id, 0)

    def of_run(*events: Event) -> list[Any]:
        return [Event(event.type, event.fields, claim.run_id) for event in events]

    await writer.append(*of_run(call("t1"), ask(A, "t1")))
    types, waiting = await told(world, relay, run)
    assert types[-2:] == ["message", "permission_request"]
    assert [str(each) for each in waiting.open] == [A]
    core = core_of(world, relay)
    [asked] = await asked_of(core, world.tenant_id, claim.session_id, claim.run_id)
    assert (str(asked.id), asked.kind, asked.tool_use_id) == (A, "permission", "t1")
    assert await asked_of(core, world.tenant_id, claim.session_id, uuid4()) == []
    assert await asked_of(core, uuid4(), claim.session_id) == []
    await writer.append(*of_run(resolve(A), result("t1"), Event("done", {"status": "succeeded"})))
    types, waiting = await told(world, relay, run)
    assert types[-3:] == ["action_resolved", "message", "done"]
    assert waiting.over
    assert not waiting.open
