"""What an agent does without being asked by a client: its tasks, and the turns that they begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from claude_agent_sdk import Message, ResultMessage, SystemMessage, TaskNotificationMessage, TaskStartedMessage

from apps.api.core import queue
from apps.api.core.agent_tasks import stopped
from apps.api.core.context import Core
from apps.api.core.log import Event
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner.pace import pause
from apps.api.runner.turn import Turn

if TYPE_CHECKING:
    from apps.api.runner.execution import Execution

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the turns in the background."""

MAX_TASKS = 1_000
"""Of one process that are kept in mind."""

_TRANSIENT: tuple[type[Exception], ...] = (*CONNECTION_ERRORS, LeaseLost, Unavailable, TimeoutError)


class Tasks:
    """The subagents and background commands of one agent process that are at work.

    Attributes:
        outlasting: ids of those that outlast the turn which began them.
    """

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self.outlasting: frozenset[str] = frozenset()

    @property
    def ids(self) -> frozenset[str]:
        """Of all that are at work."""
        return frozenset(self._began)

    def begun_since(self, moment: float) -> bool:
        """Whether one is at work that began after `moment`, in monotonic seconds."""
        return any(began > moment for began, _ in self._began.values())

    def take(self, message: Message) -> bool:
        """Note what a message says of tasks. Returns whether one goes to the background that was not there before."""
        match message:
            case TaskStartedMessage() if len(self._began) < MAX_TASKS:
                self._began[message.task_id] = time.monotonic(), message.data
            case TaskNotificationMessage():
                self._began.pop(message.task_id, None)
            case SystemMessage(subtype="background_tasks_changed"):
                before, told = self.outlasting, (message.data.get("tasks") or ())[:MAX_TASKS]
                self.outlasting = frozenset(str(task.get("task_id")) for task in told)
                return bool(self.outlasting - before)
            case ResultMessage():  # a turn is over, and with it what it has waited for
                self._began = {i: began for i, began in self._began.items() if i in self.outlasting}
        return False

    def end(self, reason: str) -> list[Event]:
        """Their process has ended: none is at work any more. Returns the events that say so."""
        ended, self._began, self.outlasting = self._began, {}, frozenset()
        return [stopped(task_id, reason, told) for task_id, (_, told) in ended.items()]


async def watch(core: Core, executions: Mapping[UUID, Execution]) -> None:
    """Stop what turns of this instance are in the background for too long, for ever."""
    while True:
        await pause(LOOK_SECONDS)
        looks = [_look(core, e, e.in_background) for e in executions.values() if e.in_background and not e.closing]
        if looks:
            await asyncio.gather(*looks)


async def _look(core: Core, execution: Execution, turn: Turn) -> None:
    """Stop a turn that is over its deadline, or keeps a client's prompt waiting; not one that waits for a person."""
    patience = core.settings.background_patience_seconds
    if execution.approvals.hold(turn.run_id):
        return
    try:
        if turn.guest:  # the prompt is with the agent already, behind it
            if execution.agent is not None and time.monotonic() - turn.began > patience:
                await execution.agent.interrupt()
        elif turn.seconds_left() <= 0:
            await execution.stop(turn.run_id, "timeout")
        elif await queue.kept_waiting(core.db, execution.session_id, patience):
            await execution.stop(turn.run_id, "interrupted")
    except _TRANSIENT as error:
        log.warning("background.unbounded", session_id=str(execution.session_id), error=type(error).__name__)
