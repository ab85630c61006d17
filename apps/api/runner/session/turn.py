"""One turn of an agent, and its deadline, which stands still while a person must answer."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from apps.api.core.fleet.claims import Claim
from apps.api.runner.agent.process import Agent


class Turn:
    """One turn of the agent, and the run that stands for it.

    Attributes:
        began: in monotonic seconds.
        begun: the prompt is with the agent.
        taken_up: the agent is in this turn, as its `init` says; or it has ended.
        lost: the agent has died with the prompt before it was in this turn: another may be given it, once.
        stopping: why we have interrupted it, if we have.
    """

    def __init__(
        self, run_id: UUID, claim: Claim | None, *, guest: bool = False, seconds: float = float("inf")
    ) -> None:
        """`seconds`: the deadline of a turn in the background, which no claim stands for."""
        self.run_id, self.claim = run_id, claim
        self.guest = guest  # a background turn that is shown inside a client's run, and does not end it
        self.begun = self.lost = False
        self.stopping: str | None = None
        self.taken_up = asyncio.Event()
        self.ended = asyncio.Event()
        self._left_alone = asyncio.Event()
        self._left = claim.timeout_seconds if claim else seconds
        self.began = time.monotonic()
        self._since: float | None = self.began
        self._clock: asyncio.Timeout | None = None

    def end(self) -> None:
        """Let go who waits for it."""
        self.taken_up.set()
        self.ended.set()
        self._left_alone.set()

    def lose(self) -> bool:
        """Its agent has died. Returns whether another may be given the prompt: the first had done nothing with it."""
        if self.lost or not self.begun or self.stopping or self.taken_up.is_set():
            return False
        self.lost, self.begun = True, False
        self._left_alone.set()
        return True

    def begin(self) -> None:
        """An agent is given the prompt."""
        self.begun = True
        self._left_alone.clear()

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

    async def interrupt(self, agent: Agent) -> None:
        """Ask the agent to end this turn, if it has the prompt."""
        if not self.begun:
            return
        await agent.interrupt()
        if not self.taken_up.is_set():
            # A warm agent that has read a prompt and not begun its turn yet does not apply an interrupt to it: that
            # one stopped only what was in its way. Seen with the bundled CLI 2.1.327, for up to 20 ms.
            await self.taken_up.wait()
            if not self.ended.is_set():
                await agent.interrupt()

    async def wait(self) -> None:
        """Until it has ended or is lost. Raises TimeoutError at its deadline."""
        async with asyncio.timeout(None if self._since is None else self.seconds_left()) as self._clock:
            await self._left_alone.wait()
