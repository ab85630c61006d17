"""Who waits for whom: lines before connections, turns of tenants, threads of their own for what blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import Context
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import sqlalchemy.exc
from sqlalchemy import text

from apps.api import db as db_module
from apps.api.auth import authenticate
from apps.api.core.events.follow import Followers
from apps.api.core.events.frames import Position
from apps.api.core.events.place import Place
from apps.api.core.events.relay import Subscriptions
from apps.api.core.events.replay import Followed
from apps.api.core.sessions import sessions
from apps.api.core.sessions.sessions import Filters
from apps.api.core.tasks import Loop
from apps.api.core.tenant import usage
from apps.api.db import Database, is_connection_error
from apps.api.errors import Busy
from apps.api.keys import USUAL_SCOPES, create_key
from apps.api.lanes import ASKING, AT_ONCE, AT_ONCE_IN_ALL, Line, Turns
from apps.api.redis import Redis
from apps.api.settings import Settings
from apps.api.threads import Blocking
from apps.api.web.errors import from_exception
from tests.world import PATIENCE, World, lone_world, until

__all__ = ["lone_world"]

Take = Callable[[Database], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def taken(take: Callable[[], AbstractAsyncContextManager[object]], count: int) -> AsyncIterator[None]:
    """So many of them are held while the block lasts."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(take())
        yield


@asynccontextmanager
async def waiting(take: Callable[[], AbstractAsyncContextManager[object]], count: int) -> AsyncIterator[set[int]]:
    """So many wait for one while the block lasts. Yields who has had a turn."""
    served = set[int]()

    async def one(number: int) -> None:
        async with take():
            served.add(number)

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    try:
        yield served
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_line_sends_away_at_once_who_would_be_one_too_many() -> None:
    line = Line(2, PATIENCE, "full", most=3)
    async with taken(lambda: line, 2), waiting(lambda: line, 3) as served:
        with pytest.raises(Busy, match="full") as refused:
            async with asyncio.timeout(0), line:
                raise AssertionError("had a turn")
        assert served == set()
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")


async def test_a_line_is_served_in_its_order_and_takes_new_ones_when_there_is_room() -> None:
    line = Line(1, PATIENCE, "full", most=2)
    order: list[int] = []

    async def one(number: int) -> None:
        async with line:
            order.append(number)

    async with line:
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(one(number)) for number in range(2)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    await one(2)
    assert order == [0, 1, 2]


async def test_nobody_joins_a_line_that_does_not_move() -> None:
    line = Line(1, 0.2, "full")
    async with line, waiting(lambda: line, 1) as served:

        async def is_refused() -> bool:
            try:
                async with asyncio.timeout(0), line:
                    raise AssertionError("had a turn")
            except Busy:
                return True
            except TimeoutError:
                return False

        await until(is_refused)
        assert served == set()


async def served(line: Line, tenants: Sequence[UUID], *, cancelled: Sequence[int] = ()) -> list[UUID | None]:
    """Whose turns came, in what order, when requests of these tenants wait for the line's one place; None: refused."""
    told: list[UUID | None] = []

    async def one(tenant: UUID) -> None:
        ASKING.set(tenant)
        try:
            async with line:
                told.append(tenant)
        except Busy:
            told.append(None)

    async with line:
        tasks: list[asyncio.Task[None]] = []
        for tenant in tenants:
            tasks.append(asyncio.create_task(one(tenant)))
            await asyncio.sleep(0)
    for number in cancelled:
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return told


async def test_tenants_have_a_line_by_turns() -> None:
    busy, other, third = uuid4(), uuid4(), uuid4()
    wait = [busy] * 4 + [other] * 2 + [third]
    assert await served(Line(1, PATIENCE, "full"), wait) == [busy, other, third, busy, other, busy, busy]


async def test_where_too_many_wait_the_last_of_the_longest_queue_makes_room() -> None:
    busy, other = uuid4(), uuid4()
    line = Line(1, PATIENCE, "full", most=4)
    assert await served(line, [busy] * 4 + [other] * 3) == [None, None, None, busy, other, busy, other]
    assert await served(line, [busy] * 4) == [busy] * 4  # nobody was forgotten in it


async def test_a_place_that_comes_to_somebody_who_has_just_been_cancelled_is_not_lost() -> None:
    busy, other = uuid4(), uuid4()
    line = Line(1, PATIENCE, "full")
    assert await served(line, [busy, busy, other], cancelled=[0, 2]) == [busy]
    async with asyncio.timeout(PATIENCE), line:
        pass


async def test_who_gives_up_leaves_the_line() -> None:
    line = Line(1, PATIENCE, "full", most=1)
    async with line:
        for _ in range(3):
            async with waiting(lambda: line, 1):
                pass
    async with asyncio.timeout(PATIENCE), line:
        pass


