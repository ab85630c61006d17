"""What routes of every dialect share: the core, and what they may ask of the runner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends
from starlette.requests import HTTPConnection

from apps.api.core.context import Core
from apps.api.core.network.default_model import Answer


@dataclass(frozen=True, slots=True)
class Probe:
    """What the HTTP side may ask of the runner, which no HTTP module may import.

    Attributes:
        warnings: every way in which this instance does not confine its agents.
        address_of: session and port → the address that its agent's programs listen on here, if they do.
    """

    warnings: list[str]
    cli_present: Callable[[], bool]
    draining: Callable[[], bool]
    lease_is_over: Callable[[], bool]
    default_model: Callable[[], Answer]
    measure: Callable[[], None]
    address_of: Callable[[UUID, int], Awaitable[str | None]]


def core_of(connection: HTTPConnection) -> Core:
    """The instance's core, as the lifespan built it."""
    core: Core = connection.app.state.core
    return core


def probe_of(connection: HTTPConnection) -> Probe:
    """The instance's probe."""
    probe: Probe = connection.app.state.probe
    return probe


CoreDep = Annotated[Core, Depends(core_of)]
