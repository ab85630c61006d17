"""Changing a session's agent while it lives, whichever instance has it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from apps.api.core.context import Core
from apps.api.core.fleet import commands
from apps.api.core.fleet.commands import Sent
from apps.api.core.sessions import sessions
from apps.api.errors import Conflict

PATIENCE = 2.0
"""Seconds to wait for a session that is between two owners."""


async def reconfigure(core: Core, tenant_id: UUID, session_id: UUID, changes: Mapping[str, Any]) -> Sent:
    """Use another `model` or `permission_mode`: at once where an agent is live, else from the next prompt on.

    Raises:
        NotFound: no such session.
        Conflict: `session_deleted`; `control_failed` with the agent's words; `no_live_run` for a session whose dead
            owner has not been noticed yet.
    """
    until = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            return await commands.send(core, tenant_id, session_id, "control", {"set": dict(changes)}, any_run=True)
        except Conflict as conflict:
            if conflict.code != "no_live_run":
                raise
            if await sessions.reconfigure(core.db.pool, session_id, None, changes):
                await sessions.forget_cached(core.redis, tenant_id, session_id)
                return Sent("applied", None, {})
            if asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(random.uniform(0.1, 0.3))
