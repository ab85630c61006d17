"""Wake-ups: who in a fleet looks for a run that waits.

Every instance hears that a prompt was queued. If all of them looked, a prompt would cost PostgreSQL as many claims as
there are instances with a free slot. So each waits for a moment that chance chooses, the longer the more there are, and
drops the matter when it hears that the session is another's. What gets lost on the way costs a look, or the time until
the next one that each instance has anyway.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from uuid import UUID

from apps.api.core.events.relay import session_id_in

COURTESY = 0.03
"""Seconds that an instance leaves a run to the one that took the request, or that owns the session, on average."""

SPREAD = 0.003
"""Seconds, for each instance that may take the run, over which they look. A claim and the word that it was made take
about as long, so that of any number two or three have looked by then."""

LONGEST = 1.0
"""Seconds after which each has looked, however many there are."""

MOST = 10_000
"""Sessions that one waits for. Of what comes beyond it the next regular look hears."""


class Wakes:
    """Those that one instance has heard.

    Attributes:
        fleet: how many instances may take runs, as far as is known.
    """

    def __init__(
        self,
        instance_id: UUID,
        look: Callable[[], None],
        owns: Callable[[UUID], bool],
        say: Callable[[UUID], None],
        chance: random.Random | None = None,
    ) -> None:
        """
        Args:
            look: has this instance look for runs.
            owns: whether a session is this instance's, and will stay so.
            say: tells the others that a session is.
        """
        self._me, self._look, self._owns, self._say = str(instance_id), look, owns, say
        self._chance = chance or random.Random()
        self._waiting: dict[UUID | None, asyncio.TimerHandle] = {}
        self.fleet = 1

    def heard(self, message: str) -> None:
        """A run waits: `instance:session`, or an empty message where some may have been lost."""
        sender, _, session = message.partition(":")
        session_id = session_id_in(session)
        if session_id is not None and self._owns(session_id):
            self._say(session_id)
            if sender != self._me:
                self._look()
        elif sender != self._me and session_id not in self._waiting and len(self._waiting) < MOST:
            wait = COURTESY / 2 + self._chance.uniform(0, min(max(COURTESY, SPREAD * self.fleet), LONGEST))
            self._waiting[session_id] = asyncio.get_running_loop().call_later(wait, self._due, session_id)

    def taken(self, message: str) -> None:
        """A session is another's, or this one's."""
        session_id = session_id_in(message)
        if session_id is not None and (timer := self._waiting.pop(session_id, None)) is not None:
            timer.cancel()

    def _due(self, session_id: UUID | None) -> None:
        del self._waiting[session_id]
        self._look()

    def close(self) -> None:
        """Look no more."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
