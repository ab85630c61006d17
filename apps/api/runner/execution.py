"""One live session: the owner's SDK client on one side, the event log on the other.

One task (`run`) starts, uses and closes the agent; one child task reads every message it yields, because
background work of the agent produces turns that nobody asked for. Nobody else touches the agent, except to
interrupt or kill it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import structlog
from claude_agent_sdk import Message, MirrorErrorMessage, ResultMessage, StreamEvent, SystemMessage

from apps.api.core import queue, sessions, workspaces
from apps.api.core.context import Core
from apps.api.core.instances import Lease
from apps.api.core.log import Event, Outcome, Writer
from apps.api.core.queue import Claim
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner import extensions, messages, options
from apps.api.runner.agent import STOP_TIMEOUT, Agent, CannotStart, StartFailed
from apps.api.runner.hooks import Hooks
from apps.api.runner.transcripts import Transcripts

log = structlog.get_logger(__name__)

RECYCLE_AFTER_TURNS = 100
"""A CLI grows to some 300 MB in 200 turns; a fresh one resumes in 0.4 s."""


class Turn:
    """One turn of the agent, and the run that stands for it."""

    def __init__(self, run_id: UUID, claim: Claim | None, *, guest: bool = False) -> None:
        self.run_id, self.claim = run_id, claim
        self.guest = guest  # a background turn that is shown inside a client's run, and does not end it
        self.begun = False
        self.stopping: str | None = None
        self.ended = asyncio.Event()
        self._deadline = time.monotonic() + claim.timeout_seconds if claim else float("inf")

    def seconds_left(self) -> float:
        """Until its deadline; negative after it."""
        return self._deadline - time.monotonic()


class Execution:
    """A session while this instance owns it."""

    def __init__(
        self,
        core: Core,
        lease: Lease,
        scratch: options.Scratch,
        start_gate: asyncio.Semaphore,
        claim: Claim,
        freed: Callable[[], None],
    ) -> None:
        """`freed` is called whenever a run has ended and its slot is free."""
        self._core, self._scratch, self._start_gate, self._freed = core, scratch, start_gate, freed
        self.session_id, self.tenant_id, self.generation = claim.session_id, claim.tenant_id, claim.generation
        self._sdk_session_id = claim.sdk_session_id
        self.writer = Writer(
            core.db,
            core.redis,
            core.publisher,
            lease,
            tenant_id=claim.tenant_id,
            session_id=claim.session_id,
            generation=claim.generation,
            last_seq=claim.last_seq,
        )
        self._store = Transcripts(core.db, lease, claim.session_id, claim.generation)
        self._hooks = Hooks(core, claim.tenant_id, self.writer, self._run_id, self._lose)
        self._inbox: asyncio.Queue[Claim | None] = asyncio.Queue(maxsize=2)
        self._agent: Agent | None = None
        self._config = claim.config
        self._meter = messages.Meter()
        self._used_up = False
        self._noted: tuple[Any, Any] = (None, None)
        self._current: Turn | None = None
        self._active: Turn | None = None
        self._fenced = False
        self._closing = False
        self.last_used = time.monotonic()
        self.over = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether a client's run is being executed or about to be."""
        return self._current is not None or not self._inbox.empty()

    @property
    def closing(self) -> bool:
        """Whether the session is being given back or lost, so that no new run should come here."""
        return self._closing

    @property
    def fenced(self) -> bool:
        """Whether this instance has lost the session."""
        return self._fenced

    def assign(self, claim: Claim) -> None:
        """Execute this run next; the claim guarantees that no other is active."""
        self._inbox.put_nowait(claim)

    def close(self) -> None:
        """Give the session back once the current turn, if any, is over."""
        if not self._closing:
            self._closing = True
            if not self._inbox.full():
                self._inbox.put_nowait(None)

    def fence(self) -> None:
        """Somebody else owns the session, or may soon: kill the CLI now and write nothing more."""
        self._fenced = True
        self._kill()
        self.close()

    async def stop(self, run_id: UUID | None, reason: str) -> bool:
        """Stop the turn of `run_id` (or whichever is active); returns whether there was one, once it has ended."""
        turn = next((t for t in (self._current, self._active) if t and run_id in (None, t.run_id)), None)
        if turn is None or turn.ended.is_set():
            return False
        turn.stopping = turn.stopping or reason
        if turn.begun and self._agent is not None:
            await self._agent.interrupt()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await turn.ended.wait()
        except TimeoutError:
            self._kill()
            async with asyncio.timeout(STOP_TIMEOUT):
                await turn.ended.wait()
        return True

    async def run(self) -> None:
        """Own the session until it is idle for long, closed, or lost."""
        try:
            while not self._fenced:
                claim = await self._next()
                if claim is not None:
                    await self._turn(claim)
                    self.last_used = time.monotonic()
                    self._freed()
                elif not self._fenced:
                    await self._disconnect()
                    if await self._release():
                        return
                    self._closing = False  # a run was claimed in the last moment: it is about to be assigned
        except (LeaseLost, Unavailable) as error:
            # Without the database nothing can be ended in order: as good as fenced. The heartbeat clears up.
            log.warning("execution.fenced", session_id=str(self.session_id), reason=str(error))
            self._fenced = True
        finally:
            self._closing = True
            if self._fenced:
                self._kill()
            await self._disconnect()
            await asyncio.to_thread(self._scratch.forget, self.session_id, self.generation)
            self.over.set()

    async def _next(self) -> Claim | None:
        while True:
            try:
                async with asyncio.timeout(self._core.settings.session_idle_seconds):
                    return await self._inbox.get()
            except TimeoutError:
                if not self._inbox.empty():
                    return self._inbox.get_nowait()
                if self._active is None:  # a background turn is not idleness
                    self._closing = True
                    return None

    async def _turn(self, claim: Claim) -> None:
        turn = self._current = Turn(claim.run_id, claim)
        try:
            if agent := await self._prepare(turn, claim):
                await agent.send(claim.run_id, claim.prompt)
                turn.begun = True
                if turn.stopping:
                    await self.stop(turn.run_id, turn.stopping)
                await self._await_end(turn)
        except (LeaseLost, Unavailable):
            raise
        except Exception as error:
            log.error("execution.turn_failed", session_id=str(self.session_id), error=repr(error), exc_info=True)
            self._kill()
            code = "storage_failed" if isinstance(error, CONNECTION_ERRORS) else "agent_crashed"
            await self._fail(turn, code, f"The agent failed: {type(error).__name__}.")
        finally:
            self._current = None

    async def _prepare(self, turn: Turn, claim: Claim) -> Agent | None:
        """A live agent for this run, warm or new. None when there is none to be had, or the run was stopped meanwhile:
        then the run has ended."""
        agent = self._agent
        if agent is not None and (not agent.is_alive or self._is_stale(agent, claim)):
            await self._disconnect()
        if self._agent is None:
            try:
                async with self._start_gate:
                    await self._connect(claim)
            except StartFailed as error:
                log.error("execution.start_failed", session_id=str(self.session_id), detail=str(error)[:500])
                code = "agent_start_failed" if turn.seconds_left() > 0 else "timeout"
                reason = str(error) if isinstance(error, CannotStart) else "The agent process did not start."
                await self._fail(turn, code, reason)
                return None
        if self._fenced:
            raise LeaseLost(f"session {self.session_id}: lost while its agent started")
        if turn.stopping:
            await self._fail(turn, turn.stopping)
            return None
        return self._agent

    def _is_stale(self, agent: Agent, claim: Claim) -> bool:
        return self._used_up or agent.turns >= RECYCLE_AFTER_TURNS or claim.config != self._config

    async def _connect(self, claim: Claim) -> None:
        settings, stderr = self._core.settings, list[str]()
        scratch = await asyncio.to_thread(self._scratch.of, self.session_id, self.generation)
        try:
            workspace = await asyncio.to_thread(workspaces.create, settings, self.session_id, claim.config.cwd)
        except (OSError, ValueError) as error:
            raise StartFailed(f"no workspace: {error}") from error
        given = await extensions.prepare(self._core, self.tenant_id, claim.config, scratch / "given")
        sdk_options = options.build(
            settings,
            claim.config,
            workspace=workspace,
            extensions=given,
            scratch=scratch,
            launcher=self._scratch.launcher,
            store=self._store,
            sdk_session_id=self._sdk_session_id,
            resume=await self._store.exists(self._sdk_session_id),
            hooks=self._hooks.matchers(claim.config),
            stderr=stderr,
            profile=claim.profile,
        )
        try:
            agent = await Agent.start(self.session_id, sdk_options, stderr, claim.timeout_seconds)
        finally:
            await asyncio.to_thread(given.forget_secrets)
        self._agent, self._config, self._used_up, self._meter = agent, claim.config, False, messages.Meter()
        agent.read(self._handle, self._agent_ended)

    async def _await_end(self, turn: Turn) -> None:
        try:
            async with asyncio.timeout(turn.seconds_left()):
                await turn.ended.wait()
        except TimeoutError:
            await self.stop(turn.run_id, "timeout")

    async def _agent_ended(self, agent: Agent, failure: Exception | None) -> None:
        if isinstance(failure, LeaseLost | Unavailable):
            self._lose(failure)
            return
        if failure is not None:
            log.warning("execution.agent_ended", session_id=str(self.session_id), error=str(failure)[:300])
            agent.kill()
        # An agent that `_disconnect` closes takes its background turn with it, but not the run that waits for the next.
        lost = {self._active} if self._agent is not agent else {self._active, self._current}
        try:
            for turn in lost:
                if turn is not None and not turn.guest:
                    await self._fail(
                        turn, turn.stopping or "agent_crashed", "The agent process ended without a result."
                    )
            self._active = None
        except (LeaseLost, Unavailable) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        log.warning("execution.fenced", session_id=str(self.session_id), reason=str(error))
        self.fence()
        self._end_turns()

    def _end_turns(self) -> None:
        for turn in (self._current, self._active):
            if turn is not None:
                turn.ended.set()

    async def _handle(self, message: Message) -> None:
        if isinstance(message, StreamEvent):
            if self._active is not None and (fields := messages.partial(message)):
                self.writer.delta("partial", self._active.run_id, fields)
        elif isinstance(message, ResultMessage):
            await self._end_turn(message)
        elif isinstance(message, MirrorErrorMessage):
            log.error("execution.transcript_lost", session_id=str(self.session_id), error=message.error)
            await self._lose_storage()
        elif isinstance(message, SystemMessage) and message.subtype == "init":
            await self._begin_turn(message)
        else:
            run_id = self._active.run_id if self._active else None
            events = messages.events(message, run_id)
            if events:
                await self.writer.append(*events)

    async def _begin_turn(self, message: SystemMessage) -> None:
        # The init of a background turn names no message of a user's.
        uuids = message.data.get("user_message_uuids") or ()
        current = self._current if self._current is None or not self._current.ended.is_set() else None
        if current is not None and str(current.run_id) in uuids:
            self._active = current
            assert current.claim is not None  # noqa: S101 - for the type checker
            shown = Event("message", messages.prompt_message(current.run_id, current.claim.prompt), current.run_id)
            await self.writer.append(*messages.events(message, current.run_id), shown)
            await self._note_mode(message)
            return
        run_id = uuid4()
        if current is not None:
            self._active = Turn(current.run_id, None, guest=True)
            await self.writer.append(Event("status", {"status": "background_turn"}, current.run_id))
        elif await queue.begin_background(self._core.db, self.session_id, self.tenant_id, self.generation, run_id):
            self._active = Turn(run_id, None)
            self._active.begun = True
            await self.writer.append(*messages.events(message, run_id))

    async def _note_mode(self, message: SystemMessage) -> None:
        noted = (message.data.get("permissionMode"), message.data.get("tools"))
        if noted == self._noted:
            return
        try:
            await self._core.db.pool.execute(
                "UPDATE sessions SET permission_mode = $3, tools = $4 WHERE id = $1 AND generation = $2",
                self.session_id,
                self.generation,
                *noted,
            )
        except CONNECTION_ERRORS as error:  # no reason to end the run: the next turn notes it
            log.warning("execution.mode_not_noted", session_id=str(self.session_id), error=type(error).__name__)
        else:
            self._noted = noted

    async def _end_turn(self, message: ResultMessage) -> None:
        turn = self._active
        if turn is None or turn.guest:
            self._active = None
            self._meter.share(message)
            return
        outcome, last = messages.outcome(message, self._meter, turn.stopping)
        if outcome.error and outcome.error["code"] == "max_budget_exceeded":
            self._used_up = True  # every later turn of this process would fail as well
        await self._finish(turn, outcome, last)

    def _run_id(self) -> UUID | None:
        turn = self._active or self._current  # before the turn's `init`, the prompt is its run's already
        return turn.run_id if turn and not turn.ended.is_set() else None

    async def _lose_storage(self) -> None:
        for turn in (self._active, self._current):
            if turn is not None and not turn.guest:
                await self._fail(turn, "storage_failed")
        self._kill()

    async def _fail(self, turn: Turn, code: str, text: str = "") -> None:
        status, failure = messages.stopped(code, text)
        events = [] if status == "interrupted" else [Event("error", failure)]
        await self._finish(turn, Outcome(status, error=failure), events)

    async def _finish(self, turn: Turn, outcome: Outcome, events: list[Event]) -> None:
        if turn.ended.is_set():
            return
        last = [Event(e.type, e.fields, turn.run_id) for e in events]
        last.append(Event("done", {"status": outcome.status}, turn.run_id))
        # Shielded: a run whose end is known must not stay "running" because a task was cancelled meanwhile.
        await asyncio.shield(self.writer.finish(turn.run_id, outcome, *last))
        if self._active is turn:
            self._active = None
        turn.ended.set()

    def _kill(self) -> None:
        if self._agent is not None:
            self._agent.kill()

    async def _disconnect(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            await agent.close()

    async def _release(self) -> bool:
        waiting = await queue.release(self._core.db, self.session_id, self.generation)
        if waiting is None:
            return False
        self._core.publisher.command("DEL", self._core.redis.keys.active_session(self.session_id))
        await sessions.forget_cached(self._core.redis, self.tenant_id, self.session_id)
        if waiting:
            self._core.wake(self.tenant_id, self.session_id)
        return True
