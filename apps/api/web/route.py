"""What routes of every dialect share: the parts of the instance, and what they may ask of the runner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Depends
from starlette.requests import HTTPConnection

from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.core.network.default_model import Answer
from apps.api.core.sessions.session_files import Live
from apps.api.errors import ApiError
from apps.api.limits import PromptLimits
from apps.api.shares import Kind, Share
from apps.api.web.entrance import Entrance, address_of
from apps.api.web.opened import Held, Opened

State = Literal["ok", "unavailable"]

ErrorShape = Callable[[ApiError, str], tuple[int, Any]]
"""Error and request id → status and body."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the HTTP side may ask of the runner, which no HTTP module may import.

    Attributes:
        isolation: how it isolates its agents; None when it starts none.
        warnings: every way in which this instance does not confine its agents.
        unfit: why this instance should get no traffic, though it works.
        failing_loops: names of the loops of this instance whose last step has failed.
        address_of: session and port → the address that its agent's programs listen on here, if they do.
        live: session → its files, if it is owned here.
    """

    isolation: str | None
    warnings: list[str]
    cli_present: Callable[[], bool]
    draining: Callable[[], bool]
    lease_is_over: Callable[[], bool]
    default_model: Callable[[], Answer]
    unfit: Callable[[], list[str]]
    failing_loops: Callable[[], list[str]]
    address_of: Callable[[UUID, int], Awaitable[str | None]]
    live: Callable[[UUID], Live | None]


@dataclass(frozen=True, slots=True)
class Instance:
    """The parts of one running instance that its routes use. The lifespan builds it before the first request.

    Attributes:
        databases: whether PostgreSQL and Redis answer.
        look_at_queue: asks the database what waits, if that is known no more.
        entrance: where keys are shown.
        opened: everything that stays open here, such as event streams and WebSockets.
        anonymous: what stands for the key of callers without a key, if there may be some.
        drain: ends the runs of this instance in order; returns when that is done.
        leave: then ends what clients have open, in order: best when nobody can connect any more.
        failed: the name of a background task that ended by itself, if one has.
        error_shapes: how the paths below a prefix tell errors, the first that fits; others in the native shape.
    """

    core: Core
    probe: Probe
    prompt_limits: PromptLimits
    shares: Mapping[Kind, Share]
    entrance: Entrance
    opened: Opened
    databases: Callable[[], Awaitable[tuple[State, State]]]
    look_at_queue: Callable[[], Awaitable[None]]
    anonymous: str | None
    drain: Callable[[], Awaitable[None]]
    leave: Callable[[], Awaitable[None]]
    failed: Callable[[], str | None]
    error_shapes: Mapping[str, ErrorShape]


def instance_of(connection: HTTPConnection) -> Instance:
    """The instance that serves this connection."""
    instance: Instance = connection.app.state.instance
    return instance


def stream_of(request: HTTPConnection, caller: Principal, scope: str) -> Held:
    """For an event stream, or a request that waits for a run: before the run begins, so that what is refused leaves
    nothing behind. `scope`: what the key must be allowed as long as it lasts. Raises RateLimited, Unavailable."""
    return instance_of(request).opened.hold("streams", caller, scope)


async def caller_of(connection: HTTPConnection, key: str | None, *, tokens: bool = False) -> Principal:
    """Whose key this is, shown by whoever is on this connection; with `tokens`, it may be a client token, and who asks
    sees to what that allows.

    Raises as `Entrance.authenticate`; Forbidden `client_token_not_permitted`, `origin_not_permitted`.
    """
    caller = await instance_of(connection).entrance.authenticate(key, address_of(connection))
    if caller.grant is not None:
        caller.grant.require_origin(connection.headers.get("origin"))
        if not tokens:
            caller.grant.require(None)
    return caller


def core_of(connection: HTTPConnection) -> Core:
    """The instance's core."""
    return instance_of(connection).core


async def _core(connection: HTTPConnection) -> Core:
    # A coroutine, since FastAPI sends what is none to a thread.
    return core_of(connection)


CoreDep = Annotated[Core, Depends(_core)]
