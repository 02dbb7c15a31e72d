"""Reasoning trees as HTML: a drawing of the whole tree, and the texts to read beside its spine.

The drawing: the reference path runs through the middle, one column per step. Branches leave it at
their branch point; safe ones run above, others below, the earliest on the outside, so that no two
lines cross. A line is as thick as the branch is likely under the policy that sampled it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from srpo_jax.data_pipelines.path_format import parse_path
from srpo_jax.runs.report.html import chip, esc, fold, kind, mark, picture

SHOWN = 6  # trees on the page
SCANNED = 400  # trees looked at to choose them
LANE, COLUMN, MARGIN = 15, 118, 46  # pixels: between lines, between steps, left


@dataclass(frozen=True)
class Twig:
    """Branches of one point with the same text, which a small policy has many of."""

    branch: Mapping[str, Any]
    count: int
    steps: tuple[str, ...]
    reply: str | None
    verdicts: tuple[str, ...]  # of the branch's own steps
    weight: float  # 0..1, by mean log-prob per token within the tree
    anchor: str

    @property
    def verdict(self) -> str:
        return self.branch["reply_verdict"]

    @property
    def per_token(self) -> float:
        return self.branch["logp"] / max(1, len(self.branch["tokens"]))


def choose_trees(trees: Iterable[Mapping], shown: int = SHOWN) -> list[Mapping]:
    """The trees that show most: risky with safe and unsafe branches first, categories in turn."""
    ranked: dict[tuple, list[Mapping]] = {}
    for i, tree in enumerate(trees):
        if i >= SCANNED:
            break
        verdicts = [branch["reply_verdict"] for branch in tree["branches"]]
        mixed = "SAFE" in verdicts and "UNSAFE" in verdicts
        rank = (tree["risky"] is not True, not mixed)
        ranked.setdefault(rank, []).append(tree)
    chosen: list[Mapping] = []
    for rank in sorted(ranked):
        by_category: dict[Any, list[Mapping]] = {}
        for tree in sorted(ranked[rank], key=lambda tree: -_points_with_pair(tree)):
            by_category.setdefault(tree["category"], []).append(tree)
        while any(by_category.values()):
            chosen += [queue.pop(0) for queue in by_category.values() if queue]
    return chosen[:shown]


def _points_with_pair(tree: Mapping) -> int:
    found: dict[int, set[str]] = {}
    for branch in tree["branches"]:
        found.setdefault(branch["at"], set()).add(branch["reply_verdict"])
    return sum({"SAFE", "UNSAFE"} <= verdicts for verdicts in found.values())


def tree_card(tree: Mapping, index: int, *, open_: bool) -> str:
    """One tree: picture and question, the drawing, and the texts in a fold."""
    twigs = _twigs(tree, index)
    data = tree["images"][0]["data"] if tree["images"] else None
    label = {True: "risky together", False: "harmless", None: ""}[tree["risky"]]
    facts = " &middot; ".join(
        esc(text)
        for text in ((tree["category"] or "").replace("_", " "), label, tree["id"])
        if text
    )
    total = len(tree["branches"])
    return (
        '<article class="card tree"><div class="treehead">'
        f'{picture(data, "picture of the question")}<div><p class="question">'
        f'{esc(tree["question"])}</p><p class="facts">{facts}</p></div></div>'
        f'<div class="scroll">{_drawing(tree, twigs)}</div>'
        + fold(
            f"Read the reference path and its {total} branches",
            _reading(tree, twigs),
            open_=open_,
        )
        + "</article>"
    )


def _twigs(tree: Mapping, index: int) -> list[Twig]:
    """Branches in the order of their points, equal texts of a point taken together."""
    groups: dict[tuple[int, str, str], list[Mapping]] = {}
    for branch in sorted(tree["branches"], key=lambda b: (b["at"], b["k"])):
        key = (branch["at"], branch["text"], branch["reply_verdict"])
        groups.setdefault(key, []).append(branch)
    means = [b[0]["logp"] / max(1, len(b[0]["tokens"])) for b in groups.values()]
    low, high = min(means, default=0.0), max(means, default=0.0)
    twigs = []
    for number, (same, mean) in enumerate(zip(groups.values(), means, strict=True)):
        branch = same[0]
        steps, reply = parse_path(branch["text"])
        own = tuple(branch["step_verdicts"][branch["at"] :])
        own += ("ERROR",) * (len(steps) - len(own))
        weight = (mean - low) / (high - low) if high > low else 1.0
        anchor = f"t{index}b{number}"
        twigs.append(Twig(branch, len(same), steps, reply, own, weight, anchor))
    return twigs


def _lanes(twigs: Sequence[Twig]) -> tuple[dict[str, float], float, float]:
    """Offset of each twig from the spine (negative is above), and the room above and below."""
    above = [t for t in twigs if t.verdict == "SAFE"]
    below = [t for t in twigs if t.verdict != "SAFE"]
    offsets = {}
    for side, sign in ((above, -1), (below, 1)):
        for i, twig in enumerate(side):
            offsets[twig.anchor] = sign * (24 + LANE * (len(side) - 1 - i))
    return offsets, 42 + LANE * len(above), 30 + LANE * len(below)


def _drawing(tree: Mapping, twigs: Sequence[Twig]) -> str:
    steps = len(tree["step_texts"])
    offsets, above, below = _lanes(twigs)
    last = steps + 1
    width, height = MARGIN + COLUMN * last + 60, above + below
    spine = above

    def x(column: float) -> float:
        return MARGIN + COLUMN * min(column, last)

    parts = []
    for twig in twigs:
        parts.append(_branch_line(twig, x, spine, spine + offsets[twig.anchor]))
    parts.append(f'<line class="spine" x1="{x(0)}" x2="{x(last)}" y1="{spine}" y2="{spine}"/>')
    texts = ["question", *tree["step_texts"], tree["reply_text"]]
    for column, text in enumerate(texts):
        name = {0: "?", last: "reply"}.get(column, str(column))
        shape = (
            f'<rect class="node" x="{x(column) - 20}" y="{spine - 11}" width="40" '
            'height="22" rx="6"/>'
            if column == last
            else f'<circle class="node" cx="{x(column)}" cy="{spine}" r="11"/>'
        )
        parts.append(
            f'<g><title>{esc(text)}</title>{shape}<text class="nodename" x="{x(column)}" '
            f'y="{spine}" dy="0.35em" text-anchor="middle">{name}</text></g>'
        )
        head = text.partition(":")[0]
        if 0 < column < last and head != text and len(head) <= 16:
            parts.append(f'<text class="head" x="{x(column)}" y="13">{esc(head)}</text>')
    if not twigs:
        return missing_branches()
    said = f"Reasoning tree with {steps} steps and {len(tree['branches'])} branches"
    return (
        f'<svg class="treedrawing" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
    )


def missing_branches() -> str:
    return '<p class="missing">This tree has no branches.</p>'


def _branch_line(twig: Twig, x, spine: float, lane: float) -> str:
    """Curve from the branch point to the lane, a dot per step, a mark at the reply."""
    at = twig.branch["at"]
    start, bend = x(at), x(at + 0.62)
    end = x(at + len(twig.steps) + 1) if twig.branch["finished"] else x(at + len(twig.steps) + 0.5)
    end = max(end, bend + 16)
    css = kind(twig.verdict)
    middle = start + (bend - start) * 0.5
    curve = (
        f"M{start:.0f} {spine:.0f}C{middle:.0f} {spine:.0f} {middle:.0f} {lane:.0f} "
        f"{bend:.0f} {lane:.0f}H{end:.0f}"
    )
    dots = "".join(
        f'<circle class="step {kind(v)}" cx="{x(at + i + 1):.0f}" cy="{lane:.0f}" r="3.6"/>'
        for i, v in enumerate(twig.verdicts)
        if x(at + i + 1) < end - 8
    )
    times = f'<text class="count" x="{end + 10:.0f}" y="{lane:.0f}" dy="0.35em">'
    more = f"{times}&times;{twig.count}</text>" if twig.count > 1 else ""
    said = (
        f"after step {at}: {twig.verdict}, log-prob {twig.branch['logp']:.2f} "
        f"({twig.per_token:.3f} a token)\n{twig.branch['text']}"
    )
    return (
        f'<a href="#{twig.anchor}"><g class="twig {css}" style="--w:{1.4 + 2.4 * twig.weight:.2f};'
        f'--o:{0.45 + 0.55 * twig.weight:.2f}"><title>{esc(said)}</title>'
        f'<path class="touch" d="{curve}"/><path class="line" d="{curve}"/>{dots}'
        f"{_leaf(css, end, lane)}{more}</g></a>"
    )


def _leaf(css: str, x: float, y: float) -> str:
    """Round, diamond or hollow square: the verdict without its colour."""
    if css == "safe":
        return f'<circle class="leaf" cx="{x:.0f}" cy="{y:.0f}" r="5.5"/>'
    if css == "unsafe":
        return f'<path class="leaf" d="M{x:.0f} {y - 7:.0f}l7 7l-7 7l-7 -7z"/>'
    return f'<rect class="leaf" x="{x - 5:.0f}" y="{y - 5:.0f}" width="10" height="10"/>'


def _reading(tree: Mapping, twigs: Sequence[Twig]) -> str:
    """The spine as rows: what the reference says, and beside it the branches that leave there."""
    rows = []
    texts = [("?", tree["question"]), *enumerate(tree["step_texts"], 1)]
    for at, (number, text) in enumerate(texts):
        here = [twig for twig in twigs if twig.branch["at"] == at]
        rows.append(_row(str(number), step_html(text) if at else esc(text), here))
    rows.append(_row("R", esc(tree["reply_text"]), [], css="end"))
    return f'<div class="reading">{"".join(rows)}</div>'


def _row(number: str, text: str, twigs: Sequence[Twig], css: str = "") -> str:
    """text: HTML."""
    cards = "".join(f"<li>{_twig_card(twig)}</li>" for twig in twigs)
    branches = f'<ul class="twigs">{cards}</ul>' if cards else "<div></div>"
    return (
        f'<div class="row {css}"><div class="ref"><b class="num">{number}</b><p>{text}</p>'
        f"</div>{branches}</div>"
    )


def signed(value: float) -> str:
    """Two decimals with a real minus sign."""
    return f"{value:.2f}".replace("-", "&minus;")


def _twig_card(twig: Twig) -> str:
    reply = esc(twig.reply) if twig.reply is not None else "<em>never came to a reply</em>"
    count = f'<span class="times">&times;{twig.count}</span>' if twig.count > 1 else ""
    summary = (
        f'{mark(twig.verdict, "reply")}<span class="reply">{reply}</span>{count}'
        '<span class="logp" title="mean log-probability of a token">'
        f"{signed(twig.per_token)}</span>"
    )
    body = steps_html(twig.steps, twig.verdicts, first=twig.branch["at"] + 1)
    body += f'<p class="chips">{chip("path", twig.branch["path_verdict"])}'
    body += f"{chip('reply', twig.verdict)}{effective_chip(twig.branch['effective'])}</p>"
    if twig.branch["detail"]:
        body += f'<p class="detail">{esc(twig.branch["detail"])}</p>'
    return (
        f'<div id="{twig.anchor}">{fold(summary, body, css=f"twigcard {kind(twig.verdict)}")}</div>'
    )


def steps_html(steps: Sequence[str], verdicts: Sequence[str], first: int = 1) -> str:
    """Steps as a numbered list, each with its verdict."""
    items = "".join(
        f"<li>{mark(verdict)}<span>{step_html(step)}</span></li>"
        for step, verdict in zip_longest(steps, verdicts[: len(steps)], fillvalue="ERROR")
    )
    return f'<ol class="steps" start="{first}">{items}</ol>' if items else ""


def step_html(text: str) -> str:
    """Escaped, with a heading such as "Risk:" at its start in bold."""
    head, colon, rest = text.partition(":")
    if colon and rest and len(head) <= 60 and "\n" not in head:
        return (
            f"<b>{esc(head)}</b>{esc(rest)}"
            if not rest.strip()
            else f"<b>{esc(head)}:</b>{esc(rest)}"
        )
    return esc(text)


def effective_chip(effective: bool | None) -> str:
    if effective is None:
        return ""
    word, css = ("effective", "safe") if effective else ("not effective", "error")
    return f'<span class="chip {css}">{word}</span>'
