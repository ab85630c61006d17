"""The error of a run that failed."""

from __future__ import annotations

import pytest

from apps.api.core.sessions.outcome import failure
from apps.api.errors import RUN_FAILURES


@pytest.mark.parametrize("code", RUN_FAILURES)
def test_every_failure_says_something_and_whether_to_try_again(code: str) -> None:
    _, retryable, usual = RUN_FAILURES[code]
    assert failure(code) == {"code": code, "message": usual, "retryable": retryable}
    assert usual.endswith(".")


def test_what_a_failure_quotes_can_be_stored() -> None:
    assert failure("execution_error", "a\x00b\ud800")["message"] == "a\ufffdb\ufffd"
