"""What routes of every dialect share: the core, the caller, and a run followed to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Request, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection

from apps.api import auth
from apps.api.auth import Principal
from apps.api.core import pins, runs
from apps.api.core.context import Core
from apps.api.core.default_model import Answer
from apps.api.core.follow import Followed, SessionDeleted
from apps.api.core.frames import Frame, Position
from apps.api.core.profiles import Policy
from apps.api.core.runs import Submitted
from apps.api.errors import RunFailed
from apps.api.limits import PromptLimits

_api_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="Your API key.")
_bearer = HTTPBearer(auto_error=False, description="Your API key as a bearer token.")


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


def presented_key(connection: HTTPConnection) -> str | None:
    """The key as sent: `X-API-Key`, or `Authorization: Bearer`. Never from the query string, which gets logged."""
    direct = connection.headers.get("x-api-key")
    if direct:
        return direct
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def identify(request: Request, *, guests: bool) -> Principal:
    """Who asks; with `guests`, whoever shows no key is of ANONYMOUS_TENANT, if there is one.

    Raises:
        Unauthorized: it is nobody.
        Forbidden: as `may_touch`.
    """
    core, key = core_of(request), presented_key(request)
    if not key and guests and request.app.state.anonymous:
        caller = await auth.anonymous(core.db, core.redis, request.app.state.anonymous)
    else:
        caller = await auth.authenticate(core.db, core.redis, key)
    await may_touch(core, caller, request.path_params)
    request.state.caller = caller
    return caller


async def _caller(
    request: Request,
    _documented_key: Annotated[str | None, Depends(_api_key)] = None,
    _documented_bearer: Annotated[Any, Depends(_bearer)] = None,
) -> Principal:
    caller: Principal = request.state.caller  # http/doors.py has asked, before it read the body
    return caller


async def may_touch(core: Core, caller: Principal, named: Mapping[str, Any]) -> None:
    """Whether the caller's key may use the session or the run that a request names: here for every route, so that none
    can forget it. Raises Forbidden `profile_not_permitted`."""
    session_id, run_id = pins.as_id(named.get("session_id")), pins.as_id(named.get("run_id"))
    await pins.may_touch(core.db.pool, caller.tenant_id, policy_of(core, caller), session_id=session_id, run_id=run_id)


async def admit_guests() -> None:
    """For routers of dialects whose originals knew no keys: their routes serve ANONYMOUS_TENANT, if there is one."""


async def visitor(request: Request) -> Principal | None:
    """Who asks at a route of such a dialect that needs no key, if it is somebody."""
    known = presented_key(request) or request.app.state.anonymous
    return await identify(request, guests=True) if known else None


async def reader(caller: Annotated[Principal, Depends(_caller)]) -> Principal:
    """A caller who may read."""
    caller.require("read")
    return caller


async def writer(caller: Annotated[Principal, Depends(_caller)]) -> Principal:
    """A caller who may change things."""
    caller.require("write")
    return caller


async def configurer(caller: Annotated[Principal, Depends(writer)]) -> Principal:
    """A caller who may change what all keys of the tenant use."""
    caller.require_unbound()
    return caller


async def operator(caller: Annotated[Principal, Depends(_caller)]) -> Principal:
    """A caller who administers the server: keys and tenants of everybody."""
    caller.require("admin")
    caller.require_unbound()
    return caller


async def count_prompt(connection: HTTPConnection, caller: Principal) -> dict[str, str]:
    """Count a prompt against the key's rate limit; returns the RateLimit headers. Raises RateLimited."""
    limits: PromptLimits = connection.app.state.prompt_limits
    return await limits.hit(caller.key_id, caller.prompts_per_minute)


async def prompter(request: Request, response: Response, caller: Annotated[Principal, Depends(writer)]) -> Principal:
    """A caller who may send a prompt now: counted against the key's rate limit."""
    headers = await count_prompt(request, caller)
    response.headers.update(headers)
    request.state.limit_headers = headers
    return caller


def policy_of(core: Core, caller: Principal) -> Policy:
    """Which profiles this caller may use."""
    return Policy(core.profiles, caller.profiles, core.settings.default_profile)


SCOPES = {reader: "read", writer: "write", operator: "admin"}
"""What the routes that depend on these ask of a key."""

CoreDep = Annotated[Core, Depends(core_of)]
Reader = Annotated[Principal, Depends(reader)]
Writer = Annotated[Principal, Depends(writer)]
Configurer = Annotated[Principal, Depends(configurer)]
Operator = Annotated[Principal, Depends(operator)]
Prompter = Annotated[Principal, Depends(prompter)]

WAIT_MARGIN = 600.0
"""Seconds on top of a run's timeout that a waiting request allows for the queue."""


async def run_frames(
    core: Core, tenant_id: UUID, run: Submitted, *, gapless: bool = False
) -> AsyncGenerator[list[Frame]]:
    """Events of one run, up to and with its `done`; empty batches are ticks of silence. `gapless`: see `follow`.

    Raises:
        SessionDeleted: the session was deleted meanwhile.
    """
    followed = Followed(tenant_id, run.session_id)
    batches = core.followers.follow(followed, Position(run.after), run_id=run.run_id, gapless=gapless)
    async with aclosing(batches):
        async for frames in batches:
            yield frames
            if any(frame.type == "done" for frame in frames):
                return


async def finished(core: Core, tenant_id: UUID, run: Submitted, wait_seconds: float) -> dict[str, Any] | None:
    """The run as stored once it is over, or None when it is not after `wait_seconds`.

    Raises:
        RunFailed: the session was deleted meanwhile.
    """
    frames = run_frames(core, tenant_id, run)
    try:
        async with asyncio.timeout(wait_seconds), aclosing(frames):
            async for _ in frames:
                continue
    except TimeoutError:
        return None
    except SessionDeleted as error:
        ids = {"session_id": str(run.session_id), "run_id": str(run.run_id)}
        raise RunFailed("session_deleted", "The session was deleted.", ids) from error
    return await runs.get(core.db, tenant_id, run.run_id)


def outcome_or_error(run: dict[str, Any]) -> dict[str, Any]:
    """The result of a finished run, flat, with its ids.

    Raises:
        RunFailed: it did not succeed; the details hold the ids and the result, if the SDK gave one.
    """
    ids = {"session_id": run["session_id"], "run_id": run["run_id"]}
    if run["status"] != "succeeded":
        error = run["error"] or {"code": "execution_error", "message": "The run failed."}
        details = {**ids, "result": run["result"]}
        raise RunFailed(error["code"], error["message"], details, error.get("retry_after_seconds"))
    return {**ids, **(run["result"] or {})}