async def test_callers_have_connections_by_turns_with_other_tenants(db: Database, redis: Redis) -> None:
    """Also those of a tenant with several keys."""
    tenants = ["busy", "busy", "other"]
    first, second, others = [await create_key(db, tenant=name, name="k", scopes=USUAL_SCOPES) for name in tenants]
    known, told, all_known = list[str](), list[str](), asyncio.Event()

    async def one(secret: str) -> None:
        caller = await authenticate(db, redis, secret)
        known.append(caller.tenant)
        await all_known.wait()
        async with db.transaction():
            told.append(caller.tenant)

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for number, key in enumerate((first, second, first, second, others)):
            group.create_task(one(key.secret), context=Context())  # not this test's, which has stored keys
            await until(lambda number=number: len(known) > number)  # type: ignore[misc]
        async with taken(db.transaction, db_module.REQUESTS - 1):
            async with db.transaction():
                all_known.set()
                for _ in range(3):
                    await asyncio.sleep(0)
                assert told == []
            await until(lambda: len(told) == 5)
    assert told == ["busy", "other", "busy", "busy", "busy"]


LANES = pytest.mark.parametrize(
    ("take", "places"),
    [(Database.transaction, db_module.REQUESTS), (Database.connect, db_module.COMPOSED)],
    ids=["fixed statements", "composed queries"],
)


@LANES
async def test_requests_beyond_the_line_are_refused_while_the_others_wait(
    db: Database, take: Take, places: int
) -> None:
    """And none of them makes what the runner writes wait."""
    async with taken(lambda: take(db), places), waiting(lambda: take(db), 500) as served:
        with pytest.raises(Busy):
            async with asyncio.timeout(0), take(db):  # at once: whoever waits for anything is cut off
                raise AssertionError("had a connection")
        assert served == set()
        assert await db.for_runner().pool.fetchval("SELECT 1") == 1


@LANES
async def test_who_has_stored_something_goes_before_all_who_wait_and_is_not_sent_away(
    db: Database, take: Take, places: int
) -> None:
    is_stored, go_on, before = asyncio.Event(), asyncio.Event(), list[int]()

    async def storing() -> None:
        async with db.transaction():
            pass
        is_stored.set()
        await go_on.wait()
        async with take(db):
            before.append(len(turns))

    storer = asyncio.create_task(storing())
    await is_stored.wait()
    async with taken(lambda: take(db), places - 1), AsyncExitStack() as stack:
        await stack.enter_async_context(take(db))
        async with waiting(lambda: take(db), 500) as turns:
            go_on.set()
            for _ in range(3):
                await asyncio.sleep(0)
            await stack.aclose()
            async with asyncio.timeout(PATIENCE):
                await storer
    assert before == [0]


async def test_what_the_runner_holds_makes_no_request_wait(db: Database) -> None:
    runner = db.for_runner()
    async with taken(runner.transaction, db_module.WRITERS):
        assert await db.pool.fetchval("SELECT 1") == 1
        async with db.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1


async def test_readers_are_compared_with_the_database_whatever_requests_hold_and_want(lone_world: World) -> None:
    db, redis = lone_world.db, lone_world.redis
    followers = Followers(db, redis, Subscriptions(redis))
    followed = Followed(lone_world.tenant_id, await lone_world.session())
    async with followers.mailbox(followed) as mailbox:
        mailbox.show(Place(Position(1)))  # which the database does not have
        mailbox.catch_up()
        async with taken(db.transaction, db_module.REQUESTS), waiting(db.transaction, 500):
            await followers.check(Loop("followers"))
        assert mailbox.behind


async def test_neither_requests_nor_the_runner_keep_a_message_to_a_webhook_waiting(db: Database) -> None:
    webhooks = db.for_webhooks()
    async with taken(db.transaction, db_module.REQUESTS), taken(db.for_runner().transaction, db_module.WRITERS):
        assert await webhooks.pool.fetchval("SELECT 1") == 1
    async with taken(webhooks.transaction, db_module.WEBHOOKS), waiting(webhooks.transaction, 100) as served:
        assert await db.pool.fetchval("SELECT 1") == await db.for_runner().pool.fetchval("SELECT 1") == 1
        assert served == set()


async def test_an_instance_opens_no_more_connections_than_it_says(db: Database) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    runner = db.for_runner()
    async with (
        taken(db.transaction, db_module.REQUESTS - 1),
        taken(runner.transaction, db_module.WRITERS),
        taken(db.for_webhooks().transaction, db_module.WEBHOOKS),
        taken(db.connect, db_module.COMPOSED),
    ):
        assert await db.pool.fetchval(count) + 1 + 1 == 30  # with this one, and the heartbeat's


ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


@pytest.mark.parametrize("runner", [False, True])
async def test_who_is_cancelled_again_while_it_gives_its_connection_back_leaves_the_place(
    db: Database, runner: bool
) -> None:
    lane, places = (db.for_runner(), db_module.WRITERS) if runner else (db, db_module.REQUESTS)
    asks = [asyncio.create_task(lane.pool.execute("SELECT pg_sleep(600)")) for _ in range(places)]
    other = db if runner else db.for_runner()

    async def all_asleep() -> bool:
        return int(await other.pool.fetchval(ASLEEP)) == places

    await until(all_asleep)
    async with asyncio.timeout(PATIENCE):
        while any(not ask.done() for ask in asks):
            for ask in asks:
                ask.cancel()
            await asyncio.sleep(0)
        async with taken(lane.transaction, places - 1):
            assert await lane.pool.fetchval("SELECT 1") == 1


