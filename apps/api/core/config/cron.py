"""When a schedule is due: a cron expression in a time zone.

Two rules for the days on which clocks are set, of which one holds for an expression:

* It names hours (`30 2 * * *`): each of its times of the day comes once. One that the day does not have comes at the
  moment at which the clock is set forward; of one that the day has twice, the first counts.
* It is for every hour (`*/15 * * * *`): it goes by the time that passes. The hour that comes twice has its times twice,
  and the one that is left out has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field

MAX_EXPRESSION = 100
"""Characters of an expression."""

MAX_ZONE = 64

SET_BACK = timedelta(hours=3)
"""By more than that no clock is set back."""

_VALUE = r"(?:[0-9]{1,2}|[A-Za-z]{3})"
_FIELD = re.compile(rf"(?:(?:\*|{_VALUE}-{_VALUE})(?:/[0-9]{{1,2}})?|{_VALUE})")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
_EVERY_HOUR = set(range(24))


def expression(text: str) -> str:
    """A cron expression with single spaces. Raises ValueError for what is none, or never comes."""
    fields = text.split()
    if len(fields) != 5:
        raise ValueError("must have five fields: minute, hour, day of the month, month, day of the week")
    for field in fields:
        for part in field.split(","):
            if not _FIELD.fullmatch(part):
                raise ValueError(f"{field!r} is no field of numbers, names, lists, ranges and steps (*/5, 10-30/5)")
    text = " ".join(fields)
    try:
        CronSim(text, datetime(2024, 1, 1))
        next(CronSim(text, datetime(2024, 1, 1)))
    except CronSimError as error:
        raise ValueError(str(error).lower()) from error
    except StopIteration as error:
        raise ValueError("there is no such day") from error
    return text


def zone(name: str) -> str:
    """The name of an IANA time zone that is known here. Raises ValueError."""
    if not _ZONE.fullmatch(name) or name.startswith(("localtime", "posix", "right/")):  # not IANA's, but the host's
        raise ValueError("must be the name of an IANA time zone, for example Europe/Berlin")
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # of a folder or a file that is none of its own: OSError
        raise ValueError("is no IANA time zone that is known here") from error
    return name


Cron = Annotated[str, Field(min_length=9, max_length=MAX_EXPRESSION), AfterValidator(expression)]
TimeZone = Annotated[str, Field(min_length=1, max_length=MAX_ZONE), AfterValidator(zone)]


class Times:
    """The times of an expression in a time zone, all in UTC."""

    def __init__(self, cron: str, time_zone: str) -> None:
        """Raises ValueError as `expression` and `zone`, for what another release has stored."""
        self._cron, self._zone = expression(cron), ZoneInfo(zone(time_zone))
        self._every_hour = CronSim(self._cron, datetime(2024, 1, 1)).hours == _EVERY_HOUR
        if self._every_hour:  # written so that cronsim goes by the time that passes, too
            minute, _, *days = self._cron.split()
            self._cron = " ".join([minute, "*", *days])

    @classmethod
    @lru_cache(maxsize=1000)
    def of(cls, cron: str, time_zone: str) -> Self:
        """The same, kept."""
        return cls(cron, time_zone)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Those that come after a moment, in their order."""
        last = moment
        for found in self._walk(moment, back=False):
            if found > last:
                yield found
                last = found

    def next(self, moment: datetime) -> datetime | None:
        """The first one after a moment; None if there is none."""
        return next(self.after(moment), None)

    def newest(self, moment: datetime) -> datetime | None:
        """The last one that is not after a moment."""
        return next((found for found in self._walk(moment, back=True) if found <= moment), None)

    def count(self, after: datetime, before: datetime, most: int) -> int:
        """How many come between two moments, neither of them included; `most` stands for more."""
        return sum(1 for found in islice(self.after(after), most) if found < before)

    def _walk(self, moment: datetime, *, back: bool) -> Iterator[datetime]:
        """All from about a moment on, some of them perhaps on its other side, and one twice where clocks are set."""
        if self._every_hour:
            start = (moment + timedelta(seconds=1) if back else moment).astimezone(self._zone)
        else:
            start = (moment + SET_BACK if back else moment).astimezone(self._zone).replace(tzinfo=None)
        walk = CronSim(self._cron, start, reverse=back)
        if self._every_hour:
            # Of a single minute it would go from hour to hour, past the one that half an hour's change brings again.
            walk.minutes = {*walk.minutes, -1}
        for found in walk:
            yield (found if self._every_hour else self._at(found)).astimezone(UTC)

    def _at(self, wall: datetime) -> datetime:
        """The moment when clocks show this for the first time, or else when they are set to something later."""
        shown = wall.replace(tzinfo=self._zone)
        before, after = _offset(shown), _offset(shown.replace(fold=1))
        if after <= before:
            return shown
        early, late = (wall - after).replace(tzinfo=UTC), (wall - before).replace(tzinfo=UTC)
        while late - early > timedelta(seconds=1):
            middle = early + (late - early) / 2
            is_set = _offset(middle.astimezone(self._zone)) == after
            early, late = (early, middle) if is_set else (middle, late)
        return late.replace(microsecond=0)


class _Never(Times):
    def __init__(self) -> None: ...

    def _walk(self, moment: datetime, *, back: bool) -> Iterator[datetime]:
        return iter(())


NEVER: Times = _Never()
"""No times at all."""


def _offset(moment: datetime) -> timedelta:
    offset = moment.utcoffset()
    assert offset is not None  # noqa: S101 - for the type checker
    return offset
