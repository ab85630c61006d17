"""An instance's right to write, as far as its own clock can tell."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from apps.api.clock import UPTIME as CLOCK
from apps.api.clock import uptime as now
from apps.api.errors import LeaseLost

__all__ = ["CLOCK", "Lease", "now"]

FENCE_MARGIN = 0.15
"""Part of the lease that this side gives away: it stops before the database's clock can have run out."""


class Lease:
    """This instance's right to write, as far as this side can know it.

    The clock starts when a renewal is sent, so it can only run out too early here, never too late.
    """

    def __init__(self, instance_id: UUID, seconds: float) -> None:
        self.instance_id, self.seconds = instance_id, seconds
        self._valid_until = 0.0
        self._tell: Callable[[float], None] = lambda _until: None

    def tell(self, tell: Callable[[float], None]) -> None:
        """Have `tell` called with the moment until which this instance may act, now and whenever it changes."""
        self._tell = tell
        tell(self._valid_until)

    def renewed(self, sent_at: float) -> None:
        """A renewal that was sent at `sent_at` (see `now`) succeeded."""
        self._valid_until = max(self._valid_until, sent_at + self.seconds * (1 - FENCE_MARGIN))
        self._tell(self._valid_until)

    def remaining(self) -> float:
        """Seconds until this instance must stop writing; negative when over."""
        return self._valid_until - now()

    def is_over(self) -> bool:
        return self.remaining() <= 0

    def give_up(self) -> None:
        """Fence this instance now, for example because its row is gone."""
        self._valid_until = 0.0
        self._tell(0.0)

    def require(self) -> None:
        """Raises LeaseLost unless the lease is valid."""
        if self.is_over():
            raise LeaseLost(f"instance {self.instance_id}: the lease has run out")
