"""One thing that `doctor` has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `finding` says what is there and, unless the verdict is `ok`, what to do; it holds no secret."""

    verdict: Literal["ok", "warn", "FAIL"]
    subject: str
    finding: str
