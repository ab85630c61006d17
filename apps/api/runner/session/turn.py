"""The turns of an agent, and the deadline of each, which stands still while a person must answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from apps.api import instruments, tracing
from apps.api.core.fleet.claims import Claim
from apps.api.errors import ApiError
from apps.api.runner.agent.process import Agent


class TurnOver(Exception):
    """The turn was cut off: by its deadline, or by who stops it; see `Turn.stopping`."""


class Turn:
    """One turn of the agent, and the run that stands for it.

    Attributes:
        began: in monotonic seconds.
        unsent: the database says that no agent was given the prompt.
        begun: the agent is being given the prompt.
        sent: the agent has all of it.
        heard: its first delta has come.
        taken_up: the agent is in this turn, as its `init` says; or it has ended.
        lost: the agent has died with the prompt before it was in this turn: another may be given it, once.
        stopping: why we have interrupted it, if we have.
        parking: it is to be parked: its process is about to end.
        handed: messages that the agent was given in it, and has not said to have taken, by id.
        dropped: those of them that the agent has given up when it was interrupted.
        steered: the database may say that there are such.
        untaken: the agent still had some of them at the turn's end.
        refused: the failure for which the gateway has let a call of it through to no model, if it has.
        ending: what stores its end; there is only one at a time.
        span: of the run, as far as it is executed here.
        status: how its run has ended, once its end is stored.
    """

    def __init__(
        self, run_id: UUID, claim: Claim | None, *, guest: bool = False, seconds: float = float("inf")
    ) -> None:
        """`seconds`: the deadline of a turn in the background, which no claim stands for."""
        self.run_id, self.claim = run_id, claim
        self.guest = guest  # a background turn that is shown inside a client's run, and does not end it
        self.unsent = claim is not None and claim.unsent
        self.begun = self.sent = self.lost = self.heard = False
        self.stopping: str | None = None
        self.parking = False
        self.refused: ApiError | None = None
        self.ending: asyncio.Task[None] | None = None
        self.status: str | None = None
        self.handed = dict[UUID, Any]()
        self.dropped = frozenset[str]()
        self.steered = self.untaken = False
        self.span = tracing.Span() if guest else _begin(run_id, claim)
        self.taken_up = asyncio.Event()
        self.ended = asyncio.Event()
        self._left_alone = asyncio.Event()
        self._left = claim.timeout_seconds if claim else seconds
        self.began = time.monotonic()
        self._since: float | None = self.began
        self._clock: asyncio.Timeout | None = None
        self._cut = False

    @property
    def paused(self) -> bool:
        """Whether it waits for a person."""
        return self._since is None

    def end(self) -> None:
        """Let go who waits for it."""
        self.leave()
        self.taken_up.set()
        self.ended.set()
        self._left_alone.set()

    def leave(self) -> None:
        """It has ended, or goes on elsewhere."""
        self.span.set({"claude_agent_api.status": self.status or "left"})
        self.span.end("the run failed" if self.status == "failed" else None)

    def lose(self) -> bool:
        """Its agent has died. Returns whether another may be given the prompt: the first had done nothing with it."""
        if self.lost or not self.begun or self.stopping or self.taken_up.is_set():
            return False
        self.lost, self.begun, self.sent = True, False, False
        self._left_alone.set()
        return True

    def begin(self) -> None:
        """An agent is given the prompt."""
        self.begun = True
        self._left_alone.clear()

    def hand_over(self) -> None:
        """The agent has all of the prompt, if it has not died meanwhile: from now on it is asked to end the turn."""
        self.sent = self.begun

    def take_up(self) -> None:
        """The agent is in this turn."""
        self.begun = self.sent = True
        self.taken_up.set()

    def hear(self) -> None:
        """Its first delta has come. Of a run that was parked it is not the first."""
        self.heard = True
        if self.claim is not None and self.claim.parked is None:
            instruments.FIRST_DELTA.observe(self.claim.waited + time.monotonic() - self.began)

    def stop(self, reason: str) -> None:
        """Note why it is interrupted; the first reason counts. What no agent has yet is cut off at once."""
        self.stopping = self.stopping or reason
        if not self.sent:
            self.cut_off()

    def cut_off(self) -> None:
        """End what is being done for it, whatever that waits for."""
        self._cut = True
        if self._clock is not None and not self._clock.expired():
            self._clock.reschedule(asyncio.get_running_loop().time())

    def seconds_left(self) -> float:
        """Until its deadline; negative after it."""
        return self._left if self._since is None else self._left - (time.monotonic() - self._since)

    def pause(self) -> None:
        """Stop the clock: the turn waits for a person."""
        if self._since is not None:
            self._left, self._since = self.seconds_left(), None
            self._set_clock()

    def resume(self) -> None:
        """Let the clock go on."""
        if self._since is None:
            self._since = time.monotonic()
            self._set_clock()

    def _set_clock(self) -> None:
        # One that has gone off, or is about to, cannot be set any more.
        if self._clock is not None and not self._cut and not self._clock.expired():
            left = None if self.paused else asyncio.get_running_loop().time() + self._left
            self._clock.reschedule(left)

    @asynccontextmanager
    async def clock(self) -> AsyncIterator[None]:
        """The one clock of the turn: all that is done for it is done within, and ends at its deadline.

        It began with the claim, so that waiting for whatever counts. Raises TurnOver once what was done is cut off.
        """
        if self._cut or self.stopping:
            raise TurnOver
        try:
            async with asyncio.timeout(None if self.paused else self.seconds_left()) as clock:
                self._clock = clock
                yield
        except TimeoutError:
            if not clock.expired():
                raise  # somebody else's
            raise TurnOver from None
        finally:
            self._clock = None

    async def interrupt(self, agent: Agent) -> None:
        """Ask the agent to end this turn, if it has the prompt."""
        if not self.sent:
            return
        self.dropped |= await agent.interrupt(drop=bool(self.handed))
        if not self.taken_up.is_set():
            # A warm agent that has read a prompt and not begun its turn yet does not apply an interrupt to it: that
            # one stopped only what was in its way. Seen with the bundled CLI 2.1.327, for up to 20 ms.
            await self.taken_up.wait()
            if not self.ended.is_set():
                await agent.interrupt()

    def park(self) -> None:
        """Let whoever waits for it park it."""
        self.parking = True
        self._left_alone.set()

    def stay(self) -> None:
        """It is not parked after all."""
        self.parking = False
        if not self.lost and not self.ended.is_set():
            self._left_alone.clear()

    async def wait(self) -> None:
        """Until it has ended, is lost, or is to be parked."""
        await self._left_alone.wait()


def _begin(run_id: UUID, claim: Claim | None) -> tracing.Span:
    ids = {"run_id": run_id, "session_id": claim.session_id if claim else None}
    named = tracing.attributes(tracing.ids(None, **ids)) if tracing.on() else tracing.NOTHING
    return tracing.begin("run", claim.traceparent if claim else None, named)


class Turns:
    """The turns of one session. All its parts read them; they begin and end by what is called here, and nowhere else.
    What works for the session works on them, see `tracing.About`.

    Attributes:
        current: the turn of the client's run that is being executed.
        active: the turn that the agent is in, which may be one of a background task.
        denied: tool calls of the agent's process that were denied, and counted.
    """

    def __init__(self, freed: Callable[[], None], session_id: UUID | None = None) -> None:
        """`freed` is called whenever a run may have ceased to need its slot: it is over, or waits for a person."""
        self._freed, self._session_id = freed, session_id
        self.current: Turn | None = None
        self.active: Turn | None = None
        self.denied = set[str]()

    @property
    def all(self) -> list[Turn]:
        """Those that there are, the client's first."""
        return list(dict.fromkeys(turn for turn in (self.current, self.active) if turn is not None))

    @property
    def run_id(self) -> UUID | None:
        """The run that is active now; before the turn's `init`, the prompt is its run's already."""
        turn = self.active or self.current
        return turn.run_id if turn and not turn.ended.is_set() else None

    @property
    def traceparent(self) -> str | None:
        """Of the run that the agent works for."""
        turn = self.active if self.active is not None and not self.active.guest else self.current
        return None if turn is None else turn.span.traceparent

    def told(self) -> dict[str, str]:
        """See `tracing.About`."""
        return tracing.ids(self.traceparent, session_id=self._session_id, run_id=self.run_id)

    @property
    def in_background(self) -> Turn | None:
        """The turn that the agent is in, if no client has asked for it."""
        return self.active if self.active is not None and self.active.claim is None else None

    def of(self, run_id: UUID | None) -> Turn | None:
        """The turn of a run, or whichever there is."""
        return next((turn for turn in self.all if run_id in (None, turn.run_id)), None)

    def takes_up(self, tool_use_id: str | None) -> bool:
        """Whether this is the call that the client's run was parked with, which is carried out now."""
        claim = self.current.claim if self.current else None
        return claim is not None and claim.parked is not None and claim.parked.tool_use_id == tool_use_id

    def refuse(self, failure: ApiError) -> None:
        """The gateway lets no call of the turn that there is through, for this failure."""
        for turn in self.all[-1:]:
            turn.refused = failure

    def assign(self, claim: Claim) -> Turn:
        """A client's run is to be executed: from now on it can be stopped."""
        self.current = Turn(claim.run_id, claim)
        return self.current

    def leave(self) -> None:
        """The client's run has been executed."""
        if self.current is not None:
            self.current.leave()
        self.current = None
        self._freed()

    def enter(self, turn: Turn | None) -> None:
        """The agent is in this turn now, or in none."""
        self.active = turn
        if turn is not None:
            turn.take_up()

    def end(self, turn: Turn, status: str | None = None) -> None:
        """A turn is over; `status`: how its run has ended, as we have stored it."""
        if self.active is turn:
            self.active = None
        turn.status = status
        turn.end()

    def end_all(self) -> None:
        """Nobody will write how the turns end: let go who waits for it."""
        for turn in self.all:
            turn.end()

    def lose(self) -> list[Turn]:
        """The agent has died. Returns what it takes with it: what it has begun, and not what the next one may do."""
        taken = [turn for turn in self.all if turn is self.active or (turn.begun and not turn.lose())]
        return [turn for turn in taken if not turn.guest]

    def hold(self, run_ids: Collection[UUID | None]) -> None:
        """Stop the clocks of the runs that wait for a person, and let the others go on."""
        for turn in self.all:
            turn.pause() if turn.run_id in run_ids else turn.resume()
        self._freed()
