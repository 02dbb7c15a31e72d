"""Small multiples on a logarithmic axis as one SVG file, for docs/figures: lines and marks.

Colours follow the reader's light or dark theme by a media query inside the file. Every line is told
apart by its dash as well, and labelled at its end where there is room for that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 360, 250  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 34, 40
KEY = 30  # height of the legend

STYLE = """
svg { font: 12px system-ui, sans-serif; }
.page { fill: #ffffff; } text { fill: #24292f; } .soft { fill: #57606a; }
.grid { stroke: #d8dee4; } .one { stroke: #57606a; }
.line { fill: none; stroke-width: 2; } .mark { stroke: #ffffff; stroke-width: 1.5; }
.s0 { stroke: #b3490b; } .s1 { stroke: #0b63b3; stroke-dasharray: 7 3; }
.s2 { stroke: #6b2fa0; stroke-dasharray: 2 3; }
.m0 { fill: #b3490b; } .m1 { fill: #0b63b3; } .m2 { fill: #6b2fa0; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; } text { fill: #e6edf3; } .soft { fill: #9198a1; }
  .grid { stroke: #30363d; } .one { stroke: #9198a1; } .mark { stroke: #0d1117; }
  .s0 { stroke: #f0883e; } .s1 { stroke: #58a6ff; } .s2 { stroke: #c297ff; }
  .m0 { fill: #f0883e; } .m1 { fill: #58a6ff; } .m2 { fill: #c297ff; }
}
"""


@dataclasses.dataclass(frozen=True)
class Panel:
    """xs: labels of the points, evenly spaced. lines: a value per point of every series.
    marks: (series, point, value), drawn as dots."""

    title: str
    xs: Sequence[str]
    lines: Sequence[Sequence[float]]
    marks: Sequence[tuple[int, int, float]] = ()


def figure(
    panels: Sequence[Panel], names: Sequence[str], *, about: str, mark: str, columns: int = 2
) -> str:
    """The SVG. names: of the series (at most three); about: the axis; mark: what a dot is."""
    values = [v for p in panels for line in p.lines for v in line] + [
        v for p in panels for _, _, v in p.marks
    ]
    decade = 10 ** math.floor(math.log10(min(values)))
    low = max(tick for tick in (decade, 2 * decade, 5 * decade) if tick <= min(values))
    high = max(values) * 1.15
    rows = -(-len(panels) // columns)
    width, height = columns * WIDTH, rows * HEIGHT + KEY
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'width="{width}" height="{height}" aria-label="{escape(about)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    x = LEFT
    for i, name in enumerate(names):
        parts.append(
            f'<path class="line s{i}" d="M{x} 15h26"/>'
            f'<text x="{x + 32}" y="19">{escape(name)}</text>'
        )
        x += 52 + 7 * len(name)
    if any(p.marks for p in panels):
        parts.append(
            f'<circle class="mark m0" cx="{x + 6}" cy="15" r="5"/>'
            f'<text x="{x + 18}" y="19">{escape(mark)}</text>'
        )
    for i, panel in enumerate(panels):
        at = f"translate({i % columns * WIDTH} {KEY + i // columns * HEIGHT})"
        parts += [f'<g transform="{at}">', *_panel(panel, names, low, high, about), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, names: Sequence[str], low: float, high: float, about: str) -> list[str]:
    def x(i: int) -> float:
        return LEFT + (i + 0.5) / len(panel.xs) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        part = math.log(value / low) / math.log(high / low)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="soft" x="{LEFT}" y="{TOP - 14}">{escape(about)}</text>']
    value = 10 ** math.floor(math.log10(low))
    while value <= high:
        for tick in (value, 2 * value, 5 * value):
            if low <= tick <= high:
                kind = "one" if tick == 1 else "grid"
                parts.append(
                    f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
                    f'y2="{y(tick):.1f}"/><text class="soft" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" '
                    f'text-anchor="end">{tick:g}</text>'
                )
        value *= 10
    for i, label in enumerate(panel.xs):
        parts.append(
            f'<text class="soft" x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 17}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(panel.title)}</text>'
    )
    for i, line in enumerate(panel.lines):
        path = "L".join(f"{x(k):.1f} {y(v):.1f}" for k, v in enumerate(line))
        parts.append(
            f'<path class="line s{i}" d="M{path}"><title>{escape(names[i])}: '
            f"{', '.join(f'{v:.3g}' for v in line)}</title></path>"
        )
    for i, k, value in panel.marks:
        said = escape(f"{names[i]}, {panel.xs[k]}: {value:.3g}")
        parts.append(
            f'<circle class="mark m{i}" cx="{x(k):.1f}" cy="{y(value):.1f}" r="5">'
            f"<title>{said}</title></circle>"
        )
    return parts
