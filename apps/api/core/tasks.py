"""The loops of an instance: how they wait, never all instances at the same moment, how they fail, and how they end.

Two rules. What fails for one item (a session, a command, a delivery) is that item's: see `Loop.one`. What fails for a
whole loop is repeated, and shown: see `Loops`.
"""

from __future__ import annotations

import asyncio
import random
import time
import types
from collections.abc import Awaitable, Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from apps.api.db import PASSING, PASSING_OR_LOST
from apps.api.errors import LeaseLost

log = structlog.get_logger(__name__)

INSIST_AFTER = 1.0
"""Seconds after which a task that has not ended is cancelled once more."""


def ask(ended: asyncio.Task[Any]) -> None:
    """Take note of how a task has ended that goes on when whoever waits for it is cut off: then nobody else asks.
    For `add_done_callback`."""
    if not ended.cancelled():
        ended.exception()


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, however they end.

    Once is not enough: until Python 3.12 `asyncio.wait_for`, which redis-py calls for every command, swallows a
    cancellation that comes at the moment when what it waits for is done. A loop would then go on for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=INSIST_AFTER)
        except asyncio.CancelledError:
            for task in pending:
                task.cancel()
            raise
    await asyncio.gather(*tasks, return_exceptions=True)


async def within(seconds: float, work: Awaitable[None]) -> None:
    """Do this, for so long at most. What ends at once, as a write does whose reader keeps up, is given no timer: that
    would cost several times as much as the write. Raises TimeoutError."""
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration:
        return
    async with asyncio.timeout(seconds):
        await _rest(steps, waits_for)


@types.coroutine
def _rest(steps: Generator[Any, Any, None], waits_for: Any) -> Generator[Any]:
    """What has begun, from where it waits for the first time. What is thrown in, as a cancellation is, is
    its to hear of."""
    while True:
        try:
            yield waits_for
        except BaseException as error:
            go_on = partial(steps.throw, error)
        else:
            go_on = partial(steps.send, None)
        try:
            waits_for = go_on()
        except StopIteration:
            return


SETTLED = 10.0
"""Seconds after which work that never returns counts as well again."""

MAX_SICK = 1_000
"""Items of one loop that are kept in mind as failed."""

SPARED = 2.0
"""Seconds for which an item is left alone at which something passing came up: longer than a loop's first pause."""

POLL = 1.0
"""Seconds between looks at the queue and the commands without a wake-up."""

POLL_UNHEARD = 0.25
"""The same while nobody can be woken, Redis being away: every prompt and command waits for such a look then."""


def jittered(seconds: float) -> float:
    """About that many seconds, 20 % up or down."""
    return seconds * random.uniform(0.8, 1.2)


def retry_pause(failed: int, longest: float) -> float:
    """Seconds to wait after so many failures in a row: half a second, twice as long each time, with jitter."""
    return min(jittered(0.5 * 2.0 ** min(failed - 1, 16)), longest)


async def pause(seconds: float) -> None:
    """Wait about that long."""
    await asyncio.sleep(jittered(seconds))


