"""One turn of an agent, and its deadline, which stands still while a person must answer."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from apps.api.core.queue import Claim


class Turn:
    """One turn of the agent, and the run that stands for it."""

    def __init__(self, run_id: UUID, claim: Claim | None, *, guest: bool = False) -> None:
        self.run_id, self.claim = run_id, claim
        self.guest = guest  # a background turn that is shown inside a client's run, and does not end it
        self.begun = False
        self.stopping: str | None = None
        self.ended = asyncio.Event()
        self._left = claim.timeout_seconds if claim else float("inf")
        self._since: float | None = time.monotonic()
        self._clock: asyncio.Timeout | None = None

    def seconds_left(self) -> float:
        """Until its deadline; negative after it."""
        return self._left if self._since is None else self._left - (time.monotonic() - self._since)

    def pause(self) -> None:
        """Stop the clock: the turn waits for a person."""
        if self._since is not None:
            self._left, self._since = self.seconds_left(), None
            if self._clock is not None:
                self._clock.reschedule(None)

    def resume(self) -> None:
        """Let the clock go on."""
        if self._since is None:
            self._since = time.monotonic()
            if self._clock is not None:
                self._clock.reschedule(asyncio.get_running_loop().time() + self._left)

    async def wait(self) -> None:
        """Until it has ended. Raises TimeoutError at its deadline."""
        async with asyncio.timeout(None if self._since is None else self.seconds_left()) as self._clock:
            await self.ended.wait()
