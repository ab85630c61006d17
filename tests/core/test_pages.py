"""Moments in queries of lists."""

from __future__ import annotations

import operator
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from apps.api.core.codec import timestamp
from apps.api.core.pages import as_told

COMPARES = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MOMENTS = st.integers(0, 5000).map(lambda microseconds: BEGIN + timedelta(microseconds=microseconds))


@given(st.sampled_from(sorted(COMPARES)), MOMENTS, MOMENTS)
def test_a_moment_compares_with_what_is_told_of_another(name: str, made: datetime, asked: datetime) -> None:
    compared, bound = as_told(name, asked)
    assert COMPARES[compared](made, bound) == COMPARES[name](datetime.fromisoformat(timestamp(made)), asked)


def test_the_end_of_the_calendar_is_a_moment_too() -> None:
    assert as_told("<=", datetime.max.replace(tzinfo=UTC))[0] == "<="
