"""What the agent of one session asks a person, or its client's program: requests that are opened here and answered on
any instance."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from claude_agent_sdk import PermissionResult, PermissionResultAllow, PermissionResultDeny, ToolPermissionContext
from claude_agent_sdk.types import PermissionRuleValue, PermissionUpdate

from apps.api import clock, instruments
from apps.api.core import codec
from apps.api.core.config.profiles import Profile
from apps.api.core.config.rules import Rule
from apps.api.core.context import Core
from apps.api.core.events.log import Writer
from apps.api.core.sessions import requests
from apps.api.core.sessions.parking import Parked
from apps.api.core.sessions.requests import Asked, Remembered, Resolved
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner.agent.process import Owner
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.steering import Steering
from apps.api.runner.session.turn import Turns

QUESTION = "AskUserQuestion"
"""The tool by which an agent asks a question; the CLI offers it only where somebody can be asked."""

LAST_MOMENT = 30.0
"""Seconds that a request whose time is over waits for the answer that was stored just before."""

SHOWN_SECONDS = 1.0
"""For the message that shows a tool call, before a person is asked for it."""


@dataclass(slots=True)
class Open:
    """A request that waits.

    Attributes:
        since: when it was opened, in monotonic seconds.
        resolving: somebody has answered it, or its time is over: its tool call waits no longer, in a moment.
    """

    asked: Asked
    tool_name: str
    tool_input: dict[str, Any]
    since: float = field(default_factory=time.monotonic)
    resolving: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    decision: dict[str, Any] | None = None


@dataclass(slots=True)
class _TakenUp:
    """The request that a run was parked with, by now resolved, and its tool call, which this process carries out."""

    parked: Parked
    resolved: Resolved
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    used: bool = False


class Approvals:
    """The open requests of one session. The clocks of the runs that wait for them stand still.

    Attributes:
        taken_up: a new process has got to the call that it goes on with.
    """

    def __init__(
        self, core: Core, writer: Writer, turns: Turns, tasks: Tasks, owner: Owner, steering: Steering
    ) -> None:
        self._db, self._writer, self._turns, self._tasks, self._owner = core.db, writer, turns, tasks, owner
        self._steering = steering
        self._seconds = core.settings.action_timeout_seconds
        self._remembered: list[Remembered] = []
        self._open: dict[UUID, Open] = {}
        self._left: Open | None = None
        self._gone, self.taken_up = asyncio.Event(), asyncio.Event()
        self._taken: _TakenUp | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._calls: deque[str] = deque(maxlen=200)
        self._called = asyncio.Condition()

    @property
    def waiting(self) -> bool:
        """Whether a person must answer something."""
        return bool(self._open)

    async def saw(self, calls: Iterable[str]) -> None:
        """Clients were shown the tool calls with these ids."""
        async with self._called:
            self._calls.extend(calls)
            self._called.notify_all()

    async def can_use_tool(
        self, tool_name: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResult:
        """The SDK's callback: ask, and wait for the decision, the end of the request's time, or a cancellation."""
        result = await self._permitted(tool_name, tool_input, context)
        if isinstance(result, PermissionResultDeny):
            self._turns.denied.add(context.tool_use_id or "")
            if not (result.interrupt or context.agent_id):
                await self._steering.hand(context.tool_use_id)  # no hook is called after a call that is not carried out
        return result

    async def _permitted(
        self, tool_name: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResult:
        if self._taken is not None and context.tool_use_id == self._taken.parked.tool_use_id:
            return await self._taken_up(self._taken, tool_name, tool_input)
        try:
            return await self._decided(tool_name, tool_input, context)
        except (LeaseLost, Unavailable) as error:
            self._owner.lost(error)
            return PermissionResultDeny(message="The session is another instance's now.", interrupt=True)

    async def _decided(
        self, tool_name: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResult:
        if any(before.covers(tool_name, tool_input) for before in self._remembered):
            return PermissionResultAllow()
        await self._shown(context.tool_use_id or "")
        mine = Open(self._asked(tool_name, tool_input, context), tool_name, tool_input)
        await self._wait(mine)
        if mine is self._left:
            return PermissionResultDeny(message="The process ends.", interrupt=True)
        return self._result(mine)

    async def result_of(self, tool: str, given: dict[str, Any], tool_use_id: str) -> dict[str, Any] | None:
        """What the client's program has answered to a call of its tool; None when nobody does."""
        await self._shown(tool_use_id)
        expires_at = clock.now() + timedelta(seconds=self._seconds)
        fields = {"tool_name": tool, "input": codec.clean(given), "tool_use_id": tool_use_id, "agent_id": None}
        mine = Open(Asked(uuid4(), "client_tool", self._turns.run_id, expires_at, fields), tool, given)
        try:
            await self._wait(mine)
        except (LeaseLost, Unavailable) as error:
            self._owner.lost(error)
        return mine.decision

    async def _wait(self, mine: Open) -> None:
        """Open a request, and wait until it is settled, or left."""
        self._open[mine.asked.id] = mine  # before it can be answered
        self._changed()
        try:
            await self._writer.append(mine.asked.event(), also=self._insert(mine.asked))
            try:
                async with asyncio.timeout(self._seconds):
                    await mine.settled.wait()
            except TimeoutError:
                if mine is self._left:
                    await self._gone.wait()  # its time is looked after by whoever parks the run
                    return
                mine.resolving = True
                if await self._close(mine.asked, "expired"):
                    if mine.asked.kind != "client_tool":
                        instruments.DENIED_BY_NOBODY.inc()
                else:
                    async with asyncio.timeout(LAST_MOMENT):
                        await mine.settled.wait()
        except asyncio.CancelledError:
            if mine is self._left:  # the process ends, and the request stays open
                raise
            mine.settled.set()
            # Shielded: the CLI has dropped its question, and the request must not stay open.
            turn = self._turns.of(None)
            reason = (turn.stopping if turn else None) or "withdrawn"
            closing = asyncio.create_task(self._withdraw(mine.asked, reason), name=f"close-{mine.asked.id}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)
            raise
        finally:
            if mine is not self._left:
                self._open.pop(mine.asked.id, None)
                self._changed()

    def sole(self, run_id: UUID) -> Open | None:
        """What a run waits for, if it is one request, of the agent itself, that nobody has resolved."""
        mine = next(iter(self._open.values())) if len(self._open) == 1 else None
        if mine is None or mine.resolving or mine.asked.run_id != run_id or mine.asked.fields["agent_id"] is not None:
            return None
        return None if mine.asked.kind == "client_tool" else mine  # the call is under way already

    def leave(self, mine: Open) -> None:
        """Leave a request open when its process ends: its run is parked. Who obeys its answer waits for `gone`."""
        self._left = mine

    def gone(self) -> None:
        """The run is parked, with the answer if there was one; or the session is lost."""
        self._gone.set()

    async def take_up(self, parked: Parked) -> None:
        """Before a process starts that is to go on with a parked run: what was decided. Raises ValueError: nothing."""
        resolved = await requests.resolution_of(self._db, parked.request_id)
        if resolved is None:
            raise ValueError("what the run waits for is not decided")
        self._taken = _TakenUp(parked, resolved)

    def send(self) -> None:
        """Let the process have what was decided: it has been noted that it does."""
        if self._taken is not None:
            self._taken.sent.set()

    async def _taken_up(self, taken: _TakenUp, tool_name: str, tool_input: dict[str, Any]) -> PermissionResult:
        """What was decided on a call of an earlier process. It is carried out once, with the input that was seen."""
        kind, fields = taken.resolved.kind, taken.resolved.fields
        asked = Asked(taken.parked.request_id, kind, self._turns.run_id, clock.now(), fields)
        is_it = tool_name == (QUESTION if kind == "question" else fields["tool_name"])
        self.taken_up.set()
        if taken.used or not is_it:
            return PermissionResultDeny(message="This is not the call that was decided on.")
        taken.used = True
        await taken.sent.wait()
        result = self._result(Open(asked, tool_name, tool_input, decision=taken.resolved.decision))
        if isinstance(result, PermissionResultAllow) and result.updated_input is None:
            result.updated_input = dict(fields["input"])
        return result

    async def recall(self, profile: Profile | None) -> list[Rule]:
        """Before a process starts: the rules that persons have allowed for the rest of the session."""
        self._remembered = await requests.remembered(self._db, self._writer.session_id, profile)
        return [rule for before in self._remembered for rule in before.rules]

    async def _shown(self, tool_use_id: str) -> None:
        # The SDK hands over what a tool call asks, and the message that shows the call, by two ways.
        with suppress(TimeoutError):
            async with asyncio.timeout(SHOWN_SECONDS), self._called:
                await self._called.wait_for(lambda: tool_use_id in self._calls)

    def _changed(self) -> None:
        self._turns.hold({mine.asked.run_id for mine in self._open.values()})

    def _run_of(self, agent_id: str | None) -> UUID | None:
        """The run that an agent (None: the main one; else a subagent's id) works for now, if any."""
        # A background task outlives the run that began it, and no run waits for what it asks.
        return None if agent_id in self._tasks.outlasting else self._turns.run_id

    def _asked(self, tool_name: str, tool_input: dict[str, Any], context: ToolPermissionContext) -> Asked:
        expires_at = clock.now() + timedelta(seconds=self._seconds)
        ids = {"tool_use_id": context.tool_use_id, "agent_id": context.agent_id}
        run_id = self._run_of(context.agent_id)
        if tool_name == QUESTION:
            fields = {"questions": codec.clean(tool_input.get("questions", [])), **ids}
            return Asked(uuid4(), "question", run_id, expires_at, fields)
        fields = {
            "tool_name": tool_name,
            "input": tool_input,
            "suggestions": [update.to_dict() for update in context.suggestions],
            "title": context.title,
            "description": context.description,
            "reason": context.decision_reason,
            "blocked_path": context.blocked_path,
            **ids,
        }
        return Asked(uuid4(), "permission", run_id, expires_at, fields)

    def _insert(self, asked: Asked) -> Callable[[asyncpg.Connection, int], Awaitable[None]]:
        async def insert(connection: asyncpg.Connection, _seq: int) -> None:
            await requests.insert(connection, self._writer.tenant_id, self._writer.session_id, asked)

        return insert

    def _result(self, mine: Open) -> PermissionResult:
        decision = mine.decision
        if decision is None:
            return PermissionResultDeny(message="Nobody answered in time.")
        if decision["decision"] == "deny":
            message = decision.get("message") or "The user refused this."
            return PermissionResultDeny(message=message, interrupt=bool(decision.get("interrupt")))
        if decision["decision"] == "answered":
            answers = _in_its_words(mine.tool_input, decision["answers"])
            return PermissionResultAllow(updated_input={**mine.tool_input, "answers": answers})
        granted = Remembered.of(mine.asked.fields, decision).rules if decision.get("remember") else ()
        rules = [PermissionRuleValue(tool_name=rule.tool, rule_content=rule.content) for rule in granted]
        update = PermissionUpdate(type="addRules", rules=rules, behavior="allow", destination="session")
        return PermissionResultAllow(
            updated_input=decision.get("updated_input"), updated_permissions=[update] if rules else None
        )

    async def answer(self, request_id: UUID, decision: dict[str, Any] | None, by: Mapping[str, Any]) -> bool:
        """Take the decision that was stored for a request; False when its tool call does not wait any more.

        The tool call goes on at once: what was decided is stored, and that it was is told before what follows from it.
        """
        mine = self._open.get(request_id)
        if mine is not None and mine is self._left:
            await self._gone.wait()
            return True
        if decision is None:
            return False
        run_id = mine.asked.run_id if mine else self._run_of(None)

        async def also(connection: asyncpg.Connection, _seq: int) -> None:
            await requests.go_on(connection, run_id)

        telling = self._writer.begin(requests.answered(request_id, run_id, decision, by), also=also)
        waits = mine is not None and not mine.settled.is_set()
        if mine is not None and waits:
            mine.resolving = True
            if decision.get("remember"):
                self._remembered.append(Remembered.of(mine.asked.fields, decision))
            mine.decision = decision
            mine.settled.set()
        await asyncio.shield(telling)
        return waits

    async def close_all(self, reason: str, run_id: UUID | None = None) -> None:
        """Close what is open, or only what a run asked: the agent that asked is gone, or the run is over."""
        for mine in [m for m in self._open.values() if run_id in (None, m.asked.run_id)]:
            await self._close(mine.asked, reason)
            mine.settled.set()

    async def _withdraw(self, asked: Asked, reason: str) -> None:
        """Close a request that nobody waits for any more, nor for this."""
        try:
            await self._close(asked, reason)
        except (LeaseLost, Unavailable) as error:
            self._owner.lost(error)

    async def _close(self, asked: Asked, reason: str) -> bool:
        """Close a request; False when it was resolved before."""

        async def also(connection: asyncpg.Connection, _seq: int) -> None:
            if not await requests.close(connection, asked.id, reason):
                raise _Resolved
            await requests.go_on(connection, asked.run_id)

        event = requests.resolved(asked.id, asked.run_id, "closed", requests.by_system(reason))
        try:
            await self._writer.append(event, also=also)
        except _Resolved:
            return False
        return True


def _in_its_words(tool_input: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """Answers by the questions as the agent wrote them; persons were told what can be stored of those."""
    said = {text: codec.clean_text(text) for text in requests.questions_of(tool_input)}
    return {text: answers[told] for text, told in said.items() if told in answers}


class _Resolved(Exception):
    """Somebody was faster."""
