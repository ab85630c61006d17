"""The figures of `Report` as plots: each series of a section as a strip, and each target beside its limit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.report import Report, Target, figure, percentile
from tests.svg import Drawing, Scale

WIDTH, LEFT, RIGHT, ROW = 920.0, 430.0, 70.0, 24.0
"""Pixels: of the whole, of the labels before and the figures behind what is drawn, and of one line."""

FARTHEST = 2.0
"""How many times its limit a bar may show; what is farther is told by its figure."""

VERDICTS = {"met": "good", "NOT MET": "bad", "noisy": "odd"}

Strips = dict[str, dict[str, list[float]]]
"""Values by unit and label."""


def write(report: Report, directory: Path) -> list[Path]:
    """Draw everything that was measured. Returns the files: `targets.svg`, and one by the name of each section."""
    by_section: dict[str, Strips] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for series in report.series:
        by_section[series["section"]][series["unit"]][series["label"]] += series["values"]
    made = []
    if report.targets:
        made.append(directory / "targets.svg")
        targets(list(report.targets.values()), made[-1])
    for section, strips in by_section.items():
        named = re.search(r"\((\w+)\)$", section)
        made.append(directory / f"{named[1] if named else 'samples'}.svg")
        samples(section, strips, made[-1])
    return made


def samples(title: str, strips: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> None:
    """A strip for each series: from the least value to p99, the middle half of them thick, p50 marked and told."""
    drawing, y = Drawing(WIDTH), 20.0
    drawing.text(0, y, title, "head")
    for unit, by_label in strips.items():
        shown = {label: values for label, values in by_label.items() if values}
        if not shown:
            continue
        y += ROW
        drawing.text(0, y, unit, "faint")
        drawing.text(WIDTH, y, "p50", "faint end")
        ends = [seen for values in shown.values() for seen in (min(values), percentile(values, 0.99))]
        scale = Scale(ends, LEFT, WIDTH - RIGHT)
        bottom = y + len(shown) * ROW + 8
        for tick in scale.ticks():
            drawing.line([(scale(tick), y + 6), (scale(tick), bottom)], "grid")
            drawing.text(scale(tick), bottom + 12, f"{tick:,g}", "faint middle")
        for label, values in shown.items():
            y += ROW
            low, first, middle, third, high = (percentile(values, share) for share in (0, 0.25, 0.5, 0.75, 0.99))
            kind = "one" if "SDK" in label.split(",")[0] else "two"
            drawing.text(LEFT - 10, y, label, "end")
            drawing.bar(scale(low), y - 5, scale(high) - scale(low), 2, kind)
            drawing.bar(scale(first), y - 9, scale(third) - scale(first), 10, kind)
            drawing.bar(scale(middle) - 1, y - 12, 2, 16, kind)
            drawing.text(WIDTH, y, figure(middle), "end")
        y = bottom + 18
    drawing.write(file, y + 8, f"{title}: strips from the least value to p99")


def targets(found: Sequence[Target], file: Path) -> None:
    """A bar for each target: what was seen in parts of its limit, so that what ends before the line is met."""
    drawing, y = Drawing(WIDTH), 20.0
    scale = Scale([0.0, FARTHEST], LEFT, WIDTH - RIGHT - 80)
    drawing.text(0, y, "Targets: what was seen, in parts of the limit", "head")
    y += 16
    for tick in scale.ticks():
        drawing.line([(scale(tick), y), (scale(tick), y + len(found) * ROW + 4)], "grid")
        drawing.text(scale(tick), y + len(found) * ROW + 18, f"{tick:g} ×", "faint middle")
    top = y
    for target in found:
        y += ROW
        shares = sorted(min(_share(seen, target), FARTHEST) for seen in target.seen)
        share, kind = min(_share(target.median, target), FARTHEST), VERDICTS[target.verdict]
        drawing.text(LEFT - 10, y - 6, target.name, "end")
        drawing.bar(LEFT, y - 15, scale(share) - LEFT, 10, kind)
        if len(shares) > 1:
            drawing.bar(scale(shares[0]), y - 11, scale(shares[-1]) - scale(shares[0]), 2, "ink")
        told = f"{figure(target.median)} {'≥' if target.more else '≤'} {target.limit:g} {target.verdict.lower()}"
        drawing.text(WIDTH, y - 6, told, "end")
    drawing.bar(scale(1) - 1, top, 2, len(found) * ROW + 4, "ink")
    drawing.write(file, y + 30, "Targets beside their limits")


def _share(seen: float, target: Target) -> float:
    """Of the limit: up to 1 is met, whether more or less is wanted."""
    part, whole = (target.limit, seen) if target.more else (seen, target.limit)
    return max(part / whole, 0.0) if whole > 0 else (0.0 if part <= 0 else FARTHEST)