# --- what pools raise ----------------------------------------------------------------------------------------------


def subclasses(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def of_pools() -> list[type[BaseException]]:
    """Whatever says that there is no connection, or that one was lost: of asyncpg, of its pool, of SQLAlchemy's."""
    kinds = subclasses(asyncpg.PostgresConnectionError) | subclasses(asyncpg.exceptions.InsufficientResourcesError)
    kinds |= subclasses(asyncpg.exceptions.OperatorInterventionError) | subclasses(asyncpg.InterfaceError)
    kinds |= subclasses(sqlalchemy.exc.DisconnectionError) | {sqlalchemy.exc.TimeoutError, asyncpg.InternalClientError}
    kinds |= {TimeoutError, ConnectionError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError, Busy}
    return sorted(kinds, key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", of_pools(), ids=lambda kind: kind.__qualname__)
def test_whatever_a_pool_raises_is_answered_503_with_a_time_to_come_again(kind: type[Exception]) -> None:
    error = kind("a message")
    assert is_connection_error(error)
    answer = from_exception(error, "request")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_a_full_pool_of_the_engine_is_a_lack_of_connections(settings: Settings) -> None:
    engine = db_module.create_engine(settings, pool_size=1, max_overflow=0, pool_timeout=0.01)
    try:
        async with engine.connect():
            with pytest.raises(sqlalchemy.exc.TimeoutError) as full:
                async with engine.connect():
                    raise AssertionError("had a connection")
    finally:
        await engine.dispose()
    assert from_exception(full.value, "request").status == 503


# --- turns of tenants ---------------------------------------------------------------------------------------------


async def test_a_tenant_that_asks_for_much_makes_itself_wait_and_nobody_else(lone_world: World) -> None:
    world = lone_world
    ours, theirs, db = world.tenant_id, await world.other_tenant(), world.db
    session_id = await world.session()
    costly: dict[str, Callable[[UUID], Coroutine[Any, Any, object]]] = {
        "filtered": lambda tenant: sessions.list_page(
            db, tenant, Filters(search="x"), limit=1, cursor=None, default_model="m"
        ),
        "usage": lambda tenant: usage.report(db, tenant, usage.Scope(), [], limit=1, cursor=None),
        "unmeasured": lambda tenant: usage.unmeasured(db, tenant, usage.Scope()),
    }
    async with taken(lambda: db.turns.reading(ours), AT_ONCE):
        for what in costly.values():
            await what(theirs)
        await sessions.list_page(db, ours, Filters(), limit=1, cursor=None, default_model="m")  # by an index
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(what(ours)) for what in costly.values()]
        tasks.append(asyncio.create_task(sessions.messages(db, ours, session_id, limit=1, cursor=None)))
        await world.one("SELECT pg_sleep(0.05)")
        assert not any(task.done() for task in tasks)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*tasks)


async def test_of_all_tenants_together_some_are_served_and_the_others_wait_in_their_order() -> None:
    turns, served = Turns(), list[int]()

    async def one(number: int) -> None:
        async with turns.copying(uuid4()):
            served.append(number)

    async with AsyncExitStack() as stack:
        for _ in range(AT_ONCE_IN_ALL):
            await stack.enter_async_context(turns.copying(uuid4()))
        tasks = [asyncio.create_task(one(number)) for number in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert served == []
        async with turns.reading(uuid4()), turns.removing(uuid4()):
            served.append(-1)  # of another kind
    await asyncio.gather(*tasks)
    assert served == [-1, 0, 1, 2]
    assert not turns._of_tenants  # nothing is kept of tenants that ask for nothing


# --- threads -------------------------------------------------------------------------------------------------------


async def test_removals_go_one_by_one_and_keep_neither_starts_nor_copies_waiting() -> None:
    blocking, go_on = Blocking(), threading.Event()
    at_work: list[int] = []

    def remove(number: int) -> None:
        at_work.append(number)
        assert go_on.wait(PATIENCE)

    removals = [asyncio.create_task(blocking.removal.run(remove, number)) for number in range(50)]
    try:
        async with asyncio.timeout(PATIENCE):
            for threads in (blocking.starts, blocking.copies):
                assert await threads.run(lambda: "done") == "done"
            assert await asyncio.to_thread(lambda: "done") == "done"
        await until(lambda: at_work == [0])
    finally:
        go_on.set()
    await asyncio.gather(*removals)
    assert at_work == list(range(50))
    blocking.close()


async def test_what_has_not_begun_is_forgotten_at_the_end() -> None:
    blocking, go_on = Blocking(), threading.Event()
    first = asyncio.create_task(blocking.removal.run(go_on.wait, PATIENCE))
    others = [asyncio.create_task(blocking.removal.run(go_on.wait, PATIENCE)) for _ in range(3)]
    await until(lambda: blocking.removal._executor._work_queue.qsize() == 3)
    blocking.close()
    go_on.set()
    assert await first
    assert [type(found) for found in await asyncio.gather(*others, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 3
