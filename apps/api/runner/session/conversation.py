"""What the agent of one session says: its messages become events, its turns become runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

import asyncpg
import structlog
from claude_agent_sdk import (
    AssistantMessage,
    Message,
    MirrorErrorMessage,
    ResultMessage,
    StreamEvent,
    SystemMessage,
)

from apps.api import instruments
from apps.api.core.config.agent import AgentConfig
from apps.api.core.context import Core
from apps.api.core.events.log import Also, Event, Writer
from apps.api.core.fleet import claims
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import sessions
from apps.api.core.sessions.outcome import NotRunning, Outcome, finish
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.core.tasks import ask
from apps.api.db import CONNECTION_ERRORS
from apps.api.runner.agent import hearsay, messages, model_failures
from apps.api.runner.agent.options import keeps_checkpoints
from apps.api.runner.agent.outcome import Meter, outcome_of, stopped, used
from apps.api.runner.agent.process import Agent, NotTaken, Poisoned, TranscriptLost
from apps.api.runner.session.approvals import Approvals
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.denials import Denials
from apps.api.runner.session.ports import Ports
from apps.api.runner.session.steering import Steering
from apps.api.runner.session.storing import Storing
from apps.api.runner.session.tool_spans import ToolSpans
from apps.api.runner.session.turn import Turn, Turns

log = structlog.get_logger(__name__)

_ASKING_MODES = frozenset({"default", "plan"})
"""Modes of permission that let no call through which another one would ask for."""


class Conversation:
    """What is said in a session while this instance owns it. It ends turns; the session's owner begins a client's."""

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
        denials: Denials,
        steering: Steering,
        settle: Callable[[float], None],
    ) -> None:
        """`settle` is told what each result says that its turn cost, in USD."""
        self._core, self._writer, self._store, self._storing, self._turns = core, writer, store, storing, turns
        self._tasks, self._approvals, self._ports, self._denials = tasks, approvals, ports, denials
        self._steering, self.keep = steering, steering.keep
        self._used_tools = self._left_task = self._going_on = False
        self._meter = Meter(settle)
        self._model_told, self._tools = model_failures.Signs(), ToolSpans(turns)
        self._noted: tuple[Any, ...] = ()
        self._mode: str | None = None
        self._said: set[str | None] = set()
        self._before = 0
        self._aside: asyncio.Future[ResultMessage] | None = None

    def new_process(self) -> None:
        """The agent has been started anew: it counts from zero."""
        self._meter.begin()
        self._turns.denied.clear()
        self._tools.end()
        self._going_on = False

    def set_aside(self) -> asyncio.Future[ResultMessage]:
        """From now on nothing that the agent says counts, but what it has used: the result of its turn, to come."""
        self._aside = asyncio.get_running_loop().create_future()
        return self._aside

    def used(self) -> tuple[float | None, dict[str, dict[str, Any]], int]:
        """What the turn that was set aside has used: cost in USD if known, usage by model, calls of the model."""
        return *self._meter.take(), self._before + len(self._said)

    def is_at_its_bound(self, config: AgentConfig) -> bool:
        """Whether the turn may not call the model again: a new process has no bound that is as small as that."""
        return config.max_turns is not None and self._before + len(self._said) >= config.max_turns

    def in_its_mode(self, config: AgentConfig) -> AgentConfig:
        """The configuration with the mode that the agent has got to by itself, if it asks no less than the one given.

        That is only what the agent's process says: it may not free itself.
        """
        return config.model_copy(update={"permission_mode": self._mode}) if self._mode in _ASKING_MODES else config

    def owe(self, claim: Claim) -> None:
        """The claimed run was parked: what its earlier processes have used is a part of it."""
        if claim.parked is not None:
            self._meter.owe(claim.parked.cost_usd, claim.parked.models)
            self._before, self._said = claim.parked.num_turns, set()

    async def take_up(self, turn: Turn) -> None:
        """The agent goes on with a turn that it has not begun, and that clients know."""
        self._used_tools = self._going_on = True
        self._turns.enter(turn)
        await self._writer.append(Event("status", {"status": "resumed"}, turn.run_id))

    async def fail(self, turn: Turn, code: str, text: str = "") -> None:
        """End a run that got no result: for `code`, or for what it was being stopped for."""
        code = turn.stopping or code
        status, failure = stopped(code, text)
        events = [] if status == "interrupted" else [Event("error", failure)]
        cost, models = self._meter.take()
        if not turn.begun:
            cost = cost or 0.0  # the model was never asked
        await self.finish(turn, Outcome(status, error=failure, cost_usd=cost, usage=used(models)), events)

    async def finish(self, turn: Turn, outcome: Outcome, events: list[Event], *, also: Also | None = None) -> None:
        """End a run with its last events, and `also` in one transaction.

        A run ends once: who comes second waits for the first end.
        """
        if turn.ended.is_set():
            return
        if turn.ending is None:
            turn.ending = asyncio.create_task(self._end(turn, outcome, events, also), name=f"end-{turn.run_id}")
            turn.ending.add_done_callback(ask)
        # Shielded: a run whose end is known must not stay "running" because a task was cancelled meanwhile.
        await asyncio.shield(turn.ending)

    async def _end(self, turn: Turn, outcome: Outcome, events: list[Event], also: Also | None) -> None:
        last = [Event(e.type, e.fields, turn.run_id) for e in events]
        last.append(Event("done", {"status": outcome.status}, turn.run_id))

        async def more(connection: asyncpg.Connection, seq: int) -> None:
            await self._steering.keep(connection, turn)
            if also is not None:
                await also(connection, seq)

        try:
            await self._approvals.close_all("run_ended", turn.run_id)
            turn.untaken = await self._steering.settle(turn)
            last[:0] = await self._storing.keep(turn.run_id)
            await finish(self._writer, turn.run_id, outcome, *last, also=more)
        except NotRunning as error:
            log.warning("execution.ended_before", session_id=str(self._writer.session_id), error=error)
            self._turns.end(turn)
        except BaseException:
            turn.ending = None  # an end that could not be stored is none: who waited for it may end the run otherwise
            raise
        else:
            self._turns.end(turn, outcome.status)

    async def hear(self, agent: Agent, message: Message) -> None:
        """Take the agent's next message. Raises TranscriptLost, Poisoned, what `Writer.append` raises."""
        if self._aside is not None:
            if isinstance(message, ResultMessage) and not self._aside.done():
                self._meter.read(message)
                self._aside.set_result(message)
            return
        if self._going_on and not isinstance(message, SystemMessage):
            self._approvals.taken_up.set()
        self._left_task |= self._tasks.take(message)
        active = self._turns.active
        if isinstance(message, StreamEvent):
            if active is not None and (fields := messages.partial(message)):
                self._writer.delta("partial", active.run_id, fields)
                if not active.heard:
                    active.hear()
            return
        await self._denials.tell()
        if isinstance(message, ResultMessage):
            await self._steering.heard(message.user_message_uuids)
            await self._end_turn(agent, message)
        elif isinstance(message, MirrorErrorMessage):
            lost = TranscriptLost(message.error)
            log.error("execution.transcript_lost", session_id=str(self._writer.session_id), error=lost)
            raise lost
        elif isinstance(message, SystemMessage) and message.subtype == "init":
            await self._begin_turn(agent, message)
        else:
            self._model_told.hear(message)
            if isinstance(message, AssistantMessage) and message.parent_tool_use_id is None:
                self._said.add(message.message_id)
            if isinstance(message, SystemMessage) and message.subtype == "status":
                self._mode = message.data.get("permissionMode") or self._mode
                await self._steering.heard(message.data.get("user_message_uuids"))
            self._tools.hear(message)
            events = messages.events(message, active.run_id if active else None)
            if events:
                await self._writer.append(*events)
            if calls := messages.tool_calls(message):
                self._used_tools = True
                self._storing.will_change()
                await self._approvals.saw(calls)

    async def _begin_turn(self, agent: Agent, message: SystemMessage) -> None:
        self._model_told = model_failures.Signs()
        self._mode = message.data.get("permissionMode")
        if self._going_on:  # with a turn that clients were told of
            self._going_on = False
            await self._note(agent, message)
            return
        self._before, self._said = 0, set()
        # The init of a background turn names no message of a user's.
        uuids = message.data.get("user_message_uuids") or ()
        current = self._turns.current
        if current is not None and current.ended.is_set():
            current = None
        if current is not None and str(current.run_id) in uuids:
            self._turns.enter(current)
            assert current.claim is not None  # noqa: S101 - for the type checker
            shown = Event("message", messages.prompt_message(current.run_id, current.claim.prompt), current.run_id)
            told = [Event("init", messages.init(message.data, agent.isolation), current.run_id), shown]
            if keeps_checkpoints(self._core.settings, agent.config):
                told.append(
                    Event("checkpoint", messages.checkpoint(current.run_id, current.claim.prompt), current.run_id)
                )
            if current.claim.steer:
                told.append(self._steering.begun(current.run_id))
            await self._writer.append(*told)
            await self._note(agent, message)
            return
        writer, run_id, seconds = self._writer, uuid4(), self._core.settings.background_turn_seconds
        whose = (writer.session_id, writer.tenant_id, writer.generation)
        if current is not None:
            self._turns.enter(Turn(current.run_id, None, guest=True))
            self._tasks.told()
            await self._writer.append(Event("status", {"status": "background_turn"}, current.run_id))
        elif await writer.repeat(lambda: claims.begin_background(self._core.db, *whose, run_id, seconds)):
            self._turns.enter(Turn(run_id, None, seconds=seconds))
            self._tasks.told()  # not before: a session that has neither news nor a turn is given back as idle
            await self._writer.append(Event("init", messages.init(message.data, agent.isolation), run_id))

    async def _note(self, agent: Agent, message: SystemMessage) -> None:
        """Keep what the CLI says of itself: `/clear` gives the conversation another id."""
        told = hearsay.told_of_itself(message.data)
        if told.session_id and told.session_id != self._store.conversation:
            # What tools put out is kept with the session by a link that is made before a process starts.
            self._store.follow(told.session_id)
            agent.use_up()
        noted = (told.permission_mode, told.tools, self._store.conversation)
        if noted == self._noted:
            return
        try:
            await sessions.note_agent(self._core.db, self._writer.session_id, self._writer.generation, *noted)
        except CONNECTION_ERRORS as error:  # no reason to end the run: the next turn notes it
            log.warning("execution.mode_not_noted", session_id=str(self._writer.session_id), error=type(error).__name__)
        else:
            self._noted = noted

    async def _end_turn(self, agent: Agent, message: ResultMessage) -> None:
        turn, self._going_on = self._turns.active, False
        self._count_denied(message.permission_denials or [])
        self._tools.end()
        if turn is None or turn.guest:
            self._turns.enter(None)
            self._meter.read(message)
            if await self._forgets(model_failures.code_of(message, self._model_told.kind)):
                if turn is not None:
                    await self._writer.append(Event("status", {"status": "turn_forgotten"}, turn.run_id))
                raise Poisoned
            return
        structured = turn.claim is not None and turn.claim.config.output_format is not None
        outcome, last = outcome_of(
            message,
            self._meter,
            turn.stopping,
            structured=structured,
            told=self._model_told,
            refused=turn.refused,
            turns=self._before,
        )
        self._before = 0
        code = outcome.error["code"] if outcome.error else None
        if code == "max_budget_exceeded":
            agent.use_up()
        if self._used_tools:
            left, self._used_tools, self._left_task = self._left_task, False, False
            await self._ports.settle(agent, began=left)
        forgotten = await self._forgets(code, turn)
        if forgotten:
            agent.use_up()  # the process still remembers
            last.insert(0, Event("status", {"status": "turn_forgotten"}))
        await self.finish(turn, outcome, last)
        if forgotten and turn.claim is None:
            raise Poisoned  # a client's prompt may be waiting in it
        if turn.untaken:
            raise NotTaken

    def _count_denied(self, told: Iterable[Any]) -> None:
        """Count calls that rules or the mode of permission have denied: those of which nobody here was asked."""
        ids = {str(denial.get("tool_use_id")) for denial in told if isinstance(denial, dict)}
        instruments.DENIED_BY_RULES.inc(len(ids - self._turns.denied))
        self._turns.denied |= ids

    async def _forgets(self, code: str | None, turn: Turn | None = None) -> bool:
        """Take a turn that the model refuses, a client's or one of the agent's own, out of the conversation."""
        if code not in model_failures.POISONOUS:
            return False
        if turn is not None and turn.claim is not None:
            return await self._store.forget(turn.run_id)
        return self._model_told.said is not None and await self._store.forget_turn(self._model_told.said)
