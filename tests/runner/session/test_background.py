"""The tasks that an agent has at work, told by its messages."""

from __future__ import annotations

from typing import Any

from claude_agent_sdk import Message, ResultMessage, SystemMessage, TaskNotificationMessage, TaskStartedMessage

from apps.api.runner.session.background import Tasks
from apps.api.runner.session.execution import Execution
from apps.api.runner.upkeep import Upkeep
from apps.api.runner.worker import Worker
from tests.core.conftest import neighbourhood, world
from tests.world import World

__all__ = ["neighbourhood", "world"]

OF_ALL: dict[str, Any] = {"data": {}, "task_id": "t", "uuid": "u", "session_id": "s"}
STARTED = TaskStartedMessage("task_started", description="d", **OF_ALL)
ENDED = TaskNotificationMessage("task_notification", status="completed", output_file="", summary="s", **OF_ALL)
RESULT = ResultMessage("success", 1, 1, False, 1, "s")
OUTLASTS = SystemMessage("background_tasks_changed", {"tasks": [{"task_id": "t"}]})
NONE_OUTLASTS = SystemMessage("background_tasks_changed", {"tasks": []})


def after(*messages: Message) -> Tasks:
    tasks = Tasks()
    for message in messages:
        tasks.take(message)
    return tasks


def test_a_task_that_has_ended_is_news_until_the_agent_is_in_the_turn_that_tells_it() -> None:
    tasks = after(OUTLASTS, STARTED)
    assert (set(tasks.ids), tasks.news) == ({"t"}, False)
    for message in (ENDED, NONE_OUTLASTS, SystemMessage("init", {}), RESULT):  # of a client's turn, for example
        tasks.take(message)
        assert (set(tasks.ids), tasks.news) == (set(), True)
    tasks.told()
    assert not tasks.news


def test_a_task_that_ends_within_its_turn_is_no_news() -> None:
    assert not after(STARTED, ENDED).news


def test_news_dies_with_its_process() -> None:
    tasks = after(OUTLASTS, STARTED, ENDED)
    assert tasks.news
    assert tasks.end("killed") == []
    assert not tasks.news


async def test_a_session_whose_tasks_are_at_work_is_given_up_to_no_other_instance(world: World) -> None:
    lease, _ = await world.instance(), await world.instance()
    await world.queue()
    claim = await world.claim(lease)
    worker = Worker(world.core(), lease)
    try:
        execution = Execution(world.core(), worker._means, claim, lambda: None)
        worker.executions[claim.session_id] = execution
        await world.queue(claim.session_id)
        await world.db.pool.execute("UPDATE runs SET created_at = created_at - interval '1 minute'")
        upkeep = Upkeep(world.core(), worker)
        execution.tasks.take(STARTED)
        await upkeep._yield_idle()
        assert not execution.closing
        execution.tasks.end("stopped")
        await upkeep._yield_idle()
        assert execution.closing
    finally:
        worker.scratch.close()
