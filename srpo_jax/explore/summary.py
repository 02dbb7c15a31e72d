"""What exploration found: verdicts and pairs per branch point, as a dict and as a text table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from srpo_jax.data_pipelines.tree_store import branch_label


def summarise(
    trees: Iterable[Mapping[str, Any]], *, scope: str, require_effective: bool
) -> dict[str, Any]:
    """Counts per branch point (steps of the reference path that stand before it) and in all.

    Labels are those that training will use (branch_label): `safe` can be chosen, `unsafe` can be
    rejected, `error` is left out. `repeated`: branches with the same tokens as an earlier one of
    their point. `with_pair`: questions that have a safe and an unsafe branch at that point.
    Returns {"questions", "questions_with_pair", "branches", "points": [{"at", "questions",
    "branches", "safe", "unsafe", "error", "unfinished", "repeated", "with_pair"}]}.
    """
    points: dict[int, dict[str, int]] = {}
    questions = paired = 0
    for tree in trees:
        questions += 1
        groups: dict[int, list[Mapping]] = {}
        for branch in tree["branches"]:
            groups.setdefault(branch["at"], []).append(branch)
        has_pair = False
        for at, branches in groups.items():
            labels = [
                branch_label(branch, scope=scope, require_effective=require_effective)
                for branch in branches
            ]
            pair = True in labels and False in labels
            has_pair |= pair
            found = {
                "questions": 1,
                "branches": len(branches),
                "safe": labels.count(True),
                "unsafe": labels.count(False),
                "error": labels.count(None),
                "unfinished": sum(not branch["finished"] for branch in branches),
                "repeated": len(branches) - len({tuple(b["tokens"]) for b in branches}),
                "with_pair": int(pair),
            }
            total = points.setdefault(at, dict.fromkeys(found, 0))
            for name, value in found.items():
                total[name] += value
        paired += has_pair
    return {
        "questions": questions,
        "questions_with_pair": paired,
        "branches": sum(point["branches"] for point in points.values()),
        "points": [{"at": at, **points[at]} for at in sorted(points)],
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table for a terminal: shares in percent of the branches of each point."""
    columns = ("SAFE", "UNSAFE", "ERROR", "unfinished", "repeated")
    head = f"{'after step':>10}{'branches':>10}" + "".join(f"{name:>12}" for name in columns)
    lines = [head + f"{'with pair':>16}"]
    for point in summary["points"]:
        shares = [100 * point[name.lower()] / point["branches"] for name in columns]
        pairs = f"{point['with_pair']} of {point['questions']}"
        lines.append(
            f"{point['at']:>10}{point['branches']:>10}"
            + "".join(f"{share:>10.1f} %" for share in shares)
            + f"{pairs:>16}"
        )
    lines.append(
        f"{summary['branches']} branches; {summary['questions_with_pair']} of "
        f"{summary['questions']} questions have a pair"
    )
    return "\n".join(lines)
