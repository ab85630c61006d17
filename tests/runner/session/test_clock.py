"""The one clock of a turn: its deadline and whoever stops it reach it at whatever it waits."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from apps.api.core.events.batches import Batches
from apps.api.core.fleet.claims import Claim
from apps.api.core.fleet.commands import Command
from apps.api.core.lease import Lease
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.host import Host
from apps.api.runner.session import command_handlers
from apps.api.runner.session.execution import Execution
from apps.api.runner.session.launch import Means, StartGate
from apps.api.runner.session.turn import Turn, TurnOver
from apps.api.runner.worker import Worker
from tests.core.conftest import neighbourhood, world
from tests.world import World, administrator, until, waiting_for_locks, ways_of

__all__ = ["neighbourhood", "world"]

ROOT = Path(__file__).parents[3]

LATER = 30.0
"""Seconds after which a test gives up; nothing here is meant to take one."""

NEVER_STARTS = "exec sleep 1000"

NEVER_READS = r"""read -r line
id=$(printf %s "$line" | sed 's/.*"request_id": *"\([^"]*\)".*/\1/')
printf '{"type":"control_response","response":{"subtype":"success","request_id":"%s","response":{}}}\n' "$id"
exec sleep 1000"""
"""Answers the SDK's first message, and hears nothing more."""


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Callable[[str], Scratch]]:
    """A scratch whose launcher starts, in place of a CLI, a script that is stuck."""
    made: list[Scratch] = []

    def make(script: str) -> Scratch:
        made.append(scratch := Scratch())
        scratch.launcher = tmp_path / f"claude-{len(made)}"
        scratch.launcher.write_text(f"#!/bin/sh\n{script}\n")
        scratch.launcher.chmod(0o700)
        return scratch

    yield make
    for scratch in made:
        scratch.close()


@asynccontextmanager
async def executing(
    world: World, lease: Lease, scratch: Scratch, claim: Claim, gate: StartGate | None = None
) -> AsyncIterator[Execution]:
    """A session whose run is under way."""
    gate = gate or StartGate(1, lambda: None)
    host, ways = Host(world.settings, scratch), ways_of(world.core(), scratch)
    execution = Execution(world.core(), Means(lease, host, gate, ways, Batches(world.db)), claim, lambda: None)
    execution.assign(claim)
    running = asyncio.create_task(execution.run())
    try:
        yield execution
    finally:
        execution.close("shutdown")
        async with asyncio.timeout(LATER):
            await running


def processes(scratch: Scratch) -> list[psutil.Process]:
    """Of the script."""
    return [p for p in psutil.Process().children() if str(scratch.root) in "".join(p.environ().values())]


async def ended(world: World, claim: Claim) -> str:
    """How the run has ended, once it has: its status, or the code of its error."""

    async def over() -> bool:
        return (await world.run(claim.run_id))["finished_at"] is not None

    await until(over)
    run = await world.run(claim.run_id)
    return str(run["error"]["code"] if run["error"] else run["status"])


async def claimed(world: World, seconds: float = 600, prompt: str = "say hello") -> tuple[Lease, Claim]:
    lease = await world.instance()
    await world.queue(prompt=prompt)
    return lease, replace(await world.claim(lease), timeout_seconds=seconds)


@pytest.mark.parametrize("seconds", [0.5, 600])
async def test_an_agent_that_does_not_start_holds_neither_the_deadline_nor_an_interrupt(
    world: World, stuck: Callable[[str], Scratch], seconds: float
) -> None:
    (lease, claim), scratch = await claimed(world, seconds), stuck(NEVER_STARTS)
    async with executing(world, lease, scratch, claim) as execution:
        if seconds == 600:
            await until(lambda: bool(processes(scratch)))
            assert await execution.cancel(claim.run_id)
        assert await ended(world, claim) == ("interrupted" if seconds == 600 else "timeout")
        await until(lambda: not processes(scratch))


@pytest.mark.parametrize("seconds", [0.5, 600])
async def test_a_run_that_waits_for_others_starts_is_ended_while_it_waits(
    world: World, stuck: Callable[[str], Scratch], seconds: float
) -> None:
    (lease, claim), gate = await claimed(world, seconds), StartGate(1, lambda: None)
    async with gate.place(), executing(world, lease, stuck(NEVER_STARTS), claim, gate) as execution:
        await until(lambda: gate.waiting == 1)
        if seconds == 600:
            assert await execution.cancel(claim.run_id)
        assert await ended(world, claim) == ("interrupted" if seconds == 600 else "timeout")
        assert gate.waiting == 0


@pytest.mark.parametrize("seconds", [2, 600])
async def test_a_prompt_that_the_agent_does_not_read_holds_neither_the_deadline_nor_an_interrupt(
    world: World, stuck: Callable[[str], Scratch], seconds: float
) -> None:
    lease, claim = await claimed(world, seconds, "x" * 390_000)
    scratch = stuck(NEVER_READS)
    async with executing(world, lease, scratch, claim) as execution:
        if seconds == 600:
            await until(lambda: (turn := execution.turns.current) is not None and turn.begun)
            assert await execution.cancel(claim.run_id)
        assert await ended(world, claim) == ("interrupted" if seconds == 600 else "timeout")
        await until(lambda: not processes(scratch))


async def test_a_session_that_is_lost_while_its_agent_starts_ends_at_once(
    world: World, stuck: Callable[[str], Scratch]
) -> None:
    (lease, claim), scratch = await claimed(world), stuck(NEVER_STARTS)
    async with executing(world, lease, scratch, claim) as execution:
        await until(lambda: bool(processes(scratch)))
        execution.fence()
        async with asyncio.timeout(LATER):
            await execution.over.wait()
        assert processes(scratch) == []
    assert (await world.run(claim.run_id))["status"] == "running"  # its end is another's to write