async def nap(wake: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most about that long; clears it."""
    try:
        # Not wait_for: until Python 3.12 it can swallow a cancellation that comes together with the event.
        async with asyncio.timeout(jittered(seconds)):
            await wake.wait()
    except TimeoutError:
        return
    finally:
        wake.clear()


@dataclass
class Loop:
    """One loop of an instance, as `/health` and `/metrics` tell it.

    Attributes:
        must: an instance without it must not own sessions.
        failures: steps that failed since the start.
        sick: times that an item failed since the start.
        failing_since: when the first of the steps failed that no good one has followed, in monotonic seconds.
    """

    name: str
    must: bool = False
    failures: int = 0
    sick: int = 0
    failing_since: float | None = None
    _failed: dict[Hashable, tuple[int, float]] = field(default_factory=dict)

    @property
    def spared(self) -> list[Any]:
        """Items that have failed and are left alone for a while."""
        now = time.monotonic()
        return [item for item, (_, until) in self._failed.items() if until > now]

    def failures_of(self, item: Hashable) -> int:
        """How often in a row it has failed."""
        return self._failed.get(item, (0, 0.0))[0]

    @contextmanager
    def one(self, item: Hashable) -> Iterator[None]:
        """What is done to one of many. What it raises is logged and ends here, but for what passes: that is the loop's.

        One that fails is among the `spared` from then on, longer each time. So is one at which something passing came
        up, for SPARED or four times as long as it took: it may be what takes too long, and the others have their turn.
        """
        began = time.monotonic()
        try:
            yield
        except PASSING:
            now = time.monotonic()
            self._spare(item, self.failures_of(item), now + max(SPARED, 4 * (now - began)))
            raise
        except LeaseLost as error:  # it is somebody else's by now
            log.warning("loop.item_lost", loop=self.name, item=str(item), error=error)
        except Exception as error:
            times = self.failures_of(item) + 1
            self._spare(item, times, time.monotonic() + retry_pause(times, longest=600.0))
            self.sick += 1
            log.error("loop.item_failed", loop=self.name, item=str(item), times=times, error=error, exc_info=error)
        else:
            self._failed.pop(item, None)

    def _spare(self, item: Hashable, times: int, until: float) -> None:
        if item not in self._failed and len(self._failed) >= MAX_SICK:
            del self._failed[next(iter(self._failed))]
        self._failed[item] = times, until

    def well(self) -> None:
        """A step has been done."""
        self.failing_since = None


Step = Callable[[Loop], Awaitable[None]]


class Loops:
    """The loops of one instance. A step that raises is repeated after a pause that grows; only `stop` ends a loop.

    A loop that the instance must have gives up when its steps have failed for `patience` seconds, but not for a
    database that is away: that passes, and what must end meanwhile ends with the lease.
    """

    def __init__(self, patience: float, give_up: Callable[[str], None]) -> None:
        """`give_up` is called with the name of the loop."""
        self._patience, self._give_up = patience, give_up
        self._tasks: list[asyncio.Task[None]] = []
        self.all: list[Loop] = []

    @property
    def failing(self) -> list[str]:
        """Names of the loops whose last step has failed."""
        return [loop.name for loop in self.all if loop.failing_since is not None]

    def start(self, name: str, step: Step, wait: Callable[[], Awaitable[None]], *, must: bool = False) -> None:
        """Repeat `step` until `stop`: after `wait`, or after `retry_pause` when it has failed."""
        self.all.append(loop := Loop(name, must))
        self._tasks.append(asyncio.create_task(self._repeat(loop, step, wait), name=name))

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run what never returns, and run it again when it raises."""

        async def step(loop: Loop) -> None:
            settled = asyncio.get_running_loop().call_later(SETTLED, loop.well)
            try:
                await work()
            finally:
                settled.cancel()

        self.start(name, step, lambda: asyncio.sleep(0))

    async def _repeat(self, loop: Loop, step: Step, wait: Callable[[], Awaitable[None]]) -> None:
        failed = 0
        while True:
            await (asyncio.sleep(retry_pause(failed, 0.5 if loop.must else 30.0)) if failed else wait())
            try:
                await step(loop)
            except Exception as error:
                failed = failed + 1 if loop.failing_since is not None else 1
                self._note(loop, error)
            else:
                failed = 0
                loop.well()

    def _note(self, loop: Loop, error: Exception) -> None:
        now = time.monotonic()
        loop.failures += 1
        loop.failing_since = loop.failing_since or now
        if isinstance(error, PASSING_OR_LOST):
            log.warning("loop.failed", loop=loop.name, error=error)
            return
        log.error("loop.failed", loop=loop.name, error=error, exc_info=error)
        if loop.must and now - loop.failing_since > self._patience:
            self._give_up(loop.name)

    async def stop(self) -> None:
        """End all of them."""
        await end(*self._tasks)
