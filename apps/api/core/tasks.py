"""How loops wait, never all instances at the same moment, and ending tasks for certain."""

from __future__ import annotations

import asyncio
import random
from typing import Any

INSIST_AFTER = 1.0
"""Seconds after which a task that has not ended is cancelled once more."""


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, however they end.

    Once is not enough: until Python 3.12 `asyncio.wait_for`, which redis-py calls for every command, swallows a
    cancellation that comes at the moment when what it waits for is done. A loop would then go on for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=INSIST_AFTER)
        except asyncio.CancelledError:
            for task in pending:
                task.cancel()
            raise
    await asyncio.gather(*tasks, return_exceptions=True)


POLL = 1.0
"""Seconds between looks at the queue and the commands without a wake-up."""


def jittered(seconds: float) -> float:
    """About that many seconds, 20 % up or down."""
    return seconds * random.uniform(0.8, 1.2)


async def pause(seconds: float) -> None:
    """Wait about that long."""
    await asyncio.sleep(jittered(seconds))


async def nap(wake: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most about that long; clears it."""
    try:
        # Not wait_for: until Python 3.12 it can swallow a cancellation that comes together with the event.
        async with asyncio.timeout(jittered(seconds)):
            await wake.wait()
    except TimeoutError:
        return
    finally:
        wake.clear()
