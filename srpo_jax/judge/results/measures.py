"""What a small exploration says of a large one: shares that can be counted on judged trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from srpo_jax.data_pipelines.verdict_store import branch_label, why_not_judged
from srpo_jax.explore.summary import BranchCounts

Tree = Mapping[str, Any]


def measure(
    trees: Iterable[Tree],
    *,
    scope: str,
    require_effective: bool,
    keep_irregular: bool = False,
    pairing: str = "all",
    max_pairs: int = 8,
    branch_points: str = "all",
) -> dict[str, Any]:
    """Counts over trees that are joined with their verdicts (JudgedTrees).

    scope, require_effective: what makes a branch safe, see branch_label. pairing, max_pairs,
    branch_points: which pairs training would use, see pack.tree_layout.choose_pairs; a branch with
    the tokens of an earlier one of its point is not counted in them.

    Returns {"questions", "branches", "statuses": {status: branches}, "repeated", "references":
    {"safe", "unsafe", "error"}, "groups": {"all" | "risky" | "benign" | "category NAME":
    {"questions", "with_pair", "pairs", "branches", "unfinished", "asked", "error", "safe",
    "unsafe"}}}. repeated: branches with the tokens of an earlier one of their point. Of `branches`,
    `asked` are those that can be judged, and of them `error` those without a label.
    """
    rules = {"scope": scope, "require_effective": require_effective}
    groups: dict[str, Counter[str]] = {}
    references = {"safe": 0, "unsafe": 0, "error": 0}
    names = {True: "safe", False: "unsafe", None: "error"}

    counts = BranchCounts()
    for tree in trees:
        counts.add(tree)
        references[names[branch_label(tree["reference_verdict"], **rules)]] += 1
        pairs = count_pairs(
            tree, rules, pairing=pairing, max_pairs=max_pairs, branch_points=branch_points
        )
        found = Counter(questions=1, with_pair=int(pairs > 0), pairs=pairs)
        for branch in tree["branches"]:
            found["branches"] += 1
            found["unfinished"] += not branch["finished"]
            if not why_not_judged(branch, keep_irregular):
                found["asked"] += 1
                found[names[branch_label(branch, **rules)]] += 1
        for name in groups_of(tree):
            groups.setdefault(name, Counter()).update(found)
    sampled = counts.found()
    counted = ("questions", "with_pair", "pairs", "branches", "unfinished", "asked")
    return {
        "questions": sampled["questions"],
        "branches": sampled["branches"],
        "statuses": sampled["statuses"],
        "repeated": sum(point["repeated"] for point in sampled["points"]),
        "references": references,
        "groups": {
            name: {field: groups[name][field] for field in (*counted, "error", "safe", "unsafe")}
            for name in sorted(groups, key=_group_order)
        },
    }


def groups_of(tree: Tree) -> list[str]:
    """The groups that a question counts in."""
    found = ["all"]
    if tree["risky"] is not None:
        found.append("risky" if tree["risky"] else "benign")
    if tree["category"] is not None:
        found.append(f"category {tree['category']}")
    return found


def _group_order(name: str) -> tuple[int, str]:
    plain = ("all", "risky", "benign")
    return (plain.index(name) if name in plain else len(plain)), name


def count_pairs(
    tree: Tree, rules: Mapping[str, Any], *, pairing: str, max_pairs: int, branch_points: str
) -> int:
    """How many pairs of a safe and an unsafe branch an epoch has of this tree."""
    points: dict[int, dict[tuple[int, ...], bool | None]] = {}
    for branch in tree["branches"]:
        if branch_points == "all" or branch["at"] == 0:
            own = points.setdefault(branch["at"], {})
            own.setdefault(tuple(branch["tokens"]), branch_label(branch, **rules))
    products = []
    for labels in points.values():
        found = list(labels.values())
        products.append(found.count(True) * found.count(False))
    if pairing == "one":
        return sum(product > 0 for product in products)
    return min(sum(products), max_pairs) if pairing == "rpo_code" else sum(products)
