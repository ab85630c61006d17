"""Times of schedules: what an expression may say, and the days on which clocks are set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest

from apps.api.core.config.cron import Times, expression, zone


def walk(cron: str, time_zone: str, start: str, many: int) -> list[str]:
    """So many times after a local one, as clocks there show them. Also looked for from behind."""
    times, there = Times.of(cron, time_zone), ZoneInfo(time_zone)
    found = list(islice(times.after(datetime.fromisoformat(start).replace(tzinfo=there)), many))
    for before, time in pairwise(found):
        assert times.newest(time) == time == times.newest(time + timedelta(seconds=59))
        assert times.newest(time - timedelta(microseconds=1)) == before
    assert found == sorted(set(found))
    return [time.astimezone(there).strftime("%d %H:%M %z") for time in found]


@pytest.mark.parametrize(
    ("time_zone", "start", "cron", "told"),
    [
        # Clocks are set forward: what they do not show comes when they are set, once.
        ("Europe/Berlin", "2026-03-28T12:00", "30 2 * * *", ["29 03:00 +0200", "30 02:30 +0200"]),
        ("Europe/Berlin", "2026-03-29T00:30", "0,30 2,3 * * *", ["29 03:00 +0200", "29 03:30 +0200"]),
        ("America/New_York", "2026-03-07T12:00", "30 2 * * *", ["08 03:00 -0400", "09 02:30 -0400"]),
        ("Australia/Lord_Howe", "2026-10-03T12:00", "15 2 * * *", ["04 02:30 +1100", "05 02:15 +1100"]),
        ("America/Santiago", "2026-09-05T12:00", "0 0 * * *", ["06 01:00 -0300", "07 00:00 -0300"]),
        # They are set back: of what they show twice the first one counts.
        ("Europe/Berlin", "2026-10-24T12:00", "30 2 * * *", ["25 02:30 +0200", "26 02:30 +0100"]),
        ("Europe/Berlin", "2026-10-25T01:50", "*/30 2 * * *", ["25 02:00 +0200", "25 02:30 +0200", "26 02:00 +0100"]),
        ("America/New_York", "2026-10-31T12:00", "30 1 * * *", ["01 01:30 -0400", "02 01:30 -0500"]),
        ("Australia/Lord_Howe", "2026-04-04T12:00", "45 1 * * *", ["05 01:45 +1100", "06 01:45 +1030"]),
        # What is for every hour goes by the time that passes.
        ("Europe/Berlin", "2026-03-29T01:00", "*/30 * * * *", ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200"]),
        ("Europe/Berlin", "2026-10-25T01:59", "30 0-23 * * *", ["25 02:30 +0200", "25 02:30 +0100", "25 03:30 +0100"]),
        ("Australia/Lord_Howe", "2026-04-05T01:00", "45 * * * *", ["05 01:45 +1100", "05 01:45 +1030"]),
    ],
)
def test_a_time_that_does_not_exist_or_exists_twice_comes_once(
    time_zone: str, start: str, cron: str, told: list[str]
) -> None:
    assert walk(cron, time_zone, start, len(told)) == told


@pytest.mark.parametrize("time_zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
@pytest.mark.parametrize("minute", [0, 15, 30, 45])
def test_a_time_of_the_day_comes_once_each_day_of_a_year(time_zone: str, minute: int) -> None:
    for hour in range(4):
        assert len({day[:2] for day in walk(f"{minute} {hour} * 3-4,9-11 *", time_zone, "2026-01-01T00:00", 31)}) == 31
        times = islice(Times.of(f"{minute} {hour} * * *", time_zone).after(datetime(2026, 1, 1, 12, tzinfo=UTC)), 365)
        days = [time.astimezone(ZoneInfo(time_zone)).date() for time in times]
        assert [after - before for before, after in pairwise(days)] == [timedelta(days=1)] * 364


def test_either_of_two_kinds_of_days_is_enough() -> None:
    assert walk("0 0 13 * FRI", "UTC", "2026-02-01T00:00", 6) == [
        f"{day:02} 00:00 +0000" for day in (6, 13, 20, 27, 6, 13)
    ]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("* * * * *", None), (" 0  7\t* * mon-fri ", "0 7 * * mon-fri"), ("*/5,7 0-20/2 1,15 JAN-MAR,12 7", None)],
)
def test_five_fields_of_numbers_names_lists_ranges_and_steps_are_good(given: str, kept: str | None) -> None:
    assert expression(given) == (kept or given)


@pytest.mark.parametrize(
    "given",
    [
        *("", "* * * *", "0 * * * * *", "@daily", "@reboot", "0 0 * * * 2026"),
        *("0 0 L * *", "0 0 LW * *", "0 0 15W * *", "0 0 * * 5L", "0 0 * * 1#2", "0 0 ? * *", "H * * * *"),
        *("60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8", "-1 * * * *"),
        *(
            "*/0 * * * *",
            "5/15 * * * *",
            "30-10 * * * *",
            "* * * JUL-JAN *",
            "* * * * ABC",
            "1,,2 * * * *",
            ", * * * *",
        ),
        *("0 0 31 2 *", "0 0 31 4,6,9,11 *", "٣ * * * *", "*/٣ * * * *", "1-2-3 * * * *", "MON * * * *"),
    ],
)
def test_what_is_no_such_expression_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        expression(given)


@pytest.mark.parametrize(
    "name", ["", "America", "Europe/Nowhere", "../etc/passwd", "/etc/localtime", "localtime", "right/UTC", "a" * 5000]
)
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        zone(name)


def test_every_time_zone_is_known() -> None:
    for name in available_timezones():
        if not name.startswith(("localtime", "posix", "right/")):
            assert zone(name) == name


def test_times_between_two_are_counted_up_to_a_bound() -> None:
    times, start = Times.of("* * * * *", "UTC"), datetime(2026, 1, 1, tzinfo=UTC)
    assert times.count(start, start + timedelta(minutes=10), 100) == 9
    assert times.count(start, start + timedelta(days=10), 100) == 100
