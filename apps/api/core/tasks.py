"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
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
