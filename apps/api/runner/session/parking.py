"""Parking a session: its process ends while a person is asked, and another one goes on where it stopped.

The call that waits is the last thing in the conversation as it is stored: nothing is that the process says when it is
ended. See docs/adr/0019-parked-sessions.md, and `agent/dangling.py` for how the next process carries the call out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg
import structlog
from claude_agent_sdk import CLIConnectionError, ResultMessage

from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.core.events.log import Event, Writer
from apps.api.core.fleet import parked
from apps.api.core.sessions import sessions
from apps.api.core.sessions.parking import Parked
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.runner.agent import dangling
from apps.api.runner.agent.outcome import used
from apps.api.runner.agent.process import STOP_TIMEOUT, Agent
from apps.api.runner.session.approvals import Approvals, Open
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.conversation import Conversation
from apps.api.runner.session.ports import Ports
from apps.api.runner.session.storing import Storing
from apps.api.runner.session.turn import Turn, Turns

log = structlog.get_logger(__name__)

TAKE_UP_SECONDS = 60.0
"""For a new process to get to the call that it goes on with; MCP servers may have to start first."""

LOOK_AGAIN_SECONDS = 30.0
"""After which a session that could not be parked is looked at again."""


class Parking:
    """Whether a session can be parked, and how.

    Attributes:
        begun: its process is being ended for it.
        done: its run is parked, and the session is nobody's.
    """

    def __init__(
        self,
        core: Core,
        writer: Writer,
        store: Transcripts,
        storing: Storing,
        turns: Turns,
        tasks: Tasks,
        approvals: Approvals,
        ports: Ports,
        talk: Conversation,
    ) -> None:
        self._core, self._writer, self._store, self._storing, self._turns = core, writer, store, storing, turns
        self._tasks, self._ports, self._approvals, self._talk = tasks, ports, approvals, talk
        self._not_before = 0.0
        self.begun = self.done = False

    @property
    def since(self) -> float | None:
        """Since when the session has waited for nothing but a person, in monotonic seconds. None: it cannot be parked.

        Nothing else may be at work in the process, or be reached in it: no tasks, no subagents, no ports.
        """
        turn = self._turns.current
        if turn is None or self._turns.active is not turn or time.monotonic() < self._not_before:
            return None
        busy = self._tasks.ids or self._tasks.outlasting or self._tasks.news or self._ports.open
        mine = None if busy else self._waiting(turn)
        return None if mine is None else mine.since

    def _waiting(self, turn: Turn) -> Open | None:
        over = turn.stopping or turn.parking or turn.ending is not None or turn.ended.is_set()
        return None if over or not turn.paused else self._approvals.sole(turn.run_id)

    async def consider(self, agent: Agent) -> None:
        """Let the session be parked, if what is stored of its conversation is enough to go on."""
        turn = self._turns.current
        mine = self._waiting(turn) if turn else None
        if turn is None or mine is None:
            return
        await self._ports.look(agent)  # one may have been opened just now
        call = await dangling.find(self._store, str(mine.asked.fields["tool_use_id"]))
        # A command means another one in another directory, and only a process knows where it has got to.
        elsewhere = call is None or call.others_before or call.cwd != agent.cwd
        if elsewhere or self._talk.is_at_its_bound(agent.config):
            self._not_before = time.monotonic() + LOOK_AGAIN_SECONDS
        elif self.since == mine.since:
            turn.park()

    async def park(self, turn: Turn, agent: Agent, end: Callable[[], Awaitable[None]]) -> bool:
        """Park the session, if it still waits: end the process with `end`, and leave the run to whoever takes it up.

        Raises LeaseLost, Unavailable.
        """
        turn.parking = False
        mine = self._waiting(turn)
        if mine is None or self.since is None:
            turn.stay()
            return False
        turn.parking = self.begun = True
        seconds_left = turn.seconds_left()
        self._store.freeze()
        self._approvals.leave(mine)
        try:
            await self._end(turn, agent, self._talk.set_aside(), end)
            await self._storing.give_back()
            cost, models, calls = self._talk.used()
            left = Parked(
                mine.asked.id,
                str(mine.asked.fields["tool_use_id"]),
                max(seconds_left, 1.0),
                calls,
                cost,
                used(models),
                models,
            )
            await self._store_it(turn, left, agent)
            self.done = True
        finally:
            self._approvals.gone()
        log.info("parking.parked", session_id=str(self._writer.session_id), run_id=str(turn.run_id))
        self._turns.end(turn)
        return True

    async def take_up(self, turn: Turn, agent: Agent) -> None:
        """Let a new agent carry out the call that the run was parked with, as has been decided.

        Raises CLIConnectionError when it does not.
        """
        turn.begin()
        turn.hand_over()
        self._approvals.send()
        signs = [asyncio.ensure_future(self._approvals.taken_up.wait()), asyncio.ensure_future(turn.wait())]
        try:
            seen, _ = await asyncio.wait(signs, timeout=TAKE_UP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for sign in signs:
                sign.cancel()
        if not seen:
            agent.kill()
            raise CLIConnectionError("The agent has not gone on with the call that it waited with.")

    async def _end(
        self, turn: Turn, agent: Agent, result: asyncio.Future[ResultMessage], end: Callable[[], Awaitable[None]]
    ) -> None:
        # Interrupted it says what it has used; what it makes of the call that waits is not stored.
        await agent.interrupt(drop=bool(turn.handed))
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT):
                await result
        await end()

    async def _store_it(self, turn: Turn, left: Parked, agent: Agent) -> None:
        core, writer, frames = self._core, self._writer, list[Frame]()
        config = self._talk.in_its_mode(agent.config).given()

        async def store(connection: asyncpg.Connection, seq: int) -> None:
            nonlocal frames
            await self._talk.keep(connection, turn)
            frames = await parked.park(connection, writer.session_id, seq, turn.run_id, left, config)

        event = Event("status", {"status": "parked", "request_id": str(left.request_id)}, turn.run_id)
        await writer.append(event, also=store)
        core.publisher.command("DEL", core.redis.keys.active_session(writer.session_id))
        await sessions.forget_cached(core.redis, writer.tenant_id, writer.session_id)
        if frames:
            core.relay(writer.tenant_id, writer.session_id, frames)
            core.wake(writer.tenant_id, writer.session_id)