async def test_a_cancellation_reaches_the_run_that_it_names_and_no_other(
    world: World, stuck: Callable[[str], Scratch]
) -> None:
    (lease, claim), scratch = await claimed(world), stuck(NEVER_STARTS)
    over = (await world.queue()).run_id
    async with executing(world, lease, scratch, claim) as execution:
        await until(lambda: bool(processes(scratch)))
        for type_ in ("cancel", "interrupt"):
            command = Command(uuid4(), claim.session_id, over, type_, {})
            await command_handlers.obey(execution, command)
            turn = execution.turns.current
            assert turn is not None
            assert (turn.run_id, turn.stopping) == (claim.run_id, None)
        command = Command(uuid4(), claim.session_id, claim.run_id, "cancel", {})
        assert await command_handlers.obey(execution, command) == (True, {})


async def test_a_run_that_ended_otherwise_just_before_was_not_interrupted(
    world: World, stuck: Callable[[str], Scratch]
) -> None:
    lease, claim = await claimed(world, 600)
    scratch = stuck(NEVER_STARTS)
    async with executing(world, lease, scratch, claim) as execution:
        await until(lambda: bool(processes(scratch)))
        async with administrator(world.settings) as admin:
            await admin.execute("BEGIN; LOCK TABLE runs")
            stopping = asyncio.create_task(execution.stop(claim.run_id, "shutdown"))
            await until(lambda: waiting_for_locks(admin, 1))
            command = Command(uuid4(), claim.session_id, claim.run_id, "cancel", {})
            cancelling = asyncio.create_task(command_handlers.obey(execution, command))
            await asyncio.wait({cancelling}, timeout=0.1)  # it has found the turn, and waits for its end
            await admin.execute("COMMIT")
        assert await cancelling == (False, {})
        assert not await stopping
    assert await ended(world, claim) == "shutdown"


async def test_a_drain_does_not_wait_for_a_database_that_does_not_answer(
    world: World, stuck: Callable[[str], Scratch]
) -> None:
    (lease, claim), scratch = await claimed(world), stuck(NEVER_STARTS)
    worker = Worker(world.core(), lease)
    async with executing(world, lease, scratch, claim) as execution, administrator(world.settings) as admin:
        worker.executions[claim.session_id] = execution
        await until(lambda: bool(processes(scratch)))
        await admin.execute("BEGIN; SELECT FROM instances FOR NO KEY UPDATE")
        draining = asyncio.create_task(worker.drain(0))
        assert await ended(world, claim) == "shutdown"
        assert await waiting_for_locks(admin, 1)  # it still is about to say that it drains
        await admin.execute("COMMIT")
        await draining
    await asyncio.to_thread(worker.scratch.close)


async def test_a_clock_that_has_gone_off_or_is_over_is_set_no_more() -> None:
    """A permission request may be closed, or a run stopped, at any moment of a turn's end."""
    turn = Turn(uuid4(), None, seconds=600)

    def touch() -> None:
        for touches in (turn.pause, turn.resume, turn.cut_off):
            touches()

    async def under_way() -> None:
        async with turn.clock():
            touch()
            try:
                await asyncio.sleep(LATER)
            finally:
                touch()

    with pytest.raises(TurnOver):
        await under_way()
    touch()


async def test_a_clock_stands_still_while_the_turn_waits_for_a_person() -> None:
    turn = Turn(uuid4(), None, seconds=0.2)
    asked = asyncio.Event()

    async def under_way() -> None:
        async with turn.clock():
            turn.pause()
            asked.set()
            await asyncio.sleep(LATER)

    async with asyncio.timeout(LATER):
        working = asyncio.create_task(under_way())
        await asked.wait()
        assert not (await asyncio.wait({working}, timeout=0.4))[0]
        turn.resume()
        with pytest.raises(TurnOver):
            await working


async def test_somebody_elses_timeout_is_not_the_turns() -> None:
    turn = Turn(uuid4(), None, seconds=600)
    with pytest.raises(TimeoutError):
        async with turn.clock():
            raise TimeoutError


# --- the rule, by the text --------------------------------------------------------------------------------------------

_BOUNDS = ("asyncio.timeout(", "self._whole(")


def unbounded(source: str) -> list[str]:
    """Awaits on an agent's SDK client that no timeout bounds.

    Bounded is what stands in `async with asyncio.timeout(…)` or `self._whole(…)`, or is given to `self._told(…)`, or
    becomes a task, whose waiter bounds it.
    """
    found: list[str] = []

    def look(node: ast.AST, bounded: bool) -> None:
        if isinstance(node, ast.AsyncWith):
            bounded = bounded or any(ast.unparse(item.context_expr).startswith(_BOUNDS) for item in node.items)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("self._told", "asyncio.create_task"):
            bounded = True
        if isinstance(node, ast.Call) and ".client." in f"{ast.unparse(node.func)}(" and not bounded:
            found.append(ast.unparse(node))
        for child in ast.iter_child_nodes(node):
            look(child, bounded)

    look(ast.parse(source), False)
    return found


def test_every_wait_for_an_agent_has_a_bound() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {call}"
        for path in (ROOT / "apps/api/runner").rglob("*.py")
        for call in unbounded(path.read_text())
        if "client.receive_" not in call  # they end with the process
    }
    assert sorted(found) == []
    assert unbounded("async def f(agent):\n    await agent.client.query('x')") == ["agent.client.query('x')"]
