"""Webhooks: an outbox that agrees with what happened, and deliveries at least once."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core import tasks
from apps.api.core.codec import decode
from apps.api.core.events.log import Event
from apps.api.core.fleet import claims
from apps.api.core.network.outbound import Outbound
from apps.api.core.sessions import deletion
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.core.tenant import deliveries, webhooks
from apps.api.core.tenant.deliveries import AT_ONCE_PER_TENANT, AT_ONCE_PER_WEBHOOK, BACKOFF, Deliveries
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.webhooks import MAX_WEBHOOKS, Changes
from apps.api.errors import Conflict, NotFound, ValidationError
from tests.receiver import Received, Receiver, Reply, receiving
from tests.world import World, administrator, terminate_backends, until, waiting_for_locks

OUTBOUND = Outbound(["127.0.0.0/8"])


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


async def registered(
    world: World, url: str = "http://127.0.0.1:9/", events: Sequence[str] | None = None, **more: Any
) -> dict[str, Any]:
    wanted = Changes(url, None, events)
    return await webhooks.create(world.db, world.settings, OUTBOUND, world.tenant_id, wanted, more.get("key"))


def id_of(webhook: dict[str, Any]) -> UUID:
    return UUID(webhook["webhook_id"])


async def told(world: World, webhook: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What is in the outbox for a webhook, in the order of its transactions."""
    rows = await world.db.pool.fetch(
        "SELECT type, payload FROM webhook_deliveries WHERE webhook_id = $1 ORDER BY position", id_of(webhook)
    )
    return [(row["type"], decode(row["payload"])) for row in rows]


async def types(world: World, webhook: dict[str, Any]) -> list[str]:
    return [type_ for type_, _ in await told(world, webhook)]


def sender(world: World, **more: Any) -> Deliveries:
    return Deliveries(world.db, world.settings, OUTBOUND, **more)


