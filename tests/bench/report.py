"""What the benchmark prints: raw figures of samples, and verdicts against the targets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
class Target:
    """One target, and what was seen of it, once in each round.

    Attributes:
        limit: at most so much is wanted; at least, if `more`.
    """

    name: str
    limit: float
    unit: str
    more: bool
    seen: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.seen)

    @property
    def verdict(self) -> str:
        """`met` or `NOT MET`; `noisy` when rounds differ by more than the median does from the limit."""
        if max(self.seen) - min(self.seen) > abs(self.median - self.limit):
            return "noisy"
        return "met" if (self.median >= self.limit if self.more else self.median <= self.limit) else "NOT MET"

    def __str__(self) -> str:
        wanted = f"{'≥' if self.more else '≤'} {self.limit:g} {self.unit}"
        spread = f", {figure(min(self.seen))} to {figure(max(self.seen))}" if len(self.seen) > 1 else ""
        return f"{self.name}: {figure(self.median)} {self.unit} (target {wanted}{spread}): {self.verdict}"


@dataclass
class Report:
    """Prints as it goes, and remembers all of it: for the end, and for programs."""

    machine: list[str] = field(default_factory=list)
    targets: dict[str, Target] = field(default_factory=dict)
    series: list[dict[str, Any]] = field(default_factory=list)
    _section: str = ""
    _unit: str = ""

    def title(self, text: str) -> None:
        self._section = text
        print(f"\n== {text}", flush=True)

    def note(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def about(self, text: str) -> None:
        """A note about what is measured on what."""
        self.machine.append(text)
        self.note(text)

    def head(self, unit: str) -> None:
        """The column heads of `row`; `unit` is that of all its figures."""
        self._unit = unit
        names = "".join(f"{name:>10}" for name in ("n", "p50", "p90", "p99", "min", "max"))
        print(f"   {unit:<{WIDTH}}{names}")

    def row(self, label: str, values: Sequence[float]) -> None:
        """The raw figures of one series of samples."""
        self.series.append(
            {"section": self._section, "label": label, "unit": self._unit, "values": [round(v, 4) for v in values]}
        )
        if not values:
            print(f"   {label:<{WIDTH}}{0:>10}")
            return
        shown = (*(percentile(values, share) for share in (0.5, 0.9, 0.99)), min(values), max(values))
        print(f"   {label:<{WIDTH}}{len(values):>10,}" + "".join(f"{figure(value):>10}" for value in shown), flush=True)

    def at_most(self, target: str, seen: float, limit: float, unit: str) -> None:
        """A target that is met when `seen` is at most `limit`."""
        self._note(target, seen, limit, unit, more=False)

    def at_least(self, target: str, seen: float, limit: float, unit: str) -> None:
        """A target that is met when `seen` is at least `limit`."""
        self._note(target, seen, limit, unit, more=True)

    def _note(self, name: str, seen: float, limit: float, unit: str, *, more: bool) -> None:
        target = self.targets.setdefault(name, Target(name, limit, unit, more))
        target.seen.append(seen)
        print(f"   -> {Target(name, limit, unit, more, [seen])}", flush=True)

    def summary(self) -> None:
        """Every target once more, with what all rounds have seen."""
        verdicts = [target.verdict for target in self.targets.values()]
        noisy = f", {verdicts.count('noisy')} noisy" if "noisy" in verdicts else ""
        self.title(f"{verdicts.count('met')} of {len(verdicts)} targets met{noisy}")
        for target in self.targets.values():
            self.note(str(target))

    def write(self, file: Path) -> None:
        """Keep the figures for programs: what was measured on, every sample, and every target."""
        targets = [{**asdict(target), "verdict": target.verdict} for target in self.targets.values()]
        whole = {"machine": self.machine, "targets": targets, "series": self.series}
        file.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Report:
        """What `write` has kept."""
        whole = json.loads(file.read_text(encoding="utf-8"))
        report = cls(whole["machine"], series=whole["series"])
        for target in whole["targets"]:
            del target["verdict"]
            report.targets[target["name"]] = Target(**target)
        return report
