"""What an instance looks after in all of its sessions: ports that open, and turns in the background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from uuid import UUID

import structlog

from apps.api.core.context import Core
from apps.api.core.fleet import claims
from apps.api.core.tasks import pause
from apps.api.db import PASSING_OR_LOST
from apps.api.runner.guard import processes
from apps.api.runner.session.execution import Execution
from apps.api.runner.session.turn import Turn

log = structlog.get_logger(__name__)

BACKGROUND_LOOK_SECONDS = 1.0
"""Between two looks at the turns in the background."""

PORTS_LOOK_SECONDS = 2.0
"""Between two looks while nothing else tells that a port may have been opened."""


async def watch_ports(executions: Mapping[UUID, Execution]) -> None:
    """Look after the sessions of this instance, for ever."""
    while True:
        await pause(PORTS_LOOK_SECONDS)
        tree = await asyncio.to_thread(processes.tree) if executions else {}
        for execution in list(executions.values()):
            if execution.agent is not None and not execution.closing:
                try:
                    await execution.ports.look(execution.agent, tree)
                except PASSING_OR_LOST as error:
                    log.warning("ports.untold", session_id=str(execution.session_id), error=type(error).__name__)


async def watch_background(core: Core, executions: Mapping[UUID, Execution]) -> None:
    """Stop what turns of this instance are in the background for too long, for ever."""
    while True:
        await pause(BACKGROUND_LOOK_SECONDS)
        turns = [(e, e.turns.in_background) for e in executions.values() if not e.closing]
        looks = [_look(core, execution, turn) for execution, turn in turns if turn is not None]
        if looks:
            await asyncio.gather(*looks)


async def _look(core: Core, execution: Execution, turn: Turn) -> None:
    """Stop a turn that is over its deadline, or keeps a client's prompt waiting; not one that waits for a person."""
    patience = core.settings.background_patience_seconds
    if turn.paused:
        return
    try:
        if turn.guest:  # the prompt is with the agent already, behind it
            if execution.agent is not None and time.monotonic() - turn.began > patience:
                await execution.agent.interrupt()
        elif turn.seconds_left() <= 0:
            await execution.stop(turn.run_id, "timeout")
        elif await claims.kept_waiting(core.db, execution.session_id, patience):
            await execution.stop(turn.run_id, "interrupted")
    except PASSING_OR_LOST as error:
        log.warning("background.unbounded", session_id=str(execution.session_id), error=type(error).__name__)
