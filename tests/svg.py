"""Plots for documents, as SVG: small, the same bytes for the same figures, and readable on light and dark pages.

By hand: what is drawn is bars, lines and words. Of the libraries that draw charts, the light ones know no strips of
percentiles and put scripts and random names into their output, and the large one knows no dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

STYLE = (
    ":root{color-scheme:light dark;--ink:#1f2328;--faint:#8c959f;--grid:#d0d7de;--one:#8250df;--two:#0969da;"
    "--good:#1a7f37;--bad:#cf222e;--odd:#9a6700}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--faint:#7d8590;--grid:#30363d;--one:#a371f7;--two:#4493f8;"
    "--good:#3fb950;--bad:#f85149;--odd:#d29922}}"
    "text{font:12px system-ui,sans-serif;fill:var(--ink)}.ink{fill:var(--ink)}.faint{fill:var(--faint)}"
    ".end{text-anchor:end}.middle{text-anchor:middle}.head{font-weight:600}.grid{stroke:var(--grid)}.line{fill:none;stroke-width:1.5}"
    + "".join(
        f".{name}{{fill:var(--{name})}}.line.{name},.stroke.{name}{{fill:none;stroke:var(--{name})}}"
        for name in ("one", "two", "good", "bad", "odd")
    )
)
"""Colours by what they mean: `one` and `two` are the two sides, or two series; the rest are verdicts."""


class Drawing:
    """Shapes, in pixels from the top left."""

    def __init__(self, width: float) -> None:
        self.width = width
        self._shapes: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self._shapes.append(f'<text x="{x:.1f}" y="{y:.1f}"{_class(kind)}>{escape(words)}</text>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """`kind`: of STYLE. What is too narrow to be seen is a pixel wide."""
        size = f'width="{max(width, 1):.1f}" height="{height:.1f}"'
        self._shapes.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size}{_class(kind)}/>')

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._shapes.append(f'<path d="M{path}"{_class(kind)}/>')

    def write(self, file: Path, height: float, title: str) -> None:
        """`title`: for whoever cannot see it."""
        size = f'width="{self.width:.0f}" height="{height:.0f}" viewBox="0 0 {self.width:.0f} {height:.0f}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
        parts = [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *self._shapes, "</svg>"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(parts) + "\n", encoding="utf-8")


class Scale:
    """Where values lie between two pixels: linear from 0, or in powers of ten where they differ by much."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = min(values), max(values)
        self._log = low > 0 and high > 30 * low
        self._low, self._high = (low, high) if self._log else (0.0, high or 1.0)
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        if self._log:
            value = max(value, self._low)
            share = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            share = value / self._high
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """Round values to mark."""
        if self._log:
            powers = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
            every = [digit * 10.0**power for power in powers for digit in ((1, 3) if len(powers) < 5 else (1,))]
            return [tick for tick in every if self._low <= tick <= self._high]
        step = 10.0 ** math.floor(math.log10(self._high))
        step = next(step * part for part in (0.2, 0.5, 1, 2) if self._high / (step * part) <= 6)
        return [step * number for number in range(int(self._high / step + 1e-9) + 1)]


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
