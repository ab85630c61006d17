"""The samples of a run as lines over its minutes, a panel for each kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.bench.report import figure
from tests.endurance.samples import Samples, kind_of
from tests.svg import Drawing, Scale

WIDTH, HEIGHT, COLUMNS, GAP = 280.0, 110.0, 3, 24.0
"""Pixels of a panel, how many stand side by side, and between two."""

POINTS = 140
"""Of a line: more cannot be told apart in a panel."""

COLOURS = ("one", "two", "odd")


def write(samples: Samples, file: Path) -> None:
    """Draw all series but those of tables that have stayed empty."""
    panels: dict[str, list[Sequence[float]]] = defaultdict(list)
    for name, values in samples.series.items():
        if any(values):
            kind = kind_of(name)
            panels[kind.title + (f" per {kind.per}" if kind.per else "")].append(values)
    drawing = Drawing(COLUMNS * (WIDTH + GAP) - GAP)
    y, minutes = 16.0, samples.seconds[-1] / 60
    drawing.text(0, y, f"{minutes:.0f} minutes of steady traffic; the first third is for warming up", "head")
    for number, (title, lines) in enumerate(panels.items()):
        x = (number % COLUMNS) * (WIDTH + GAP)
        y = 24.0 + (number // COLUMNS) * (HEIGHT + GAP)
        _panel(drawing, x, y, title, samples.seconds, lines)
    drawing.write(file, y + HEIGHT + GAP, "What a fleet uses under steady traffic, over time")


def _panel(
    drawing: Drawing, x: float, y: float, title: str, seconds: Sequence[float], lines: Sequence[Sequence[float]]
) -> None:
    top, bottom = y + 24, y + HEIGHT
    highest = max(max(values) for values in lines)
    across, up = Scale([0, seconds[-1]], x, x + WIDTH), Scale([0, highest], bottom, top)
    drawing.text(x, y + 14, title)
    drawing.text(x + WIDTH, y + 14, figure(highest), "faint end")
    drawing.line([(x, bottom), (x + WIDTH, bottom)], "grid")
    drawing.line([(x, top), (x + WIDTH, top)], "grid")
    drawing.line([(x + WIDTH / 3, top), (x + WIDTH / 3, bottom)], "grid")
    step = max(len(seconds) // POINTS, 1)
    for values, colour in zip(lines, COLOURS * len(lines), strict=False):
        points = [(across(at), up(value)) for at, value in zip(seconds, values, strict=True)]
        drawing.line(points[::step], f"line {colour}")
