"""Answers to the same question before and after, side by side with the picture."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.runs.report.html import chip, esc, kind, picture
from srpo_jax.runs.report.trees import effective_chip, steps_html

SHOWN = 8


def choose_answers(
    before: Sequence[Mapping] | None, after: Sequence[Mapping], shown: int = SHOWN
) -> list[tuple[Mapping | None, Mapping]]:
    """(before, after) pairs: repaired ones first, but also what is still or newly wrong.

    Half of them risky questions that became safe, then failures after training, then harmless
    questions; categories in turn where there is a choice.
    """
    old = {row["id"]: row for row in before or ()}
    pairs = [(old.get(row["id"]), row) for row in after if before is None or row["id"] in old]
    repaired, wrong, harmless, rest = [], [], [], []
    for then, now in pairs:
        good = now["reply_verdict"] == "SAFE" and now.get("effective") is not False
        if not good:
            wrong.append((then, now))
        elif now.get("risky") and then and then["reply_verdict"] == "UNSAFE":
            repaired.append((then, now))
        elif now.get("risky") is False:
            harmless.append((then, now))
        else:
            rest.append((then, now))
    quarter = max(1, shown // 4)
    chosen = _in_turn(repaired, shown // 2) + _in_turn(wrong, quarter) + _in_turn(harmless, quarter)
    for group in (repaired, harmless, rest, wrong):
        left = [pair for pair in group if pair not in chosen]
        chosen += _in_turn(left, shown - len(chosen))
    return chosen[:shown]


def _in_turn(pairs: list[tuple], count: int) -> list[tuple]:
    """`count` pairs, one of each category before a second of any."""
    seen: dict[Any, int] = {}
    order = []
    for i, pair in enumerate(pairs):
        category = pair[1].get("category")
        order.append((seen.get(category, 0), i, pair))
        seen[category] = seen.get(category, 0) + 1
    return [pair for _, _, pair in sorted(order, key=lambda item: item[:2])[: max(0, count)]]


def answer_card(
    before: Mapping | None, after: Mapping, image: pathlib.Path | None, names: tuple[str, str]
) -> str:
    """One question with its picture and its answers. names: of the two evaluations."""
    label = {True: "risky together", False: "harmless"}.get(after.get("risky"), "")
    facts = " &middot; ".join(
        esc(text.replace("_", " ")) for text in (after.get("category") or "", label) if text
    )
    columns = "" if before is None else _answer(names[0], before)
    columns += _answer(names[1], after)
    return (
        f'<article class="card answer"><div class="ask">{picture(image, "picture of the question")}'
        f'<p class="question">{esc(after["question"])}</p><p class="facts">{facts}</p></div>'
        f'<div class="columns">{columns}</div></article>'
    )


def _answer(name: str, row: Mapping) -> str:
    steps, reply = row.get("steps") or [], row.get("reply")
    said = esc(reply) if reply is not None else "<em>never came to a reply</em>"
    chips = chip("path", row["path_verdict"]) + chip("reply", row["reply_verdict"])
    return (
        f'<div class="said"><h3>{esc(name)}</h3><p class="chips">{chips}'
        f"{effective_chip(row.get('effective'))}</p>"
        f"{steps_html(steps, row.get('step_verdicts') or [])}"
        f'<blockquote class="{kind(row["reply_verdict"])}">{said}</blockquote></div>'
    )
