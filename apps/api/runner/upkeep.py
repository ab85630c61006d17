"""What every instance does for the whole fleet: takes over from dead owners, tells queued runs their place, tidies up.

Any number of instances may do this at the same time; the database's locks make each thing happen once.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import structlog

from apps.api.core.context import Core
from apps.api.core.events.log import Event
from apps.api.core.files import garbage
from apps.api.core.fleet import (
    claims,
    commands,
    erasure,
    firing,
    firings,
    instances,
    ownership,
    parked,
    places,
    suspension,
    turns,
)
from apps.api.core.fleet.places import Turn, Waiting
from apps.api.core.sessions import deletion, retention, workspaces
from apps.api.core.tasks import POLL, Loop, Loops, nap, pause
from apps.api.core.tenant import deliveries, idempotency, uploads, usage
from apps.api.runner.session.execution import Execution
from apps.api.runner.worker import Worker

log = structlog.get_logger(__name__)

REAP_INTERVAL = 1.0
"""Seconds between looks for dead owners; on top of the lease, this is how long clients wait to hear of one."""

ANNOUNCE_GAP = 0.2
"""Seconds between two rounds of telling places, at least: see ANNOUNCE_SHARE."""

ANNOUNCE_SHARE = 0.02
"""Part of the time that looking for what is to be told may take: it counts what a tenant with new runs has queued."""

LONGEST_GAP = 10.0

SUSPENSION_INTERVAL = 2.0
"""Seconds between looks for tenants that are suspended; as long their runs go on, and the time that it takes to end
them."""

ERASURE_INTERVAL = 5.0
"""Seconds between looks for tenants and sessions whose deletion somebody has begun and does not go on with."""

PARK_INTERVAL = 1.0
"""Seconds between looks at the sessions here that wait for persons."""

EXPIRE_INTERVAL = 1.0
"""Seconds between looks for requests of parked runs whose time is over."""

SCHEDULE_INTERVAL = 1.0
"""Seconds between looks for schedules that are due, and for runs of theirs that have ended."""

UNSTORE_INTERVAL = 5.0
"""Seconds between looks for deleted sessions whose files are stored."""

ADD_UP_INTERVAL = 15.0
"""Seconds between looks for usage that is to be added up. Reports sum up what has come since then."""

COLLECT_INTERVAL = 60.0
"""Seconds between looks for tenants whose garbage is to be collected."""

FIRST_SWEEP, SWEEP_INTERVAL = 20.0, 600.0
"""Seconds from the start to the first look for what is old or was left, and between two: instances that never live for
the longer one remove something, too."""

_FORGETTING = (
    idempotency.forget_old,
    deliveries.forget_old,
    commands.forget_old,
    instances.forget_dead,
    uploads.forget_old,
    firings.forget_old,
)


class Upkeep:
    """The loops of one instance for the fleet's sake."""

    def __init__(self, core: Core, worker: Worker) -> None:
        self._core, self._worker = core, worker
        self._gap, self._sweep_in, self._turn = ANNOUNCE_GAP, FIRST_SWEEP, Turn()

    def run_in(self, loops: Loops) -> None:
        """Start the loops."""
        loops.start("runner-reap", self._reap, partial(pause, REAP_INTERVAL))
        loops.start("runner-announce", self._announce_all, self._until_announced)
        loops.start("runner-suspension", self._suspend, partial(pause, SUSPENSION_INTERVAL))
        loops.start("runner-erasure", self._erase, partial(pause, ERASURE_INTERVAL))
        loops.start("runner-park", self._park, partial(pause, PARK_INTERVAL))
        loops.start("runner-expire", partial(parked.expire, self._core), partial(pause, EXPIRE_INTERVAL))
        loops.start("runner-schedules", self._fire, partial(pause, SCHEDULE_INTERVAL))
        loops.start("runner-unstore", partial(deletion.remove_stored, self._core), partial(pause, UNSTORE_INTERVAL))
        loops.start("runner-add-up", self._add_up, partial(pause, ADD_UP_INTERVAL))
        loops.start("runner-collect", self._collect, partial(pause, COLLECT_INTERVAL))
        loops.start("runner-sweep", self._sweep, self._until_swept)

    async def _reap(self, loop: Loop) -> None:
        await ownership.reap(self._core, loop)

    async def _until_announced(self) -> None:
        await asyncio.sleep(self._gap)
        await nap(self._worker.left_waiting, POLL)

    async def _announce_all(self, loop: Loop) -> None:
        """Tell queued runs their place, and give idle sessions up when another instance has room for their runs, or
        when they are in the way of their tenant's."""
        if self._worker.is_full:
            await self._yield_idle()
        await self._make_place()
        started = time.monotonic()
        waiting = await places.waiting(self._core.db, self._core.instance_id, self._turn)
        self._gap = min(max(ANNOUNCE_GAP, (time.monotonic() - started) / ANNOUNCE_SHARE), LONGEST_GAP)
        for run in waiting:
            if run.run_id not in loop.spared:
                with loop.one(run.run_id):
                    await self._announce(run)

    async def _announce(self, run: Waiting) -> None:
        if run.owner_id is None:
            frames = await places.announce_unowned(self._core.db, run)
            self._core.relay(run.tenant_id, run.session_id, frames)
            return
        execution = self._worker.executions.get(run.session_id)
        if execution is not None and not execution.closing and await places.mark_announced(self._core.db.pool, run):
            await execution.writer.append(Event("queued", {"position": run.position}, run.run_id))

    async def _yield_idle(self) -> None:
        idle = {session_id: e for session_id, e in self._worker.executions.items() if e.idle}
        wanted = await claims.kept_waiting(self._core.db, list(idle), claims.STARTS_WITHIN) if idle else set()
        if wanted and await turns.free_slot_elsewhere(self._core.db, self._core.instance_id):
            idle[wanted.pop()].close("yielded")

    async def _make_place(self) -> None:
        executions = self._worker.executions
        leaving = {e.writer.tenant_id for e in executions.values() if _is_leaving(e)}  # see first what that gives
        idle = {session: e for session, e in executions.items() if e.idle and e.writer.tenant_id not in leaving}
        for session_id in await turns.in_the_way(self._core.db, list(idle)) if idle else ():
            idle[session_id].close("evicted")

    async def _suspend(self, loop: Loop) -> None:
        """End what runs here for suspended tenants, and what they have queued."""
        tenants = await suspension.suspended(self._core)
        if not tenants:
            return
        self._worker.ahead.forget(tenants)
        ending = [e for e in self._worker.executions.values() if e.writer.tenant_id in tenants and not e.fenced]
        await asyncio.gather(*(self._give_up(loop, execution) for execution in ending))
        await suspension.end_queued(self._core, loop, sorted(tenants))

    async def _give_up(self, loop: Loop, execution: Execution) -> None:
        with loop.one(execution.session_id):
            execution.close("tenant_suspended")  # no other run of it is taken here
            await execution.stop(None, "tenant_suspended")

    async def _erase(self, loop: Loop) -> None:
        """Go on with deletions: the content of sessions, and tenants with all that they have."""
        await deletion.purge_left(self._core, loop)
        while await erasure.go_on(self._core, loop):
            continue

    async def _fire(self, loop: Loop) -> None:
        """Send the prompts of schedules that are due, also where no agent runs: that is a transaction like another."""
        await firing.settle(self._core)
        await firing.fire_due(self._core, loop)

    async def _add_up(self, _: Loop) -> None:
        await usage.add_up(self._core.db)

    async def _collect(self, loop: Loop) -> None:
        """Remove what is stored and nothing refers to."""
        core = self._core
        await garbage.collect(core.db, core.objects, core.blocking.removal, loop)

    async def _park(self, loop: Loop) -> None:
        """Park sessions that have waited for a person for long: sooner when a place is wanted, and all at the end."""
        worker, after = self._worker, self._core.settings.park_after_seconds
        since = {e: e.parking.since for e in worker.executions.values() if after and not e.fenced}
        waiting = sorted((moment, e.session_id, e) for e, moment in since.items() if moment is not None)
        due = [e for moment, _, e in waiting if worker.draining or time.monotonic() - moment >= after]
        if waiting and not due and self._is_wanted() and await claims.kept_out(self._core.db):
            due = [waiting[0][2]]
        for execution in due:
            if execution.session_id not in loop.spared:
                with loop.one(execution.session_id):
                    await execution.park()

    def _is_wanted(self) -> bool:
        """Whether there is a slot here, but no place for one more session, and none that is about to come free."""
        worker = self._worker
        free = any(e.idle or _is_leaving(e) for e in worker.executions.values())
        return not worker.is_full and not free and worker.live >= self._core.settings.live_session_limit

    async def _until_swept(self) -> None:
        seconds, self._sweep_in = self._sweep_in, SWEEP_INTERVAL
        await pause(seconds)

    async def _sweep(self, loop: Loop) -> None:
        for what in _FORGETTING:
            if what.__module__ not in loop.spared:
                with loop.one(what.__module__):
                    await what(self._core.db)
        await retention.sweep(self._core, loop)
        await self._sweep_files(loop)

    async def _sweep_files(self, loop: Loop) -> None:
        settings, removal = self._core.settings, self._core.blocking.removal
        await removal.run(workspaces.discard_forgotten, settings)
        await removal.run(self._worker.scratch.sweep)
        present = await removal.run(workspaces.present, settings)
        for session_id in await deletion.deleted_among(self._core.db, present):
            with loop.one(session_id):
                await removal.run(workspaces.remove, settings, session_id)
        await retention.sweep_files(self._core, loop, present)


def _is_leaving(execution: Execution) -> bool:
    """Whether its place comes free by itself: the session is given back, lost, or parked at this moment."""
    turn = execution.turns.current
    return execution.closing or execution.parking.begun or (turn is not None and turn.parking)
