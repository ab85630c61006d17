"""`claude-agent-api doctor`: what the service needs on this machine, and what to do where it is missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from apps.api.doctor import database, host, model, stores
from apps.api.doctor.check import Check
from apps.api.settings import Settings

__all__ = ["Check", "examine"]

_Look = Callable[[Settings], Awaitable[Check]]

_LOOKS: list[_Look] = [
    *(host.names, host.secrets, host.python, host.cli),
    *(database.server, database.role, database.schema, database.connections, database.pooler, database.keys),
    *(stores.redis, stores.objects, model.model, host.profiles_, host.workspaces, host.git),
    *(database.fleet, database.clock_, host.host, host.isolation_, host.limits, host.sockets, host.port),
    host.descriptors,
]


async def examine(settings: Settings) -> list[Check]:
    """Run all checks. One that cannot be made is a FAIL, never an exception. Nothing is changed anywhere."""
    return [await look(settings) for look in _LOOKS]
