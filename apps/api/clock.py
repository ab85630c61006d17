"""The one clock of the fleet: the database's. What others read, and what is refused for its age, goes by it.

Each heartbeat brings the database's time. Between two of them the machine's uptime is added, which goes on while the
machine is suspended and does not jump when somebody sets its clock. Before the first one, and in commands, it is the
clock of the machine.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import structlog

log = structlog.get_logger(__name__)

TOLERANCE = 2.0
"""Seconds by which the machine's own clock may differ before an operator is told: time synchronisation keeps it within
some milliseconds."""

ADVICE = "set this machine's clock, or the database's: runs go by the database's, and certificates by this one"

PRECISION = 0.5
"""Seconds that an answer may take and still say what time it is; one that took longer counts if it is the first."""

UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine is suspended, as the database's clock does: clock_gettime(2). Not every system has it."""


def uptime() -> float:
    """Seconds on that clock, which is the same for every process of this machine."""
    return time.clock_gettime(UPTIME)


class Clock:
    """A clock that is told the time, and goes by itself meanwhile."""

    def __init__(self) -> None:
        self._boot: datetime | None = None  # when the uptime was 0, by the database
        self._off = False
        self._newest = datetime.min.replace(tzinfo=UTC)
        self._tick = -1

    def heard(self, told: datetime, asked_at: float) -> None:
        """The database said that it was `told`, some time after `asked_at` (see `uptime`)."""
        took = uptime() - asked_at
        if took <= PRECISION or self._boot is None:
            self._boot = told - timedelta(seconds=asked_at + took / 2)
        self._tick = -1
        off = abs(self.offset()) > TOLERANCE
        if off and not self._off:
            log.warning("clock.off", seconds=round(self.offset(), 1), advice=ADVICE)
        self._off = off

    def now(self) -> datetime:
        """The time, in UTC. What an answer corrects by less than PRECISION does not make it go back.

        Within a millisecond, which is what events tell, it stands: the deltas of many runs come in the same one.
        """
        seconds = uptime()
        if (tick := int(seconds * 1000)) == self._tick:
            return self._newest
        now = datetime.now(UTC) if self._boot is None else self._boot + timedelta(seconds=seconds)
        if not now < self._newest < now + timedelta(seconds=PRECISION):
            self._newest = now
        self._tick = tick
        return self._newest

    def offset(self) -> float:
        """Seconds by which the machine's own clock is ahead of this one; negative when it is behind."""
        return (datetime.now(UTC) - self.now()).total_seconds()


_clock = Clock()
now, heard, offset = _clock.now, _clock.heard, _clock.offset


def timestamp() -> float:
    """The time in seconds since 1970."""
    return now().timestamp()
