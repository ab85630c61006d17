"""Two minutes of seeded faults; and that the checker would see what it is for."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import psutil
import pytest

from apps.api.redis import open_redis
from tests.faults import remains
from tests.faults.__main__ import Plan, run
from tests.faults.checker import of_conversation, of_files, of_marks, of_readers, of_runs
from tests.faults.faults import are_harmless
from tests.faults.history import MARKS, Prompt, Reader, Session
from tests.faults.load import BYPASS
from tests.faults.stage import Host
from tests.fleet import Sse
from tests.world import World, lone_world

__all__ = ["lone_world"]


@pytest.mark.timeout(900)
async def test_two_minutes_of_faults_break_no_promise() -> None:
    found = await run(Plan(seed=20, seconds=120, clients=2, stubs=2))
    print(found)
    assert found.violations == []
    assert found.outcomes["CLI succeeded"] > 0  # however slow the machine, or it was no try at all
    assert found.outcomes["stub succeeded"] > 0
    assert sum(found.faults.values()) > 2


def session(
    *prompts: Prompt, told: tuple[int, ...] = (1, 2, 3), other: tuple[int, ...] = (1, 2, 3), **more: Any
) -> Session:
    readers = [Reader("one"), Reader("other")]
    for reader, numbers in zip(readers, (told, other), strict=True):
        for number in numbers:
            reader.hear(Sse(str(number), "message", {"seq": number}))
    return Session(BYPASS, **{"id": "s", "prompts": list(prompts), "readers": readers, **more})


def ended(status: str, code: str | None = None, kind: str = "say", said: str = "w1x", **more: Any) -> Prompt:
    error = {"code": code} if code else None
    run = {"status": status, "error": error, "result": {"result": said}}
    return Prompt(**{"kind": kind, "token": "w1x", "run_id": "r", "run": run, **more})


def test_which_turn_has_taken_a_prompt() -> None:
    turn = Prompt("say", "w0x", run_id="turn", run={"status": "succeeded", "error": None, "result": {"result": "w0x"}})

    def taken(into: str, **more: Any) -> Prompt:
        run = {"status": "succeeded", "error": None, "result": {"result": None, "steered_into": into}}
        return Prompt(**{"kind": "say", "token": "w1x", "run_id": "r", "run": run, "steered": True, **more})

    assert list(of_runs(session(turn, taken("turn")))) == []
    for wrong in (taken("r"), taken("another"), taken("turn", steered=False)):
        assert "is said to be in run" in next(of_runs(session(turn, wrong)))


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
    ("kinds", "told"),
    [
        (("message", "done"), None),
        (("message", "done", "message"), "done before"),
        (("done", "done"), "done 2 times"),
        (("message",), "never told done"),
    ],
)
def test_how_often_a_run_was_done(kinds: tuple[str, ...], told: str | None) -> None:
    made = session(ended("succeeded"), told=(), other=())
    for number, kind in enumerate(kinds, 1):
        made.readers[0].hear(Sse(str(number), kind, {"run_id": "r"}))
    found = list(of_readers(made))
    assert (told is None) == (found == [])
    assert told is None or told in found[0]


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (ended("succeeded"), None),
        (ended("failed", "owner_lost"), None),
        (ended("interrupted", interrupted=True, stopped=True, kind="stream"), None),
        (ended("succeeded", kind="ask", decided="deny", said="not allowed"), None),
        (ended("succeeded", kind="ask", decided="allow", said="Exit code 1\nDisk full: this computer's"), None),
        (ended("succeeded", said="w2x"), "said"),
        (ended("succeeded", kind="ask", decided="deny"), "answered deny"),
        (ended("succeeded", kind="ask", decided="allow", said="not allowed"), "answered allow"),
        (ended("succeeded", interrupted=True, stopped=True), "answered with `applied`"),
        (ended("failed", "model_request_invalid"), "model_request_invalid"),
        (ended("interrupted", kind="stream"), "nobody has asked"),
        (ended("running"), "running"),
    ],
)
def test_how_runs_ended(prompt: Prompt, told: str | None) -> None:
    found = list(of_runs(session(prompt)))
    assert (told is None) == (found == [])
    assert told is None or told in found[0]


def test_no_run_fails_where_nothing_has_gone_wrong_that_it_may_fail_for() -> None:
    assert "owner_lost" in next(of_runs(session(ended("failed", "owner_lost")), harmless=True))
    assert are_harmless(["redis", "commit"])
    assert not are_harmless(["redis", "agent killed"])
    assert not are_harmless([])


def test_a_run_is_of_one_prompt() -> None:
    assert "of 2 prompts" in next(of_runs(session(ended("succeeded"), ended("succeeded"))))


def test_when_agents_were_at_work() -> None:
    def marks(token: str, begin: int, count: int = MARKS) -> list[str]:
        return [f"{token} {begin + number}" for number in range(count)]

    assert list(of_marks([*marks("a", 0), *marks("a", 0), *marks("b", 100)])) == []
    assert "a was at work" in next(of_marks([*marks("a", 0), *marks("b", 5)]))
    assert "more than once" in next(of_marks([*marks("a", 0), *marks("a", 100)]))


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ("you said:\n1. say w0x\n2. say w1x", None),
        ("you said:\n1. say w0x", "knows w1x (succeeded) 0 times"),
        ("you said:\n1. say w1x", "knows w0x (succeeded) 0 times"),
        ("you said:\n1. say w0x\n2. say w1x\n3. say w1x", "knows w1x (succeeded) 2 times"),
    ],
)
def test_what_an_agent_knows(known: str, told: str | None) -> None:
    first, recall = ended("succeeded", token="w0x"), ended("succeeded", kind="recall", said=known)
    found = list(of_conversation(session(ended("succeeded"), recall, inherits=[first])))
    assert (told is None) == (found == [])
    assert told is None or told in found[0]


def test_what_is_in_the_files() -> None:
    marks = ended("succeeded", kind="marks", said="the tool answered: wrote all of w1x")
    found = ended("succeeded", kind="files", said="     12 w1x\n      3 w2x")
    assert list(of_files(session(marks, found))) == []
    some = ended("succeeded", kind="files", said="the tool answered:      5 w1x")
    assert list(of_files(session(marks, some))) == ["of the 12 marks of w1x, 5 are in the files"]
    told = session(marks, some)
    told.readers[0].hear(Sse("4", "status", {"status": "workspace_not_stored"}))
    assert list(of_files(told)) == []
    full = ended("succeeded", kind="marks", said="the tool answered: sh: 1: echo: echo: I/O error")
    assert list(of_files(session(full, some))) == []


async def test_what_is_left_open_in_the_database(lone_world: World) -> None:
    queued = await lone_world.queue()
    made = session(id=str(queued.session_id))
    made.over, made.readers = True, []
    found = await remains.of_database(lone_world.db, [made])
    assert f"run {queued.run_id} is queued" in found
    assert any("1 runs for 0 prompts" in told for told in found)
    made.id = str(UUID(int=0))
    assert f"session {queued.session_id} is nobody's" in await remains.of_database(lone_world.db, [made])
    assert any("not there any more" in told for told in await remains.of_database(lone_world.db, [made]))


async def test_what_is_left_behind(lone_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "LEFT_SECONDS", 0.1)
    queued = await lone_world.queue()
    await lone_world.db.pool.execute(
        "WITH told AS (UPDATE sessions SET last_seq = 1 WHERE id = $1 RETURNING id)"
        " INSERT INTO events (session_id, seq, type, data) SELECT id, 1, 'status', '{}' FROM told",
        queued.session_id,
    )
    assert await remains.rows(lone_world.db, [str(queued.session_id)]) == [
        "1 rows of deleted sessions are left in events"
    ]
    assert await remains.rows(lone_world.db, []) == []

    (tmp_path / ".configs" / str(queued.session_id)).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        host = cast(Host, SimpleNamespace(instance=SimpleNamespace(disk=tmp_path, url=url)))
        assert len(remains.files([host], [str(queued.session_id)])) == 1
        assert remains.files([host], []) == []
        assert remains.listens(host)
    assert not remains.listens(host)

    monkeypatch.setattr(remains, "CONNECTIONS_SECONDS", 0.1)
    assert "connections to PostgreSQL are left" in (await remains.connections(lone_world.settings))[0]
    async with open_redis(lone_world.settings) as redis:
        await redis.client.set("of-the-faults", 1)
        assert "key b'of-the-faults' in Redis has no end" in await remains.keys(redis)
        await redis.client.delete("of-the-faults")


async def test_which_processes_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "PROCESS_SECONDS", 0.1)
    with subprocess.Popen(["sleep", "60"]) as left:  # noqa: ASYNC220
        try:
            assert await remains.processes([psutil.Process(left.pid)]) == [f"process {left.pid} lives"]
        finally:
            left.kill()
