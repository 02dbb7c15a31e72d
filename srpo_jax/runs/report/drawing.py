"""The drawing of a whole reasoning tree, as SVG.

The reference path runs through the middle, one column per step. Branches leave it at their branch
point; safe ones run above, others below, the earliest on the outside, so that no two lines cross.
A line is as thick as the branch is likely under the policy that sampled it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from srpo_jax.runs.report.folds import behind, judged, reference_steps
from srpo_jax.runs.report.markup import element, kind, word
from srpo_jax.runs.report.twigs import Twig

LANE, COLUMN, MARGIN = 15, 118, 46  # pixels: between lines, between steps, left
LONGEST_HEAD = 16  # characters of a step's heading that have room above its node


def draw_tree(tree: Mapping, twigs: Sequence[Twig]) -> Markup:
    """tree: a judged tree record. twigs: its branches. Each line links to the anchor of its twig.
    What is not SAFE is drawn, but not quoted.
    """
    steps = len(tree["step_texts"])
    offsets, spine, below = _lanes(twigs)
    last = steps + 1
    width, height = MARGIN + COLUMN * last + 60, spine + below

    def x(column: float) -> float:
        return MARGIN + COLUMN * min(column, last)

    parts = [_branch_line(twig, x, spine, spine + offsets[twig.anchor]) for twig in twigs]
    parts.append(element("line", class_="spine", x1=x(0), x2=x(last), y1=spine, y2=spine))
    verdicts = ["SAFE", *reference_steps(tree), tree["reference_verdict"]["reply_verdict"]]
    texts = ["question", *tree["step_texts"], tree["reply_text"]]
    for column, (text, verdict) in enumerate(zip(texts, verdicts, strict=True)):
        is_open = verdict == "SAFE"
        said = text if is_open else f"{_name(column, last)}, {judged(verdict)}"
        parts.append(_node(said, x(column), spine, column, last))
        head = text.partition(":")[0]
        if is_open and 0 < column < last and head != text and len(head) <= LONGEST_HEAD:
            parts.append(element("text", head, class_="head", x=x(column), y=13))
    return element(
        "svg",
        *parts,
        class_="treedrawing",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=f"Reasoning tree with {steps} steps and {len(tree['branches'])} branches",
    )


def _lanes(twigs: Sequence[Twig]) -> tuple[dict[str, int], int, int]:
    """Offset of each twig from the spine (negative is above), and the room above and below."""
    above = [twig for twig in twigs if twig.verdict == "SAFE"]
    below = [twig for twig in twigs if twig.verdict != "SAFE"]
    offsets = {}
    for side, sign in ((above, -1), (below, 1)):
        for i, twig in enumerate(side):
            offsets[twig.anchor] = sign * (24 + LANE * (len(side) - 1 - i))
    return offsets, 42 + LANE * len(above), 30 + LANE * len(below)


def _name(column: int, last: int) -> str:
    return "reply" if column == last else f"step {column}"


def _node(text: str, x: float, spine: int, column: int, last: int) -> Markup:
    """The node of one column: the question, a step by its number, or the reply. text: on hover."""
    name = {0: "?", last: "reply"}.get(column, str(column))
    if column == last:
        shape = element("rect", class_="node", x=x - 20, y=spine - 11, width=40, height=22, rx=6)
    else:
        shape = element("circle", class_="node", cx=x, cy=spine, r=11)
    place = {"x": x, "y": spine, "dy": "0.35em"}
    said = element("text", name, class_="nodename", **place, text_anchor="middle")
    return element("g", element("title", text), shape, said)


def _branch_line(twig: Twig, x: Callable[[float], float], spine: int, lane: int) -> Markup:
    """Curve from the branch point to the lane, a dot per step, a mark at the reply.

    x: from a column to pixels. spine, lane: heights in pixels.
    """
    at = twig.branch["at"]
    start, bend = x(at), x(at + 0.62)
    end = x(at + len(twig.steps) + 1) if twig.branch["finished"] else x(at + len(twig.steps) + 0.5)
    end = max(end, bend + 16)
    middle = start + (bend - start) * 0.5
    curve = (
        f"M{start:.0f} {spine:.0f}C{middle:.0f} {spine:.0f} {middle:.0f} {lane:.0f} "
        f"{bend:.0f} {lane:.0f}H{end:.0f}"
    )
    text = twig.branch["text"]
    if not twig.is_open:
        text = behind(twig.reply, twig.verdict, twig.verdicts) + "; the text is below"
    said = f"after step {at}: reply {word(twig.verdict)}"
    if twig.per_token is not None:
        said += f", log-prob {twig.branch['logp']:.2f} ({twig.per_token:.3f} a token)"
    parts = [
        element("title", f"{said}\n{text}"),
        element("path", class_="touch", d=curve),
        element("path", class_="line", d=curve),
    ]
    for column, verdict in enumerate(twig.verdicts, at + 1):
        if x(column) < end - 8:
            place = {"cx": f"{x(column):.0f}", "cy": f"{lane:.0f}"}
            parts.append(element("circle", class_=f"step {kind(verdict)}", **place, r=3.6))
    parts.append(_leaf(kind(twig.verdict), end, lane))
    if twig.count > 1:
        place = {"x": f"{end + 10:.0f}", "y": f"{lane:.0f}", "dy": "0.35em"}
        parts.append(element("text", f"×{twig.count}", class_="count", **place))
    weight = f"--w:{1.4 + 2.4 * twig.weight:.2f};--o:{0.45 + 0.55 * twig.weight:.2f}"
    line = element("g", *parts, class_=f"twig {kind(twig.verdict)}", style=weight)
    return element("a", line, href=f"#{twig.anchor}")


def _leaf(css: str, x: float, y: float) -> Markup:
    """Round, diamond or hollow square: the verdict without its colour."""
    if css == "safe":
        return element("circle", class_="leaf", cx=f"{x:.0f}", cy=f"{y:.0f}", r=5.5)
    if css == "unsafe":
        return element("path", class_="leaf", d=f"M{x:.0f} {y - 7:.0f}l7 7l-7 7l-7 -7z")
    corner = {"x": f"{x - 5:.0f}", "y": f"{y - 5:.0f}"}
    return element("rect", class_="leaf", **corner, width=10, height=10)
