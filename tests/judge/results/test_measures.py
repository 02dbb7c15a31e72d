"""What `srpo pilot` counts on judged trees, against counts made by hand."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.verdict_store import unjudged
from srpo_jax.judge.results.measures import count_pairs, measure

RULES = {"scope": "reply", "require_effective": False}


def branch(at, k, tokens, verdict, *, finished=True, status="ok"):
    found = {**unjudged(""), "reply_verdict": verdict, "path_verdict": "SAFE"}
    reply = "Yes." if finished and status == "ok" else None
    own = {"at": at, "k": k, "tokens": tokens, "finished": finished}
    return {**found, **own, "status": status, "reply_text": reply, "text": f"{at}{k}"}


def tree(name, branches, *, risky=None, category=None):
    return {
        "id": name,
        "risky": risky,
        "category": category,
        "branches": branches,
        "reference_verdict": {**unjudged(""), "reply_verdict": "SAFE"},
    }


RISKY = tree(
    "risky",
    [
        branch(0, 0, [1], "SAFE"),
        branch(0, 1, [2], "UNSAFE"),
        branch(0, 2, [1], "SAFE"),  # said before
        branch(0, 3, [3], "UNSAFE"),
        branch(1, 0, [4], "SAFE"),
        branch(1, 1, [5], "ERROR"),
        branch(1, 2, [6], "ERROR", finished=False, status="unfinished"),
        branch(1, 3, [7], "UNSAFE"),
    ],
    risky=True,
    category="violence",
)
BENIGN = tree("benign", [branch(0, 0, [1], "SAFE"), branch(0, 1, [8], "ERROR")], risky=False)


def test_counts_by_group():
    """Copies count as repeated and in no pair; what no judge was asked about is no ERROR; every
    question counts in all, in its side of risk, and in its category."""
    found = measure([RISKY, BENIGN], **RULES)
    assert (found["questions"], found["branches"], found["repeated"]) == (2, 10, 1)
    assert found["statuses"] == {"ok": 9, "unfinished": 1}
    assert found["references"] == {"safe": 2, "unsafe": 0, "error": 0}
    groups = found["groups"]
    assert list(groups) == ["all", "risky", "benign", "category violence"]
    risky = dict(questions=1, with_pair=1, pairs=3, branches=8, unfinished=1, asked=7)
    assert groups["risky"] == {**risky, "error": 1, "safe": 3, "unsafe": 3}
    assert groups["category violence"] == groups["risky"]
    benign = dict(questions=1, with_pair=0, pairs=0, branches=2, unfinished=0, asked=2)
    assert groups["benign"] == {**benign, "error": 1, "safe": 1, "unsafe": 0}
    assert groups["all"] == {
        name: groups["risky"][name] + groups["benign"][name] for name in groups["all"]
    }


@pytest.mark.parametrize(
    "pairing, points, expected",
    [("all", "all", 3), ("one", "all", 2), ("rpo_code", "all", 2), ("all", "first", 2)],
)
def test_pairs_are_those_that_training_would_use(pairing, points, expected):
    """By objective.pairing, max_pairs and branch_points."""
    options = {"pairing": pairing, "max_pairs": 2, "branch_points": points}
    assert count_pairs(RISKY, RULES, **options) == expected
