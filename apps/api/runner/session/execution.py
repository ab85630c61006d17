"""One live session: the owner's SDK client on one side, the event log on the other.

One task (`run`) starts, uses and closes the agent; one child task reads every message it yields and hands it to the
conversation, because background work of the agent produces turns that nobody asked for. Nobody else touches the agent,
except to interrupt, ask or kill it.

The session makes its parts and calls them. They know each other as far as one is made of the other (the conversation of
approvals, ports and the transcript; all of the turns), and the session only as an `Owner`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from uuid import UUID

import asyncpg
import structlog
from claude_agent_sdk import CLIConnectionError, Message

from apps.api.core.context import Core
from apps.api.core.events.log import Writer
from apps.api.core.fleet import cancellation, ownership
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import sessions
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.db import CONNECTION_ERRORS, PASSING
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner.agent.process import STOP_TIMEOUT, Agent, StartFailed
from apps.api.runner.session.approvals import Approvals
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.chores import Chores
from apps.api.runner.session.conversation import Conversation
from apps.api.runner.session.denials import Denials
from apps.api.runner.session.hooks import Hooks
from apps.api.runner.session.launch import Launch, Means
from apps.api.runner.session.parking import Parking
from apps.api.runner.session.ports import Ports
from apps.api.runner.session.provisions import NotProvided
from apps.api.runner.session.steering import Steering
from apps.api.runner.session.storing import Storing
from apps.api.runner.session.turn import Turn, TurnOver, Turns

log = structlog.get_logger(__name__)

_WITHOUT_THE_DATABASE: tuple[type[Exception], ...] = (LeaseLost, *PASSING)
"""What says that the session is somebody else's, or nothing."""


