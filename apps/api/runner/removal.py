"""Files of deleted sessions, removed from this host as soon as their agents have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from uuid import UUID

import structlog

from apps.api.core.context import Core
from apps.api.core.events.relay import session_id_in
from apps.api.core.sessions import workspaces
from apps.api.core.tasks import Loop
from apps.api.runner.session.execution import Execution

log = structlog.get_logger(__name__)

MAX_DELETED = 1_000
"""Deleted sessions whose files are still to be removed; a sweep finds what is beyond."""

END_SECONDS = 60.0
"""For the agent of one to end."""


class Removal:
    """Those of one instance. `executions`: what it owns."""

    def __init__(self, core: Core, executions: Mapping[UUID, Execution]) -> None:
        self._core, self._executions = core, executions
        self._deleted = asyncio.Queue[UUID](MAX_DELETED)

    def heard(self, session: str) -> None:
        """Somebody has deleted a session: end it here, if it is here, and have its files removed."""
        session_id = session_id_in(session)
        if session_id is None:
            return
        if execution := self._executions.get(session_id):
            execution.fence()
        with suppress(asyncio.QueueFull):  # the next sweep finds it
            self._deleted.put_nowait(session_id)

    async def bury_next(self, loop: Loop) -> None:
        """Remove the files of one, once its agent, if it is here, has ended. One after the other."""
        session_id = await self._deleted.get()
        with loop.one(session_id):
            if execution := self._executions.get(session_id):
                async with asyncio.timeout(END_SECONDS):
                    await execution.over.wait()
            try:
                await self._core.blocking.removal.run(workspaces.remove, self._core.settings, session_id)
            except OSError as error:  # of this session's files; the next sweep tries again
                log.warning("worker.files_not_removed", session_id=str(session_id), error=error)
