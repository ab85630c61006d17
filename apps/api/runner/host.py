"""Whether this host can start agents: what it has left, and how the last starts went.

A sick host fails faster than others work, so that it would always have room for the next run. After two starts in a
row that failed for its reasons it takes no run that needs a start, until a trial one has succeeded.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterator

import structlog

from apps.api import machine
from apps.api.core.tasks import Loop, jittered
from apps.api.db import CONNECTION_ERRORS
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.guard import trial
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

MAX_FAILURES = 2
"""Starts in a row that failed for the host's reasons, after which runs are left to other instances."""

LOOK_SECONDS, LONGEST = 5.0, 30.0
"""Between two looks at the host, and between two trials of one that stays sick."""

_REASONS = frozenset(
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EMFILE ENFILE ENOMEM EAGAIN EROFS EIO ESTALE ENOTCONN ENODEV ENXIO".split()  # noqa: SIM905
    if hasattr(errno, name)
)
"""Errors of system calls for which no session is to blame: no room, no descriptors, no memory, no process, no disk."""


Compare = Callable[[], Awaitable[list[str]]]


class Host:
    """This host, as one instance has found it.

    Attributes:
        differing: in what the instance differs from the fleet, so that it must not execute anything.
        scratch: the instance's directory on it.
        lacking: what it is short of, or why a trial start failed.
        failed: starts of agents that failed for its reasons, since the instance began.
    """

    def __init__(self, settings: Settings, scratch: Scratch, compare: Compare | None = None) -> None:
        """`compare` tells `differing`."""
        self._settings, self.scratch, self._compare = settings, scratch, compare
        self.differing: list[str] = []
        self.lacking: list[str] = []
        self.failed = self._in_a_row = 0
        self._pause = LOOK_SECONDS

    @property
    def starts_agents(self) -> bool:
        """Whether it may take runs that need a start."""
        return self._in_a_row < MAX_FAILURES and not self.differing

    @property
    def unfit(self) -> list[str]:
        """Why it should get no traffic, in words for an operator."""
        found = self.differing + self.lacking
        if not self.starts_agents and not found:
            found.append(f"the last {MAX_FAILURES} starts of agents failed for the host's reasons, see its log")
        return found

    async def is_to_blame(self, error: BaseException) -> bool:
        """Whether a start failed for the host's reasons: any instance elsewhere may do better."""
        # One that is not made a failure of the session's is about directories of the server's own.
        if isinstance(error, OSError) or any(isinstance(e, OSError) and e.errno in _REASONS for e in _causes(error)):
            return True
        await self.look_closely()
        return bool(self.lacking)

    def has_failed(self) -> None:
        """A start failed for its reasons."""
        self.failed += 1
        self._in_a_row += 1
        if self._in_a_row == MAX_FAILURES:
            log.error("host.sick", lacking=self.unfit)

    def has_started(self) -> None:
        """An agent was started."""
        self._in_a_row, self._pause = 0, LOOK_SECONDS

    async def until_next_look(self) -> None:
        """Wait. It is longer each time that a sick host has not become better."""
        await asyncio.sleep(jittered(self._pause))

    async def look(self, loop: Loop) -> None:
        """Look at what is left; of a sick host, try whether it can start agents again."""
        await self._look_around()
        if self._in_a_row < MAX_FAILURES and not self.lacking:
            self.lacking = await asyncio.to_thread(machine.shortages, trial.places(self._settings))
            return
        await self.look_closely()
        if self.lacking:
            self._pause = min(self._pause * 2, LONGEST)
        elif self._in_a_row >= MAX_FAILURES:
            log.info("host.well")
            self._in_a_row = MAX_FAILURES - 1  # the next failure counts at once, and is waited for longer
            self._pause = min(self._pause * 2, LONGEST)

    async def begin(self) -> None:
        """Look for the first time, before anything is claimed."""
        await self._look_around()
        await self.look_closely()

    async def _look_around(self) -> None:
        if self._compare is None:
            return
        try:
            differing = await self._compare()
        except CONNECTION_ERRORS:
            raise  # of which many are an OSError, and none says anything of the host
        except OSError as error:
            differing = [f"WORKSPACES_DIR cannot be looked at: {error}"]
        if differing and differing != self.differing:
            log.error("host.differs", differing=differing)
        self.differing = differing

    async def look_closely(self) -> None:
        """Look at what is left, and try to start the guard."""
        lacking = await asyncio.to_thread(machine.shortages, trial.places(self._settings))
        if self._settings.runner_slots and (failure := await trial.failure(self._settings, self.scratch.root)):
            lacking.append(failure)
        if lacking != self.lacking and lacking:
            log.warning("host.lacking", lacking=lacking)
        self.lacking = lacking


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
