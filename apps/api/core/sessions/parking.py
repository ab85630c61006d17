"""What it takes to go on with a run that is parked: it waits for a person, and no process has it meanwhile.

See docs/adr/0019-parked-sessions.md. How runs are parked and go on: `core/fleet/parked.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from apps.api.core.codec import decode, encode
from apps.api.core.sessions.outcome import Outcome
from apps.api.core.tenant.usage import ModelUsage


@dataclass(frozen=True, slots=True)
class Parked:
    """A run between two processes.

    Attributes:
        request_id: what it waits for.
        tool_use_id: the call that the answer is for, as the model named it.
        seconds_left: of its timeout.
        num_turns, cost_usd, usage: what it has used so far, as the SDK counted it; no cost when it told none.
        models: the same usage in the SDK's own words, by model.
    """

    request_id: UUID
    tool_use_id: str
    seconds_left: float
    num_turns: int = 0
    cost_usd: float | None = None
    usage: Sequence[ModelUsage] = ()
    models: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """As it is stored."""
        return encode({**asdict(self), "request_id": str(self.request_id)}).decode()

    @classmethod
    def stored(cls, text: str) -> Parked:
        """What was stored. Raises ValueError: by another version."""
        try:
            fields = decode(text)
            usage = [ModelUsage(**used) for used in fields.pop("usage")]
            return cls(**{**fields, "request_id": UUID(fields["request_id"]), "usage": usage})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not what is stored of a parked run") from error

    def ended(self, status: str, error: Mapping[str, Any]) -> Outcome:
        """How it ends when it does not go on: with what it has used."""
        return Outcome(status, None, dict(error), self.cost_usd, self.usage, self.num_turns)