class Execution:
    """A session while this instance owns it.

    Attributes:
        launch: starts its agents.
        closing: it is being given back or lost: no new run should come here.
        fenced: this instance has lost it.
        last_used: when its last run ended, in monotonic seconds.
        over: set once it has ended here.
    """

    def __init__(self, core: Core, means: Means, claim: Claim, freed: Callable[[], None]) -> None:
        """`freed` is called whenever a run has ended and its slot is free."""
        self._core = core
        self.instance_id, self.session_id, self.generation = core.instance_id, claim.session_id, claim.generation
        self.writer = Writer(
            core.db,
            core.redis,
            core.publisher,
            means.lease,
            means.batches,
            tenant_id=claim.tenant_id,
            session_id=claim.session_id,
            generation=claim.generation,
            last_seq=claim.last_seq,
        )
        self.turns, self.tasks = Turns(freed, claim.session_id), Tasks()
        self.storing = Storing(core, self.writer)
        self._store = Transcripts(core.db, means.lease, claim.session_id, claim.generation, claim.sdk_session_id)
        self.steering = Steering(core, self.writer, self._store, self.turns, self)
        self.approvals = Approvals(core, self.writer, self.turns, self.tasks, self, self.steering)
        self.ports, self.denials = Ports(self.writer, self.turns), Denials(self.writer, self.turns)
        outward = (lambda port: self.ports.whose(self.agent, port), self.denials.note)
        mine = self._store, self.storing, self.approvals, Hooks(core, self.writer, self.turns, self, self.steering)
        self.launch = Launch(core, means, self.turns, self.writer, *mine, *outward)
        parts = self.turns, self.tasks, self.approvals, self.ports, self.denials, self.steering
        self._talk = Conversation(core, self.writer, self._store, self.storing, *parts, self.launch.settle)
        self.parking = Parking(core, self.writer, self._store, self.storing, *parts[:4], self._talk)
        self._chores = Chores(core, self._store, self.storing, self._talk, self._prepare, self._disconnect)
        self._inbox: asyncio.Queue[Claim | None] = asyncio.Queue(maxsize=2)
        self._agent: Agent | None = None
        self.fenced = self.closing = False
        self._reason = "idle"
        self.last_used = time.monotonic()
        self.over = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether a client's run is being executed or about to be."""
        return self.turns.current is not None

    @property
    def waiting(self) -> bool:
        """Whether the run that is being executed waits for a person."""
        return (turn := self.turns.current) is not None and turn.paused

    @property
    def idle(self) -> bool:
        """Whether the session may be given back: nothing runs or is at work, and nobody is asked."""
        return not (self.busy or self.closing or self.approvals.waiting or self.at_work)

    @property
    def at_work(self) -> bool:
        """Whether the agent does what no client waits for. How long a task counts: see BACKGROUND_TASK_SECONDS."""
        tasks, since = self.tasks, time.monotonic() - self._core.settings.background_task_seconds
        begun = self.last_used > since and tasks.begun_since(since)
        return self.turns.in_background is not None or tasks.news or begun

    @property
    def agent(self) -> Agent | None:
        """The agent, as long as its process lives."""
        return self._agent if self._agent is not None and self._agent.is_alive else None

    @property
    def process(self) -> Agent | None:
        """The agent, also while it starts."""
        return self.launch.starting or self.agent

    def adopt(self, claim: Claim) -> None:
        """The session is there, and this instance owns it."""
        self.generation = claim.generation
        self.writer.take(claim.generation, claim.last_seq)
        self._store.take(claim.generation)

    def assign(self, claim: Claim) -> None:
        """Execute this run next; the claim guarantees that no other is active."""
        self.turns.assign(claim)
        self._inbox.put_nowait(claim)

    def close(self, reason: str) -> None:
        """Give the session back after the current turn, if any. `reason`: why its tasks end with its agent."""
        if not self.closing:
            self.closing, self._reason = True, reason
            if not self._inbox.full():
                self._inbox.put_nowait(None)

    def fence(self) -> None:
        """Somebody else owns the session, or may soon: kill the CLI now and write nothing more."""
        self.fenced = True
        self._kill("owner_lost")
        if (turn := self.turns.current) is not None:
            turn.cut_off()
        self.close("owner_lost")

    async def stop(self, run_id: UUID | None, reason: str) -> bool:
        """Stop the turn of `run_id` (or whichever is active).

        Once it has ended, returns whether its run was interrupted: it may have ended otherwise just before.
        """
        turn = self.turns.of(run_id)
        if turn is None or turn.ended.is_set():
            return False
        turn.stop(reason)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                if self._agent is not None and turn.ending is None:
                    await turn.interrupt(self._agent)
                await turn.ended.wait()
        except TimeoutError:
            if turn.ending is None:
                self._kill()
            async with asyncio.timeout(STOP_TIMEOUT):
                await turn.ended.wait()
        return turn.status == "interrupted"

    async def park(self) -> None:
        """Give the session back while its run waits for a person, if it waits for nothing else; see `Parking`."""
        if (agent := self.agent) is not None:
            await self.parking.consider(agent)

    async def cancel(self, run_id: UUID) -> bool:
        """End a run of this session: a queued one never begins, an active one is interrupted."""
        if self.turns.of(run_id) is not None:
            return await self.stop(run_id, "interrupted")

        async def end(connection: asyncpg.Connection, seq: int) -> None:
            await cancellation.end(connection, run_id, seq)

        try:
            await self.writer.append(cancellation.done(run_id), also=end)
        except cancellation.NotQueued:
            return await self.stop(run_id, "interrupted")
        return True

    async def run(self) -> None:
        """Own the session until it is idle for long, closed, or lost."""
        try:
            while not self.fenced:
                claim = await self._next()
                if claim is not None:
                    await self._turn(claim)
                    self.last_used = time.monotonic()
                    if self.parking.done:
                        return
                elif not self.fenced:
                    if (turn := self.turns.in_background) is not None:
                        await self.stop(turn.run_id, "shutdown")
                    await self._disconnect(self._reason)
                    await self.ports.look(None)
                    await self.storing.give_back()
                    if await self._release():
                        return
                    self.closing = False  # a run was claimed in the last moment: it is about to be assigned
        except (LeaseLost, Unavailable) as error:
            # Without the database nothing can be ended in order: as good as fenced. The heartbeat clears up.
            log.warning("execution.fenced", session_id=str(self.session_id), reason=str(error))
            self.fenced = True
        finally:
            self.closing = True
            if self.fenced:
                self._kill("owner_lost")
            await self._disconnect(None)
            self.over.set()

    async def _next(self) -> Claim | None:
        idle = wait = self._core.settings.session_idle_seconds
        while True:
            try:
                async with asyncio.timeout(wait):
                    return await self._inbox.get()
            except TimeoutError:
                wait = max(idle, 1.0)
                if time.monotonic() - self.ports.asked_at < idle:  # somebody looks at a preview
                    continue
                if not self._inbox.empty():
                    return self._inbox.get_nowait()
                if self.idle:
                    self.closing, self._reason = True, "idle"
                    return None

    async def _turn(self, claim: Claim) -> None:
        turn = self.turns.current
        assert turn is not None  # noqa: S101 - for the type checker
        try:
            try:
                obey = {"reset": self._chores.reset, "rewind": self._chores.rewind}
                await obey.get(claim.kind, self._take_up if claim.parked else self._prompt)(turn, claim)
            except TurnOver:
                await self._end_cut_off(turn)
        except (LeaseLost, Unavailable):
            raise
        except Exception as error:
            log.error("execution.turn_failed", session_id=str(self.session_id), error=error, exc_info=True)
            self._kill()
            code = "storage_failed" if isinstance(error, CONNECTION_ERRORS) else "agent_crashed"
            await self._talk.fail(turn, code, f"The agent failed: {type(error).__name__}.")
        finally:
            self.turns.leave()

    async def _prompt(self, turn: Turn, claim: Claim) -> None:
        """Have an agent do what is asked; another one, when the first dies before it is in the turn."""
        async with turn.clock():
            while agent := await self._prepare(turn, claim):
                turn.begin()
                try:
                    await agent.send(claim.run_id, claim.prompt, expand=claim.expand_prompt)
                except CLIConnectionError:
                    if turn.begun and not turn.lose():
                        raise
                turn.hand_over()
                self.launch.expect()
                await self._until_left_alone(turn, agent)
                if turn.ended.is_set():
                    return
                await self._disconnect("agent_ended")
                await self._store.forget(turn.run_id)  # the CLI does not take a prompt that it finds there

    async def _until_left_alone(self, turn: Turn, agent: Agent) -> None:
        """Until the turn has ended, is parked, or has lost its agent."""
        await turn.wait()
        while turn.parking and not await self.parking.park(turn, agent, partial(self._disconnect, None)):
            await turn.wait()

    async def _take_up(self, turn: Turn, claim: Claim) -> None:
        """Go on with a run that was parked: an agent that is new carries out the call that has been decided on."""
        async with turn.clock():
            self._talk.owe(claim)
            if agent := await self._prepare(turn, claim):
                agent.use_up()  # what it was started with is for this run
                await self.parking.take_up(turn, agent)
                await self._until_left_alone(turn, agent)

    async def _end_cut_off(self, turn: Turn) -> None:
        """End a turn whose deadline has come, or that was stopped before an agent had its prompt."""
        if self.fenced:
            raise LeaseLost(f"session {self.session_id}: lost in the middle of a turn")
        reason = turn.stopping or "timeout"
        turn.stop(reason)
        if turn.sent and turn.ending is None:
            with suppress(TimeoutError):
                await self.stop(turn.run_id, reason)
        await self._talk.fail(turn, reason)
        if not turn.sent and self.agent is None:
            await self._disconnect("agent_ended")

    async def _prepare(self, turn: Turn, claim: Claim) -> Agent | None:
        """A live agent for this run, warm or new. None when there is none to be had: then the run has ended."""
        agent = self._agent
        if agent and (unfit := agent.unfit(claim, tasks=bool(self.tasks.ids), at_work=self.at_work)):
            await self._disconnect(unfit)
        is_new = self._agent is None
        try:
            if is_new:
                self._agent = self.steering.agent = await self.launch.start(claim, turn)
                self._talk.new_process()
            else:
                await self.launch.provisions.add(claim)
        except NotProvided as error:
            await self._talk.fail(turn, error.code, str(error))
            return None
        except StartFailed as error:
            log.error("execution.start_failed", session_id=str(self.session_id), detail=error)
            await self._talk.fail(turn, error.code, error.told)
            return None
        agent = self._agent
        assert agent is not None  # noqa: S101 - for the type checker
        try:
            if self.fenced:
                raise LeaseLost(f"session {self.session_id}: lost while its agent started")
            if turn.stopping:
                raise TurnOver
            await self.launch.note_sent(turn, True)
            if claim.parked:
                await self._talk.take_up(turn)  # before it is heard: it may say at once that it cannot go on
        finally:
            if is_new:
                agent.read(self)
        return agent

    # --- what the parts report ---------------------------------------------------------------------------------

    async def heard(self, agent: Agent, message: Message) -> None:
        """The agent's next message."""
        await self._talk.hear(agent, message)

    async def ended(self, agent: Agent, failure: Exception | None) -> None:
        """The agent has said its last; `failure` tells why, if it has not ended by itself."""
        if isinstance(failure, LeaseLost | Unavailable):
            self.lost(failure)
            return
        if self.parking.begun:
            return  # that is meant
        if failure is not None:
            log.warning("execution.agent_ended", session_id=str(self.session_id), error=failure)
            agent.kill()
        lost = self.turns.lose()
        try:
            await self.approvals.close_all("agent_ended")
            for turn in lost:
                await self._talk.fail(turn, agent.why_it_ended(failure))
            self.turns.enter(None)
            if self._agent is agent:  # else whoever closes it knows why
                await self._end_tasks(agent.exceeded or "agent_ended")
        except _WITHOUT_THE_DATABASE as error:  # nobody else asks: a turn that is not ended here waits for its timeout
            self.lost(error)

    def lost(self, error: Exception) -> None:
        """The database says that the session is somebody else's, or says nothing: end it here, unwritten."""
        log.warning("execution.fenced", session_id=str(self.session_id), reason=str(error))
        self.fence()
        self.turns.end_all()

    # --- the end of an agent, and of the session ---------------------------------------------------------------

    def _kill(self, why: str = "killed") -> None:
        if self._agent is not None:
            self._agent.kill(why)

    async def _disconnect(self, reason: str | None) -> None:
        """End the agent, and say of its tasks why; of None nothing, as nothing may be written then."""
        agent, self._agent = self._agent, None
        if agent is not None:
            await agent.close(reason or ("parked" if self.parking.begun else self._reason))
        if reason is not None:
            await self._end_tasks(reason)
        self.launch.clear()

    async def _end_tasks(self, reason: str) -> None:
        if ended := self.tasks.end(reason):
            await self.writer.append(*ended)

    async def _release(self) -> bool:
        waiting = await ownership.release(self._core.db, self.session_id, self.generation)
        if waiting is None:
            return False
        self._core.publisher.command("DEL", self._core.redis.keys.active_session(self.session_id))
        await sessions.forget_cached(self._core.redis, self.writer.tenant_id, self.session_id)
        if waiting:
            self._core.wake(self.writer.tenant_id, self.session_id)
        return True
