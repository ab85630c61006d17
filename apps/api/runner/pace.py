"""How the runner's loops wait: woken or after a while, never all instances at the same moment."""

from __future__ import annotations

import asyncio
import random

POLL = 1.0
"""Seconds between looks at the queue and the commands without a wake-up."""


def jittered(seconds: float) -> float:
    """About that many seconds, 20 % up or down."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret


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
