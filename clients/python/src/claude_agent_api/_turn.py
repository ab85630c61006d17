"""What both kinds of turn keep: nothing here sends or waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from claude_agent_api._asking import asks
from claude_agent_api._follow import Outcome, Text
from claude_agent_api.errors import APIError, ClaudeAgentError, ConnectionFailed
from claude_agent_api.types import Event

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def failure_of(error: httpx.HTTPError, url: str) -> ClaudeAgentError:
    """What an error of the transport is to a caller."""
    told = f"{url}: {type(error).__name__}: {error}"
    if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        return ClaudeAgentError(told)  # never sent, and never will be
    return ConnectionFailed(told)


def ids_of(response: httpx.Response) -> tuple[str, str]:
    """The session and the run of a stream. Raises APIError where it is none."""
    ids = response.headers.get("x-session-id", ""), response.headers.get("x-run-id", "")
    if not all(ids) or not response.headers.get("content-type", "").startswith("text/event-stream"):
        told = f"{response.url} answered {response.status_code}, and not as this API does"
        raise APIError(told, status=response.status_code)
    return ids


class Told:
    """What a turn's events have told so far, and whom to ask.

    Attributes:
        outcome: of the run.
        words: what the newest event adds to the agent's text.
    """

    def __init__(self, outcome: Outcome, on_permission: Any, on_question: Any) -> None:
        self.outcome, self.words = outcome, ""
        self._text = Text()
        self._on_permission, self._on_question = on_permission, on_question
        self._held: Event | None = None

    def take(self, event: Event) -> Callable[[], Any] | None:
        """The next event. What is to be called for it, if anything is."""
        if event is self._held:  # its callback has failed, and is not called twice
            self._held = None
            return None
        self.outcome.take(event)
        self.words = self._text.take(event)
        return asks(event, self._on_permission, self._on_question)

    def hold(self, event: Event) -> None:
        """It comes once more, since its callback has failed."""
        self._held = event
