"""Answers to the same question before and after: which are shown, and what is shown of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.runs.report.folds import folded_steps, judged, step_verdicts
from srpo_jax.runs.report.pictures import Picture

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
    before: Mapping | None,
    after: Mapping,
    image: Picture,
    names: tuple[str, str],
) -> dict[str, Any]:
    """One question with its picture and its answers. names: of the two evaluations.

    {"question", "picture", "facts", "answers": [{"name", "reply", "title": of the reply's fold,
    "path_verdict", "reply_verdict", "effective", "status", "steps"}]}.
    """
    labels: dict[Any, str] = {True: "risky together", False: "harmless"}
    label = labels.get(after.get("risky"), "")
    shown = [] if before is None else [_answer(names[0], before)]
    return {
        "question": after["question"],
        "picture": image,
        "facts": [text.replace("_", " ") for text in (after.get("category") or "", label) if text],
        "answers": [*shown, _answer(names[1], after)],
    }


def _answer(name: str, row: Mapping) -> dict[str, Any]:
    steps, verdict = row.get("steps") or [], row["reply_verdict"]
    verdicts = step_verdicts(len(steps), row.get("step_verdicts") or [], row["path_verdict"])
    return {
        "name": name,
        "reply": row.get("reply"),
        "title": f"reply, {judged(verdict)}",
        "path_verdict": row["path_verdict"],
        "reply_verdict": row["reply_verdict"],
        "effective": row.get("effective"),
        "status": row.get("status") or "ok",
        "steps": folded_steps(steps, verdicts),
    }
