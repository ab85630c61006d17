"""`/preview/{session_id}/{port}/…`: what an agent's programs serve, on any instance, for who holds a key or a link.

See docs/previews.md, also for what this must not become: pages here are written by agents, and come from the origin of
the API.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response, WebSocket
from starlette.requests import HTTPConnection

from apps.api.auth import Principal
from apps.api.codes import ErrorCode
from apps.api.core.sessions import ports
from apps.api.core.sessions.ports import PortAccess
from apps.api.errors import ApiError, NotFound, Unavailable
from apps.api.web.callers import may_touch, presented_key
from apps.api.web.errors import error_response
from apps.api.web.opened import Held
from apps.api.web.origins import Origin
from apps.api.web.proxy import Upstream, relay, relay_socket
from apps.api.web.route import caller_of, core_of, instance_of
from apps.api.web.ws import known

router = APIRouter(include_in_schema=False)

PATH = "/preview/{session_id}/{port}/{path:path}"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Port = Annotated[int, Path(ge=1, le=65535)]

FORWARDED = "x-preview-ticket"
"""Header of a request that another instance has passed on."""

_GUARDED = {
    # An origin of its own, without storage: scripts of a page here reach nothing that is the API's or another page's.
    "Content-Security-Policy": "sandbox allow-scripts allow-forms allow-modals allow-popups allow-downloads",
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex",
}
_OPEN = {
    # Pages with an origin of their own load even their own scripts from a foreign one. No cookie and no key let
    # anybody in here, the link does: whoever has it needs no browser's permission.
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": ", ".join(METHODS),
    "Access-Control-Allow-Headers": "*",
}


class Admitted:
    """A request that may pass: to which port of which session, and under which path of ours."""

    def __init__(
        self, preview: PortAccess, port: int, prefix: str, *, forwarded: bool = False, caller: Principal | None = None
    ) -> None:
        self.preview, self.port, self.prefix, self.forwarded, self.caller = preview, port, prefix, forwarded, caller
        self.by_link = "~" in prefix


async def _admit(connection: HTTPConnection, session_id: UUID, port: int, path: str) -> Admitted:
    """Raises Unauthorized, Forbidden, RateLimited, NotFound, Unavailable."""
    core = core_of(connection)
    prefix = f"/preview/{session_id}/{port}"
    if ticket := connection.headers.get(FORWARDED):
        preview = await ports.get_forwarded(
            core.db, ticket, session_id, port, core.instance_id, code="preview_unavailable"
        )
        return Admitted(preview, port, prefix, forwarded=True)
    if path.startswith("~"):
        ticket = path[1:].partition("/")[0]
        preview = await ports.get(core.db, ports.tenant_of(ticket), session_id)
        if not preview.admits(ticket, port):
            raise ports.refused()
        return Admitted(preview, port, f"{prefix}/~{ticket}")
    caller = await caller_of(connection, presented_key(connection))
    caller.require(_scope(connection))
    await may_touch(core, caller, connection.path_params)
    preview = await ports.get(core.db, caller.tenant_id, session_id)
    return Admitted(preview, port, prefix, caller=caller)


def _scope(connection: HTTPConnection) -> str:
    return "read" if connection.scope.get("method") in ("GET", "HEAD") else "write"


def _hold(connection: HTTPConnection, to: Admitted) -> Held:
    """Raises RateLimited, Unavailable."""
    return instance_of(connection).opened.hold(
        "previews",
        to.caller,
        _scope(connection),
        tenant_id=to.preview.tenant_id,
        session_id=to.preview.session_id,
        descriptors=2,  # the client's, and the one to the program
    )


def _target(connection: HTTPConnection, to: Admitted) -> str:
    """Path and query that the program is asked for."""
    query = connection.scope["query_string"].decode("latin-1")
    raw = connection.scope.get("raw_path") or connection.scope["path"].encode()
    # As it was sent, not decoded and encoded again: programs tell `%2F` from `/`.
    parts = raw.decode("latin-1").split("?")[0].split("/")
    path = "/" + "/".join(parts[5 if to.by_link else 4 :])
    return f"{path}?{query}" if query else path


async def _upstream(connection: HTTPConnection, to: Admitted) -> Upstream:
    """The program itself when its session is owned here, else the instance that owns it.

    Raises:
        NotFound: `port_not_found`: nothing of this session listens there.
        Unavailable: `preview_unavailable`: the owner has no address.
    """
    preview, port, target = to.preview, to.port, _target(connection, to)
    if preview.owner == core_of(connection).instance_id:
        address = await instance_of(connection).probe.address_of(preview.session_id, port)
        if address is None:
            raise NotFound.of("port")
        return Upstream("http", address, port, f"localhost:{port}", target, [])
    if preview.owner is None:
        raise NotFound.of("port")
    return to_owner(preview, port, f"/preview/{preview.session_id}/{port}{target}", code="preview_unavailable")


def to_owner(access: PortAccess, port: int, target: str, *, code: ErrorCode) -> Upstream:
    """The instance that owns a session, with a ticket for what is asked of it. Raises Unavailable with this code: it
    has no address."""
    if access.url is None:
        raise Unavailable(
            "The instance that runs this session has not said where it is reached (ADVERTISE_URL).", code=code
        )
    there = urlsplit(access.url)
    usual = 443 if there.scheme == "https" else 80
    ticket = access.ticket(port, forwarded=True, seconds=ports.FORWARD_SECONDS)
    return Upstream(
        there.scheme,
        there.hostname or "",
        there.port or usual,
        there.netloc,
        f"{there.path}{target}",
        [(FORWARDED.encode(), ticket.encode())],
    )


def _origin(request: Request, to: Admitted, upstream: Upstream) -> Origin:
    core, target = core_of(request), _target(request, to)
    # What it is called besides `localhost` only its own machine knows.
    names = (upstream.address, core.settings.hostname) if to.preview.owner == core.instance_id else ()
    if to.forwarded:  # for the instance that asks, which knows what we are called outside
        return Origin(to.port, target, "", f"http://localhost:{to.port}", names)
    return Origin(to.port, target, to.prefix, str(request.base_url).rstrip("/"), names)


@router.api_route(PATH, methods=METHODS)
async def preview(request: Request, session_id: UUID, port: Port, path: str) -> Response:
    """Pass a request on to the program that listens on a port of a session."""
    to = await _admit(request, session_id, port, path)
    if to.by_link and request.method == "OPTIONS" and "access-control-request-method" in request.headers:
        return Response(status_code=204, headers=_OPEN)
    with _hold(request, to) as held:
        upstream = await _upstream(request, to)
        answer = await held.during(relay(request, upstream, held))
        answer.raw_headers = _origin(request, to, upstream).outside(answer.raw_headers)
        if not to.forwarded:
            for name, value in {**_GUARDED, **(_OPEN if to.by_link else {})}.items():
                answer.headers.append(name, value)
        return answer


@router.websocket(PATH)
async def preview_socket(websocket: WebSocket, session_id: UUID, port: Port, path: str) -> None:
    """The same for a WebSocket."""
    try:
        to = await _admit(websocket, session_id, port, path)
        known(websocket, to.caller)
        with _hold(websocket, to) as held:
            await relay_socket(websocket, await _upstream(websocket, to), held)
    except ApiError as error:
        await websocket.send_denial_response(error_response(websocket.scope, error))
