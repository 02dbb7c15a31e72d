"""What phases.make found, as an SVG of its cells and as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from studies.method.figures import FAMILIES, STYLE
from studies.method.phases import METHODS

LEFT, TOP, WIDE, HIGH, GAP = 84, 66, 250, 84, 6
LIGHT = """
.cell { fill-opacity: 0.16; stroke-width: 1.5; } .name { font-weight: 600; font-size: 14px; }
.none { fill: #57606a; fill-opacity: 0.07; stroke: #8c959f; stroke-dasharray: 4 3; }
"""
NOTE = (
    "Mean of safe and effective, percent. Coloured: the best method is above the second; dashed: "
    "nobody is (95 %)."
)


def svg(found: Mapping[str, Any]) -> str:
    """The cells where every question has a reference by questions and wording (columns) and wrong
    references (rows), and the others in a row below them."""
    whole = [each for each in found["cells"] if each["cell"]["references"] == 1]
    rest = [each for each in found["cells"] if each["cell"]["references"] < 1]
    columns = sorted({(-e["cell"]["questions"], e["cell"]["common"]) for e in whole})
    rows = sorted({e["cell"]["wrong"] for e in whole})
    below = TOP + len(rows) * (HIGH + GAP) + 44
    width = LEFT + max(len(columns), len(rest), 3) * (WIDE + GAP) + 10
    height = below + (HIGH + GAP if rest else 0) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'width="{width}" height="{height}" aria-label="who wins where, by cells of the study">',
        f"<style>{STYLE}{LIGHT}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        '<text x="10" y="18" class="name">Every question has a reference</text>',
    ]
    for number, (questions, common) in enumerate(columns):
        x = LEFT + number * (WIDE + GAP)
        wording = "commonest" if common else "rarest"
        parts.append(_text(x, TOP - 24, f"{-questions} questions", "name"))
        parts.append(_text(x, TOP - 8, f"references in the {wording} wording", "soft"))
    for number, wrong in enumerate(rows):
        y = TOP + number * (HIGH + GAP) + HIGH / 2
        parts.append(_text(10, y, f"{100 * wrong:.0f} % wrong"))
    for each in whole:
        cell = each["cell"]
        column = columns.index((-cell["questions"], cell["common"]))
        at = (LEFT + column * (WIDE + GAP), TOP + rows.index(cell["wrong"]) * (HIGH + GAP))
        parts += _cell(each, *at)
    if rest:
        parts.append(_text(10, below - 26, "Fewer references, verdicts on all questions", "name"))
    for number, each in enumerate(rest):
        x, cell = LEFT + number * (WIDE + GAP), each["cell"]
        noise = f", {100 * cell['flips']:.0f} % of verdicts wrong" if cell["flips"] else ""
        parts.append(_text(x, below - 8, f"{100 * cell['references']:.0f} %{noise}", "soft"))
        parts += _cell(each, x, below)
    parts.append(_text(10, height - 10, NOTE, "soft"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{mark}>{escape(text)}</text>'


def _cell(each: Mapping[str, Any], x: float, y: float) -> list[str]:
    winner, (best, second) = each["winner"], each["order"][:2]
    kind = "none"
    if winner:
        kind = f"f{next(i for i, w in enumerate(FAMILIES.values()) if any(v in winner for v in w))}"
    mean = {m: each["rates"][m]["mean"]["value"] for m in each["order"]}
    lines = [f"{best} {mean[best]:.1f}", f"{_said(each['over_second'])} over {second}"]
    if each["over_sft"] and second != "sft filtered":
        lines.append(f"{_said(each['over_sft'])} over sft")
    hover = ", ".join(f"{method} {value:.1f}" for method, value in mean.items())
    style = f"cell {kind}" if winner else kind
    return [
        f'<g><title>{escape(hover)}</title><rect class="{style}" x="{x}" y="{y}" '
        f'width="{WIDE}" height="{HIGH}" rx="5"/>',
        _text(x + 8, y + 20, winner or "nobody", "name"),
        *(_text(x + 8, y + 38 + 16 * n, line, "soft") for n, line in enumerate(lines)),
        "</g>",
    ]


def _said(change: Mapping[str, float]) -> str:
    return f"{change['value']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]"


def table(found: Mapping[str, Any]) -> str:
    """A line a cell: safe / effective of all methods, or in brackets the mean on validation of what
    that left far behind, and who is above whom."""
    names = [
        m for m in METHODS if any(m in e["validation"] or m in e["rates"] for e in found["cells"])
    ]
    lines = ["| cell | " + " | ".join(names) + " | best over the second | over sft | wins |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for each in found["cells"]:
        rates = each["rates"]
        cells = [
            f"{rates[m]['safe']['value']:.1f} / {rates[m]['effective']['value']:.1f}"
            if m in rates
            else f"({each['validation'][m]:.1f})"
            if m in each["validation"]
            else "same"
            for m in names
        ]
        over = _said(each["over_sft"]) if each["over_sft"] else ""
        lines.append(
            f"| {each['name']} | {' | '.join(cells)} | {each['order'][0]} over "
            f"{each['order'][1]} {_said(each['over_second'])} | {over} | "
            f"{each['winner'] or 'nobody'} |"
        )
    return "\n".join(lines)
