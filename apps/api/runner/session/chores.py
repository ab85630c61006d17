"""Runs that are no prompts: a reset of a session, and a rewind of its files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import uuid4

import asyncpg

from apps.api.core.codec import encode
from apps.api.core.context import Core
from apps.api.core.events.log import Event
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import sessions, workspaces
from apps.api.core.sessions.outcome import Outcome
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.runner.agent import checkpoints, options
from apps.api.runner.agent.process import Agent
from apps.api.runner.session.conversation import Conversation
from apps.api.runner.session.storing import Storing
from apps.api.runner.session.turn import Turn


class Chores:
    """What is done to one session, in its turn. `prepare` and `disconnect` are its owner's."""

    def __init__(
        self,
        core: Core,
        store: Transcripts,
        storing: Storing,
        talk: Conversation,
        prepare: Callable[[Turn, Claim], Awaitable[Agent | None]],
        disconnect: Callable[[str], Awaitable[None]],
    ) -> None:
        self._core, self._store, self._storing, self._talk = core, store, storing, talk
        self._prepare, self._disconnect = prepare, disconnect

    async def reset(self, turn: Turn, claim: Claim) -> None:
        """A new process for the same conversation (`soft`), or a new conversation as well (`hard`)."""
        async with turn.clock():
            await self._disconnect("reset")
        hard, fresh = claim.prompt["mode"] == "hard", uuid4()

        async def store(connection: asyncpg.Connection, _seq: int) -> None:
            await sessions.begin_anew(connection, claim.session_id, fresh)

        told = [Event("status", {"status": "reset", **claim.prompt})]
        await self._talk.finish(turn, Outcome("succeeded", cost_usd=0.0), told, also=store if hard else None)
        if hard and turn.status == "succeeded":
            self._store.follow(fresh)

    async def rewind(self, turn: Turn, claim: Claim) -> None:
        """Bring files back to what they were before a message, or only say what that would change."""
        settings, asked = self._core.settings, claim.prompt
        if not options.keeps_checkpoints(settings, claim.config):  # as it did when that message came
            claim = replace(claim, config=claim.config.model_copy(update={"enable_file_checkpointing": True}))
        async with turn.clock():
            agent = await self._prepare(turn, claim)
            if agent is None:
                return
            starts, cwd = self._core.blocking.starts, claim.config.cwd
            workspace = await starts.run(workspaces.create, settings, claim.session_id, cwd)
            if not asked["dry_run"]:
                self._storing.will_change()
            try:
                found = await checkpoints.obey(agent, workspace, self._store, self._store.conversation, asked)
            except checkpoints.CannotRewind as error:
                await self._talk.fail(turn, error.code, str(error))
                return
        told = [] if asked["dry_run"] else [Event("status", {"status": "rewound", **asked, **found})]
        result = encode({"status": "succeeded", **asked, **found}).decode()
        await self._talk.finish(turn, Outcome("succeeded", result), told)
