"""Every setting that was tried as a point, safe against effective, as one SVG file for docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
.f4 { fill: #8c6c00; } .f5 { fill: #57606a; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; } text { fill: #e6edf3; } .soft { fill: #9198a1; }
  .grid { stroke: #30363d; }
  .mark { stroke: #0d1117; } .f0 { fill: #f0883e; } .f1 { fill: #58a6ff; } .f2 { fill: #c297ff; }
  .f3 { fill: #3fb950; } .f4 { fill: #d29922; } .f5 { fill: #9198a1; }
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


def frontier(tried: Mapping[str, Sequence[Mapping]]) -> str:
    """The SVG. tried: what protocol.Study.tune gives: {method: [{"setting", "safe", "effective"}]}.
    A point says its method and setting when it is pointed at."""
    points = [(method, row) for method, rows in tried.items() for row in rows]
    low_x, low_y = (min(row[name] for _, row in points) for name in ("safe", "effective"))
    low_x, low_y = 10 * (low_x // 10), 10 * (low_y // 10)

    def x(value: float) -> float:
        return LEFT + (value - low_x) / (100 - low_x) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low_y) / (100 - low_y) * (HEIGHT - TOP - BOTTOM)

    about = "effective replies to harmless questions over safe replies to risky ones, percent"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'width="{WIDTH}" height="{HEIGHT}" aria-label="{about}">',
        f'<style>{STYLE}</style><rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    for tick in ticks(low_x, 100):
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/><text class="soft" x="{x(tick):.1f}" '
            f'y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{tick:g}</text>'
        )
    for tick in ticks(low_y, 100):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text class="soft" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>'
        )
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">safe replies (risky), '
        f'percent</text><text class="soft" x="{LEFT}" y="{TOP - 8}">effective replies (benign), '
        "percent</text>"
    )
    for number, family in enumerate(FAMILIES):
        at = LEFT + 120 * number
        parts.append(
            f'<g class="mark f{number}" transform="translate({at + 6} 14)">{SHAPES[number]}</g>'
            f'<text x="{at + 18}" y="18">{family}</text>'
        )
    for method, row in points:
        number = next(
            i for i, words in enumerate(FAMILIES.values()) if any(word in method for word in words)
        )
        setting = " ".join(f"{name}={value}" for name, value in row["setting"].items())
        said = f"{method}, {setting}: safe {row['safe']:.1f}, effective {row['effective']:.1f}"
        at = f"translate({x(row['safe']):.1f} {y(row['effective']):.1f})"
        parts.append(
            f'<g class="mark f{number}" transform="{at}">{SHAPES[number]}'
            f"<title>{escape(said)}</title></g>"
        )
    return "\n".join([*parts, "</svg>", ""])
