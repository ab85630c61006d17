"""Every metric moves when what it counts happens, here or in a server; one that nothing moves fails a test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from apps.api import clock, instruments
from apps.api.core.config.profiles import UNRESTRICTED
from apps.api.core.config.reach import Reach
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame, Position
from apps.api.core.events.relay import MAX_PENDING_BYTES
from apps.api.core.fleet import drafts, firing, schedules
from apps.api.core.fleet.schedules import By
from apps.api.core.lease import Lease
from apps.api.core.sessions import workspaces
from apps.api.core.tasks import Loop, Loops, end
from apps.api.core.tenant.deliveries import Deliveries
from apps.api.core.tenant.model_calls import Call, Used
from apps.api.errors import RUN_FAILURES, Unavailable
from apps.api.instruments import PREFIX, REGISTRY, Ended
from apps.api.measure import Lateness, Queue, measure, model_call
from apps.api.runner.gateway.holder import Holder
from apps.api.runner.session.storing import Storing
from apps.api.runner.session.watch import Watch
from apps.api.runner.worker import Worker
from apps.api.shares import descriptors, table
from apps.api.web.opened import Opened
from tests.acceptance.asking import ASKING, COMMAND, asked, decide
from tests.conftest import StartFleet
from tests.fleet import Instance
from tests.receiver import receiving
from tests.runner.egress.test_proxy import Place, echo, host
from tests.sockets import open_socket
from tests.world import World, core_of, neighbourhood, until, world

__all__ = ["neighbourhood", "world"]

soon = partial(until, every=0.2, seconds=30)
Figures = Mapping[str, float]


def figures() -> Figures:
    """What is told here, by names without prefix; of several series the sum, of a histogram how often."""
    return summed((sample.name, sample.value) for family in REGISTRY.collect() for sample in family.samples)


def summed(samples: Iterable[tuple[str, float]]) -> Figures:
    found: dict[str, float] = {}
    for name, value in samples:
        name = name.removeprefix(f"{PREFIX}_").removesuffix("_count")
        if not name.endswith(("_bucket", "_sum")):
            found[name] = found.get(name, 0.0) + value
    return found


async def figures_of(instance: Instance) -> Figures:
    """The same of a server."""
    text = (await instance.client.get("/metrics")).text
    return summed((s.name, s.value) for family in text_string_to_metric_families(text) for s in family.samples)


def names() -> set[str]:
    """All that there are, as they are told."""
    found = {family.name + ("_total" if family.type == "counter" else "") for family in REGISTRY.collect()}
    return {name.removeprefix(f"{PREFIX}_") for name in found}


# --- in this process -------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """Parts of an instance that does nothing by itself, and is measured."""

    world: World
    core: Core
    worker: Worker
    lease: Lease
    loops: Loops


@pytest.fixture
async def parts(world: World) -> AsyncIterator[Parts]:
    before = [(each, each.read) for each in vars(instruments).values() if isinstance(each, instruments.Read)]
    mine = replace(world, settings=world.settings.model_copy(update={"outbound_allow": ("127.0.0.1",)}))
    core, lease = core_of(mine), Lease(uuid4(), 60)
    worker, loops = Worker(core, lease), Loops(60, lambda _loop: None)
    opened = Opened(core.db, table(core.settings, descriptors()))
    deliveries = Deliveries(core.db, core.settings, core.outbound)
    measure(core, worker, Watch(core, worker.executions), lease, opened, deliveries, loops)
    yield Parts(mine, core, worker, lease, loops)
    await loops.stop()
    await worker.ways.proxy.close()
    worker.scratch.close()
    core.blocking.close()
    for each, read in before:
        each.read = read


Here = Callable[[Parts], AbstractAsyncContextManager[None]]
HERE: dict[Here, set[str]] = {}


def here(*moved: str) -> Callable[[Callable[[Parts], AsyncIterator[None]]], Here]:
    """What a block does: within it each of these metrics tells another figure than before."""

    def note(does: Callable[[Parts], AsyncIterator[None]]) -> Here:
        made = asynccontextmanager(does)
        HERE[made] = set(moved)
        return made

    return note


@here("runs_queued", "queue_oldest_seconds")
async def a_run_waits(parts: Parts) -> AsyncIterator[None]:
    queue = Queue(parts.core.db)
    await queue.look()
    assert (figures()["runs_queued"], figures()["queue_oldest_seconds"]) == (0, 0)
    run = await parts.world.queue()
    await parts.core.db.pool.execute("UPDATE runs SET created_at = now() - interval '90 s' WHERE id = $1", run.run_id)
    await queue.look()
    assert figures()["runs_queued"] == 0  # it was asked just before
    await Queue(parts.core.db).look()
    assert figures()["runs_queued"] == 1
    assert 90 <= figures()["queue_oldest_seconds"] < 1000
    yield


@here("schedule_firings_total", "schedule_lag_seconds")
async def a_schedule_is_due(parts: Parts) -> AsyncIterator[None]:
    pool, by = parts.core.db.pool, By(parts.world.tenant_id, uuid4(), UNRESTRICTED)
    await pool.execute(
        "INSERT INTO api_keys (id, tenant_id, name, prefix, secret_hash, scopes)"
        " VALUES ($1, $2, 'k', 'p', $3, '{write}')",
        by.key_id,
        by.tenant_id,
        by.key_id.hex * 2,
    )
    await schedules.create(parts.core, by, drafts.Draft("* * * * *", "UTC", "say hello"))
    await pool.execute("UPDATE schedules SET next_at = now(), look_at = now() - interval '3 s'")
    await firing.fire_due(parts.core, Loop("schedules"))
    assert REGISTRY.get_sample_value(f"{PREFIX}_schedule_firings_total", {"state": "sent"}) == 1
    yield


@here("relay_frames_dropped_total")
async def redis_takes_nothing(parts: Parts) -> AsyncIterator[None]:
    frame = Frame.build(Position(1), "message", b"x" * (MAX_PENDING_BYTES + 1))
    parts.core.publisher.send(parts.core.redis.keys.feed(uuid4(), uuid4()), [frame])
    yield


@here("agent_starts_failed_by_host_total", "instance_unfit")
async def the_host_fails(parts: Parts) -> AsyncIterator[None]:
    parts.worker.host.has_failed()
    parts.worker.host.has_failed()
    yield


@here("clock_offset_seconds")
async def the_clock_is_off(parts: Parts) -> AsyncIterator[None]:
    clock.heard(datetime.now(UTC) + timedelta(hours=1), clock.uptime())
    yield
    clock.heard(datetime.now(UTC), clock.uptime())


@here("loop_failing", "loop_failures_total", "loop_item_failures_total")
async def a_loop_fails(parts: Parts) -> AsyncIterator[None]:
    async def step(loop: Loop) -> None:
        with loop.one("an item"):
            raise ValueError
        raise Unavailable("of the test")

    parts.loops.start("of-the-test", step, partial(asyncio.sleep, 0))
    await until(lambda: figures().get("loop_failing") == 1)
    yield


@here("instance_lease_remaining_seconds")
async def the_lease_is_renewed(parts: Parts) -> AsyncIterator[None]:
    parts.lease.renewed(clock.uptime())
    yield


@here("event_loop_lag_seconds")
async def something_keeps_the_event_loop(parts: Parts) -> AsyncIterator[None]:
    Lateness().run_in(parts.loops)
    await asyncio.sleep(0)
    time.sleep(0.4)  # noqa: ASYNC251 - that is meant
    await until(lambda: figures()["event_loop_lag_seconds"] > 0.1)
    yield


@here("outbound_calls_total", "outbound_calls_open")
async def something_is_asked_outside(parts: Parts) -> AsyncIterator[None]:
    calls = parts.core.outbound.calls
    with calls.counted("lookup"):
        pass
    with calls.counted("lookup"):
        yield


@here("database_connections_in_use")
async def a_connection_is_taken(parts: Parts) -> AsyncIterator[None]:
    async with parts.core.db.pool.acquire():
        yield


@here("network_denied_total", "network_sent_bytes_total", "network_received_bytes_total", "network_connections_open")
async def a_program_uses_the_proxy(parts: Parts) -> AsyncIterator[None]:
    proxy = parts.worker.ways.proxy
    await proxy.start()
    async with host(echo) as port:
        place = Place(proxy, Reach("limited", ((f"127.0.0.1:{port}",),)), {port: "127.0.0.1"})
        assert "403" in await place.ask("CONNECT other.test:443 HTTP/1.1", "Host: other.test")
        reader, writer = await place.tunnel("127.0.0.1", port)
        writer.write(b"hello")
        writer.write_eof()
        await reader.read()
        writer.close()
        await until(lambda: proxy.open == 0 and proxy.sent > 0)
        _, writer = await place.tunnel("127.0.0.1", port)
        yield
        writer.close()


@here("model_calls_unpriced_total", "model_cost_differences_total")
async def a_model_costs_what_nobody_knows(parts: Parts) -> AsyncIterator[None]:
    used = Used("a model of tomorrow", 1_000_000, complete=True)
    call = Call(uuid4(), uuid4(), None, "messages", clock.now(), 299, 0.1, 0.2, used, 5.0, priced=False)
    model_call(call)
    assert told("model_calls_total", kind="messages", status="other") > 0
    holder = Holder(call.tenant_id, call.session_id, lambda: None, lambda _refused: None)
    holder.spent.add(replace(call, priced=True))
    parts.worker.ways.gateway.settle(holder, 1.0)
    yield


@here("workspace_restore_duration_seconds")
async def files_are_brought_to_another_host(parts: Parts) -> AsyncIterator[None]:
    _, claim, writer = await parts.world.owned()
    own = Storing(parts.core, writer)
    await own.bring(claim.run_id)
    (workspaces.create(parts.core.settings, claim.session_id, None).root / "a").write_text("content")
    await own.keep(claim.run_id, always=True)
    elsewhere = parts.world.core(workspaces_dir=parts.core.settings.workspaces_root / "other")
    assert await Storing(replace(elsewhere, objects=parts.core.objects), writer).bring(claim.run_id)
    yield


@here("process_open_fds", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes")
async def the_process_takes_more(parts: Parts) -> AsyncIterator[None]:
    with Path("/dev/null").open():  # noqa: ASYNC230
        taken, until_cpu = bytearray(b"x" * (64 << 20)), time.process_time() + 0.05
        while time.process_time() < until_cpu:
            pass
        yield
        taken.clear()


@here("asyncio_tasks")
async def a_task_begins(parts: Parts) -> AsyncIterator[None]:
    task = asyncio.create_task(asyncio.sleep(1000))
    yield
    await end(task)


def told(name: str, **labels: str) -> float:
    """One series, 0 if there is none."""
    return REGISTRY.get_sample_value(f"{PREFIX}_{name}", labels) or 0.0


@pytest.mark.parametrize("does", HERE, ids=lambda does: does.__name__)
async def test_figures_move_with_what_an_instance_does(parts: Parts, does: Here) -> None:
    before = figures()
    async with does(parts):
        after = figures()
    for name in HERE[does]:
        assert after[name] != before.get(name, 0.0), name


# --- in a server -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def instance(start_lasting_fleet: StartFleet) -> Instance:
    return (await start_lasting_fleet(1, PREWARM="1"))[0]


There = Callable[[Instance], AbstractAsyncContextManager[None]]
THERE: dict[There, set[str]] = {}


def there(*moved: str) -> Callable[[Callable[[Instance], AsyncIterator[None]]], There]:
    """What a client does in a block: within it, or soon, each of these metrics of the server tells another figure."""

    def note(does: Callable[[Instance], AsyncIterator[None]]) -> There:
        made = asynccontextmanager(does)
        THERE[made] = set(moved)
        return made

    return note


@there(
    *("runs_running", "event_streams_open", "sessions_live", "agents_live", "agents_memory_bytes"),
    *("agent_start_duration_seconds", "run_queue_wait_seconds", "run_first_delta_seconds", "relay_lag_seconds"),
    "event_append_duration_seconds",
)
async def a_client_follows_a_run(instance: Instance) -> AsyncIterator[None]:
    run_id = await instance.prompt(await instance.session(), "stream 5000 words every 20 ms")
    async with instance.stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if event.event == "partial":
                break
        yield
    await instance.post(f"/runs/{run_id}/cancel")


@there(
    *("http_requests_total", "http_request_duration_seconds", "run_duration_seconds", "runs_ended_total"),
    *("model_calls_total", "model_call_first_byte_seconds", "model_tokens_total", "model_cost_usd_total"),
    "agents_ended_total",
)
async def a_client_waits_for_a_run_and_resets_the_session(instance: Instance) -> AsyncIterator[None]:
    session_id = await instance.session()
    await instance.ask(session_id, "say hello")
    assert (await instance.post(f"/sessions/{session_id}/reset", {"mode": "soft"})).status_code == 200
    yield


@there("steered_total")
async def a_message_goes_into_the_turn_that_runs(instance: Instance) -> AsyncIterator[None]:
    session_id = await instance.session(permission_mode="bypassPermissions")
    run_id = await instance.prompt(session_id, "run sleep 1 then say done")
    async with instance.stream(f"/runs/{run_id}/events") as events:
        await anext(event async for event in events if event.event == "init")
    await instance.prompt(session_id, "say more", on_busy="steer")
    yield


@there("decision_wait_seconds", "permissions_denied_total")
async def a_person_denies_a_call(instance: Instance) -> AsyncIterator[None]:
    run_id = await instance.prompt(await instance.session(**ASKING), COMMAND)
    await decide(instance, await asked(instance, run_id), decision="deny")
    yield
    await instance.follow(run_id)


@there("permissions_denied_total")
async def the_rules_deny_a_call(instance: Instance) -> AsyncIterator[None]:
    before = (await figures_of(instance))["permissions_denied_total"]
    session_id = await instance.session(permission_mode="dontAsk", tools=["Bash"])
    for times in (1, 2):  # what is told of the first is not counted with the second
        await instance.ask(session_id, "run touch a")
        assert (await figures_of(instance))["permissions_denied_total"] == before + times
    yield


@there("agents_ahead", "agents_ahead_taken_total", "agents_ahead_missed_total")
async def sessions_begin_alike(instance: Instance) -> AsyncIterator[None]:
    for _ in range(2):
        assert (await instance.post("/query/single", {"prompt": "say hello"})).status_code == 200

        async def ready() -> bool:
            return (await figures_of(instance))["agents_ahead"] == 1

        await soon(ready)
    yield


@there("keys_refused_total")
async def a_wrong_key_is_shown(instance: Instance) -> AsyncIterator[None]:
    assert (await instance.get("/sessions", headers={"X-API-Key": "wrong"})).status_code == 401
    yield


@there("websockets_open")
async def a_socket_is_opened(instance: Instance) -> AsyncIterator[None]:
    async with open_socket(instance):
        yield


@there("webhook_attempts_total")
async def a_webhook_is_told(instance: Instance) -> AsyncIterator[None]:
    async with receiving() as receiver:
        made = await instance.post("/webhooks", {"url": receiver.url(), "events": ["session.created"]})
        await instance.post(f"/webhooks/{made.json()['webhook_id']}/test")
        yield


@pytest.mark.parametrize("does", THERE, ids=lambda does: does.__name__)
async def test_figures_of_a_server_move_with_what_its_clients_do(instance: Instance, does: There) -> None:
    left, before = set(THERE[does]), await figures_of(instance)

    async def moved() -> bool:
        now = await figures_of(instance)
        left.difference_update([name for name in left if now.get(name, 0.0) != before.get(name, 0.0)])
        return not left

    async with does(instance):
        with suppress(TimeoutError):
            await soon(moved)
    assert not left


CONSTANT = {"runner_slots", "database_connections_max", "process_max_fds", "process_start_time_seconds"}


async def test_what_a_server_has_once_and_for_all_is_told(instance: Instance) -> None:
    now = await figures_of(instance)
    assert all(now[name] > 0 for name in CONSTANT)
    assert (now["runner_slots"], now["database_connections_max"]) == (4, 29)


def test_every_metric_is_moved_by_something() -> None:
    assert CONSTANT.union(*HERE.values(), *THERE.values()) == names()


# --- labels ----------------------------------------------------------------------------------------------------------


def test_what_is_in_no_list_counts_as_other() -> None:
    before = told("runs_ended_total", status="failed", code="other")
    instruments.run_ended(Ended("failed", "a code of tomorrow"))
    instruments.agent_ended("a reason of tomorrow")
    instruments.request("BREW", "/tea", 799).counter.inc()
    assert told("runs_ended_total", status="failed", code="other") == before + 1
    assert told("agents_ended_total", reason="other") >= 1
    assert told("http_requests_total", method="other", route="/tea", status="other") == 1


def test_every_failure_of_a_run_has_a_series_of_its_own() -> None:
    for code in RUN_FAILURES:
        before = told("runs_ended_total", status="failed", code=code)
        instruments.run_ended(Ended("failed", code))
        assert told("runs_ended_total", status="failed", code=code) == before + 1
