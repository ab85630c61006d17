"""What an instance looks after in all of its sessions: ports that open, turns in the background, what agents take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from uuid import UUID

import structlog

from apps.api.core.context import Core
from apps.api.core.files import trees
from apps.api.core.fleet import claims
from apps.api.core.sessions import workspaces
from apps.api.core.tasks import Loop, Loops, pause
from apps.api.core.tenant import disk
from apps.api.runner.guard import limits, processes
from apps.api.runner.session.execution import Execution
from apps.api.runner.session.turn import Turn

log = structlog.get_logger(__name__)

BACKGROUND_LOOK_SECONDS = 1.0
"""Between two looks at the turns in the background."""

PORTS_LOOK_SECONDS = 2.0
"""Between two looks while nothing else tells that a port may have been opened."""

GREED_LOOK_SECONDS = 1.0
"""Between two looks at what agents take. Each is about 20 µs of a thread for each process of the machine."""


DISK_LOOK_SECONDS = 5.0
"""Between two looks at the files of those whose files are limited. Each is some 5 µs of a thread for each file."""


class Watch:
    """Looks after the sessions of one instance.

    Attributes:
        memory: bytes that their agents had at the last look, what processes share counted for each.
    """

    def __init__(self, core: Core, executions: Mapping[UUID, Execution]) -> None:
        self._core, self._executions, self.memory = core, executions, 0

    def run_in(self, loops: Loops) -> None:
        """Start the loops."""
        loops.start("runner-ports", self._look_at_ports, partial(pause, PORTS_LOOK_SECONDS))
        loops.start("runner-background", self._look_at_background, partial(pause, BACKGROUND_LOOK_SECONDS))
        loops.start("runner-disk", self._look_at_disk, partial(pause, DISK_LOOK_SECONDS))
        loops.start("runner-watchdog", self._look_at_greed, partial(pause, GREED_LOOK_SECONDS))

    async def _look_at_ports(self, loop: Loop) -> None:
        tree = await asyncio.to_thread(processes.tree) if self._executions else {}
        for session_id, execution in list(self._executions.items()):
            if execution.agent is not None and not execution.closing and session_id not in loop.spared:
                with loop.one(session_id):
                    await execution.ports.look(execution.agent, tree)
                    await execution.denials.tell()

    async def _look_at_greed(self, _loop: Loop) -> None:
        """End the agents that take more than AGENT_MEMORY_BYTES or AGENT_MAX_PROCESSES."""
        settings, living = self._core.settings, [(e.session_id, e.process) for e in self._executions.values()]
        guards = {agent.pid: (session_id, agent) for session_id, agent in living if agent is not None and agent.pid}
        if not guards:
            self.memory = 0
            return
        most = settings.agent_memory_bytes, settings.agent_max_processes
        found = await asyncio.to_thread(limits.look, tuple(guards), *most)
        self.memory = found.memory
        for guard, excess in found.excesses.items():
            session_id, agent = guards[guard]
            log.warning("watch.agent_ended", session_id=str(session_id), code=excess.code, found=excess.found)
            agent.exceed(excess.code)

    async def _look_at_disk(self, loop: Loop) -> None:
        """Measure what sessions take whose tenant or key is limited, and end the agents that add to too much."""
        db = self._core.db
        living = {e.session_id: e.process for e in self._executions.values() if e.process is not None and not e.closing}
        grown = []
        for session_id in await disk.limited(db, [*living]):
            with loop.one(session_id):
                if await disk.note(db, session_id, await asyncio.to_thread(self._size, session_id)):
                    grown.append(session_id)
        for session_id in await disk.beyond(db, grown):
            if (agent := living[session_id]) is not None:
                log.warning("watch.agent_ended", session_id=str(session_id), code="workspace_full")
                agent.exceed("workspace_full")

    def _size(self, session_id: UUID) -> int:
        try:
            return workspaces.size(self._core.settings, session_id)
        except trees.TooMuch:
            return disk.TOO_MANY

    async def _look_at_background(self, loop: Loop) -> None:
        """Stop what turns of this instance are in the background for too long."""
        turns = [(e, e.turns.in_background) for e in self._executions.values() if not e.closing]
        looks = [_look(loop, self._core, execution, turn) for execution, turn in turns if turn is not None]
        if looks:
            await asyncio.gather(*looks)


async def _look(loop: Loop, core: Core, execution: Execution, turn: Turn) -> None:
    """Stop a turn that is over its deadline, or keeps a client's prompt waiting; not one that waits for a person."""
    patience = core.settings.background_patience_seconds
    with loop.one(execution.session_id):
        if turn.paused:
            return
        if turn.guest:  # the prompt is with the agent already, behind it
            if execution.agent is not None and time.monotonic() - turn.began > patience:
                await execution.agent.interrupt()
        elif turn.seconds_left() <= 0:
            await execution.stop(turn.run_id, "timeout")
        elif await claims.kept_waiting(core.db, [execution.session_id], patience):
            await execution.stop(turn.run_id, "interrupted")
