"""Webhooks across a fleet: registered on one instance, told of runs on another, and never forgotten by a dead one."""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from tests.conftest import StartFleet, database_of
from tests.fleet import Fleet, Instance
from tests.receiver import Received, Receiver, Reply, receiving


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


async def registered(instance: Instance, receiver: Receiver, *events: str) -> dict[str, Any]:
    response = await instance.post("/webhooks", {"url": receiver.url("/in"), "events": list(events)})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def of_session(got: list[Received], session_id: str) -> list[Received]:
    return [request for request in got if request.json["data"]["session_id"] == session_id]


def of_run(got: list[Received], run_id: str) -> list[str]:
    return [request.json["type"] for request in got if request.json["data"].get("run_id") == run_id]


async def test_runs_are_told_from_their_queue_to_their_end_also_one_that_waits_for_a_person(
    fleet: Fleet, receiver: Receiver
) -> None:
    waits, ends = ("run.requires_action", "run.interrupted"), ("run.queued", "run.running", "run.succeeded")
    webhook = await registered(fleet[0], receiver, *waits, *ends, "session.deleted")
    try:
        session_id = await fleet[1].session()
        waiting = await fleet[1].prompt(session_id, "run touch a.txt")
        await receiver.until(lambda got: "run.requires_action" in of_run(got, waiting))
        await fleet[2].post(f"/sessions/{session_id}/interrupt")
        got = await receiver.until(lambda got: "run.interrupted" in of_run(got, waiting))
        assert [kind for kind in of_run(got, waiting) if kind in waits] == list(waits)

        other = (await fleet.others(await fleet.owner_of(session_id)))[0]
        run_id = (await other.ask(session_id, "say hello"))["run_id"]
        await other.client.delete(f"/api/v1/sessions/{session_id}")

        def all_told(got: list[Received]) -> bool:
            deleted = "session.deleted" in [request.json["type"] for request in of_session(got, session_id)]
            return deleted and set(of_run(got, run_id)) == set(ends)

        got = of_session(await receiver.until(all_told), session_id)
        assert all(request.is_signed_by(base64.b64decode(webhook["secret"][6:])) for request in got)
        assert set(of_run(got, waiting)) == {"run.queued", "run.running", *waits}
        assert sorted(of_run(got, run_id)) == sorted(ends)
        assert [request.json["type"] for request in got].count("session.deleted") == 1
        assert len({request.id for request in got}) == len(got)
        log = await fleet[2].get(f"/webhooks/{webhook['webhook_id']}/deliveries", params={"limit": 200})
        assert {request.id for request in got} <= {entry["delivery_id"] for entry in log.json()["data"]}
    finally:
        await fleet[0].client.delete(f"/api/v1/webhooks/{webhook['webhook_id']}")


def has_connection(instance: Instance, port: int) -> bool:
    return any(c.laddr.port == port for c in psutil.Process(instance.process.pid).net_connections("tcp"))


async def test_what_an_instance_was_sending_when_it_was_killed_is_sent_by_another(
    start_fleet: StartFleet, receiver: Receiver
) -> None:
    fleet = await start_fleet(2)
    hung, never = asyncio.Event(), asyncio.Event()

    async def hang_once(_request: Received) -> Reply:
        if not hung.is_set():
            hung.set()
            await never.wait()
        return Reply()

    receiver.answer = hang_once
    webhook = await registered(fleet[0], receiver, "session.created")
    session_id = await fleet[1].session()
    [first] = await receiver.until(len)
    [killed] = [instance for instance in fleet.instances if has_connection(instance, first.peer_port)]
    [left] = [instance for instance in fleet.instances if instance is not killed]
    killed.signal(signal.SIGKILL)
    await killed.ended()
    never.set()
    log = await left.get(f"/webhooks/{webhook['webhook_id']}/deliveries")
    assert [(entry["status"], entry["attempts"]) for entry in log.json()["data"]] == [("pending", 1)]
    async with database_of(fleet) as db:  # instead of waiting for the minute that the dead one's claim holds
        await db.pool.execute("UPDATE webhook_deliveries SET next_attempt_at = now()")
    _, second = await receiver.until(lambda got: len(got) == 2)
    assert (second.id, second.body) == (first.id, first.body)
    assert second.json["data"] == {"session_id": session_id}
