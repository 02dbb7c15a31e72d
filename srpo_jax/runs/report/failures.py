"""Every answer that went wrong, for the report, with what they can be filtered by.

The page has no script: each filter is a group of radio buttons, and a rule of CSS hides what has
not the class of the one that is chosen (templates/failures.html).
"""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.judge.results.rates import judged_parts
from srpo_jax.runs.report.answers import answer_card
from srpo_jax.runs.report.folds import step_verdicts
from srpo_jax.runs.report.pictures import Picture, find_image, picture

SIDE = 160  # pixels of a picture
PICTURES = 2000  # on the page; the failures beyond have a box instead
TITLES = ("what is wrong", "before", "questions", "evaluation", "category")
RISKY: dict[Any, str] = {True: "risky", False: "harmless"}


def kinds(row: Mapping) -> list[str]:
    """What is wrong with an answer, [] with a good one. row: as rates.judged_parts gives it."""
    found = {
        "unsafe reply": row["reply_verdict"] == "UNSAFE",
        "unsafe path": row["path_verdict"] == "UNSAFE",
        "not effective": row.get("effective") is False,
        "not judged": "ERROR" in (row["reply_verdict"], row["path_verdict"]),
        "not read": (row.get("status") or "ok") != "ok",
    }
    return [name for name, holds in found.items() if holds]


def failure_list(
    generations: Mapping[str, Sequence[Mapping]], before: str | None, roots: list[pathlib.Path]
) -> dict[str, Any] | None:
    """What templates/failures.html shows; None without an answer. generations: {evaluation: rows}.
    before: the one of the policy before training, whose failures are not listed.

    {"answers": how many there are, "filters": [{"title", "options": [(word, failures)]}], "items":
    [{"classes": numbers of filter and option, "steps": verdicts, "card": of answer_card}]}.
    """
    rows = {name: judged_parts(own) for name, own in generations.items()}
    then = {_question(row): bool(kinds(row)) for row in (rows.get(before or "") or ())}
    found = []
    for name, own in rows.items():
        for row in own if name != before else ():
            if wrong := kinds(row):
                words = (wrong, _since(then, row), [RISKY.get(row.get("risky"), "not known")])
                category = str(row.get("category") or "none").replace("_", " ")
                found.append((name, row, (*words, [name], [category])))
    filters = [
        {"title": title, "options": Counter(word for _, _, words in found for word in words[i])}
        for i, title in enumerate(TITLES)
    ]
    for each in filters:
        each["options"] = sorted(each["options"].items(), key=lambda item: (-item[1], item[0]))
    items = []
    for number, (name, row, words) in enumerate(found):
        classes = [
            (i, j)
            for i, each in enumerate(filters)
            for j, (word, _) in enumerate(each["options"])
            if word in words[i]
        ]
        items.append({"classes": classes, **_item(name, row, roots, number < PICTURES)})
    answers = sum(len(own) for name, own in rows.items() if name != before)
    return {"answers": answers, "filters": filters, "items": items} if answers else None


def _question(row: Mapping) -> tuple[str, str]:
    """What tells a question from those of other sets, too."""
    return str(row.get("id")), str(row.get("question"))


def _since(then: Mapping[tuple[str, str], bool], row: Mapping) -> list[str]:
    if not then:
        return ["not known"]
    was = then.get(_question(row))
    return [{True: "wrong before, too", False: "right before", None: "not asked before"}[was]]


def _item(name: str, row: Mapping, roots: list[pathlib.Path], with_picture: bool) -> dict[str, Any]:
    if with_picture:
        shown = picture(find_image(row.get("image"), roots), SIDE)
    else:
        shown = Picture(None, problem="picture left out: too many failures")
    card = answer_card(None, row, shown, ("", name))
    facts = [name, f"id {row.get('id')}"]
    if row.get("sample"):
        facts.append(f"answer {int(row['sample']) + 1}")
    steps = row.get("steps") or []
    path = row["path_verdict"] or "ERROR"
    verdicts = step_verdicts(len(steps), row.get("step_verdicts") or [], path)
    return {"card": {**card, "facts": [*card["facts"], *facts]}, "steps": verdicts}
