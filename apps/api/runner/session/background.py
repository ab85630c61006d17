"""What an agent does without being asked by a client: its tasks, and the turns that they begin."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from claude_agent_sdk import Message, ResultMessage, SystemMessage, TaskNotificationMessage, TaskStartedMessage

from apps.api.core.events.log import Event
from apps.api.core.sessions.agent_tasks import stopped

MAX_TASKS = 1_000
"""Of one process that are kept in mind."""


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
