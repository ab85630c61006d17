"""Threads for what blocks. Each kind of work has its own, so that none waits until those of another are free."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from apps.api.machine import cpus

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """The threads of one kind of work; those that are wanted beyond `count` wait for one."""

    def __init__(self, name: str, count: int) -> None:
        self._executor = ThreadPoolExecutor(count, f"{name}-")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `asyncio.to_thread`."""
        call = partial(contextvars.copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Forget what has not begun. What has is not waited for here."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Blocking:
    """The kinds of work on files. What answers requests, and is done in a moment, has the threads of asyncio."""

    def __init__(self) -> None:
        self.starts = Threads("starts", max(4, cpus()))
        """What an agent's start waits for."""
        self.copies = Threads("copies", 4)
        """What forks copy, and what failed copies leave: twice what one tenant may have at a time."""
        self.stores = Threads("stores", 4)
        """What is read and written of files that are stored and restored."""
        self.removal = Threads("removal", 1)
        """What nobody waits for: one after the other, however many sessions are deleted at a time. Not at a
        lower priority: a thread that waits for a processor while it holds the interpreter stops the event loop."""

    def close(self) -> None:
        """Forget what has not begun."""
        for threads in (self.starts, self.copies, self.stores, self.removal):
            threads.close()
