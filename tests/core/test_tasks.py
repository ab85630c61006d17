"""Loops: what fails for one item, for one step, and for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from apps.api.core.tasks import MAX_SICK, Loop, Loops, retry_pause, within
from apps.api.errors import LeaseLost, Unavailable
from tests.world import PATIENCE, until

BUG = RuntimeError("a bug")


class Work:
    """Steps that are told how to end."""

    def __init__(self) -> None:
        self.done = 0
        self.failure: BaseException | None = None
        self._news = asyncio.Condition()

    async def step(self, _loop: Loop) -> None:
        async with self._news:
            self.done += 1
            self._news.notify_all()
        if self.failure is not None:
            raise self.failure

    async def more(self, count: int = 1) -> None:
        """Wait for so many more steps."""
        wanted = self.done + count
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: self.done >= wanted)


async def soon() -> None:
    await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def told() -> Iterator[list[Any]]:
    """What is logged, which would else be printed with all its frames."""
    with capture_logs() as lines:
        yield lines


@pytest.fixture
async def given_up() -> list[str]:
    return []


@pytest.fixture
async def loops(given_up: list[str]) -> AsyncIterator[Loops]:
    made = Loops(0.0, given_up.append)
    yield made
    await made.stop()


@pytest.mark.parametrize("failure", [BUG, OSError(24, "Too many open files"), Unavailable("away"), LeaseLost("gone")])
async def test_a_loop_that_fails_is_told_and_goes_on(loops: Loops, given_up: list[str], failure: Exception) -> None:
    work = Work()
    loops.start("some", work.step, soon)
    await work.more(3)
    assert loops.failing == []
    work.failure = failure
    await work.more(2)
    assert loops.failing == ["some"]
    work.failure = None
    await work.more(2)
    assert (loops.failing, loops.all[0].failures > 0, given_up) == ([], True, [])


async def test_an_instance_gives_up_for_a_loop_that_it_must_have_and_for_no_other(
    loops: Loops, given_up: list[str]
) -> None:
    must, nice = Work(), Work()
    loops.start("must", must.step, soon, must=True)
    loops.start("nice", nice.step, soon)
    must.failure = nice.failure = BUG
    await asyncio.gather(must.more(3), nice.more(3))
    assert set(given_up) == {"must"}


async def test_a_database_that_is_away_is_waited_for(loops: Loops, given_up: list[str]) -> None:
    work = Work()
    work.failure = Unavailable("away")
    loops.start("must", work.step, soon, must=True)
    await work.more(3)
    assert (loops.failing, given_up) == (["must"], [])


async def test_work_that_never_returns_is_run_again_when_it_raises(loops: Loops) -> None:
    work = Work()
    work.failure = BUG
    loops.keep("endless", lambda: work.step(Loop("")))
    await work.more(2)
    assert loops.failing == ["endless"]


async def test_an_item_that_fails_holds_up_no_other_and_is_spared_for_longer_each_time() -> None:
    loop, done = Loop("items"), []
    for item in (1, 2, 3):
        with loop.one(item):
            if item == 2:
                raise BUG
            done.append(item)
    assert (done, loop.spared, loop.sick) == ([1, 3], [2], 1)
    with loop.one(2):
        raise BUG
    assert loop.failures_of(2) == 2
    with loop.one(2):
        pass
    assert (loop.spared, loop.failures_of(2)) == ([], 0)


async def test_what_passes_is_the_loops_and_a_lost_session_is_nobodys_fault() -> None:
    loop = Loop("items")
    with pytest.raises(Unavailable), loop.one(1):
        raise Unavailable("away")
    with loop.one(2):
        raise LeaseLost("taken")
    assert (loop.spared, loop.sick) == ([1], 0)


async def test_an_item_whose_statement_takes_too_long_does_not_keep_the_others_from_their_turn(loops: Loops) -> None:
    done = list[str]()

    async def step(loop: Loop) -> None:
        for item in ("slow", "good"):
            if item not in loop.spared:
                with loop.one(item):
                    if item == "slow":
                        raise TimeoutError
                    done.append(item)

    loops.start("items", step, soon, must=True)
    await until(lambda: "good" in done)
    assert loops.all[0].sick == 0


async def test_what_is_kept_in_mind_of_items_is_bounded() -> None:
    loop = Loop("items")
    for item in range(MAX_SICK + 10):
        with loop.one(item):
            raise BUG
    assert sum(loop.failures_of(item) > 0 for item in range(MAX_SICK + 10)) == MAX_SICK


def test_a_pause_grows_and_has_an_end() -> None:
    pauses = [retry_pause(failed, longest=30.0) for failed in range(1, 40)]
    assert 0.4 <= pauses[0] <= 0.6
    assert pauses[-1] == 30.0


# --- within ---------------------------------------------------------------------------------------------------------


async def test_what_ends_at_once_or_in_time_is_done() -> None:
    done = []

    async def work(steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        done.append(steps)

    await within(PATIENCE, work(0))
    await within(PATIENCE, work(3))
    assert done == [0, 3]


@pytest.mark.parametrize("steps", range(3))
async def test_what_takes_too_long_is_cancelled_and_may_end_in_order(steps: int) -> None:
    told = []

    async def work() -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append("ended")

    with pytest.raises(TimeoutError):
        await within(0.01, work())
    assert told == ["ended"]


@pytest.mark.parametrize("steps", range(3))
async def test_who_is_cancelled_meanwhile_cancels_what_is_done(steps: int) -> None:
    told = []

    async def work() -> None:
        try:
            for _ in range(steps):
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    doing = asyncio.create_task(within(PATIENCE, work()))
    for _ in range(steps + 1):
        await asyncio.sleep(0)
    doing.cancel()
    await asyncio.wait([doing])
    assert (doing.cancelled(), told) == (True, ["cancelled"])


@pytest.mark.parametrize("steps", range(3))
async def test_what_fails_fails(steps: int) -> None:
    async def work() -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        raise BUG

    with pytest.raises(RuntimeError, match="a bug"):
        await within(PATIENCE, work())
