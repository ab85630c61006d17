"""What the agent of one session says: its messages become events, its turns become runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import structlog
from claude_agent_sdk import (
    Message,
    MirrorErrorMessage,
    ResultMessage,
    StreamEvent,
    SystemMessage,
)

from apps.api.core.context import Core
from apps.api.core.events.log import Event, Writer
from apps.api.core.fleet import claims
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import sessions
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.db import CONNECTION_ERRORS
from apps.api.runner.agent import hearsay, messages, model_failures
from apps.api.runner.agent.options import keeps_checkpoints
from apps.api.runner.agent.process import Agent
from apps.api.runner.session.approvals import Approvals
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.turn import Turn

log = structlog.get_logger(__name__)


RECYCLE_AFTER_TURNS = 100
"""A CLI grows to some 300 MB in 200 turns; a fresh one resumes in 0.4 s."""


class Conversation:
    """The turns of a session while this instance owns it.

    Attributes:
        current: the turn of the client's run that is being executed.
        active: the turn that the agent is in, which may be one of a background task.
        sdk_session_id: under which the SDK stores the conversation.
        tasks: the subagents and background commands that are at work.
        used_up: no later turn belongs into the process: it has spent its budget, knows what it should not, or has left
            its conversation for a new one.
    """

    def __init__(
        self,
        core: Core,
        writer: Writer,
        claim: Claim,
        *,
        kill: Callable[[], None],
        changed: Callable[[], None],
        worked: Callable[[bool], Awaitable[None]],
        forget: Callable[[UUID], Awaitable[bool]],
    ) -> None:
        """`kill` ends the agent's process; `changed` is called when it begins or ceases to wait for a person, `worked`
        at the end of a turn that has used tools, with whether it has left a new task in the background; `forget` takes
        a turn, and what came after it, out of the stored conversation."""
        self._core, self._writer, self._kill, self._changed, self._worked = core, writer, kill, changed, worked
        self._forget = forget
        self._used_tools = self._left_task = False
        self.tenant_id, self.session_id, self.generation = claim.tenant_id, claim.session_id, claim.generation
        self.sdk_session_id = claim.sdk_session_id
        self.config, self._provisions = claim.config, claim.provisions
        self.current: Turn | None = None
        self.active: Turn | None = None
        self.used_up = False
        self.approvals = Approvals(
            core.db,
            writer,
            claim.tenant_id,
            core.settings.action_timeout_seconds,
            run_of=self._run_of,
            reason=self._stopping,
            shown=self._tool_shown,
            changed=self._waiting_changed,
        )
        self._meter = messages.Meter()
        self._model_told = model_failures.Told()
        self._noted: tuple[Any, ...] = ()
        self._tool_calls: deque[str] = deque(maxlen=200)
        self._handled = asyncio.Event()
        self.tasks = Tasks()

    @property
    def run_id(self) -> UUID | None:
        """The run that is active now; before the turn's `init`, the prompt is its run's already."""
        turn = self.active or self.current
        return turn.run_id if turn and not turn.ended.is_set() else None

    def unfit(self, agent: Agent, claim: Claim, *, at_work: bool) -> str | None:
        """Why this agent is not for that run, if it is not."""
        if not agent.is_alive:
            return "agent_ended"
        if not self.fits(claim):
            return "reconfigured"
        return "recycled" if self.used_up or (agent.turns >= RECYCLE_AFTER_TURNS and not at_work) else None

    def fits(self, claim: Claim) -> bool:
        """Whether the agent's process was made of what this run is to be done with. Work in the background outweighs
        what the tenant has changed meanwhile, not what the client asks for."""
        return claim.config == self.config and (claim.provisions == self._provisions or bool(self.tasks.ids))

    def new_process(self, claim: Claim) -> None:
        """The agent has been started anew: it counts from zero."""
        self.config, self._provisions = claim.config, claim.provisions
        self.used_up = False
        self._meter.begin()

    async def begin_anew(self, event: Event) -> None:
        """Be a new conversation from now on, and say so."""
        fresh = uuid4()

        async def also(connection: asyncpg.Connection, _seq: int) -> None:
            await sessions.begin_anew(connection, self.session_id, fresh)

        await self._writer.append(event, also=also)
        self.sdk_session_id = fresh

    async def reconfigure(self, changes: dict[str, Any]) -> None:
        """Have another `model` or `permission_mode` from now on, and say so."""

        async def also(connection: asyncpg.Connection, _seq: int) -> None:
            await sessions.reconfigure(connection, self.session_id, self._core.instance_id, changes)

        await self._writer.append(Event("status", {"status": "reconfigured", **changes}, self.run_id), also=also)
        self.config = self.config.model_copy(update=changes)

    def turn_of(self, run_id: UUID | None) -> Turn | None:
        """The turn of a run, or whichever there is."""
        return next((t for t in (self.current, self.active) if t and run_id in (None, t.run_id)), None)

    def end_all(self) -> None:
        """Nobody will write how the turns end: let go who waits for it."""
        for turn in (self.current, self.active):
            if turn is not None:
                turn.end()

    async def fail_all(self, *turns: Turn | None, code: str, text: str = "") -> None:
        """End the runs of these turns."""
        for turn in {*turns} - {None}:
            if turn is not None and not turn.guest:
                await self.fail(turn, turn.stopping or code, text)

    async def fail(self, turn: Turn, code: str, text: str = "") -> None:
        """End a run that got no result."""
        status, failure = messages.stopped(code, text)
        events = [] if status == "interrupted" else [Event("error", failure)]
        cost, models = self._meter.take()
        if not turn.begun:
            cost = cost or 0.0  # the model was never asked
        await self.finish(turn, Outcome(status, error=failure, cost_usd=cost, usage=messages.used(models)), events)

    async def finish(self, turn: Turn, outcome: Outcome, events: list[Event]) -> None:
        """End a run with its last events."""
        if turn.ended.is_set():
            return
        await self.approvals.close_all("run_ended", turn.run_id)
        last = [Event(e.type, e.fields, turn.run_id) for e in events]
        last.append(Event("done", {"status": outcome.status}, turn.run_id))
        # Shielded: a run whose end is known must not stay "running" because a task was cancelled meanwhile.
        await asyncio.shield(finish(self._writer, turn.run_id, outcome, *last))
        if self.active is turn:
            self.active = None
        turn.end()

    async def end_tasks(self, reason: str) -> None:
        """The agent's process has ended: say of each of its tasks that it has ended, too."""
        if ended := self.tasks.end(reason):
            await self._writer.append(*ended)

    async def handle(self, message: Message) -> None:
        """Take the agent's next message."""
        self._left_task |= self.tasks.take(message)
        if isinstance(message, StreamEvent):
            if self.active is not None and (fields := messages.partial(message)):
                self._writer.delta("partial", self.active.run_id, fields)
        elif isinstance(message, ResultMessage):
            await self._end_turn(message)
        elif isinstance(message, MirrorErrorMessage):
            log.error("execution.transcript_lost", session_id=str(self.session_id), error=message.error)
            await self.fail_all(self.active, self.current, code="storage_failed")
            self._kill()
        elif isinstance(message, SystemMessage) and message.subtype == "init":
            await self._begin_turn(message)
        else:
            self._model_told.hear(message)
            events = messages.events(message, self.active.run_id if self.active else None)
            if events:
                await self._writer.append(*events)
            if calls := messages.tool_calls(message):
                self._used_tools = True
                self._tool_calls.extend(calls)
                self._handled.set()
                self._handled = asyncio.Event()

    async def _begin_turn(self, message: SystemMessage) -> None:
        self._model_told = model_failures.Told()
        # The init of a background turn names no message of a user's.
        uuids = message.data.get("user_message_uuids") or ()
        current = self.current if self.current is None or not self.current.ended.is_set() else None
        if current is not None and str(current.run_id) in uuids:
            self.active = current
            current.taken_up.set()
            assert current.claim is not None  # noqa: S101 - for the type checker
            shown = Event("message", messages.prompt_message(current.run_id, current.claim.prompt), current.run_id)
            told = [*messages.events(message, current.run_id), shown]
            if keeps_checkpoints(self._core.settings, self.config):
                told.append(
                    Event("checkpoint", messages.checkpoint(current.run_id, current.claim.prompt), current.run_id)
                )
            await self._writer.append(*told)
            await self._note(message)
            return
        run_id, seconds = uuid4(), self._core.settings.background_turn_seconds
        if current is not None:
            self.active = Turn(current.run_id, None, guest=True)
            await self._writer.append(Event("status", {"status": "background_turn"}, current.run_id))
        elif await claims.begin_background(
            self._core.db, self.session_id, self.tenant_id, self.generation, run_id, seconds
        ):
            self.active = Turn(run_id, None, seconds=seconds)
            self.active.begun = True
            self.active.taken_up.set()
            await self._writer.append(*messages.events(message, run_id))

    async def _note(self, message: SystemMessage) -> None:
        """Keep what the CLI says of itself: `/clear` gives the conversation another id."""
        told = hearsay.told_of_itself(message.data)
        if told.session_id and told.session_id != self.sdk_session_id:
            # What tools put out is kept with the session by a link that is made before a process starts.
            self.sdk_session_id, self.used_up = told.session_id, True
        noted = (told.permission_mode, told.tools, self.sdk_session_id)
        if noted == self._noted:
            return
        try:
            await self._core.db.pool.execute(
                "UPDATE sessions SET permission_mode = $3, tools = $4, sdk_session_id = $5"
                " WHERE id = $1 AND generation = $2",
                self.session_id,
                self.generation,
                *noted,
            )
        except CONNECTION_ERRORS as error:  # no reason to end the run: the next turn notes it
            log.warning("execution.mode_not_noted", session_id=str(self.session_id), error=type(error).__name__)
        else:
            self._noted = noted

    async def _end_turn(self, message: ResultMessage) -> None:
        turn = self.active
        if turn is None or turn.guest:
            self.active = None
            self._meter.read(message)
            return
        structured = turn.claim is not None and turn.claim.config.output_format is not None
        outcome, last = messages.outcome(
            message, self._meter, turn.stopping, structured=structured, told=self._model_told
        )
        code = outcome.error["code"] if outcome.error else None
        if code == "max_budget_exceeded":
            self.used_up = True
        if self._used_tools:
            left, self._used_tools, self._left_task = self._left_task, False, False
            await self._worked(left)
        if code in model_failures.POISONOUS and await self._forget(turn.run_id):
            self.used_up = True  # the process still remembers
            last.insert(0, Event("status", {"status": "turn_forgotten"}))
        await self.finish(turn, outcome, last)

    # --- a person in the loop ----------------------------------------------------------------------------------

    def _run_of(self, agent_id: str | None) -> UUID | None:
        # A background task outlives the run that began it, and no run waits for what it asks.
        return None if agent_id in self.tasks.outlasting else self.run_id

    def _stopping(self) -> str:
        turn = self.turn_of(None)
        return turn.stopping if turn is not None and turn.stopping else "withdrawn"

    async def _tool_shown(self, tool_use_id: str) -> None:
        # The SDK hands over what a tool call asks, and the message that shows the call, by two ways.
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while tool_use_id not in self._tool_calls:
                    await self._handled.wait()

    def _waiting_changed(self) -> None:
        for turn in (self.current, self.active):
            if turn is not None:
                turn.pause() if self.approvals.hold(turn.run_id) else turn.resume()
        self._changed()
