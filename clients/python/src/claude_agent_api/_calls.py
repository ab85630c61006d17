"""How a method is written once and called by both clients: it builds a request, and its side sends that.

    class SessionCalls:
        @call
        def get(self, session_id: str) -> Request[SessionState]: ...

`client.sessions.get(id)` is a `SessionState`; `async_client.sessions.get(id)` is one when it is awaited.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from claude_agent_api._request import Request

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Pages(Generic[T]):
    """A list of the API, page by page.

    Attributes:
        limit: rows of each page.
    """

    path: str
    query: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None

    def request(self, cursor: str | None) -> Request[Any]:
        return Request("GET", self.path, {**self.query, "limit": self.limit, "cursor": cursor}, read=_page)


def _page(body: bytes) -> dict[str, Any]:
    page = json.loads(body)
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):
        raise ValueError("no page")
    return page


class Side:
    """A group of calls of the synchronous client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def _send(self, request: Request[T]) -> T:
        answer: T = self._client._send(request)
        return answer

    def _iterate(self, pages: Pages[T]) -> Iterator[T]:
        cursor = None
        while True:
            page = self._send(pages.request(cursor))
            yield from page["data"]
            cursor = page.get("next_cursor")
            if cursor is None:
                return


class AsyncSide:
    """A group of calls of the asynchronous client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def _send(self, request: Request[T]) -> T:
        answer: T = await self._client._send(request)
        return answer

    async def _iterate(self, pages: Pages[T]) -> AsyncIterator[T]:
        cursor = None
        while True:
            page = await self._send(pages.request(cursor))
            for row in page["data"]:
                yield row
            cursor = page.get("next_cursor")
            if cursor is None:
                return


class call(Generic[P, T]):  # noqa: N801 - a decorator
    """Of a method that builds a request: the answer of that."""

    def __init__(self, build: Callable[Concatenate[Any, P], Request[T]]) -> None:
        self._build = build
        functools.update_wrapper(self, build)  # type: ignore[arg-type]

    @overload
    def __get__(self, side: Side, owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, side: AsyncSide, owner: object) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, side: Any, owner: object) -> Any:
        @functools.wraps(self._build)
        def sent(*args: P.args, **kwargs: P.kwargs) -> Any:
            return side._send(self._build(side, *args, **kwargs))

        return sent


class listing(Generic[P, T]):  # noqa: N801 - a decorator
    """Of a method that describes a list: an iterator over all its rows."""

    def __init__(self, build: Callable[Concatenate[Any, P], Pages[T]]) -> None:
        self._build = build
        functools.update_wrapper(self, build)  # type: ignore[arg-type]

    @overload
    def __get__(self, side: Side, owner: object) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, side: AsyncSide, owner: object) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, side: Any, owner: object) -> Any:
        @functools.wraps(self._build)
        def iterated(*args: P.args, **kwargs: P.kwargs) -> Any:
            return side._iterate(self._build(side, *args, **kwargs))

        return iterated
