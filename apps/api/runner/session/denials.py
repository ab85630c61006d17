"""What the proxy has refused the programs of a session, as events: each host once in a run, and not more than a few."""

from __future__ import annotations

from uuid import UUID

from apps.api.core.events.log import Event, Writer
from apps.api.runner.session.turn import Turns

MAX_TOLD = 20
"""Events of one run. What is refused beyond them counts in the metrics only."""


class Denials:
    """Those of one session."""

    def __init__(self, writer: Writer, turns: Turns) -> None:
        self._writer, self._turns = writer, turns
        self._run_id: UUID | None = None
        self._noted: set[tuple[str, int, str]] = set()
        self._untold: list[Event] = []

    def note(self, host: str, port: int, reason: str) -> None:
        """A program was refused."""
        if self._run_id != self._turns.run_id:
            self._run_id, self._noted = self._turns.run_id, set()
        if (host, port, reason) in self._noted or len(self._noted) >= MAX_TOLD:
            return
        self._noted.add((host, port, reason))
        self._untold.append(Event("network_denied", {"host": host, "port": port, "reason": reason}, self._run_id))
        del self._untold[:-MAX_TOLD]

    async def tell(self) -> None:
        """Append what nobody was told yet. Raises what `Writer.append` raises."""
        if self._untold:
            events, self._untold = self._untold, []
            await self._writer.append(*events)
