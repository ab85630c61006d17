"""One live session: the owner's SDK client on one side, the event log on the other.

One task (`run`) starts, uses and closes the client; one child task reads every message it yields, because
background work of the agent produces turns that nobody asked for. Nobody else touches the client, except to
interrupt it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import structlog
from claude_agent_sdk import ClaudeSDKClient, Message, MirrorErrorMessage, ResultMessage, StreamEvent, SystemMessage

from apps.api.core import queue, sessions, workspaces
from apps.api.core.context import Core
from apps.api.core.instances import Lease
from apps.api.core.log import Event, Outcome, Writer
from apps.api.core.queue import Claim
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner import messages, options
from apps.api.runner.transcripts import Transcripts

log = structlog.get_logger(__name__)

RECYCLE_AFTER_TURNS = 100
"""A CLI grows to some 300 MB in 200 turns; a fresh one resumes in 0.4 s."""

START_TIMEOUT = 60.0
"""Seconds for a CLI to start and load its history."""

STOP_TIMEOUT = 5.0
"""Seconds that an interrupted turn gets to hand over its result, and an idle CLI to exit, before it is killed."""

STOP_REASONS = {
    "interrupted": ("interrupted", "The run was interrupted."),
    "timeout": ("failed", "The run took longer than its timeout."),
    "shutdown": ("failed", "The instance shut down before the run was done. The conversation is kept; send it again."),
    "storage_failed": ("failed", "The conversation could not be stored, so it cannot be relied on."),
}


class Turn:
    """One turn of the agent, and the run that stands for it."""

    def __init__(self, run_id: UUID, claim: Claim | None, *, guest: bool = False) -> None:
        self.run_id, self.claim = run_id, claim
        self.guest = guest  # a background turn that is shown inside a client's run, and does not end it
        self.begun = False
        self.stopping: str | None = None
        self.ended = asyncio.Event()


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
        self._inbox: asyncio.Queue[Claim | None] = asyncio.Queue(maxsize=2)
        self._client: ClaudeSDKClient | None = None
        self._reader: asyncio.Task[None] | None = None
        self._stderr: list[str] = []
        self._config = claim.config
        self._turns = 0
        self._meter = messages.Meter()
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
        if turn.begun and self._client is not None:
            try:
                await asyncio.wait_for(self._client.interrupt(), STOP_TIMEOUT)
            except Exception as error:
                log.warning("execution.interrupt_failed", session_id=str(self.session_id), error=repr(error))
                self._kill()
        try:
            await asyncio.wait_for(turn.ended.wait(), STOP_TIMEOUT)
        except TimeoutError:
            self._kill()
            await asyncio.wait_for(turn.ended.wait(), STOP_TIMEOUT)
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
                return await asyncio.wait_for(self._inbox.get(), self._core.settings.session_idle_seconds)
            except TimeoutError:
                if not self._inbox.empty():
                    return self._inbox.get_nowait()
                if self._active is None:  # a background turn is not idleness
                    self._closing = True
                    return None

    async def _turn(self, claim: Claim) -> None:
        turn = self._current = Turn(claim.run_id, claim)
        deadline = time.monotonic() + claim.timeout_seconds
        try:
            if await self._prepare(turn, claim):
                await self._send(claim)
                turn.begun = True
                if turn.stopping:
                    await self.stop(turn.run_id, turn.stopping)
                await self._await_end(turn, deadline)
        except (LeaseLost, Unavailable):
            raise
        except Exception as error:
            log.error("execution.turn_failed", session_id=str(self.session_id), error=repr(error), exc_info=True)
            self._kill()
            await self._fail(turn, "agent_crashed", f"The agent failed: {type(error).__name__}.")
        finally:
            self._current = None

    async def _prepare(self, turn: Turn, claim: Claim) -> bool:
        stale = self._turns >= RECYCLE_AFTER_TURNS or claim.config != self._config
        if self._client is not None and (stale or self._reader is None or self._reader.done()):
            await self._disconnect()
        if self._client is None:
            self._config = claim.config
            try:
                async with self._start_gate, asyncio.timeout(min(START_TIMEOUT, claim.timeout_seconds)):
                    await self._connect(claim)
            except (LeaseLost, Unavailable):
                raise
            except Exception as error:
                detail = "; ".join(self._stderr[-3:]) or str(error) or type(error).__name__
                log.error("execution.start_failed", session_id=str(self.session_id), detail=detail[:500])
                await self._disconnect()
                await self._fail(turn, "agent_start_failed", "The agent process did not start.")
                return False
        if turn.stopping:
            await self._fail(turn, turn.stopping, STOP_REASONS[turn.stopping][1])
            return False
        return True

    async def _connect(self, claim: Claim) -> None:
        scratch = await asyncio.to_thread(self._scratch.of, self.session_id, self.generation)
        workspace = await asyncio.to_thread(workspaces.create, self._core.settings, self.session_id, claim.config.cwd)
        self._stderr.clear()
        client = ClaudeSDKClient(
            options.build(
                self._core.settings,
                claim.config,
                workspace=workspace,
                scratch=scratch,
                launcher=self._scratch.launcher,
                store=self._store,
                sdk_session_id=self._sdk_session_id,
                resume=await self._store.exists(self._sdk_session_id),
                stderr=self._stderr,
            )
        )
        self._client = client
        await client.connect()
        self._turns, self._meter = 0, messages.Meter()
        self._reader = asyncio.create_task(self._read(client), name=f"read-{self.session_id}")

    async def _send(self, claim: Claim) -> None:
        assert self._client is not None  # noqa: S101 - for the type checker

        async def prompt() -> AsyncIterator[dict[str, Any]]:
            yield {
                "type": "user",
                "uuid": str(claim.run_id),
                "message": {"role": "user", "content": claim.prompt},
                "parent_tool_use_id": None,
            }

        await self._client.query(prompt())
        self._turns += 1

    async def _await_end(self, turn: Turn, deadline: float) -> None:
        try:
            await asyncio.wait_for(turn.ended.wait(), max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            await self.stop(turn.run_id, "timeout")

    async def _read(self, client: ClaudeSDKClient) -> None:
        """Every message of the CLI, in order, until it ends. Writing waits for the database: that is backpressure."""
        reason = "The agent process ended without a result."
        try:
            async for message in client.receive_messages():
                await self._handle(message)
        except (LeaseLost, Unavailable) as error:
            log.warning("execution.fenced", session_id=str(self.session_id), reason=str(error))
            self.fence()
            self._end_turns()
            return
        except Exception as error:
            log.warning("execution.cli_ended", session_id=str(self.session_id), error=str(error)[:300])
            self._kill()
        # A client that `_disconnect` closes takes its background turn with it, but not the run that waits for the next.
        lost = {self._active} if self._client is not client else {self._active, self._current}
        try:
            for turn in lost:
                if turn is not None and not turn.guest:
                    await self._fail(turn, turn.stopping or "agent_crashed", reason)
            self._active = None
        except (LeaseLost, Unavailable):
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
        uuids = message.data.get("user_message_uuids")
        current = self._current
        if current is not None and (uuids is None or str(current.run_id) in uuids):
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
        if noted != self._noted:
            await self._core.db.pool.execute(
                "UPDATE sessions SET permission_mode = $3, tools = $4 WHERE id = $1 AND generation = $2",
                self.session_id,
                self.generation,
                *noted,
            )
            self._noted = noted

    async def _end_turn(self, message: ResultMessage) -> None:
        turn = self._active
        if turn is None or turn.guest:
            self._active = None
            self._meter.share(message)
            return
        outcome, last = messages.outcome(message, self._meter)
        if turn.stopping and outcome.status != "succeeded":
            code = turn.stopping
            status, text = STOP_REASONS[code]
            failure = messages.error(code, text)
            outcome = Outcome(status, outcome.result, failure, outcome.cost_usd, outcome.usage, outcome.num_turns)
            last = [last[0], Event("error", failure)] if status == "failed" else [last[0]]
        elif outcome.status == "interrupted":
            last = last[:1]
        if outcome.error and outcome.error["code"] == "max_budget_exceeded":
            self._turns = RECYCLE_AFTER_TURNS  # every later turn of this process would fail as well
        await self._finish(turn, outcome, last)

    async def _lose_storage(self) -> None:
        for turn in (self._active, self._current):
            if turn is not None and not turn.guest:
                await self._fail(turn, "storage_failed", STOP_REASONS["storage_failed"][1])
        self._kill()

    async def _fail(self, turn: Turn, code: str, text: str) -> None:
        failure = messages.error(code, STOP_REASONS.get(code, ("", text))[1])
        status = "interrupted" if code == "interrupted" else "failed"
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
        # The guard kills the whole tree of the CLI when it is told to end. The SDK offers no public way to signal
        # the process, and its own close() gives a hung one 10 s; the version is pinned.
        transport = getattr(self._client, "_transport", None)
        process = getattr(transport, "_process", None)
        if process is not None and process.returncode is None:
            try:
                os.kill(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                return

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        reader, self._reader = self._reader, None
        if client is None:
            return
        closing = asyncio.create_task(client.disconnect(), name=f"disconnect-{self.session_id}")
        done, _ = await asyncio.wait({closing}, timeout=STOP_TIMEOUT)
        if not done:
            self._client = client
            self._kill()
            self._client = None
            await asyncio.wait({closing}, timeout=2 * STOP_TIMEOUT)
        if closing.done() and (error := closing.exception()):
            log.warning("execution.disconnect_failed", session_id=str(self.session_id), error=repr(error))
        if reader is not None and reader is not asyncio.current_task():
            # It ends by itself with the stream. Cancelled in a write, it would leave the writer's position in doubt.
            done, _ = await asyncio.wait({reader}, timeout=STOP_TIMEOUT)
            if not done:
                reader.cancel()
                await asyncio.wait({reader}, timeout=STOP_TIMEOUT)

    async def _release(self) -> bool:
        waiting = await queue.release(self._core.db, self.session_id, self.generation)
        if waiting is None:
            return False
        self._core.publisher.command("DEL", self._core.redis.keys.active_session(self.session_id))
        await sessions.forget_cached(self._core.redis, self.tenant_id, self.session_id)
        if waiting:
            self._core.wake(self.tenant_id, self.session_id)
        return True