async def logged(world: World, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    page = await deliveries.list_page(world.db, world.tenant_id, id_of(webhook), limit=200, cursor=None)
    return page.data


async def pinged(world: World, url: str) -> dict[str, Any]:
    """A webhook with one message in its outbox."""
    webhook = await registered(world, url)
    await deliveries.ping(world.db, world.tenant_id, id_of(webhook))
    return webhook


async def make_due(world: World) -> None:
    """Time passes, as far as the database can tell."""
    await world.db.pool.execute("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE status = 'pending'")


# --- the outbox ------------------------------------------------------------------------------------------------------


async def test_every_step_of_a_run_is_told_with_its_ids_and_nothing_more(world: World) -> None:
    webhook = await registered(world)
    lease = await world.instance()
    submitted = await world.queue(prompt="a secret prompt")
    claim = await world.claim(lease)
    await world.db.pool.execute("UPDATE runs SET status = 'requires_action' WHERE id = $1", claim.run_id)
    await world.db.pool.execute("UPDATE runs SET status = 'running' WHERE id = $1", claim.run_id)
    await finish(world.writer(lease, claim), claim.run_id, Outcome("succeeded", '{"result":"x"}'), Event("done"))
    run = {"session_id": str(submitted.session_id), "run_id": str(submitted.run_id)}
    assert await told(world, webhook) == [
        ("session.created", {"session_id": str(submitted.session_id)}),
        ("run.queued", {**run, "status": "queued"}),
        ("run.running", {**run, "status": "running"}),
        ("run.requires_action", {**run, "status": "requires_action"}),
        ("run.running", {**run, "status": "running"}),
        ("run.succeeded", {**run, "status": "succeeded"}),
    ]


async def test_a_run_that_its_owner_lost_is_told_with_the_code(world: World) -> None:
    webhook = await registered(world, events=["run.failed"])
    lease, claim, _ = await world.owned()
    await world.expire(lease)
    await world.reap()
    [(type_, data)] = await told(world, webhook)
    assert (type_, data["run_id"], data["error_code"]) == ("run.failed", str(claim.run_id), "owner_lost")


async def test_a_deletion_tells_of_the_session_and_its_runs(world: World) -> None:
    webhook = await registered(world, events=["run.interrupted", "session.deleted"])
    _, claim, _ = await world.owned()
    await world.queue(claim.session_id)
    await deletion.delete(world.db, world.tenant_id, claim.session_id)
    assert sorted(await types(world, webhook)) == ["run.interrupted", "run.interrupted", "session.deleted"]


async def test_a_background_turn_is_told_as_running(world: World) -> None:
    webhook = await registered(world, events=["run.running", "run.queued"])
    lease, claim, writer = await world.owned()
    await finish(writer, claim.run_id, Outcome("succeeded"), Event("done"))
    run_id = uuid4()
    assert await claims.begin_background(world.db, claim.session_id, world.tenant_id, claim.generation, run_id, 60)
    assert (await told(world, webhook))[-1][1]["run_id"] == str(run_id)
    assert lease


async def test_what_was_rolled_back_is_not_told(world: World) -> None:
    webhook = await registered(world)
    _, claim, _ = await world.owned()
    before = await types(world, webhook)
    async with world.db.pool.acquire() as connection:
        change = connection.transaction()
        await change.start()
        await connection.execute("UPDATE runs SET status = 'requires_action' WHERE id = $1", claim.run_id)
        await change.rollback()
    assert await types(world, webhook) == before


async def test_without_a_webhook_that_listens_nothing_is_stored(world: World) -> None:
    deaf = await registered(world, events=["run.failed"])
    off = await registered(world)
    await webhooks.change(world.db, OUTBOUND, world.tenant_id, id_of(off), Changes(enabled=False))
    others = World(world.settings, world.db, world.redis, await world.other_tenant())
    theirs = await registered(others)
    _, claim, writer = await world.owned()
    await finish(writer, claim.run_id, Outcome("succeeded"), Event("done"))
    assert [await types(world, webhook) for webhook in (deaf, off, theirs)] == [[], [], []]


async def test_the_same_status_again_is_not_told(world: World) -> None:
    webhook = await registered(world, events=["run.running"])
    _, claim, _ = await world.owned()
    await world.db.pool.execute("UPDATE runs SET status = 'running' WHERE id = $1", claim.run_id)
    assert await types(world, webhook) == ["run.running"]


async def test_a_webhook_that_is_being_removed_never_fails_a_run(world: World) -> None:
    webhook = await registered(world)
    lease = await world.instance()
    async with world.db.transaction() as removing:
        await removing.execute("DELETE FROM webhooks WHERE id = $1", id_of(webhook))
        queued = asyncio.create_task(world.queue())
        await until(lambda: waits_for_a_lock(world))
    await queued
    assert await world.claim(lease)


async def waits_for_a_lock(world: World) -> bool:
    return bool(await world.one("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)"))


# --- deliveries ------------------------------------------------------------------------------------------------------


async def test_a_message_is_signed_and_has_the_id_of_its_delivery(lone_world: World, receiver: Receiver) -> None:
    webhook = await registered(lone_world, receiver.url("/in"), ["run.queued"])
    submitted = await lone_world.queue()
    sending = sender(lone_world)
    await sending.send_due()
    [request] = receiver.received
    [entry] = await logged(lone_world, webhook)
    assert request.is_signed_by(base64.b64decode(webhook["secret"].removeprefix("whsec_")))
    assert request.id == request.json["delivery_id"] == entry["delivery_id"]
    assert (request.json["type"], request.json["created_at"]) == ("run.queued", entry["created_at"])
    assert request.json["data"]["run_id"] == str(submitted.run_id)
    assert (entry["status"], entry["attempts"], entry["last_status"]) == ("delivered", 1, 200)
    assert (sending.sent, sending.failed) == (1, 0)
    await sending.send_due()
    assert len(receiver.received) == 1


async def test_a_failed_message_is_tried_again_later_and_later_under_its_id(
    lone_world: World, receiver: Receiver
) -> None:
    receiver.replies(Reply(status=500), Reply(status=302), Reply(status=204))
    webhook = await pinged(lone_world, receiver.url())
    sending = sender(lone_world, backoff=(1000, 5000))
    for attempt, (wait, error) in enumerate(((1000, "it answered 500"), (5000, "it answered 302")), 1):
        await sending.send_due()
        [entry] = await logged(lone_world, webhook)
        assert (entry["status"], entry["attempts"], entry["last_error"]) == ("pending", attempt, error)
        left = await lone_world.one("SELECT extract(epoch FROM next_attempt_at - now())::float FROM webhook_deliveries")
        assert 0.8 * wait < left < 1.2 * wait
        assert (await webhooks.get(lone_world.db, lone_world.tenant_id, id_of(webhook)))["failing_since"]
        await make_due(lone_world)
    await sending.send_due()
    [entry] = await logged(lone_world, webhook)
    assert (entry["status"], entry["attempts"], entry["last_error"]) == ("delivered", 3, None)
    assert len({request.id for request in receiver.received}) == 1
    assert len({request.body for request in receiver.received}) == 1
    assert not (await webhooks.get(lone_world.db, lone_world.tenant_id, id_of(webhook)))["failing_since"]


async def test_a_message_is_given_up_after_its_last_attempt(lone_world: World, receiver: Receiver) -> None:
    receiver.replies(Reply(status=500))
    webhook = await pinged(lone_world, receiver.url())
    sending = sender(lone_world, backoff=(0.0, 0.0))
    await sending.send_due()
    [entry] = await logged(lone_world, webhook)
    assert (entry["status"], entry["attempts"], len(receiver.received)) == ("failed", 3, 3)
    assert (await webhooks.get(lone_world.db, lone_world.tenant_id, id_of(webhook)))["enabled"]


def test_attempts_go_on_for_two_days() -> None:
    assert len(BACKOFF) == 12
    assert list(BACKOFF) == sorted(BACKOFF)
    assert 46 < sum(BACKOFF) / 3600 < 50


async def test_a_target_that_is_refused_or_gone_is_a_failure(lone_world: World) -> None:
    async with receiving() as gone:
        nobody = await pinged(lone_world, gone.url())
    private = await pinged(lone_world, "http://127.0.0.1:9/")
    await lone_world.db.pool.execute("UPDATE webhooks SET url = 'http://10.0.0.1/' WHERE id = $1", id_of(private))
    await sender(lone_world).send_due()
    assert [(await logged(lone_world, w))[0]["last_error"] for w in (nobody, private)] == [
        "no connection",
        "its address is not a public one; the operator may allow it by OUTBOUND_ALLOW",
    ]


async def test_an_endpoint_that_is_gone_is_disabled_at_once(lone_world: World, receiver: Receiver) -> None:
    receiver.replies(Reply(status=410))
    webhook = await pinged(lone_world, receiver.url())
    await sender(lone_world).send_due()
    state = await webhooks.get(lone_world.db, lone_world.tenant_id, id_of(webhook))
    assert (state["enabled"], state["disabled_reason"]) == (False, "it answered 410")
    [entry] = await logged(lone_world, webhook)
    assert (entry["status"], entry["last_error"]) == ("failed", "it answered 410")
    with pytest.raises(Conflict) as refused:
        await deliveries.ping(lone_world.db, lone_world.tenant_id, id_of(webhook))
    assert refused.value.code == "webhook_disabled"


async def test_an_endpoint_that_fails_for_days_is_disabled_and_may_be_enabled_again(
    lone_world: World, receiver: Receiver
) -> None:
    receiver.replies(Reply(status=500), Reply())
    webhook = await pinged(lone_world, receiver.url())
    for _ in range(2):
        await deliveries.ping(lone_world.db, lone_world.tenant_id, id_of(webhook))
    await lone_world.db.pool.execute(
        "UPDATE webhooks SET failing_since = now() - make_interval(days => $1) - interval '1 hour'",
        deliveries.DISABLE_AFTER_DAYS,
    )
    receiver.replies(Reply(status=500))
    await sender(lone_world).send_due()
    state = await webhooks.get(lone_world.db, lone_world.tenant_id, id_of(webhook))
    assert (state["enabled"], state["disabled_reason"]) == (False, "it has failed for 5 days")
    assert {entry["status"] for entry in await logged(lone_world, webhook)} == {"failed"}
    await webhooks.change(lone_world.db, OUTBOUND, lone_world.tenant_id, id_of(webhook), Changes(enabled=True))
    state = await webhooks.get(lone_world.db, lone_world.tenant_id, id_of(webhook))
    assert (state["enabled"], state["failing_since"], state["disabled_reason"]) == (True, None, None)


async def test_what_a_killed_sender_had_claimed_is_sent_by_another_under_the_same_id(
    lone_world: World, receiver: Receiver
) -> None:
    go_on = receiver.hangs()
    webhook = await pinged(lone_world, receiver.url())
    killed = asyncio.create_task(sender(lone_world).run())
    await receiver.until(len)
    await tasks.end(killed)
    receiver.replies(Reply())
    other = sender(lone_world)
    await other.send_due()
    assert other.sent == 0, "the lease of the killed one still holds"
    await make_due(lone_world)
    await other.send_due()
    go_on.set()
    assert len(receiver.received) == 2
    assert len({request.id for request in receiver.received}) == 1
    assert [entry["status"] for entry in await logged(lone_world, webhook)] == ["delivered"]


async def test_a_message_whose_end_is_noted_over_a_connection_that_broke_is_not_sent_again(
    lone_world: World, receiver: Receiver
) -> None:
    webhook = await pinged(lone_world, receiver.url())
    locked = asyncio.Event()
    async with administrator(lone_world.settings) as admin:

        async def lock(_request: Received) -> Reply:
            await admin.execute("BEGIN; LOCK TABLE webhook_deliveries")
            locked.set()
            return Reply()

        receiver.answer = lock
        sending = asyncio.create_task(sender(lone_world).send_due())
        await locked.wait()
        await until(lambda: waiting_for_locks(admin, 1))
        assert await terminate_backends(admin) > 0
        await admin.execute("COMMIT")
        await sending
    assert [(entry["status"], entry["attempts"]) for entry in await logged(lone_world, webhook)] == [("delivered", 1)]


async def test_senders_share_the_work_without_sending_anything_twice(lone_world: World, receiver: Receiver) -> None:
    webhook = await registered(lone_world, receiver.url())
    for _ in range(30):
        await deliveries.ping(lone_world.db, lone_world.tenant_id, id_of(webhook))
    await asyncio.gather(*(sender(lone_world).send_due() for _ in range(3)))
    assert len(receiver.received) == len({request.id for request in receiver.received}) == 30


async def test_a_silent_endpoint_does_not_hold_up_the_others(lone_world: World, receiver: Receiver) -> None:
    go_on = receiver.hangs("/silent")
    silent = await registered(lone_world, receiver.url("/silent"))
    for _ in range(50):
        await deliveries.ping(lone_world.db, lone_world.tenant_id, id_of(silent))
    await pinged(lone_world, receiver.url("/quick"))
    running = asyncio.create_task(sender(lone_world).run())
    try:
        await receiver.until(lambda got: "/quick" in [request.target for request in got])
        await pinged(lone_world, receiver.url("/later"))
        got = await receiver.until(lambda got: "/later" in [request.target for request in got])
    finally:
        go_on.set()
        await tasks.end(running)
    assert [request.target for request in got].count("/silent") == AT_ONCE_PER_WEBHOOK


async def silent_ones(world: World, receiver: Receiver, endpoints: int, messages: int) -> None:
    """Endpoints of a tenant of their own that never answer, with messages that are due."""
    tenant = replace(world, tenant_id=await world.other_tenant())
    for _ in range(endpoints):
        webhook = await registered(tenant, receiver.url(f"/silent/{tenant.tenant_id}"))
        for _ in range(messages):
            await deliveries.ping(world.db, tenant.tenant_id, id_of(webhook))


async def test_however_many_tenants_have_slow_endpoints_a_message_to_another_one_leaves(
    lone_world: World, receiver: Receiver
) -> None:
    go_on = receiver.hangs("/silent")
    for _ in range(6):
        await silent_ones(lone_world, receiver, endpoints=10, messages=4)
    running = asyncio.create_task(sender(lone_world).run())
    try:
        await receiver.until(lambda got: len(got) >= deliveries.AT_ONCE)
        await pinged(lone_world, receiver.url("/quick"))
        got = await receiver.until(lambda got: "/quick" in [request.target for request in got])
    finally:
        go_on.set()
        await tasks.end(running)
    of_tenants = Counter(request.target for request in got if request.target != "/quick")
    assert max(of_tenants.values()) <= AT_ONCE_PER_TENANT


async def test_places_go_to_tenants_by_turns(lone_world: World, receiver: Receiver) -> None:
    """One has many messages that were due before, another has few: both are among the first."""
    go_on = receiver.hangs()
    for _ in range(AT_ONCE_PER_TENANT):
        await silent_ones(lone_world, receiver, endpoints=2, messages=4)
    running = sender(lone_world)
    await running._start_due()
    got = await receiver.until(lambda got: len(got) == deliveries.AT_ONCE)
    shares = Counter(request.target for request in got)
    assert set(shares.values()) == {deliveries.AT_ONCE // AT_ONCE_PER_TENANT}
    go_on.set()
    await running.send_due()


async def test_an_endpoint_that_timed_out_has_one_place(lone_world: World, receiver: Receiver) -> None:
    never, most = asyncio.Event(), 0
    running = sender(lone_world, timeout=0.3, backoff=())

    async def hang(_request: Received) -> Reply:
        nonlocal most
        if len(receiver.received) > AT_ONCE_PER_WEBHOOK:
            most = max(most, len(running._sending))
        await never.wait()
        return Reply()

    receiver.answer = hang
    webhook = await registered(lone_world, receiver.url())
    for _ in range(AT_ONCE_PER_WEBHOOK + 3):
        await deliveries.ping(lone_world.db, lone_world.tenant_id, id_of(webhook))
    await running.send_due()
    never.set()
    assert (len(receiver.received), most) == (AT_ONCE_PER_WEBHOOK + 3, 1)


async def test_what_a_dead_instance_was_sending_is_due_when_its_lease_is_over(
    lone_world: World, receiver: Receiver
) -> None:
    go_on = receiver.hangs()
    webhook = await pinged(lone_world, receiver.url())
    lease = await lone_world.instance()
    killed = asyncio.create_task(sender(lone_world, instance_id=lease.instance_id).run())
    await receiver.until(len)
    await tasks.end(killed)
    receiver.replies(Reply())
    other = sender(lone_world, instance_id=(await lone_world.instance()).instance_id)
    for sent in (0, 1):
        for _ in range(2):  # the first look finds that it is due
            await other.send_due()
        assert other.sent == sent
        await lone_world.expire(lease)
    go_on.set()
    assert [entry["status"] for entry in await logged(lone_world, webhook)] == ["delivered"]


async def test_after_a_rotation_both_secrets_sign_until_the_old_one_expires(
    lone_world: World, receiver: Receiver
) -> None:
    webhook = await pinged(lone_world, receiver.url())
    rotated = await webhooks.rotate(lone_world.db, lone_world.settings, lone_world.tenant_id, id_of(webhook))
    old, new = (base64.b64decode(w["secret"].removeprefix("whsec_")) for w in (webhook, rotated))
    await sender(lone_world).send_due()
    await lone_world.db.pool.execute("UPDATE webhooks SET previous_secret_expires_at = now()")
    await deliveries.ping(lone_world.db, lone_world.tenant_id, id_of(webhook))
    await sender(lone_world).send_due()
    signed = [(request.is_signed_by(old), request.is_signed_by(new)) for request in receiver.received]
    assert signed == [(True, True), (False, True)]


async def test_a_message_is_delivered_again_by_hand_under_its_id(lone_world: World, receiver: Receiver) -> None:
    webhook = await pinged(lone_world, receiver.url())
    await sender(lone_world).send_due()
    [entry] = await logged(lone_world, webhook)
    again = await deliveries.redeliver(lone_world.db, lone_world.tenant_id, id_of(webhook), UUID(entry["delivery_id"]))
    assert (again["status"], again["attempts"]) == ("pending", 0)
    await sender(lone_world).send_due()
    assert [request.id for request in receiver.received] == [entry["delivery_id"]] * 2
    with pytest.raises(NotFound):
        await deliveries.redeliver(lone_world.db, lone_world.tenant_id, id_of(webhook), uuid4())


async def test_a_redelivery_asked_for_while_the_message_is_under_way_is_sent(
    lone_world: World, receiver: Receiver
) -> None:
    webhook = await pinged(lone_world, receiver.url())

    async def ask_again(request: Received) -> Reply:
        if len(receiver.received) == 1:
            await deliveries.redeliver(lone_world.db, lone_world.tenant_id, id_of(webhook), UUID(request.id))
        return Reply()

    receiver.answer = ask_again
    await sender(lone_world).send_due()
    assert len(receiver.received) == 2
    assert [(entry["status"], entry["attempts"]) for entry in await logged(lone_world, webhook)] == [("delivered", 1)]


async def test_old_deliveries_are_forgotten(lone_world: World) -> None:
    webhook = await registered(lone_world)
    for days in (deliveries.KEEP_DAYS + 1, 1):
        await deliveries.ping(lone_world.db, lone_world.tenant_id, id_of(webhook))
        await lone_world.db.pool.execute(
            "UPDATE webhook_deliveries SET created_at = created_at - make_interval(days => $1)", days
        )
    await deliveries.forget_old(lone_world.db)
    assert len(await logged(lone_world, webhook)) == 1


# --- endpoints -------------------------------------------------------------------------------------------------------


async def test_another_tenants_webhook_does_not_exist(world: World) -> None:
    webhook = id_of(await pinged(world, "http://127.0.0.1:9/"))
    [entry] = await logged(world, {"webhook_id": str(webhook)})
    other, db = await world.other_tenant(), world.db
    attempts = [
        webhooks.get(db, other, webhook),
        webhooks.change(db, OUTBOUND, other, webhook, Changes(enabled=False)),
        webhooks.rotate(db, world.settings, other, webhook),
        webhooks.delete(db, other, webhook),
        deliveries.list_page(db, other, webhook, limit=1, cursor=None),
        deliveries.ping(db, other, webhook),
        deliveries.redeliver(db, other, webhook, UUID(entry["delivery_id"])),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound) as unknown:
            await attempt
        assert unknown.value.code == "webhook_not_found"
    assert await webhooks.list_all(db, other) == []
    assert (await webhooks.get(db, world.tenant_id, webhook))["enabled"]


async def test_a_repeat_with_the_same_key_makes_no_second_webhook_and_shows_the_secret_again(world: World) -> None:
    key = Idempotency.of("a", "body")
    first, second = await registered(world, key=key), await registered(world, key=key)
    assert first == second
    assert len(await webhooks.list_all(world.db, world.tenant_id)) == 1
    with pytest.raises(Conflict):
        await registered(world, key=Idempotency.of("a", "another body"))


async def test_a_tenant_has_a_bounded_number_of_webhooks(world: World) -> None:
    made = await asyncio.gather(*(registered(world) for _ in range(MAX_WEBHOOKS + 3)), return_exceptions=True)
    refused = [one for one in made if isinstance(one, Conflict)]
    assert [error.code for error in refused] == ["too_many_webhooks"] * 3


async def test_secrets_are_not_stored_as_they_are_nor_shown_later(world: World) -> None:
    webhook = await registered(world)
    stored = await world.one("SELECT secret FROM webhooks WHERE id = $1", id_of(webhook))
    assert webhook["secret"] not in stored
    assert "secret" not in await webhooks.get(world.db, world.tenant_id, id_of(webhook))


async def test_a_private_address_is_refused_when_it_is_registered(world: World) -> None:
    with pytest.raises(ValidationError, match="url: its address is not a public one"):
        await registered(world, "http://10.0.0.1/")
    webhook = await registered(world)
    with pytest.raises(ValidationError, match="not a public one"):
        await webhooks.change(world.db, OUTBOUND, world.tenant_id, id_of(webhook), Changes(url="http://[::1]/"))
