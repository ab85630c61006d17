"""Routes that know who asks before they read what is asked, and read JSON as `core/codec.py` does.

By itself FastAPI reads and parses a body before it looks at its dependencies, so that strangers decide what a server
holds in memory and for how long it is busy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterator
from json import JSONDecodeError
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from apps.api.core import codec
from apps.api.errors import ValidationError
from apps.api.web.callers import Caller, identify
from apps.api.web.errors import Refused
from apps.api.web.middleware import SMALL, body_of


class JsonRequest(Request):
    """A request whose JSON means the same to every reader, or is refused."""

    async def json(self) -> Any:
        """The body. Raises JSONDecodeError, which FastAPI tells as a body that is no JSON; Refused with its field."""
        if not hasattr(self, "_json"):
            try:
                self._json = await codec.read(await self.body())
            except codec.NotJson as error:
                raise JSONDecodeError(str(error), "", 0) from error
            except codec.Unsuitable as error:
                raise Refused(ValidationError.of(error.field or "body", error.reason)) from error
        return self._json


class Route(APIRoute):
    """A route whose caller is known, and may do what it is for, before its body is read.

    Attributes:
        body_limit: bytes of a body.
        streams: whether it holds nothing of a body.
        guests: whether it serves who shows no key as ANONYMOUS_TENANT, if there is one.
    """

    body_limit, guests, streams = SMALL, False, False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        scopes = {call.scope for call in _calls(self.dependant) if isinstance(call, Caller)}

        async def known_first(request: Request) -> Response:
            body = body_of(request.scope)
            if self.streams:
                body.streams()
            else:
                body.is_held(self.body_limit)
            if scopes:
                caller = await identify(request, guests=self.guests)
                for scope in scopes:
                    caller.require(scope)
            body.check_announced()
            return await handle(JsonRequest(request.scope, request.receive))

        return known_first


class ContentRoute(Route):
    """A route whose bodies hold what agents are given: up to MAX_BODY_BYTES."""

    body_limit = sys.maxsize


class FileRoute(Route):
    """A route whose body is a file, which it takes piece by piece: up to MAX_FILE_BYTES."""

    streams = True


class GuestRoute(ContentRoute):
    """A route of a dialect whose original knew no keys."""

    guests = True


class Router(APIRouter):
    """FastAPI's, whose routes are of the kinds above."""

    def __init__(self, *, route_class: type[Route] = Route, **options: Any) -> None:
        super().__init__(route_class=route_class, **options)


def _calls(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)
