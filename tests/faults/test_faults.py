"""Two minutes of seeded faults; and that the checker would see what it is for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.__main__ import run
from tests.faults.checker import of_marks, of_readers, of_runs
from tests.faults.load import BYPASS, MARKS, Prompt, Reader, Session
from tests.fleet import Sse


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_two_minutes_of_faults_break_no_promise() -> None:
    found = await run(seed=20, seconds=120, clients=2)
    print(found)
    assert found.violations == []
    assert found.outcomes.get("succeeded", 0) > 5
    assert sum(found.faults.values()) > 5


def session(*prompts: Prompt, told: tuple[int, ...] = (1, 2, 3), other: tuple[int, ...] = (1, 2, 3)) -> Session:
    readers = [Reader("one"), Reader("other")]
    for reader, numbers in zip(readers, (told, other), strict=True):
        for number in numbers:
            reader.hear(Sse(str(number), "message", {"seq": number}))
    return Session(BYPASS, "s", list(prompts), readers)


def ended(status: str, code: str | None = None, kind: str = "say", said: str = "w1x", **more: Any) -> Prompt:
    error = {"code": code} if code else None
    run = {"status": status, "error": error, "result": {"result": said}}
    return Prompt(kind, "w1x", run_id="r", run=run, **more)


def test_what_readers_were_told() -> None:
    assert list(of_readers(session())) == []
    assert list(of_readers(session(told=(1, 3), other=(1,)))) == ["reader one: event 3 came as number 2"]
    assert "event 2 came as number 3" in next(of_readers(session(told=(1, 2, 2, 3))))
    torn = session()
    torn.readers[0].hear(Sse("", "resync", {"reason": "lost"}))
    assert "resync" in next(of_readers(torn))
    changed = session(told=(1,), other=())
    changed.readers[1].hear(Sse("1", "message", {"seq": 1, "more": True}))
    assert "for one reader" in next(of_readers(changed))
    again = session(told=(1,))
    again.readers[0].hear(Sse("1", "message", {"seq": 1, "more": True}))
    assert "event 1 was" in next(of_readers(again))


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (ended("succeeded"), None),
        (ended("failed", "owner_lost"), None),
        (ended("interrupted", interrupted=True, kind="stream"), None),
        (ended("succeeded", said="w2x"), "said"),
        (ended("failed", "model_request_invalid"), "model_request_invalid"),
        (ended("interrupted", kind="stream"), "nobody has asked"),
        (ended("running"), "running"),
    ],
)
def test_how_runs_ended(prompt: Prompt, told: str | None) -> None:
    found = list(of_runs(session(prompt)))
    assert (told is None) == (found == [])
    assert told is None or told in found[0]


def test_when_agents_were_at_work() -> None:
    def marks(token: str, begin: int, count: int = MARKS) -> list[str]:
        return [f"{token} {begin + number}" for number in range(count)]

    assert list(of_marks([*marks("a", 0), *marks("a", 0), *marks("b", 100)])) == []
    assert "a was at work" in next(of_marks([*marks("a", 0), *marks("b", 5)]))
    assert "more than once" in next(of_marks([*marks("a", 0), *marks("a", 100)]))
