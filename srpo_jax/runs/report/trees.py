"""Reasoning trees for the report: which are shown, and what templates/trees.html shows of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.verdict_store import NOT_YET, unjudged
from srpo_jax.runs.report.drawing import draw_tree
from srpo_jax.runs.report.folds import (
    behind,
    folded_steps,
    judged,
    reference_steps,
    split_heading,
)
from srpo_jax.runs.report.pictures import picture
from srpo_jax.runs.report.twigs import Twig, make_twigs

SHOWN = 6  # trees on the page
SCANNED = 400  # trees looked at to choose them


def as_judged(tree: Mapping) -> Mapping:
    """The tree itself if it was joined with verdicts, else with a path and branches that nobody
    judged.
    """
    if "reference_verdict" in tree:
        return tree
    branches = [{**branch, **unjudged(NOT_YET)} for branch in tree["branches"]]
    return {**tree, "branches": branches, "reference_verdict": unjudged(NOT_YET)}


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


def tree_card(tree: Mapping, index: int) -> dict[str, Any]:
    """One tree: picture and question, the drawing, and the texts to read beside its spine.

    tree: a tree record. index: its number on the page. Returns {"question", "picture", "facts",
    "branches": how many, "drawing": None without a branch, "rows"}.
    """
    twigs = make_twigs(tree, index)
    label = {True: "risky together", False: "harmless", None: ""}[tree["risky"]]
    facts = ((tree["category"] or "").replace("_", " "), label, tree["id"])
    return {
        "question": tree["question"],
        "picture": picture(tree["images"][0]["data"] if tree["images"] else None),
        "facts": [text for text in facts if text],
        "branches": len(tree["branches"]),
        "drawing": draw_tree(tree, twigs) if twigs else None,
        "rows": _rows(tree, twigs),
    }


def _rows(tree: Mapping, twigs: Sequence[Twig]) -> list[dict[str, Any]]:
    """The spine as rows: what the reference says, and beside it the branches that leave there.

    {"number", "text": (heading, rest), "verdict", "title": of its fold, "twigs", "css"} each.
    """
    texts = [("?", ("", tree["question"]), "SAFE", "")]
    for i, (text, verdict) in enumerate(zip(tree["step_texts"], reference_steps(tree)), 1):
        texts.append((str(i), split_heading(text), verdict, f"step {i}, {judged(verdict)}"))
    rows = []
    for at, (number, text, verdict, title) in enumerate(texts):
        here = [_twig_card(twig) for twig in twigs if twig.branch["at"] == at]
        row = {"number": number, "text": text, "verdict": verdict, "title": title}
        rows.append({**row, "twigs": here, "css": ""})
    verdict = tree["reference_verdict"]["reply_verdict"]
    last = {"number": "R", "text": ("", tree["reply_text"]), "verdict": verdict}
    return [*rows, {**last, "title": f"reply, {judged(verdict)}", "twigs": [], "css": "end"}]


def _twig_card(twig: Twig) -> dict[str, Any]:
    branch = twig.branch
    return {
        "anchor": twig.anchor,
        "count": twig.count,
        "verdict": twig.verdict,
        "path_verdict": branch["path_verdict"],
        "effective": branch["effective"],
        "status": branch["status"],
        "reply": twig.reply,
        "behind": behind(twig.reply, twig.verdict, twig.verdicts),
        "logp": "" if twig.per_token is None else f"{twig.per_token:.2f}".replace("-", "−"),
        "steps": folded_steps(twig.steps, twig.verdicts, branch["at"] + 1),
        "detail": branch["detail"],
    }
