"""What the verdicts say of the trees: labels and pairs per branch point, as a dict and as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from srpo_jax.data_pipelines.verdict_store import branch_label


def summarise(
    trees: Iterable[Mapping[str, Any]], *, scope: str, require_effective: bool
) -> dict[str, Any]:
    """LabelCounts.found() of trees that are joined with their verdicts (JudgedTrees)."""
    counts = LabelCounts(scope=scope, require_effective=require_effective)
    for tree in trees:
        counts.add(tree)
    return counts.found()


class LabelCounts:
    """Counts per branch point (the number of steps of the reference path before it) and in all, of
    judged trees as they come. Branches are counted by the labels that training will use: see
    branch_label, which `rules` are for.
    """

    def __init__(self, **rules: Any) -> None:
        self._rules = rules
        self._points: dict[int, dict[str, int]] = {}
        self._references = {"safe": 0, "unsafe": 0, "error": 0}
        self._questions = self._paired = 0

    def add(self, tree: Mapping[str, Any]) -> None:
        """Takes in a tree that is joined with its verdicts."""
        self._questions += 1
        label = branch_label(tree["reference_verdict"], **self._rules)
        self._references[{True: "safe", False: "unsafe", None: "error"}[label]] += 1
        groups: dict[int, list[Mapping[str, Any]]] = {}
        for branch in tree["branches"]:
            groups.setdefault(branch["at"], []).append(branch)
        has_pair = False
        for at, branches in groups.items():
            labels = [branch_label(branch, **self._rules) for branch in branches]
            pair = True in labels and False in labels
            has_pair |= pair
            found = {
                "questions": 1,
                "branches": len(branches),
                "safe": labels.count(True),
                "unsafe": labels.count(False),
                "error": labels.count(None),
                "unfinished": sum(not branch["finished"] for branch in branches),
                "with_pair": int(pair),
            }
            total = self._points.setdefault(at, dict.fromkeys(found, 0))
            for name, value in found.items():
                total[name] += value
        self._paired += has_pair

    def found(self) -> dict[str, Any]:
        """{"questions", "questions_with_pair", "branches", "safe", "unsafe", "error", "unfinished",
        "references": {"safe", "unsafe", "error"}, "points": [{"at", "questions", "branches",
        "safe", "unsafe", "error", "unfinished", "with_pair"}]}.

        `safe` branches can be chosen, `unsafe` ones can be rejected, `error` ones are left out;
        `unfinished` of them have no end, and were not judged. `with_pair` counts the questions that
        have both a safe and an unsafe branch at that point.
        """
        counted = ("branches", "safe", "unsafe", "error", "unfinished")
        points = self._points
        return {
            "questions": self._questions,
            "questions_with_pair": self._paired,
            **{name: sum(point[name] for point in points.values()) for name in counted},
            "references": dict(self._references),
            "points": [{"at": at, **points[at]} for at in sorted(points)],
        }


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary as a table for a terminal: per point the shares of its branches in percent."""
    columns = ("SAFE", "UNSAFE", "ERROR", "unfinished")
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
    found = summary["references"]
    lines.append(
        f"{summary['branches']} branches; {summary['questions_with_pair']} of "
        f"{summary['questions']} questions have a pair; reference paths: {found['safe']} safe, "
        f"{found['unsafe']} unsafe, {found['error']} ERROR"
    )
    return "\n".join(lines)
