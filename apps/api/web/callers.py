"""Who asks, and what that key may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection

from apps.api import audit
from apps.api.auth import Principal
from apps.api.core.config.grants import Action
from apps.api.core.config.profiles import Policy
from apps.api.core.context import Core
from apps.api.core.sessions import admission, client_tokens
from apps.api.core.tenant import presets
from apps.api.web.entrance import address_of
from apps.api.web.hosts import require_own_origin
from apps.api.web.route import caller_of, instance_of

_bearer = HTTPBearer(auto_error=False, description="Your API key as a bearer token.")

_Also = Callable[[Request, Response, Principal], Awaitable[None]]


def presented_key(connection: HTTPConnection) -> str | None:
    """The key as sent: `X-API-Key`, or `Authorization: Bearer`. Never from the query string, which gets logged."""
    direct = connection.headers.get("x-api-key")
    if direct:
        return direct
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def identify(request: Request, *, guests: bool, actions: Iterable[Action | None] = (None,)) -> Principal:
    """Who asks; with `guests`, whoever shows no key is of ANONYMOUS_TENANT, if there is one.

    `actions`: what a client token must allow here; None is what none allows.

    Raises:
        Unauthorized, RateLimited: it is nobody.
        Forbidden: as `may_touch`, `address_not_permitted`, of guests `origin_not_permitted`, and as `within_token`.
        NotFound: as `within_token`.
    """
    key, instance = presented_key(request), instance_of(request)
    if not key and guests and instance.anonymous:
        require_own_origin(request)
        caller = await instance.entrance.guest(instance.anonymous, address_of(request))
    else:
        caller = await caller_of(request, key, tokens=True)
    if caller.grant is not None:
        await within_token(instance.core, caller, actions, {**request.query_params, **request.path_params})
    if caller.profiles is not None:  # nearly none is bound, and for the others the query needs no reading
        await may_touch(instance.core, caller, {**request.query_params, **request.path_params})
    acts(request, caller)
    request.state.caller = caller
    return caller


async def within_token(
    core: Core, caller: Principal, actions: Iterable[Action | None], named: Mapping[str, Any]
) -> None:
    """Whether the caller's client token allows these actions, with the session and the run that a request names: here
    for every route, so that none can forget it. Without a token nothing is asked.

    Raises:
        Forbidden: `client_token_not_permitted`.
        NotFound: it is another session, or a run of one; nothing tells whether there is one.
    """
    if caller.grant is None:
        return
    for action in actions:
        caller.grant.require(action)
    caller.grant.require_session(presets.as_id(named.get("session_id")))
    if (run_id := presets.as_id(named.get("run_id"))) is not None:
        await client_tokens.require_run(core, caller.tenant_id, caller.grant.session_id, run_id)


def acts(connection: HTTPConnection, caller: Principal) -> None:
    """From here on this task works for the caller: lines of the audit log name it."""
    address = connection.client.host if connection.client else None
    key = (str(caller.key_id), caller.key_name, caller.tenant)
    audit.ACTING.set(audit.Actor(*key, address, connection.state.request_id, caller.end_user))


class Caller(APIKeyHeader):
    """Who asks, as a dependency: `web/doors.py` has identified the caller, and required `scope` of it, before it read
    the body. One object for the caller and for what the document says of keys: each dependency costs some 15 µs."""

    def __init__(self, scope: str, also: _Also | None = None, *, action: Action | None = None) -> None:
        """
        Args:
            also: asks what else must hold, and counts.
            action: what a client token must allow; None: none may be shown. For routes whose paths name the session or
                the run, or which look at `Principal.grant` themselves.
        """
        super().__init__(name="X-API-Key", scheme_name="APIKeyHeader", description="Your API key.")
        self.scope, self._also, self.action = scope, also, action

    async def __call__(  # type: ignore[override]
        self, request: Request, response: Response, _documented: Annotated[Any, Depends(_bearer)] = None
    ) -> Principal:
        caller: Principal = request.state.caller
        if self._also is not None:
            await self._also(request, response, caller)
        return caller


async def may_touch(core: Core, caller: Principal, named: Mapping[str, Any]) -> None:
    """Whether the caller's key may use the session or the run that a request names: here for every route, so that none
    can forget it. Raises Forbidden `profile_not_permitted`."""
    session_id, run_id = presets.as_id(named.get("session_id")), presets.as_id(named.get("run_id"))
    await admission.may_touch(
        core.db.pool, caller.tenant_id, policy_of(core, caller), session_id=session_id, run_id=run_id
    )


async def visitor(request: Request) -> Principal | None:
    """Who asks at a route of such a dialect that needs no key, if it is somebody."""
    known = presented_key(request) or instance_of(request).anonymous
    return await identify(request, guests=True) if known else None


async def _unbound(_request: Request, _response: Response, caller: Principal) -> None:
    caller.require_unbound()


async def count_prompt(connection: HTTPConnection, caller: Principal) -> dict[str, str]:
    """Count a prompt against the rate limits of key and tenant; returns the RateLimit headers. Raises RateLimited."""
    return await instance_of(connection).prompt_limits.hit(caller)


async def _count_prompt(request: Request, response: Response, caller: Principal) -> None:
    headers = await count_prompt(request, caller)
    response.headers.update(headers)
    request.state.limit_headers = headers


async def _count_lookup(request: Request, _response: Response, caller: Principal) -> None:
    await instance_of(request).prompt_limits.hit(caller, "lookup")


LOOKS_UP = Depends(Caller("write", _count_lookup))
"""For routes that have names looked up which the client chose, and send no prompt: as many a minute as prompts."""


def policy_of(core: Core, caller: Principal) -> Policy:
    """Which profiles and models this caller may use."""
    return admission.policy(core, caller.profiles, caller.tenant_limits, caller.limits)


Reader = Annotated[Principal, Depends(Caller("read"))]
"""A caller who may read."""

Writer = Annotated[Principal, Depends(Caller("write"))]
"""A caller who may change things."""

Configurer = Annotated[Principal, Depends(Caller("write", _unbound))]
"""A caller who may change what all keys of the tenant use."""

Operator = Annotated[Principal, Depends(Caller("admin", _unbound))]
"""A caller who administers the server: keys and tenants of everybody."""

Prompter = Annotated[Principal, Depends(Caller("write", _count_prompt))]
"""A caller who may send a prompt now: counted against the rate limits of key and tenant."""

SessionReader = Annotated[Principal, Depends(Caller("read", action="read"))]
"""A caller who may read a session: with a key, or with a client token that allows `read`. So the following."""

SessionPrompter = Annotated[Principal, Depends(Caller("write", _count_prompt, action="prompt"))]
"""A caller who may send a prompt to a session now."""

SessionStopper = Annotated[Principal, Depends(Caller("write", action="prompt"))]
"""A caller who may stop what runs in a session."""

SessionDecider = Annotated[Principal, Depends(Caller("write", action="decide"))]
"""A caller who may answer what a session's agent asks."""

FileReader = Annotated[Principal, Depends(Caller("read", action="files"))]
"""A caller who may read a session's files."""

FileWriter = Annotated[Principal, Depends(Caller("write", action="files"))]
"""A caller who may store a session's files."""
