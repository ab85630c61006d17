"""The files of sessions, on whichever instance they are: here, in the store, or with the owner, to which a request is
passed on with a ticket, as requests for previews are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import UUID

import orjson
import structlog
from fastapi import Request, Response

from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.snapshots import TooLarge as TooMuchIsThere
from apps.api.core.files.trees import TooMuch
from apps.api.core.files.views import Tree
from apps.api.core.sessions import ports, session_files
from apps.api.core.sessions.ports import PortAccess
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import ApiError, LeaseLost, TooLarge, Unavailable
from apps.api.web.opened import Held
from apps.api.web.ports import FORWARDED, to_owner
from apps.api.web.proxy import BadGateway, Upstream, relay
from apps.api.web.route import core_of, instance_of

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger(__name__)

NO_PORT = 0
"""In tickets that are for files."""

INTERNAL = "/internal/sessions/{session_id}/{what}"

LOOKS, PAUSE = 20, 0.1
"""Times that somebody is looked for who owns the session, and seconds between two: it changes hands in between."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a workspace: by the name of what is done, and the path that it is done to, if it is to one."""

    what: str
    path: str
    request: Request
    held: Held
    tenant_id: UUID
    session_id: UUID


Work = Callable[[Tree, Asked], Awaitable[Response]]

WORK: dict[str, Work] = {}
"""All that is done to files of sessions, by the names with which instances pass it on to each other. Whoever serves
files puts its own in when it is imported."""


async def serve(asked: Asked) -> Response:
    """Do it where the files are. Raises NotFound, Unavailable, and what the work raises."""
    work = WORK[asked.what]
    request, core = asked.request, core_of(asked.request)
    for _ in range(LOOKS):
        access = await ports.get(core.db, asked.tenant_id, asked.session_id)
        if access.owner is None:
            with telling():
                return await work(session_files.stored_tree(core, asked.tenant_id, asked.session_id), asked)
        if access.owner != core.instance_id:
            return await _relayed(request, _owner(access, asked), asked.held)
        if (live := instance_of(request).probe.live(asked.session_id)) is not None:
            with telling():
                return await work(await live.tree(), asked)
        await asyncio.sleep(PAUSE)  # it is being taken, or has just been given back
    raise _moving()


def _moving() -> Unavailable:
    return ports.moving("files_unavailable")


async def serve_forwarded(asked: Asked) -> Response:
    """The same for another instance that has let the client in. Raises Unauthorized, NotFound, Unavailable."""
    work = WORK[asked.what]
    core, ticket = core_of(asked.request), asked.request.headers.get(FORWARDED, "")
    await ports.get_forwarded(core.db, ticket, asked.session_id, NO_PORT, core.instance_id, code="files_unavailable")
    live = instance_of(asked.request).probe.live(asked.session_id)
    if live is None:
        raise _moving()
    with telling():
        return await work(await live.tree(), asked)


async def _relayed(request: Request, owner: Upstream, held: Held) -> Response:
    try:
        answer = await relay(request, owner, held)
        if answer.status_code < 400 or request.method == "HEAD":  # which has nothing to be told
            return answer
        told = orjson.loads(await answer.whole())["error"]  # to be told as this surface tells errors
        error = ApiError(told["message"], code=told["code"], details=told["details"])
    except (BadGateway, ValueError, TypeError, KeyError) as failed:
        message = "The instance that runs this session gave no answer."
        raise Unavailable(message, code="files_unavailable") from failed
    error.status = answer.status_code
    error.headers |= {name: answer.headers[name] for name in _KEPT if name in answer.headers}
    raise error


def _owner(access: PortAccess, asked: Asked) -> Upstream:
    query = asked.request.scope["query_string"].decode("latin-1")
    path = INTERNAL.format(session_id=asked.session_id, what=asked.what)
    return to_owner(access, NO_PORT, f"{path}?of={quote(asked.path, safe='')}&{query}", code="files_unavailable")


_KEPT = ("content-range", "etag", "retry-after")


@contextmanager
def telling() -> Iterator[None]:
    """What the places of files raise, as clients are told it."""
    try:
        yield
    except TooMuchIsThere as error:
        raise TooLarge(str(error), code=error.code) from error
    except TooMuch as error:
        raise TooLarge("The workspace has too many files, or is too deep.", code="too_many_files") from error
    except CONNECTION_ERRORS:
        raise
    except LeaseLost as error:
        raise _moving() from error
    except (StoreFailed, OSError) as error:
        log.warning("files.failed", error=error)
        raise Unavailable("The files cannot be reached now; try again.", code="files_unavailable") from error
