"""What the benchmark prints: raw figures of samples, and verdicts against the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH = 58


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie: the nearest rank, no interpolation."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def figure(value: float) -> str:
    """Three to four significant digits, thousands separated; whole numbers without a fraction."""
    if abs(value) >= 1_000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target of the specification and what was seen."""

    target: str
    wanted: str
    seen: str
    met: bool

    def __str__(self) -> str:
        return f"{self.target}: {self.seen} (target {self.wanted}): {'met' if self.met else 'NOT MET'}"


@dataclass
class Report:
    """Prints as it goes, and remembers the verdicts for the end."""

    verdicts: list[Verdict] = field(default_factory=list)

    def title(self, text: str) -> None:
        print(f"\n== {text}", flush=True)

    def note(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def head(self, unit: str) -> None:
        """The column heads of `row`; `unit` is that of all its figures."""
        names = "".join(f"{name:>10}" for name in ("n", "p50", "p90", "p99", "min", "max"))
        print(f"   {unit:<{WIDTH}}{names}")

    def row(self, label: str, values: Sequence[float]) -> None:
        """The raw figures of one series of samples."""
        if not values:
            print(f"   {label:<{WIDTH}}{0:>10}")
            return
        shown = (*(percentile(values, share) for share in (0.5, 0.9, 0.99)), min(values), max(values))
        print(f"   {label:<{WIDTH}}{len(values):>10,}" + "".join(f"{figure(value):>10}" for value in shown), flush=True)

    def at_most(self, target: str, seen: float, limit: float, unit: str) -> None:
        """A target that is met when `seen` is at most `limit`."""
        self._judge(target, f"≤ {limit:g} {unit}", f"{figure(seen)} {unit}", seen <= limit)

    def at_least(self, target: str, seen: float, limit: float, unit: str) -> None:
        """A target that is met when `seen` is at least `limit`."""
        self._judge(target, f"≥ {limit:g} {unit}", f"{figure(seen)} {unit}", seen >= limit)

    def _judge(self, target: str, wanted: str, seen: str, met: bool) -> None:
        verdict = Verdict(target, wanted, seen, met)
        self.verdicts.append(verdict)
        print(f"   -> {verdict}", flush=True)

    def summary(self) -> None:
        """Every verdict once more."""
        met = sum(verdict.met for verdict in self.verdicts)
        self.title(f"{met} of {len(self.verdicts)} targets met")
        for verdict in self.verdicts:
            print(f"   {'met    ' if verdict.met else 'NOT MET'} {verdict.target}: {verdict.seen}, {verdict.wanted}")
