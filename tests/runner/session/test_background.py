"""The tasks that an agent has at work, told by its messages."""

from __future__ import annotations

from typing import Any

from claude_agent_sdk import SystemMessage, TaskNotificationMessage, TaskStartedMessage

from apps.api.runner.session.background import Tasks

OF_ALL: dict[str, Any] = {"data": {}, "task_id": "t", "uuid": "u", "session_id": "s"}
STARTED = TaskStartedMessage("task_started", description="d", **OF_ALL)
ENDED = TaskNotificationMessage("task_notification", status="completed", output_file="", summary="s", **OF_ALL)
INIT = SystemMessage("init", {})


def test_a_task_that_has_ended_is_news_until_the_agent_is_in_the_turn_that_tells_it() -> None:
    tasks = Tasks()
    tasks.take(STARTED)
    assert (set(tasks.ids), tasks.news) == ({"t"}, False)
    tasks.take(ENDED)
    assert (set(tasks.ids), tasks.news) == (set(), True)
    tasks.take(INIT)
    assert not tasks.news


def test_news_dies_with_its_process() -> None:
    tasks = Tasks()
    for message in (STARTED, ENDED):
        tasks.take(message)
    assert tasks.end("killed") == []
    assert not tasks.news
