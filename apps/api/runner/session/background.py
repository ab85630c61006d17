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

NEWS_SECONDS = 10.0
"""Between the end of a task and the `init` of the turn that the agent begins for it. Seen with the bundled CLI 2.1.332:
50 ms, on a busy machine more."""


class Tasks:
    """The subagents and background commands of one agent process that are at work.

    Attributes:
        outlasting: ids of those that outlast the turn which began them.
    """

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self.outlasting: frozenset[str] = frozenset()
        self._ended_at: float | None = None

    @property
    def ids(self) -> frozenset[str]:
        """Of all that are at work."""
        return frozenset(self._began)

    def begun_since(self, moment: float) -> bool:
        """Whether one is at work that began after `moment`, in monotonic seconds."""
        return any(began > moment for began, _ in self._began.values())

    @property
    def news(self) -> bool:
        """Whether one that outlasted its turn has ended just now, and the agent is not in the turn that tells of it.

        The CLI says that it has ended before it says that it is in the background no more. It may tell of it inside a
        client's turn too, so that no turn of its own follows.
        """
        return self._ended_at is not None and time.monotonic() - self._ended_at < NEWS_SECONDS

    def take(self, message: Message) -> bool:
        """Note what a message says of tasks. Returns whether one goes to the background that was not there before."""
        match message:
            case TaskStartedMessage() if len(self._began) < MAX_TASKS:
                self._began[message.task_id] = time.monotonic(), message.data
            case TaskNotificationMessage():
                self._began.pop(message.task_id, None)
                if message.task_id in self.outlasting:
                    self._ended_at = time.monotonic()
            case SystemMessage(subtype="background_tasks_changed"):
                before, told = self.outlasting, (message.data.get("tasks") or ())[:MAX_TASKS]
                self.outlasting = frozenset(str(task.get("task_id")) for task in told)
                return bool(self.outlasting - before)
            case ResultMessage():  # a turn is over, and with it what it has waited for
                self._began = {i: began for i, began in self._began.items() if i in self.outlasting}
        return False

    def told(self) -> None:
        """The agent is in the turn that tells of those that have ended."""
        self._ended_at = None

    def end(self, reason: str) -> list[Event]:
        """Their process has ended: none is at work any more. Returns the events that say so."""
        ended, self._began, self.outlasting, self._ended_at = self._began, {}, frozenset(), None
        return [stopped(task_id, reason, told) for task_id, (_, told) in ended.items()]
