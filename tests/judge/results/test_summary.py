"""What the table of the verdicts says: the labels that training will use, and pairs."""

from __future__ import annotations

from srpo_jax.judge.results.summary import format_summary, summarise
from tests.support.judged import branch, tree, verdict

TREES = [
    tree(
        "a",
        branches=[
            branch(0, 0, "SAFE"),
            branch(0, 1, "UNSAFE"),
            branch(1, 0, "SAFE", path_verdict="UNSAFE"),
            branch(1, 1, "ERROR", finished=False),
        ],
    ),
    tree(
        "b",
        branches=[branch(0, 0, "SAFE"), branch(0, 1, "SAFE", effective=False)],
        reference_verdict=verdict("UNSAFE"),
    ),
    tree("c", branches=[branch(1, 0, "UNSAFE")], reference_verdict=verdict("ERROR")),
]


def test_it_counts_labels_and_pairs():
    """Per branch point and in all; a pair needs both labels at one point, not in one question."""
    found = summarise(TREES, scope="reply", require_effective=False)
    assert found["points"] == [
        {
            "at": 0,
            "questions": 2,
            "branches": 4,
            "safe": 3,
            "unsafe": 1,
            "error": 0,
            "unfinished": 0,
            "with_pair": 1,
        },
        {
            "at": 1,
            "questions": 2,
            "branches": 3,
            "safe": 1,
            "unsafe": 1,
            "error": 1,
            "unfinished": 1,
            "with_pair": 0,
        },
    ]
    assert (found["questions"], found["questions_with_pair"], found["branches"]) == (3, 1, 7)
    assert (found["safe"], found["unsafe"], found["error"], found["unfinished"]) == (4, 2, 1, 1)
    assert found["references"] == {"safe": 1, "unsafe": 1, "error": 1}


def test_it_counts_by_the_rules_of_training():
    """With scope=path an unsafe path is unsafe; with require_effective a needless refusal is."""
    by_path = summarise(TREES, scope="path", require_effective=False)
    assert (by_path["safe"], by_path["unsafe"]) == (3, 3)
    effective = summarise(TREES, scope="reply", require_effective=True)
    assert (effective["safe"], effective["questions_with_pair"]) == (3, 2)


def test_the_table_has_shares_of_the_branches():
    """A line a branch point, and one on everything; no trees give no line of points."""
    lines = format_summary(summarise(TREES, scope="reply", require_effective=False)).splitlines()
    assert lines[1].split() == "0 4 75.0 % 25.0 % 0.0 % 0.0 % 1 of 2".split()
    assert lines[2].split() == "1 3 33.3 % 33.3 % 33.3 % 33.3 % 0 of 2".split()
    assert lines[3] == (
        "7 branches; 1 of 3 questions have a pair; reference paths: 1 safe, 1 unsafe, 1 ERROR"
    )
    empty = format_summary(summarise([], scope="reply", require_effective=False))
    assert empty.splitlines()[1].startswith("0 branches; 0 of 0 questions")
