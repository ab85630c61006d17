"""Messages for the turn that runs: given to the agent at the one point where it takes them, and told once it has.

The CLI takes a message between the results of tools and its next call of the model, or not in this turn. With what is
left in its queue when the turn ends it begins a turn by itself, at once, which nobody here has claimed. So it is given
a message only when a tool has ended, while it waits for the hook that says so. See docs/adr/0031-steering.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, cast
from uuid import UUID

import asyncpg
import structlog
from claude_agent_sdk import CLIConnectionError
from claude_agent_sdk.types import HookContext, HookEvent, HookInput, HookJSONOutput

from apps.api import instruments
from apps.api.core.context import Core
from apps.api.core.events.log import Event, Writer
from apps.api.core.sessions import steering
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner.agent import messages
from apps.api.runner.agent.process import Agent, Owner
from apps.api.runner.session.turn import Turn, Turns

log = structlog.get_logger(__name__)

AFTER_A_TOOL: tuple[HookEvent, ...] = ("PostToolUse", "PostToolUseFailure")

STORED_SECONDS = 2.0
"""For which what the agent says next waits, so that it comes after what is told of a message that it has taken. What is
stored later is told at the end of the turn."""

_NOT_HANDED: tuple[type[Exception], ...] = (*CONNECTION_ERRORS, CLIConnectionError)

_LAST_TOOL = "StructuredOutput"
"""After it the turn may end without another call of the model."""


class Steering:
    """The messages for the turns of one session.

    Attributes:
        agent: the newest process of the session.
    """

    def __init__(self, core: Core, writer: Writer, store: Transcripts, turns: Turns, owner: Owner) -> None:
        self._db, self._writer, self._store, self._turns, self._owner = core.db, writer, store, turns, owner
        self._one = asyncio.Lock()
        self.agent: Agent | None = None

    async def after_a_tool(self, given: HookInput, tool_use_id: str | None, _context: HookContext) -> HookJSONOutput:
        """The SDK's callback: a tool has ended, and the agent goes on when this returns."""
        fields = cast(Mapping[str, Any], given)
        if not fields.get("agent_id") and fields["tool_name"] != _LAST_TOOL:  # not one of a subagent's
            await self.hand(tool_use_id)
        return {}

    async def hand(self, tool_use_id: str | None) -> None:
        """Give the agent what waits for the client's turn that it is in, after this call."""
        if self._turns.takes_up(tool_use_id):
            return  # a new process carries it out before it begins to take anything
        async with self._one:
            turn, agent = self._turns.current, self.agent
            if turn is None or agent is None or turn is not self._turns.active or not self._may_take(turn):
                return
            try:
                if not await steering.waits(self._db, self._writer.session_id):
                    return
                turn.steered = True  # also where the answer is lost
                mine = self._writer.session_id, self._writer.generation, turn.run_id
                for message in await steering.hand(self._db, *mine):
                    if self._may_take(turn):
                        turn.handed[message.id] = message.prompt
                        self._store.await_taken(message.id)
                        await agent.send(message.id, message.prompt)
            except (LeaseLost, Unavailable) as error:
                self._owner.lost(error)
            except _NOT_HANDED as error:  # it waits for the next tool, or the next run
                log.warning("steering.not_handed", session_id=str(self._writer.session_id), error=error)

    @staticmethod
    def _may_take(turn: Turn) -> bool:
        return not (turn.stopping or turn.parking or turn.ending is not None or turn.ended.is_set())

    async def heard(self, ids: Any) -> None:
        """The agent names the messages that it works for. Raises what `Writer.append` raises.

        They are told to be taken once the conversation has them as it is stored: the next owner must know them.
        """
        turn = self._turns.current
        if turn is None or not turn.handed or not isinstance(ids, list):
            return
        stored = {id_: self._store.await_taken(id_) for id_ in turn.handed if str(id_) in ids}
        with suppress(TimeoutError):
            async with asyncio.timeout(STORED_SECONDS):
                for event in stored.values():
                    await event.wait()
        await self._tell(turn, [id_ for id_, event in stored.items() if event.is_set()])

    async def _tell(self, turn: Turn, taken: Iterable[UUID]) -> None:
        for id_ in taken:
            prompt = turn.handed.pop(id_)
            self._store.no_more(id_)
            told = [
                Event("message", messages.prompt_message(id_, prompt), turn.run_id),
                steering.steered(id_, turn.run_id, "taken"),
                Event("result", steering.result_of(id_, turn.run_id), id_),
                Event("done", {"status": "succeeded"}, id_),
            ]

            async def take(connection: asyncpg.Connection, seq: int, id_: UUID = id_) -> None:
                await steering.take(connection, id_, turn.run_id, (seq - 1, seq))

            try:
                await self._writer.append(*told, also=take)
            except steering.NotHanded:  # the session was deleted meanwhile
                log.warning("steering.ended_before", session_id=str(self._writer.session_id), run_id=str(id_))
            else:
                instruments.STEERED.labels("taken").inc()

    def begun(self, run_id: UUID) -> Event:
        """A message that was for a turn begins one of its own, as its run."""
        instruments.STEERED.labels("next_run").inc()
        return steering.steered(run_id, run_id, "next_run")

    async def settle(self, turn: Turn) -> bool:
        """Before the end of a turn is stored: tell what is in its conversation. What is left waits again, see `keep`.

        Returns whether the agent may still have some of that. Then it is killed, and what it says is not stored.
        """
        if not turn.handed:
            return False
        left = {id_: await self._store.has_taken(id_) for id_ in turn.handed}
        await self._tell(turn, [id_ for id_, taken in left.items() if taken])
        for id_ in turn.handed:
            self._store.no_more(id_)
        if self.agent is not None and turn.handed:
            self.agent.use_up()  # it takes no message under an id that it was given before
        if all(str(id_) in turn.dropped for id_ in turn.handed):
            return False
        if self.agent is not None:
            self._store.freeze()
            self.agent.kill()
        for id_ in turn.handed:
            await self._store.forget(id_)
        return True

    async def keep(self, connection: asyncpg.Connection, turn: Turn) -> None:
        """In the transaction that ends or parks a turn: what it has not taken waits in the queue as before."""
        if turn.steered:
            await steering.keep(connection, self._writer.session_id, turn.run_id)
