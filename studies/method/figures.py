"""Settings that were tried as points and lines, safe against effective, as SVG files for docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from srpo_jax.runs.report.charts import ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 430, 50, 16, 44, 44
FAMILIES = {  # the first whose words are in a method's name
    "recovery": ("recovery",),
    "srpo": ("srpo", "branches"),
    "orpo, dpo": ("orpo", "dpo"),
    "rft": ("rft",),
    "sft": ("sft",),
    "base": ("base",),
}
STYLE = """
svg { font: 12px system-ui, sans-serif; }
.page { fill: #ffffff; } text { fill: #24292f; } .soft { fill: #57606a; } .grid { stroke: #d8dee4; }
.mark { stroke: #ffffff; stroke-width: 1; }
.f0 { fill: #b3490b; } .f1 { fill: #0b63b3; } .f2 { fill: #6b2fa0; } .f3 { fill: #1a7f37; }
.f4 { fill: #8c6c00; } .f5 { fill: #57606a; } .line { fill: none; stroke-width: 2; }
.l0 { stroke: #b3490b; } .l1 { stroke: #0b63b3; } .l2 { stroke: #6b2fa0; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; } text { fill: #e6edf3; } .soft { fill: #9198a1; }
  .grid { stroke: #30363d; }
  .mark { stroke: #0d1117; } .f0 { fill: #f0883e; } .f1 { fill: #58a6ff; } .f2 { fill: #c297ff; }
  .f3 { fill: #3fb950; } .f4 { fill: #d29922; } .f5 { fill: #9198a1; }
  .l0 { stroke: #f0883e; } .l1 { stroke: #58a6ff; } .l2 { stroke: #c297ff; }
}
"""
SHAPES = (  # around 0 0, so that families are told apart without colours
    '<circle r="5"/>',
    '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    '<path d="M0-6L6 5H-6Z"/>',
    '<path d="M0-6L6 0 0 6-6 0Z"/>',
    '<path d="M0 6L6-5H-6Z"/>',
    '<path d="M-6-2H-2V-6H2V-2H6V2H2V6H-2V2H-6Z"/>',
)


# Of which the points are joined: a name, the knob, the methods, and what their settings share.
LINES = (
    ("lambda of srpo own", "lam", ("srpo own", "srpo own, lambda"), {"rate": 5e-4}),
    (
        "the base's share in srpo own",
        "mix",
        ("srpo own", "srpo own, mixed"),
        {"rate": 5e-4, "lam": 0.1},
    ),
    ("the base's share in sft", "mix", ("sft filtered", "sft filtered, mixed"), {"rate": 2e-3}),
)


def frontier(tried: Mapping[str, Sequence[Mapping]]) -> str:
    """The SVG. tried: what protocol.Study.tune gives: {method: [{"setting", "safe", "effective"}]}.
    A point says its method and setting when it is pointed at."""
    points = [(method, row) for method, rows in tried.items() for row in rows]
    page = _Page([row for _, row in points])
    for number, family in enumerate(FAMILIES):
        page.legend(number, family, f'<g class="mark f{number}">{SHAPES[number]}</g>', 120)
    for method, row in points:
        number = next(
            i for i, words in enumerate(FAMILIES.values()) if any(word in method for word in words)
        )
        setting = " ".join(f"{name}={value}" for name, value in row["setting"].items())
        page.mark(row, f"f{number}", SHAPES[number], f"{method}, {setting}")
    return page.text()


def lines(tried: Mapping[str, Sequence[Mapping]]) -> str:
    """The SVG of LINES, each from the smallest value of its knob to the largest; those of `mix` end
    at the base policy, the share of 1. "" where a method is missing."""
    if not {"base", *(name for line in LINES for name in line[2])} <= set(tried):
        return ""
    drawn = []
    for name, knob, methods, shared in LINES:
        rows = {
            row["setting"].get(knob, 0.0): row
            for method in methods
            for row in tried[method]
            if shared.items() <= row["setting"].items()
        }
        if knob == "mix":
            rows[1.0] = tried["base"][0]
        drawn.append((name, knob, dict(sorted(rows.items()))))
    page = _Page([row for _, _, rows in drawn for row in rows.values()])
    for number, (name, knob, rows) in enumerate(drawn):
        page.legend(number, name, f'<g class="mark f{number}">{SHAPES[number]}</g>', 200)
        way = " ".join(
            f"{page.x(r['safe']):.1f},{page.y(r['effective']):.1f}" for r in rows.values()
        )
        page.parts.append(f'<polyline class="line l{number}" points="{way}"/>')
        for value, row in rows.items():
            page.mark(row, f"f{number}", SHAPES[number], f"{name}, {knob}={value:g}")
            at = f'x="{page.x(row["safe"]) + 7:.1f}" y="{page.y(row["effective"]) - 7:.1f}"'
            page.parts.append(f'<text class="soft" {at}>{value:g}</text>')
    return page.text()


class _Page:
    """Axes over the points of rows, up to 100 percent, and what is drawn on them."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        low_x, low_y = (10 * (min(r[n] for r in rows) // 10) for n in ("safe", "effective"))
        self.low = (low_x, low_y)
        about = "effective replies to harmless questions over safe replies to risky ones, percent"
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'width="{WIDTH}" height="{HEIGHT}" aria-label="{about}">',
            f'<style>{STYLE}</style><rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        ]
        for tick in ticks(low_x, 100):
            at = self.x(tick)
            self.parts.append(
                f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" '
                f'y2="{HEIGHT - BOTTOM}"/><text class="soft" x="{at:.1f}" '
                f'y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{tick:g}</text>'
            )
        for tick in ticks(low_y, 100):
            at = self.y(tick)
            self.parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                f'<text class="soft" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}'
                "</text>"
            )
        self.parts.append(
            f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">safe replies (risky), '
            f'percent</text><text class="soft" x="{LEFT}" y="{TOP - 8}">effective replies '
            "(benign), percent</text>"
        )

    def x(self, safe: float) -> float:
        return LEFT + (safe - self.low[0]) / (100 - self.low[0]) * (WIDTH - LEFT - RIGHT)

    def y(self, effective: float) -> float:
        height = HEIGHT - TOP - BOTTOM
        return HEIGHT - BOTTOM - (effective - self.low[1]) / (100 - self.low[1]) * height

    def legend(self, number: int, name: str, drawing: str, wide: int) -> None:
        at = LEFT + wide * number
        self.parts.append(
            f'<g transform="translate({at + 6} 14)">{drawing}</g><text x="{at + 18}" y="18">{name}'
            "</text>"
        )

    def mark(self, row: Mapping[str, Any], kind: str, shape: str, what: str) -> None:
        said = f"{what}: safe {row['safe']:.1f}, effective {row['effective']:.1f}"
        at = f"translate({self.x(row['safe']):.1f} {self.y(row['effective']):.1f})"
        self.parts.append(
            f'<g class="mark {kind}" transform="{at}">{shape}<title>{escape(said)}</title></g>'
        )

    def text(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])
