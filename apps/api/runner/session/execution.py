"""One live session: the owner's SDK client on one side, the event log on the other.

One task (`run`) starts, uses and closes the agent; one child task reads every message it yields and hands it to the
conversation, because background work of the agent produces turns that nobody asked for. Nobody else touches the agent,
except to interrupt, ask or kill it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import structlog
from claude_agent_sdk import CLIConnectionError

from apps.api.core.codec import encode
from apps.api.core.context import Core
from apps.api.core.events.log import Event, Writer
from apps.api.core.fleet import cancellation, ownership
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease
from apps.api.core.sessions import sessions, workspaces
from apps.api.core.sessions.outcome import Outcome
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner.agent import checkpoints, clone, options
from apps.api.runner.agent.process import STOP_TIMEOUT, Agent, CannotStart, StartFailed, why_it_ended
from apps.api.runner.agent.scratch import Place, Scratch
from apps.api.runner.agent.transcripts import Transcripts
from apps.api.runner.session.conversation import Conversation
from apps.api.runner.session.hooks import Hooks
from apps.api.runner.session.launch import Launch, tell_missing_files
from apps.api.runner.session.ports import Ports
from apps.api.runner.session.turn import Turn

log = structlog.get_logger(__name__)


class Execution:
    """A session while this instance owns it."""

    def __init__(
        self,
        core: Core,
        lease: Lease,
        scratch: Scratch,
        start_gate: asyncio.Semaphore,
        claim: Claim,
        freed: Callable[[], None],
    ) -> None:
        """`freed` is called whenever a run has ended and its slot is free."""
        self._core, self._scratch, self._start_gate, self._freed = core, scratch, start_gate, freed
        self.session_id, self.tenant_id, self.generation = claim.session_id, claim.tenant_id, claim.generation
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
        self.ports = Ports(self.writer, lambda: self._talk.run_id, lambda: self.agent.pid if self.agent else None)
        self._store = Transcripts(core.db, lease, claim.session_id, claim.generation)
        self._talk = Conversation(
            core,
            self.writer,
            claim,
            kill=self._kill,
            changed=freed,
            worked=self.ports.settle,
            forget=self._store.forget,
        )
        self.approvals = self._talk.approvals
        self._hooks = Hooks(core, claim.tenant_id, self.writer, lambda: self._talk.run_id, self._lose)
        self._inbox: asyncio.Queue[Claim | None] = asyncio.Queue(maxsize=2)
        self._agent: Agent | None = None
        self._place: Place | None = None
        self._fenced = False
        self._closing, self._reason = False, "idle"
        self.last_used = time.monotonic()
        self.over = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether a client's run is being executed or about to be."""
        return self._talk.current is not None

    @property
    def waiting(self) -> bool:
        """Whether the run that is being executed waits for a person."""
        return (turn := self._talk.current) is not None and self.approvals.hold(turn.run_id)

    @property
    def idle(self) -> bool:
        """Whether the session may be given back: nothing runs or is at work, and nobody is asked."""
        return not (self.busy or self._closing or self.approvals.waiting or self.at_work)

    @property
    def in_background(self) -> Turn | None:
        """The turn that the agent is in, if no client has asked for it."""
        turn = self._talk.active
        return turn if turn is not None and turn.claim is None else None

    @property
    def at_work(self) -> bool:
        """Whether the agent does what no client waits for. How long a task counts: see BACKGROUND_TASK_SECONDS."""
        tasks, since = self._talk.tasks, time.monotonic() - self._core.settings.background_task_seconds
        return self.in_background is not None or tasks.news or (self.last_used > since and tasks.begun_since(since))

    @property
    def tasks(self) -> frozenset[str]:
        """Ids of the subagents and background commands that are at work."""
        return self._talk.tasks.ids

    @property
    def agent(self) -> Agent | None:
        """The agent, as long as its process lives."""
        return self._agent if self._agent is not None and self._agent.is_alive else None

    @property
    def closing(self) -> bool:
        """Whether the session is being given back or lost: no new run should come here."""
        return self._closing

    @property
    def fenced(self) -> bool:
        """Whether this instance has lost the session."""
        return self._fenced

    def assign(self, claim: Claim) -> None:
        """Execute this run next; the claim guarantees that no other is active."""
        self._talk.current = Turn(claim.run_id, claim)  # from now on it can be stopped
        self._inbox.put_nowait(claim)

    def close(self, reason: str) -> None:
        """Give the session back after the current turn, if any. `reason`: why its tasks end with its agent."""
        if not self._closing:
            self._closing, self._reason = True, reason
            if not self._inbox.full():
                self._inbox.put_nowait(None)

    def fence(self) -> None:
        """Somebody else owns the session, or may soon: kill the CLI now and write nothing more."""
        self._fenced = True
        self._kill()
        self.close("owner_lost")

    async def stop(self, run_id: UUID | None, reason: str) -> bool:
        """Stop the turn of `run_id` (or whichever is active); returns whether there was one, once it has ended."""
        turn = self._talk.turn_of(run_id)
        if turn is None or turn.ended.is_set():
            return False
        turn.stopping = turn.stopping or reason
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                if self._agent is not None:
                    await turn.interrupt(self._agent)
                await turn.ended.wait()
        except TimeoutError:
            self._kill()
            async with asyncio.timeout(STOP_TIMEOUT):
                await turn.ended.wait()
        return True

    async def cancel(self, run_id: UUID) -> bool:
        """End a run of this session: a queued one never begins, an active one is interrupted."""
        if self._talk.turn_of(run_id) is not None:
            return await self.stop(run_id, "interrupted")

        async def end(connection: asyncpg.Connection, seq: int) -> None:
            await cancellation.end(connection, run_id, seq)

        try:
            await self.writer.append(cancellation.done(run_id), also=end)
        except cancellation.NotQueued:
            return await self.stop(run_id, "interrupted")
        return True

    async def reconfigure(self, changes: dict[str, Any]) -> None:
        """Change `model` or `permission_mode`, of the live agent at once and of every later one."""
        if agent := self.agent:
            await agent.change(changes)
        await self._talk.reconfigure(changes)

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
                    if (turn := self.in_background) is not None:
                        await self.stop(turn.run_id, "shutdown")
                    await self._disconnect(self._reason)
                    await self.ports.look()
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
                    self._closing, self._reason = True, "idle"
                    return None

    async def _turn(self, claim: Claim) -> None:
        turn = self._talk.current
        assert turn is not None  # noqa: S101 - for the type checker
        try:
            if claim.kind == "reset":
                await self._reset(turn, claim)
            elif claim.kind == "rewind":
                await self._rewind(turn, claim)
            else:
                await self._prompt(turn, claim)
        except (LeaseLost, Unavailable):
            raise
        except Exception as error:
            log.error("execution.turn_failed", session_id=str(self.session_id), error=error, exc_info=True)
            self._kill()
            code = "storage_failed" if isinstance(error, CONNECTION_ERRORS) else "agent_crashed"
            await self._talk.fail(turn, code, f"The agent failed: {type(error).__name__}.")
        finally:
            self._talk.current = None

    async def _prompt(self, turn: Turn, claim: Claim) -> None:
        """Have an agent do what is asked; another one, when the first dies before it is in the turn."""
        while agent := await self._prepare(turn, claim):
            turn.begin()
            try:
                await agent.send(claim.run_id, claim.prompt, expand=claim.expand_prompt)
            except CLIConnectionError:
                if turn.begun and not turn.lose():
                    raise
            if turn.begun and turn.stopping:
                await self.stop(turn.run_id, turn.stopping)
            await self._await_end(turn)
            if turn.ended.is_set():
                return
            await self._disconnect("agent_ended")
            await self._store.forget(turn.run_id)  # the CLI does not take a prompt that it finds there

    async def _prepare(self, turn: Turn, claim: Claim) -> Agent | None:
        """A live agent for this run, warm or new. None when there is none to be had, or the run was stopped meanwhile:
        then the run has ended."""
        agent = self._agent
        if agent is not None and (stale := self._talk.unfit(agent, claim, at_work=self.at_work)):
            await self._disconnect(stale)
        if self._agent is None:
            try:
                stopped = lambda: self._fenced or turn.stopping is not None  # noqa: E731
                await tell_missing_files(self._core, self._store, self.writer, claim)
                await clone.provide(self._core, claim, self.writer, turn.seconds_left(), stopped)
                async with self._start_gate:
                    await self._connect(claim)
            except clone.Stopped:
                log.info("execution.clone_stopped", session_id=str(self.session_id))
            except clone.CloneFailed as error:
                code = "repository_failed" if turn.seconds_left() > 0 else "timeout"
                await self._talk.fail(turn, code, str(error))
                return None
            except StartFailed as error:
                log.error("execution.start_failed", session_id=str(self.session_id), detail=str(error)[:500])
                code = "agent_start_failed" if turn.seconds_left() > 0 else "timeout"
                reason = str(error) if isinstance(error, CannotStart) else "The agent process did not start."
                await self._talk.fail(turn, code, reason)
                return None
        if self._fenced:
            raise LeaseLost(f"session {self.session_id}: lost while its agent started")
        if turn.stopping:
            await self._talk.fail(turn, turn.stopping)
            return None
        return self._agent

    async def _connect(self, claim: Claim) -> None:
        self._place = await asyncio.to_thread(self._scratch.make)
        launch = Launch(self._core, self._scratch.launcher, self._place, self._store, self._talk, self._hooks)
        agent = await launch.start(claim)
        self._agent = agent
        self._talk.new_process(claim)
        agent.read(self._talk.handle, self._agent_ended)

    async def _await_end(self, turn: Turn) -> None:
        try:
            await turn.wait()
        except TimeoutError:
            if turn.begun:
                await self.stop(turn.run_id, "timeout")

    async def _reset(self, turn: Turn, claim: Claim) -> None:
        """A new process for the same conversation (`soft`), or a new conversation as well (`hard`)."""
        await self._disconnect("reset")
        event = Event("status", {"status": "reset", **claim.prompt}, turn.run_id)
        if claim.prompt["mode"] == "soft":
            await self.writer.append(event)
        else:
            await self._talk.begin_anew(event)
        await self._talk.finish(turn, Outcome("succeeded", cost_usd=0.0), [])

    async def _rewind(self, turn: Turn, claim: Claim) -> None:
        """Bring files back to what they were before a message, or only say what that would change."""
        settings, asked = self._core.settings, claim.prompt
        if not options.keeps_checkpoints(settings, claim.config):  # as it did when that message came
            claim = replace(claim, config=claim.config.model_copy(update={"enable_file_checkpointing": True}))
        agent = await self._prepare(turn, claim)
        if agent is None:
            return
        workspace = await asyncio.to_thread(workspaces.create, settings, self.session_id, claim.config.cwd)
        try:
            async with asyncio.timeout(turn.seconds_left()):
                found = await checkpoints.obey(agent, workspace, self._store, self._talk.sdk_session_id, asked)
        except checkpoints.CannotRewind as error:
            await self._talk.fail(turn, error.code, str(error))
            return
        except TimeoutError:
            await self._talk.fail(turn, "timeout")
            return
        told = [] if asked["dry_run"] else [Event("status", {"status": "rewound", **asked, **found})]
        result = encode({"status": "succeeded", **asked, **found}).decode()
        await self._talk.finish(turn, Outcome("succeeded", result), told)

    async def _agent_ended(self, agent: Agent, failure: Exception | None) -> None:
        if isinstance(failure, LeaseLost | Unavailable):
            self._lose(failure)
            return
        if failure is not None:
            log.warning("execution.agent_ended", session_id=str(self.session_id), error=failure)
            agent.kill()
        # It takes with it what it has begun, not the run that waits for the next agent.
        current = self._talk.current
        lost = [self._talk.active, current if current is not None and current.begun and not current.lose() else None]
        try:
            await self.approvals.close_all("agent_ended")
            code, text = why_it_ended(failure)
            await self._talk.fail_all(*lost, code=code, text=text)
            self._talk.active = None
            if self._agent is agent:  # else whoever closes it knows why
                await self._talk.end_tasks("agent_ended")
        except (LeaseLost, Unavailable) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        log.warning("execution.fenced", session_id=str(self.session_id), reason=str(error))
        self.fence()
        self._talk.end_all()

    def _kill(self) -> None:
        if self._agent is not None:
            self._agent.kill()

    async def _disconnect(self, reason: str | None) -> None:
        """End the agent, and say of its tasks why; of None nothing, as nothing may be written then."""
        agent, self._agent = self._agent, None
        if agent is not None:
            await agent.close()
        if reason is not None:
            await self._talk.end_tasks(reason)
        if self._place is not None:
            self._scratch.forget(self._place)
            self._place = None

    async def _release(self) -> bool:
        waiting = await ownership.release(self._core.db, self.session_id, self.generation)
        if waiting is None:
            return False
        self._core.publisher.command("DEL", self._core.redis.keys.active_session(self.session_id))
        await sessions.forget_cached(self._core.redis, self.tenant_id, self.session_id)
        if waiting:
            self._core.wake(self.tenant_id, self.session_id)
        return True
