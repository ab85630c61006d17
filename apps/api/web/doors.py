"""Routes that know who asks before they read what is asked, and read JSON as `core/codec.py` does.

By itself FastAPI reads and parses a body before it looks at its dependencies, so that strangers decide what a server
holds in memory and for how long it is busy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
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


class Prefixed:
    """A dependency: the parameters of the query whose names begin like this, by what follows in their names."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    async def __call__(self, request: Request) -> dict[str, str]:
        given = request.query_params.items()
        return {name.removeprefix(self.prefix): value for name, value in given if name.startswith(self.prefix)}


@dataclass(frozen=True, slots=True)
class KnownNames:
    """What a route knows in a query; what it does not know is refused, as in bodies."""

    names: frozenset[str]
    prefixes: tuple[str, ...]

    @classmethod
    def of(cls, dependant: Dependant, also: frozenset[str] = frozenset()) -> KnownNames:
        names = also.union(field.alias for inner in _flat(dependant) for field in inner.query_params)
        prefixes = (call.prefix for call in _calls(dependant) if isinstance(call, Prefixed))
        return cls(frozenset(names), tuple(prefixes))

    def check(self, given: Mapping[str, str]) -> None:
        """Raises ValidationError for the first name that is unknown, with the one that was probably meant."""
        for name in given:
            if name not in self.names and not (self.prefixes and name.startswith(self.prefixes)):
                raise ValidationError.of(name[:100], self._advice(name))

    def _advice(self, name: str) -> str:
        if near := get_close_matches(name[:100], self.names, 1, 0.5):
            return f"no such parameter; did you mean {near[0]}?"
        known = ", ".join(sorted((*self.names, *(f"{prefix}NAME" for prefix in self.prefixes))))
        return f"no such parameter; there are: {known}" if known else "this route takes no parameters"


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
        ignored: names in a query that mean nothing and that its clients send none the less.
    """

    body_limit, guests, streams = SMALL, False, False
    ignored: frozenset[str] = frozenset()

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        callers = [call for call in _calls(self.dependant) if isinstance(call, Caller)]
        scopes, actions = {call.scope for call in callers}, {call.action for call in callers}
        of_us = not self.guests and self.include_in_schema  # else of an older server, or between instances
        check_query = KnownNames.of(self.dependant, self.ignored).check if of_us else None

        async def known_first(request: Request) -> Response:
            body = body_of(request.scope)
            if self.streams:
                body.streams()
            else:
                body.is_held(self.body_limit)
            if scopes:
                caller = await identify(request, guests=self.guests, actions=actions)
                for scope in scopes:
                    caller.require(scope)
            if check_query is not None and request.scope["query_string"]:
                check_query(request.query_params)
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
    for inner in _flat(dependant):
        yield inner.call


def _flat(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _flat(inner)
