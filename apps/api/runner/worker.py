"""The runner of one instance: claims runs, keeps the lease, obeys commands.

Its loops are the ones that an instance must have, see `core/tasks.py`. Redis only wakes them; each also looks by itself
from time to time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from apps.api import __version__, instruments, tracing
from apps.api.core.context import Core
from apps.api.core.events.batches import Batches
from apps.api.core.events.log import note_lost
from apps.api.core.events.relay import Wakeups
from apps.api.core.fleet import claims, commands, facts, instances, ownership
from apps.api.core.fleet.instances import Owned
from apps.api.core.lease import Lease
from apps.api.core.tasks import POLL, POLL_UNHEARD, Loop, Loops, nap
from apps.api.db import PASSING, retrying
from apps.api.errors import LeaseLost
from apps.api.invalidations import Exchange
from apps.api.machine import cpus
from apps.api.runner.agent import catalog
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.ahead import Ahead
from apps.api.runner.guard.cgroups import Groups
from apps.api.runner.heartbeat import Heartbeat
from apps.api.runner.host import Host
from apps.api.runner.removal import Removal
from apps.api.runner.session import command_handlers
from apps.api.runner.session.execution import Execution
from apps.api.runner.session.launch import Means, StartGate
from apps.api.runner.session.ways import Ways
from apps.api.runner.wakes import Wakes

log = structlog.get_logger(__name__)

UNHEARD_SECONDS = 20.0
"""After a claim that failed with the connection, it may still be made: a statement ends within 15 s."""


class Worker:
    """Runs agents on this instance. `slots` = 0 makes a pure API node, which still reaps and announces."""

    def __init__(self, core: Core, lease: Lease, groups: Groups | None = None) -> None:
        self._core, self._lease = core, lease
        self._heartbeat = Heartbeat(core.settings, lease)
        self._invalidations = Exchange(core.db, core.redis)
        self._slots = core.settings.runner_slots
        self.scratch = Scratch(groups)
        lease.tell(self.scratch.lease.write)
        self.ways = Ways(core, self.scratch)
        self.host = Host(core.settings, self.scratch, partial(facts.compare, core, lease.instance_id))
        self.executions: dict[UUID, Execution] = {}
        self._removal = Removal(core, self.executions)
        self._tasks: set[asyncio.Task[None]] = set()
        self._suspects: set[tuple[UUID, int]] = set()
        self._at_work: dict[UUID, UUID | None] = {}  # commands, and the session that is busy with a patient one
        self._unheard_until = 0.0  # loop time, until which claims are looked for whose answers were lost
        self._claim_now = asyncio.Event()
        gate = StartGate(cpus(), self._claim_now.set)
        self._means = Means(lease, self.host, gate, self.ways, Batches(core.db))
        self.ahead = Ahead(core, self._means, lambda claim: Execution(core, self._means, claim, self._claim_now.set))
        self._wakes = Wakes(lease.instance_id, self._claim_now.set, self._keeps, self._say_taken)
        self._commands_now, self.left_waiting = asyncio.Event(), asyncio.Event()
        self._url: str | None = None
        self.draining = False

    @property
    def running(self) -> int:
        """Runs of clients that are being executed here, without those that wait for a person: these need no slot."""
        return sum(execution.busy and not execution.waiting for execution in self.executions.values())

    @property
    def is_full(self) -> bool:
        """Whether no slot is free."""
        return self.running >= self._slots

    @property
    def live(self) -> int:
        """Sessions that this instance owns, idle ones included."""
        return len(self.executions)

    async def start(self) -> None:
        """Register the instance, keep its lease, and listen. The loops are separate: see `run_in`."""
        self._url = await asyncio.to_thread(instances.own_url, self._core.settings)
        await self._register()
        self._heartbeat.start()
        await self.host.begin()
        self._spawn(asyncio.to_thread(self.scratch.sweep), "scratch-sweep")
        if self._slots:
            await self.ways.start()
            self._spawn(catalog.fill(self._core, self.scratch), "catalog")
        self._core.wake_local.append(self._claim_now.set)
        keys = self._core.redis.keys
        await self._core.subscriptions.subscribe(keys.wake, Wakeups(self._wakes.heard))
        await self._core.subscriptions.subscribe(keys.taken, Wakeups(self._wakes.taken))
        await self._core.subscriptions.subscribe(keys.deleted, Wakeups(self._removal.heard))
        await self._core.subscriptions.subscribe(keys.instance(self._lease.instance_id), Wakeups(self._heard_order))
        self._core.take_ahead.append(self.ahead.take)

    def run_in(self, loops: Loops) -> None:
        """Start the loops."""
        loops.start("runner-heartbeat", self._beat, partial(asyncio.sleep, 0), must=True)
        loops.start("runner-fence", self._fence_when_over, self._until_over, must=True)
        loops.start("runner-claim", self._claim_runs, partial(self._until_woken, self._claim_now), must=True)
        loops.start("runner-commands", self._obey_commands, partial(self._until_woken, self._commands_now), must=True)
        loops.start("runner-removal", self._removal.bury_next, partial(asyncio.sleep, 0))
        loops.start("runner-host", self.host.look, self.host.until_next_look)
        if self._slots:
            self.ways.run_in(loops)
            loops.start("runner-ahead", self.ahead.look, self.ahead.until_next_look)

    # --- waking up ---------------------------------------------------------------------------------------------

    async def _until_woken(self, wake: asyncio.Event) -> None:
        await nap(wake, POLL if self._core.subscriptions.hears else POLL_UNHEARD)

    def _keeps(self, session_id: UUID) -> bool:
        execution = self.executions.get(session_id)
        return execution is not None and not execution.closing

    def _say_taken(self, session_id: UUID) -> None:
        self._core.publisher.notify(self._core.redis.keys.taken, str(session_id))

    def _heard_order(self, _message: str) -> None:
        self._commands_now.set()

    # --- the lease ---------------------------------------------------------------------------------------------

    async def _beat(self, loop: Loop) -> None:
        """Act upon what the database said at a renewal."""
        try:
            renewed = await self._heartbeat.next()
        except LeaseLost:
            self._fence_all()
            await self._register_again(loop)
            return
        self._wakes.fleet = renewed.fleet
        await self._reconcile(loop, renewed.owned)
        await self._invalidations.exchange(renewed.invalid)

    async def _until_over(self) -> None:
        await asyncio.sleep(min(max(self._lease.remaining(), 0.2), 1.0))

    async def _fence_when_over(self, loop: Loop) -> None:
        """Kill every CLI before the lease can have lapsed, whatever the heartbeat is waiting for."""
        if self._lease.is_over():
            self._fence_all()

    def _fence_all(self) -> None:
        for execution in self.executions.values():
            if not execution.fenced:
                log.error("worker.fenced", session_id=str(execution.session_id))
                execution.fence()

    async def _register(self) -> None:
        await instances.register(
            self._core.db,
            self._lease,
            hostname=self._core.settings.hostname,
            version=__version__,
            slots=self._slots,
            url=self._url,
        )

    async def _register_again(self, loop: Loop) -> None:
        # The same process may go on under its id once every session that it owned has been taken from it.
        await ownership.reap(self._core, loop)
        await self._register()

    async def _reconcile(self, loop: Loop, owned: list[Owned]) -> None:
        """Make what runs here agree with what the database says is owned here.

        A difference counts when two heartbeats in a row see it: the first may just be a claim on its way.
        """
        theirs = {(o.session_id, o.generation) for o in owned}
        ours = {(s, e.generation) for s, e in self.executions.items() if not e.fenced}
        for session_id, generation in theirs & ours:
            self._mark_active(session_id, generation)
        suspects = theirs ^ ours
        for session_id, generation in suspects & self._suspects:
            if (session_id, generation) in ours:
                self.executions[session_id].fence()
            elif session_id not in loop.spared:
                with loop.one(session_id):
                    orphan = await ownership.disown(self._core.db, self._lease.instance_id, session_id, generation)
                    if orphan is not None:
                        ownership.announce(self._core, orphan)
        self._suspects = suspects

    def _mark_active(self, session_id: UUID, generation: int) -> None:
        self._core.publisher.command(
            "SET",
            self._core.redis.keys.active_session(session_id),
            f"{self._lease.instance_id}:{generation}",
            "EX",
            max(2, round(self._lease.seconds * 2)),
        )

    # --- runs --------------------------------------------------------------------------------------------------

    async def _claim_runs(self, loop: Loop) -> None:
        with suppress(LeaseLost):
            if asyncio.get_running_loop().time() < self._unheard_until:
                known = [turn.run_id for execution in self.executions.values() for turn in execution.turns.all]
                for claimed in await claims.unheard(self._core.db, self._lease.instance_id, known):
                    await self._give_back(*claimed)
            while not self.draining and not self.is_full:
                if not await self._claim(loop):
                    break
                await asyncio.sleep(0)  # a warm agent has its prompt before the next one is looked for
            if self.is_full:
                self.left_waiting.set()

    async def _claim(self, loop: Loop) -> bool:
        core, room = self._core, self.live < self._core.settings.live_session_limit
        if not room:
            self._evict_one()
        room = room and self.host.starts_agents and not self._means.gate.is_crowded
        warm = [s for s, e in self.executions.items() if e.agent is not None] + self.ahead.taken
        leaving = [s for s, e in self.executions.items() if e.closing or e.busy] + loop.spared
        if not self.host.starts_agents:  # what has its agent goes on
            leaving += self.executions.keys() - set(warm)
        written = {s: e.writer.last_seq for s, e in self.executions.items()}
        try:
            claim = await claims.claim(
                core.db, self._lease, may_take_new=room, except_for=leaving, warm=warm, profiles=core.profiles
            )
        except claims.Unreadable as claimed:
            log.error("worker.unreadable_run", session_id=str(claimed.session_id), error=claimed.__cause__)
            with loop.one(claimed.session_id):
                if orphan := await claims.refuse(self._core.db, self._lease.instance_id, claimed):
                    ownership.announce(self._core, orphan)
            return True
        except PASSING:
            self._unheard_until = asyncio.get_running_loop().time() + UNHEARD_SECONDS
            raise
        if claim is None:
            return False
        execution = self.executions.get(claim.session_id)
        if execution is not None:
            if execution.generation != claim.generation or claim.last_seq < written[claim.session_id]:
                # The database has gone back: what its agent knows has never been. A new one begins when it has ended.
                await note_lost(self._core.db, claim.session_id, claim.last_seq, written[claim.session_id])
                await self._give_back(claim.session_id, claim.generation, claim.run_id)
                return True
        elif self.draining:
            # It began to drain while the claim was under way, and may be gone before the run has ended.
            await self._give_back(claim.session_id, claim.generation, claim.run_id)
            return True
        else:
            execution = self.ahead.claimed(claim) or Execution(core, self._means, claim, self._claim_now.set)
            self.executions[claim.session_id] = execution
            task = asyncio.create_task(self._own(execution), name=f"session-{claim.session_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._mark_active(claim.session_id, claim.generation)
            self._say_taken(claim.session_id)  # of those that it had, the wake-up was answered: see `Wakes.heard`
        execution.assign(claim)
        if claim.parked is None:
            instruments.QUEUE_WAIT.observe(claim.waited)
            ids = tracing.ids(None, session_id=claim.session_id, run_id=claim.run_id)
            tracing.begin("queue", claim.traceparent, tracing.attributes(ids), ago=claim.waited).end()
        return True

    async def _give_back(self, session_id: UUID, *claimed: Any) -> None:
        log.warning("worker.claim_given_back", session_id=str(session_id))
        if execution := self.executions.get(session_id):
            execution.fence()
        if orphan := await ownership.give_back(self._core.db, self._lease.instance_id, session_id, *claimed):
            ownership.announce(self._core, orphan)

    async def _own(self, execution: Execution) -> None:
        tracing.work_on(execution.turns)
        try:
            writer = execution.writer
            await self._core.followers.look_back(writer.tenant_id, writer.session_id, writer.last_seq)
            await execution.run()
        except Exception as error:
            log.error("worker.session_failed", session_id=str(execution.session_id), error=error, exc_info=True)
        finally:
            if self.executions.get(execution.session_id) is execution:
                del self.executions[execution.session_id]
            self._claim_now.set()

    def _evict_one(self) -> None:
        idle = [e for e in self.executions.values() if e.idle]
        if idle:
            min(idle, key=lambda e: e.last_used).close("evicted")

    # --- commands ----------------------------------------------------------------------------------------------

    async def _obey_commands(self, loop: Loop) -> None:
        if not self.executions:
            return
        busy = [session_id for session_id in self._at_work.values() if session_id is not None]
        for command in await commands.pending(self._core.db, self._lease.instance_id, self._at_work, busy):
            self._at_work[command.id] = None if command.urgent else command.session_id
            self._spawn(self._obey(command), f"command-{command.id}")

    async def _obey(self, command: commands.Command) -> None:
        execution, core = self.executions.get(command.session_id), self._core
        tracing.work_on(execution.turns if execution else tracing.Work(session_id=str(command.session_id)))
        try:
            applied, result = (False, {}) if execution is None else await command_handlers.obey(execution, command)
            await retrying(
                lambda: commands.settle(core.db, core.redis, core.publisher, command, applied=applied, result=result),
                until=self._lease.is_over,
            )
        finally:
            del self._at_work[command.id]
            if not command.urgent:
                self._commands_now.set()  # its session's next one

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(_logged(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the end -----------------------------------------------------------------------------------------------

    async def drain(self, grace: float) -> None:
        """Stop claiming, let runs and agents' tasks end for `grace` seconds, end the rest, and give everything back."""
        self.draining = True
        self._spawn(self.ahead.close(), "ahead-close")
        # Beside the rest: a database that does not answer holds up neither the runs' grace nor what is idle.
        self._spawn(instances.set_draining(self._core.db, self._lease.instance_id), "announce-drain")
        until = asyncio.get_running_loop().time() + grace
        while (left := until - asyncio.get_running_loop().time()) > 0:
            at_work = [e for e in self.executions.values() if e.at_work]
            self._close_all(but=at_work)
            if not at_work:
                await self._until_empty(left)
                break
            await asyncio.sleep(min(left, 0.2))
        self._close_all()
        await asyncio.gather(
            *(execution.stop(None, "shutdown") for execution in list(self.executions.values())),
            return_exceptions=True,
        )
        await self._until_empty(20)

    def _close_all(self, but: Collection[Execution] = ()) -> None:
        for execution in self.executions.values():
            if execution not in but:
                execution.close("shutdown")

    async def _until_empty(self, seconds: float) -> None:
        if self._tasks and seconds > 0:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def stop(self) -> None:
        """After `drain`: leave the fleet. What is still owned is fenced and left to a reaper."""
        self._wakes.close()
        self._fence_all()
        await self._until_empty(10)
        await self.ways.close()
        await instances.unregister(self._core.db, self._lease.instance_id)
        await self._heartbeat.stop()
        await asyncio.to_thread(self.scratch.close)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as error:
        log.error("worker.side_task_failed", error=error, exc_info=True)
